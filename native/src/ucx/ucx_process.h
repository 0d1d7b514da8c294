// The process that gives UCX access to one segment of a node. It maps that segment and nothing else
// of the node: peers on the fabric are not authenticated by UCX, and it trusts what they say of
// themselves.
#pragma once

#include <cstdint>

#include "base/file.h"
#include "ucx/ucx_context.h"

namespace kvstore {

struct UcxProcessOptions {
    UcxOptions ucx;
    uint64_t slice_bytes = 256u << 20;  // registered at a time
};

// Serves until the node closes the socket: then Ok. The segment is locked (fcntl) meanwhile, so
// that no later life of the node takes it over while something is written into it.
Status run_ucx_process(Fd socket, Fd segment, const UcxProcessOptions& options);

}  // namespace kvstore
