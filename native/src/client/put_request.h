// A put's message at one node, and the wait for its answer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "net/channel.h"
#include "ucx/ucx_worker.h"

namespace kvstore {

struct PutRequest {
    MessageType type{};
    std::span<const uint8_t> body{};
    Payload payload{};
    Deadline deadline = Deadline::never();
    uint64_t patience_ms = 0;     // without a sign of life of the node
    UcxWorker* worker = nullptr;  // that the node fetches the bytes from; null: none
};

// A put may have to wait at its node, for another writer of its key. So one that is not answered
// after a while is followed by a Ping, which a node that lives answers at once. A code for each
// row.
Status ask(Channel& channel, const PutRequest& request, std::vector<int32_t>* codes);

}  // namespace kvstore
