// How near a node is to this process, by their labels; and from where a replica is read first.
// Pure.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/locality.h"

namespace kvstore {

// What the RDMA ports of two hosts reach of each other.
enum class Fabrics : uint8_t {
    kUnknown,  // a label is missing, or both are IPv4 networks, between which RoCE v2 may be routed
    kShared,
    kApart,
};
// Of two labels `rdma_domain`: fabrics joined by '+', one of which in common is enough.
Fabrics compare_fabrics(std::string_view mine, std::string_view theirs);

struct Nearness {
    bool host = false;
    bool numa = false;         // on the same host
    bool rdma_domain = false;  // and both can use UCX
    bool rack = false;
    friend bool operator==(const Nearness&, const Nearness&) = default;
};
Nearness nearness_of(const Locality& mine, const Locality& theirs, bool same_host, bool by_ucx);
// "numa", "host", "rdma_domain", "rack" or "other": the best that is true of it.
std::string_view nearness_name(const Nearness& near);

// What can be read of a node now.
enum class ReadWay : uint8_t {
    kNone,    // it is down
    kFailed,  // it failed a moment ago: asked after all others
    kSocket,
    kKept,  // its memory is on this host, its process has ended
    kMapped,
};
// The highest is read first; 0: not at all. One more is still below the next.
int read_score(ReadWay way, const Nearness& near);

}  // namespace kvstore
