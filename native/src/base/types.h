// The identifiers that everything speaks of: hashes, versions, generations, namespaces.
#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <string_view>

namespace kvstore {

// 128-bit keyed hash of (namespace id, key); keyed with the cluster's secret, so that nobody
// outside can construct collisions. Equality of hashes is never taken for equality of keys.
struct Hash128 {
    uint64_t lo = 0;
    uint64_t hi = 0;
    friend bool operator==(const Hash128&, const Hash128&) = default;
};
struct Hash128Hasher {
    size_t operator()(const Hash128& h) const { return static_cast<size_t>(h.lo); }
};

using TenantId = uint64_t;     // keyed 64-bit hash of the tenant's name
using NamespaceId = uint64_t;  // keyed 64-bit hash of (tenant, namespace, namespace epoch)

// (epoch, counter) packed so that plain integer order is the order in time: epoch << 40 | counter.
// A Version is drawn by the master, a Generation by a node; 0 means "none" in both.
using Version = uint64_t;
using Generation = uint64_t;
inline constexpr int kCounterBits = 40;
inline constexpr uint64_t kMaxCounter = (uint64_t{1} << kCounterBits) - 1;
inline constexpr uint32_t kMaxEpoch = (1u << 24) - 1;
constexpr uint64_t pack_epoch(uint32_t epoch, uint64_t counter) {
    return uint64_t{epoch} << kCounterBits | counter;
}
constexpr uint32_t epoch_of(uint64_t packed) {
    return static_cast<uint32_t>(packed >> kCounterBits);
}

using NodeNumber = uint16_t;  // position of a node in the master's table
using LinkId = uint64_t;      // one connection of one node; never reused
inline constexpr NodeNumber kNoNode = 0xFFFF;

// What a sealed checksum is bound to (native/README.md, rule 4).
struct Identity {
    TenantId tenant = 0;
    NamespaceId ns = 0;
    Hash128 hash;
    Version version = 0;
    uint64_t length = 0;
};

enum class Pin : uint8_t { kNone = 0, kSoft = 1, kHard = 2 };
// A restarting node has announced that it stops, and is awaited with what it holds. On the wire it
// is dead with a mark beside it (NodesReply), which is what it is for peers that know no mark.
enum class NodeState : uint8_t {
    kJoining = 0,
    kAlive = 1,
    kDraining = 2,
    kDead = 3,
    kRestarting = 4
};
constexpr bool is_gone(NodeState state) {
    return state == NodeState::kDead || state == NodeState::kRestarting;
}
enum class Role : uint8_t { kClient = 0, kNode = 1, kOperator = 2 };

}  // namespace kvstore
