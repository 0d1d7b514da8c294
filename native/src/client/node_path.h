// How a client reaches a node: through mapped memory or a socket, and why not better.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "wire/attach_cause.h"

namespace kvstore {

enum class Place : uint8_t { kUnknown = 0, kThisHost = 1, kOtherHost = 2 };

// What is known of a node's memory, and why it is not mapped.
struct NodePath {
    bool attached = false;
    Place place = Place::kUnknown;
    AttachCause cause = AttachCause::kNone;  // of the last attempt to attach, when it failed
    std::string detail;                      // its words
    uint64_t failures = 0;                   // such attempts
};

// Called when it turns out that a node of this host cannot be attached: once for each node and
// cause. By the thread whose call found out, which holds no lock.
using OnUnattached = std::function<void(const std::string& node_id,
                                        const std::string& unix_endpoint, const NodePath&)>;

}  // namespace kvstore
