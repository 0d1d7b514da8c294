// Which machine this is.
#pragma once

#include <cstdint>

namespace kvstore {

// The same number for every process under one kernel, in whatever container: a digest of its boot
// id. Host names are no proof, because every pod has one of its own. 0: not known.
uint64_t host_identity();

}  // namespace kvstore
