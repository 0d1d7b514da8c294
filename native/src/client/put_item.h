// What a put is asked to write, and the columns in which its messages say so.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/pieces.h"
#include "client/client_context.h"

namespace kvstore {

struct PutItem {
    std::string_view key;
    Pieces data;
    std::string_view parent;        // key of the previous block of the chain, or empty
    Code result = Code::kInternal;  // after the call
};

class DeviceSource;

struct PutOptions {
    uint8_t replicas = 1;
    Pin pin = Pin::kNone;
    uint32_t ttl_ms = 0;  // 0: none
    bool upsert = false;  // a new version where the key has an object, never kAlreadyExists
    DeviceSource* device = nullptr;  // the items' data is a GPU's memory; null: it is the host's
};

// An item that has no final answer yet; no code has this number.
inline constexpr Code kPutOpen = static_cast<Code>(1);

// The deadline, or the moment `ms` from now if that is sooner.
inline Deadline sooner(Deadline deadline, uint64_t ms) {
    const auto left = static_cast<uint64_t>(deadline.left_ms());
    return left <= ms ? deadline : Deadline::after_ms(ms);
}

// The columns that Reserve and Put share; they view the items' keys.
struct PutRows {
    PutRows(std::span<PutItem* const> items, const PutOptions& options);
    template <class Message>
    void fill(Message* message) const {
        message->keys = keys;
        message->sizes = sizes;
        message->pins = pins;
        message->replicas = replicas;
        message->ttl_ms = ttl_ms;
        message->parents = parents;
        message->flags = flags;
    }
    std::vector<std::string_view> keys;
    std::vector<std::string_view> parents;  // empty when no row has one
    std::vector<uint64_t> sizes;
    std::vector<uint8_t> pins;
    std::vector<uint8_t> replicas;
    std::vector<uint32_t> ttl_ms;
    std::vector<uint8_t> flags;
};

}  // namespace kvstore
