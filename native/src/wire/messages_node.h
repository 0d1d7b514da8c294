// What a client (or another node) asks a node: reserve, commit, get, put, leases and holds.
#pragma once

#include "base/trace_context.h"
#include "wire/fields.h"
#include "wire/frame.h"

namespace kvstore {

inline constexpr uint8_t kPutUpsert = 1;  // flags of Reserve, Put and Claim rows: a new version

// The client holds the lock of the slot that its Welcome named.
struct SlotReady {
    static constexpr MessageType kType = MessageType::kSlotReady;
    uint32_t slot = 0;
    // The slot's process no longer copies into blocks that it reserved in an earlier epoch of the
    // node than this; 0 says nothing.
    uint32_t writes_ended_below = 0;
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.number(1, m.slot);
        v.number(2, m.writes_ended_below);
        v.timeout(40, m.timeout_ms);
    }
};

struct Reserve {
    static constexpr MessageType kType = MessageType::kReserve;
    KeyList keys{};
    U64Column sizes{};
    U8Column pins{};
    U8Column replicas{};
    U32Column ttl_ms{};  // 0: none
    U8Column flags{};
    KeyList parents{};   // absent, or empty where there is none
    U64Column spares{};  // generation of a spare to write the row into; 0: into a new block
    // A block of this size is wanted for a later row, without a key yet; 0: none.
    uint64_t spare_size = 0;
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.rows(1, m.keys);
        v.row(2, m.sizes);
        v.row(3, m.pins, 2);
        v.row(4, m.replicas, limits::kMaxReplicas);
        v.row(5, m.ttl_ms);
        v.row(6, m.flags);
        v.row(7, m.parents);
        v.row(8, m.spares);
        v.number(9, m.spare_size);
        v.timeout(40, m.timeout_ms);
    }
};
struct ReserveReply {
    static constexpr MessageType kType = MessageType::kReserveReply;
    I32Column status{};
    U64Column generations{};
    U64Column offsets{};            // into the segment
    uint64_t spare_generation = 0;  // 0: none was granted
    uint64_t spare_offset = 0;
    uint32_t spare_ms = 0;  // how long it may be named
    static void fields(auto& m, auto& v) {
        v.rows(1, m.status);
        v.row(2, m.generations);
        v.row(3, m.offsets);
        v.number(4, m.spare_generation);
        v.number(5, m.spare_offset);
        v.number(6, m.spare_ms);
    }
};

struct Commit {
    static constexpr MessageType kType = MessageType::kCommit;
    U64Column generations{};
    U32Column crcs{};      // of the data, not sealed
    TraceContext trace{};  // of the client's call; all zero: not traced
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.rows(1, m.generations);
        v.row(2, m.crcs);
        v.timeout(40, m.timeout_ms);
        v.bytes(41, m.trace);
    }
};

// The writer says that its copies into these blocks have stopped.
struct Abort {
    static constexpr MessageType kType = MessageType::kAbort;
    U64Column generations{};
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.rows(1, m.generations);
        v.timeout(40, m.timeout_ms);
    }
};

struct Get {
    static constexpr MessageType kType = MessageType::kGet;
    KeyList keys{};
    U64Column versions{};   // 0: the newest here
    U64Column max_sizes{};  // a larger object answers kBufferTooSmall with its size, without bytes
    TraceContext trace{};   // of the client's call; all zero: not traced
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.rows(1, m.keys);
        v.row(2, m.versions);
        v.row(3, m.max_sizes);
        v.timeout(40, m.timeout_ms);
        v.bytes(41, m.trace);
    }
};
// The payload is the bytes of the rows that are kOk, one after the other.
struct GetReply {
    static constexpr MessageType kType = MessageType::kGetReply;
    I32Column status{};
    U64Column sizes{};
    U64Column versions{};
    U32Column crcs{};    // sealed
    U8Column reasons{};  // MissReason
    U8Column hot{};      // 1: many read it, so others may have it by now
    static void fields(auto& m, auto& v) {
        v.rows(1, m.status);
        v.row(2, m.sizes);
        v.row(3, m.versions);
        v.row(4, m.crcs);
        v.row(5, m.reasons);
        v.row(6, m.hot, 1);
    }
};

// The payload is the objects' bytes, one after the other; then, where crcs_behind says so, the
// CRC32C of each (32 bits, little-endian), so that the sender needs no pass before it sends. With
// `spares` there is no payload: the objects lie in these blocks of the segment already.
struct Put {
    static constexpr MessageType kType = MessageType::kPut;
    KeyList keys{};
    U64Column sizes{};
    U8Column pins{};
    U8Column replicas{};
    U32Column ttl_ms{};
    U8Column flags{};
    KeyList parents{};
    U32Column crcs{};  // of the data as the client sent it, not sealed; or absent
    bool crcs_behind = false;
    U64Column spares{};  // generation of the spare that each row's bytes lie in; or absent
    // A block of this size is wanted for a later row, without a key yet; 0: none.
    uint64_t spare_size = 0;
    TraceContext trace{};  // of the client's call; all zero: not traced
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.rows(1, m.keys);
        v.row(2, m.sizes);
        v.row(3, m.pins, 2);
        v.row(4, m.replicas, limits::kMaxReplicas);
        v.row(5, m.ttl_ms);
        v.row(6, m.flags);
        v.row(7, m.parents);
        v.row(8, m.crcs);
        v.number(9, m.crcs_behind);
        v.row(10, m.spares);
        v.number(11, m.spare_size);
        v.timeout(40, m.timeout_ms);
        v.bytes(41, m.trace);
    }
};

struct Lease {
    static constexpr MessageType kType = MessageType::kLease;
    KeyList keys{};
    uint32_t stride = 0;  // objects that make one page; 0 means 1
    uint32_t lease_ms = 0;
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.rows(1, m.keys);
        v.number(2, m.stride, limits::kMaxBatchKeys);
        v.number(3, m.lease_ms, limits::kMaxLeaseMs);
        v.timeout(40, m.timeout_ms);
    }
};
struct LeaseReply {
    static constexpr MessageType kType = MessageType::kLeaseReply;
    int32_t code = 0;
    uint64_t lease_id = 0;  // 0: nothing granted
    uint32_t length = 0;    // keys of the granted prefix
    uint32_t node_epoch = 0;
    static void fields(auto& m, auto& v) {
        v.number(1, m.code);
        v.number(2, m.lease_id);
        v.number(3, m.length, limits::kMaxBatchKeys);
        v.number(4, m.node_epoch);
    }
};
struct LeaseRenew {
    static constexpr MessageType kType = MessageType::kLeaseRenew;
    U64Column lease_ids{};
    uint32_t lease_ms = 0;
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.rows(1, m.lease_ids);
        v.number(2, m.lease_ms, limits::kMaxLeaseMs);
        v.timeout(40, m.timeout_ms);
    }
};
struct LeaseRelease {
    static constexpr MessageType kType = MessageType::kLeaseRelease;
    U64Column lease_ids{};
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.rows(1, m.lease_ids);
        v.timeout(40, m.timeout_ms);
    }
};

// Holds blocks by generation for a client whose slot is full.
struct Hold {
    static constexpr MessageType kType = MessageType::kHold;
    U64Column generations{};
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.rows(1, m.generations);
        v.timeout(40, m.timeout_ms);
    }
};
struct Unhold {
    static constexpr MessageType kType = MessageType::kUnhold;
    U64Column generations{};
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.rows(1, m.generations);
        v.timeout(40, m.timeout_ms);
    }
};

// The current state of the session's namespace.
struct Resolve {
    static constexpr MessageType kType = MessageType::kResolve;
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) { v.timeout(40, m.timeout_ms); }
};
struct ResolveReply {
    static constexpr MessageType kType = MessageType::kResolveReply;
    int32_t code = 0;
    uint64_t namespace_id = 0;
    uint32_t ns_epoch = 0;
    uint64_t flush_counter = 0;
    static void fields(auto& m, auto& v) {
        v.number(1, m.code);
        v.number(2, m.namespace_id);
        v.number(3, m.ns_epoch);
        v.number(4, m.flush_counter);
    }
};

// Node to node: replicas of versions that the master has ordered to be copied. With payload like
// Put.
struct CopyPut {
    static constexpr MessageType kType = MessageType::kCopyPut;
    std::string_view tenant{};
    std::string_view ns{};
    uint32_t epoch = 0;
    KeyList keys{};
    U64Column sizes{};
    U8Column pins{};
    U8Column replicas{};  // wanted of the object
    U32Column ttl_ms{};   // remaining; 0: none
    KeyList parents{};
    U64Column versions{};
    U32Column crcs{};  // of the data, not sealed
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.text(10, m.tenant, limits::kMaxNameBytes);
        v.text(11, m.ns, limits::kMaxNameBytes);
        v.number(12, m.epoch);
        v.rows(1, m.keys);
        v.row(2, m.sizes);
        v.row(3, m.pins, 2);
        v.row(4, m.replicas, limits::kMaxReplicas);
        v.row(5, m.ttl_ms);
        v.row(7, m.parents);
        v.row(8, m.crcs);
        v.row(9, m.versions);
        v.timeout(40, m.timeout_ms);
    }
};

// Asks for these to be in DRAM when they are read. Status: kOk when it is, is being brought, or
// the node has no time for it now; kNotFound otherwise.
struct Prefetch {
    static constexpr MessageType kType = MessageType::kPrefetch;
    KeyList keys{};
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.rows(1, m.keys);
        v.timeout(40, m.timeout_ms);
    }
};

// What a node knows of keys, for operators: where each is, or why it is gone.
struct Explain {
    static constexpr MessageType kType = MessageType::kExplain;
    KeyList keys{};
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.rows(1, m.keys);
        v.timeout(40, m.timeout_ms);
    }
};
inline constexpr uint8_t kInDram = 1;  // of ExplainReply::places
inline constexpr uint8_t kOnNvme = 2;
struct ExplainReply {
    static constexpr MessageType kType = MessageType::kExplainReply;
    U8Column places{};
    U64Column versions{};
    U64Column sizes{};
    U64Column put_ms{};   // wall clock; 0: not known
    U64Column used_ms{};  // wall clock, roughly; 0: not known
    U8Column reasons{};   // MissReason, where it is in no tier
    U64Column gone_ms{};  // wall clock, when that was; 0: not known
    static void fields(auto& m, auto& v) {
        v.rows(1, m.places);
        v.row(2, m.versions);
        v.row(3, m.sizes);
        v.row(4, m.put_ms);
        v.row(5, m.used_ms);
        v.row(6, m.reasons);
        v.row(7, m.gone_ms);
    }
};

struct Stats {
    static constexpr MessageType kType = MessageType::kStats;
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) { v.timeout(40, m.timeout_ms); }
};
struct StatsReply {
    static constexpr MessageType kType = MessageType::kStatsReply;
    KeyList names{};
    U64Column values{};
    static void fields(auto& m, auto& v) {
        v.rows(1, m.names);
        v.row(2, m.values);
    }
};

}  // namespace kvstore
