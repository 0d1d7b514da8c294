// What the block store and its tables both speak of.
#pragma once

#include <cstdint>

namespace kvstore {

// Who reserves, leases or holds. `slot` is -1 when the node itself writes the bytes (socket puts,
// copies from peers): then the writer is this process and aborts by itself.
struct Owner {
    uint64_t session = 0;
    int slot = -1;
};

}  // namespace kvstore
