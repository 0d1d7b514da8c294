// The rows of a message that puts, as the put flow takes them.
#pragma once

#include <vector>

#include "node/put_flow.h"

namespace kvstore {

// Of Reserve, Put and UcxPut, whose rows have the same columns; and of CopyPut, which has no flags.
template <class Message>
std::vector<PutFlow::Row> put_rows(const Message& message) {
    std::vector<PutFlow::Row> rows(message.keys.size());
    for (size_t i = 0; i < rows.size(); ++i) {
        rows[i].key = message.keys[i];
        rows[i].size_bytes = message.sizes[i];
        rows[i].pin = static_cast<Pin>(message.pins[i]);
        rows[i].replicas = message.replicas[i];
        rows[i].ttl_ms = message.ttl_ms[i];
        rows[i].parent = message.parents[i];
        if constexpr (requires { message.spares; }) {
            rows[i].spare = message.spares[i];
        }
        if constexpr (requires { message.flags; }) {
            rows[i].upsert = (message.flags[i] & kPutUpsert) != 0;
        }
    }
    return rows;
}

}  // namespace kvstore
