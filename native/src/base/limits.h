// Every bound on something that comes from outside, in one place. Checked before allocation.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvstore::limits {

inline constexpr size_t kMaxKeyBytes = 1024;     // UTF-8, after validation
inline constexpr size_t kMaxNameBytes = 255;     // tenant, namespace, node id, principal, label
inline constexpr size_t kMaxClaimsBytes = 1024;  // of a minted token
inline constexpr size_t kMaxBatchKeys = 4096;    // keys in one message; clients split longer lists
inline constexpr size_t kMaxBodyBytes = 8u << 20;  // tagged fields of one frame
inline constexpr uint64_t kMaxObjectBytes = 1ull << 40;
inline constexpr uint64_t kMaxPayloadBytes = 1ull
                                             << 32;  // raw bytes behind one frame; clients split
inline constexpr size_t kMaxReplicas = 8;
inline constexpr size_t kMaxNodes = 4096;
inline constexpr size_t kMaxEndpointBytes = 512;
// Labels that clients are told of each node: a whole table has to fit into one frame.
inline constexpr size_t kMaxNumaBytes = 16;
inline constexpr size_t kMaxRackBytes = 128;
inline constexpr size_t kMaxRdmaDomainBytes = kMaxNameBytes;
static_assert(kMaxNodes * (2 * kMaxNameBytes + 2 * kMaxEndpointBytes + kMaxNumaBytes +
                           kMaxRackBytes + kMaxRdmaDomainBytes + 64) <=
              kMaxBodyBytes);
inline constexpr size_t kMaxClients = 1024;      // processes that map a node's memory
inline constexpr size_t kMaxConnections = 4096;  // of one server
inline constexpr size_t kMaxQueuedBytes = 64u
                                          << 20;  // unsent reply bytes of one connection (bodies)
inline constexpr uint32_t kMaxTimeoutMs = 600'000;
inline constexpr uint32_t kMaxLeaseMs = 600'000;
// Lookups that wait at a master (wait_ms), and the bytes of their requests.
inline constexpr size_t kMaxWaitingLookups = 4096;
inline constexpr size_t kMaxWaitingLookupsPerConnection = 64;
inline constexpr size_t kMaxWaitingLookupBytes = 64u << 20;
// Chains of keys that a node tells its master in one heartbeat.
inline constexpr size_t kMaxPrefixes = 64;
// A heartbeat over the link. At its limits it has some 600 KiB: 256 of sampled uses, 100 of chains,
// the others of counters, latencies and labels. A larger one goes by gRPC.
inline constexpr size_t kMaxHeartbeatBytes = 1u << 20;
inline constexpr size_t kMaxHeartbeatReplyBytes = 64u << 10;
inline constexpr size_t kMaxWaitingHeartbeatBytes = 64u << 20;  // of all nodes, at a master
// Removes, flushes and changes of pins that wait at a master for nodes or for its disk.
inline constexpr size_t kMaxWaitingChanges = 4096;

inline constexpr uint32_t kReservationMs = 30'000;
inline constexpr uint32_t kHandshakeMs = 5'000;

}  // namespace kvstore::limits
