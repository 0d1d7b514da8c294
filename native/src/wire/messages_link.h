// The link between a node and the master: claims, announcements, withdrawals; operations, copy
// orders; heartbeats.
#pragma once

#include "wire/fields.h"
#include "wire/frame.h"

namespace kvstore {

// Node → master: may I write these keys? Answered row by row, in one or several ClaimReply frames.
struct Claim {
    static constexpr MessageType kType = MessageType::kClaim;
    std::string_view tenant{};
    std::string_view ns{};
    uint32_t epoch = 0;
    U64Column claim_ids{};  // chosen by the node, unique within its session
    KeyList keys{};
    U64Column sizes{};
    U8Column flags{};  // kPutUpsert
    U8Column pins{};
    U8Column replicas{};
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.text(1, m.tenant, limits::kMaxNameBytes);
        v.text(2, m.ns, limits::kMaxNameBytes);
        v.number(3, m.epoch);
        v.rows(4, m.claim_ids);
        v.row(5, m.keys);
        v.row(6, m.sizes);
        v.row(7, m.flags);
        v.row(8, m.pins, 2);
        v.row(9, m.replicas, limits::kMaxReplicas);
        v.timeout(40, m.timeout_ms);
    }
    bool consistent() const { return keys.size() == claim_ids.size(); }
};
struct ClaimReply {
    static constexpr MessageType kType = MessageType::kClaimReply;
    U64Column claim_ids{};
    I32Column status{};
    U64Column versions{};  // granted, or the published one with kAlreadyExists
    U8Column flags{};      // kClaimFirst
    static void fields(auto& m, auto& v) {
        v.rows(1, m.claim_ids);
        v.row(2, m.status);
        v.row(3, m.versions);
        v.row(4, m.flags);
    }
};
// Nothing of the key is recorded anywhere: once its announce is on the way, the put may be
// answered.
inline constexpr uint8_t kClaimFirst = 1;

// Node → master: these claims will not be used.
struct Abandon {
    static constexpr MessageType kType = MessageType::kAbandon;
    U64Column claim_ids{};
    static void fields(auto& m, auto& v) { v.rows(1, m.claim_ids); }
};

enum class AnnouncePhase : uint8_t { kIncremental = 0, kBegin = 1, kMiddle = 2, kEnd = 3 };

// Node → master: these versions are readable here. A full announce is begin, middle…, end.
struct Announce {
    static constexpr MessageType kType = MessageType::kAnnounce;
    uint64_t seq = 0;  // one number line per session, shared with Withdraw; a gap is an error
    AnnouncePhase phase = AnnouncePhase::kIncremental;
    std::string_view tenant{};
    std::string_view ns{};
    uint32_t epoch = 0;
    KeyList keys{};
    U64Column versions{};
    U64Column sizes{};
    U8Column pins{};
    U8Column replicas{};  // wanted
    U64Column ttl_ms{};   // remaining milliseconds; 0: none
    U8Column copies{};    // replicas wanted while many read it; 0: no more than those above
    static void fields(auto& m, auto& v) {
        v.number(1, m.seq);
        v.number(2, m.phase, 3);
        v.text(3, m.tenant, limits::kMaxNameBytes);
        v.text(4, m.ns, limits::kMaxNameBytes);
        v.number(5, m.epoch);
        v.rows(6, m.keys);
        v.row(7, m.versions);
        v.row(8, m.sizes);
        v.row(9, m.pins, 2);
        v.row(10, m.replicas, limits::kMaxReplicas);
        v.row(11, m.ttl_ms);
        v.row(12, m.copies, limits::kMaxReplicas);
    }
};
struct AnnounceReply {
    static constexpr MessageType kType = MessageType::kAnnounceReply;
    uint64_t seq = 0;
    I32Column status{};  // kRemoved: a tombstone is newer, drop it
    static void fields(auto& m, auto& v) {
        v.number(1, m.seq);
        v.rows(2, m.status);
    }
};

// Node → master: these versions are gone from here.
struct Withdraw {
    static constexpr MessageType kType = MessageType::kWithdraw;
    uint64_t seq = 0;
    std::string_view tenant{};
    std::string_view ns{};
    uint32_t epoch = 0;
    KeyList keys{};
    U64Column versions{};
    U8Column reasons{};  // MissReason
    static void fields(auto& m, auto& v) {
        v.number(1, m.seq);
        v.text(2, m.tenant, limits::kMaxNameBytes);
        v.text(3, m.ns, limits::kMaxNameBytes);
        v.number(4, m.epoch);
        v.rows(5, m.keys);
        v.row(6, m.versions);
        v.row(7, m.reasons);
    }
};

enum class OpKind : uint8_t { kNone = 0, kRemove = 1, kFlush = 2, kPin = 3 };

// Master → node: durable operations, numbered first_seq, first_seq + 1, …; or (first_seq 0) what a
// node has to know without its history, for which no acknowledgement counts.
struct Ops {
    static constexpr MessageType kType = MessageType::kOps;
    uint64_t first_seq = 0;
    U8Column kinds{};  // OpKind; an unknown one is acknowledged and ignored
    KeyList tenants{};
    KeyList namespaces{};
    U32Column epochs{};    // of the namespace; kFlush: the epoch that ends
    KeyList keys{};        // empty for kFlush
    U64Column versions{};  // kRemove: up to and including
    U64Column args{};      // kPin: the level
    static void fields(auto& m, auto& v) {
        v.number(1, m.first_seq);
        v.rows(2, m.kinds);
        v.row(3, m.tenants);
        v.row(4, m.namespaces);
        v.row(5, m.epochs);
        v.row(6, m.keys);
        v.row(7, m.versions);
        v.row(8, m.args);
    }
};
// Node → master: everything up to and including `seq` is applied.
struct OpsAck {
    static constexpr MessageType kType = MessageType::kOpsAck;
    uint64_t seq = 0;
    static void fields(auto& m, auto& v) { v.number(1, m.seq); }
};

// Master → node: send this version to that node (CopyPut).
struct Copy {
    static constexpr MessageType kType = MessageType::kCopy;
    uint64_t copy_id = 0;
    std::string_view tenant{};
    std::string_view ns{};
    uint32_t epoch = 0;
    std::string_view key{};
    uint64_t version = 0;
    std::string_view target_endpoint{};
    std::string_view target_node{};
    static void fields(auto& m, auto& v) {
        v.number(1, m.copy_id);
        v.text(2, m.tenant, limits::kMaxNameBytes);
        v.text(3, m.ns, limits::kMaxNameBytes);
        v.number(4, m.epoch);
        v.text(5, m.key, limits::kMaxKeyBytes);
        v.number(6, m.version);
        v.text(7, m.target_endpoint, limits::kMaxEndpointBytes);
        v.text(8, m.target_node, limits::kMaxNameBytes);
    }
};
struct CopyDone {
    static constexpr MessageType kType = MessageType::kCopyDone;
    uint64_t copy_id = 0;
    int32_t code = 0;
    static void fields(auto& m, auto& v) {
        v.number(1, m.copy_id);
        v.number(2, m.code);
    }
};

// Node → master, where both offer kFeatureHeartbeats: the control plane's own messages, which
// native code does not look into. A node asks one at a time.
struct Heartbeat {
    static constexpr MessageType kType = MessageType::kHeartbeat;
    std::string_view request{};  // HeartbeatRequest of node.proto
    static void fields(auto& m, auto& v) { v.text(1, m.request, limits::kMaxHeartbeatBytes); }
};
struct HeartbeatReply {
    static constexpr MessageType kType = MessageType::kHeartbeatReply;
    std::string_view reply{};  // HeartbeatReply of node.proto
    static void fields(auto& m, auto& v) { v.text(1, m.reply, limits::kMaxHeartbeatReplyBytes); }
};

}  // namespace kvstore
