// Requests of a client to the master: where objects are, and what happens to them.
#pragma once

#include "base/types.h"
#include "wire/fields.h"
#include "wire/frame.h"

namespace kvstore {

inline constexpr uint32_t kLookupNoNodes = 1;  // only status, version and size are wanted
// Of an object that no node serves now, the nodes that are being restarted are wanted.
inline constexpr uint32_t kLookupRestarting = 2;

struct Lookup {
    static constexpr MessageType kType = MessageType::kLookup;
    KeyList keys{};
    uint32_t flags = 0;
    uint32_t wait_ms = 0;  // wait up to this long for every key to be readable
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.rows(1, m.keys);
        v.number(2, m.flags);
        v.timeout(3, m.wait_ms);
        v.timeout(40, m.timeout_ms);
    }
};
struct LookupReply {
    static constexpr MessageType kType = MessageType::kLookupReply;
    I32Column status{};  // Code
    U64Column versions{};
    U64Column sizes{};
    U8Column reasons{};  // MissReason
    U8Column replica_counts{};
    U32Column nodes{};      // flattened: replica_counts[0] node indexes, then replica_counts[1], …
    uint64_t nodes_id = 0;  // changes whenever the node table (Nodes) does
    static void fields(auto& m, auto& v) {
        v.rows(1, m.status);
        v.row(2, m.versions);
        v.row(3, m.sizes);
        v.row(4, m.reasons);
        v.row(5, m.replica_counts, limits::kMaxReplicas);
        v.list(6, m.nodes, limits::kMaxBatchKeys * limits::kMaxReplicas);
        v.number(7, m.nodes_id);
    }
    bool consistent() const {
        size_t total = 0;
        for (const uint8_t count : replica_counts) {
            total += count;
        }
        return total == nodes.size();
    }
};

// The node table that LookupReply.nodes speaks of.
struct Nodes {
    static constexpr MessageType kType = MessageType::kNodes;
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) { v.timeout(40, m.timeout_ms); }
};
struct NodesReply {
    static constexpr MessageType kType = MessageType::kNodesReply;
    U32Column indexes{};
    KeyList ids{};
    U8Column states{};  // NodeState
    KeyList tcp_endpoints{};
    KeyList unix_endpoints{};
    KeyList hosts{};
    U32Column weights{};
    U64Column free_bytes{};
    U64Column capacity_bytes{};
    U32Column epochs{};
    uint64_t nodes_id = 0;
    U8Column restarting{};  // 1: it is dead for a moment only; absent: none is
    KeyList numas{};        // these three: base/locality.h; absent: not known
    KeyList racks{};
    KeyList rdma_domains{};
    static void fields(auto& m, auto& v) {
        v.rows(1, m.indexes);
        v.row(2, m.ids);
        v.row(3, m.states, 3);
        v.row(4, m.tcp_endpoints);
        v.row(5, m.unix_endpoints);
        v.row(6, m.hosts);
        v.row(7, m.weights);
        v.row(8, m.free_bytes);
        v.row(9, m.capacity_bytes);
        v.row(10, m.epochs);
        v.number(11, m.nodes_id);
        v.row(12, m.restarting, 1);
        v.row(13, m.numas);
        v.row(14, m.racks);
        v.row(15, m.rdma_domains);
    }
};

struct Remove {
    static constexpr MessageType kType = MessageType::kRemove;
    KeyList keys{};
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.rows(1, m.keys);
        v.timeout(40, m.timeout_ms);
    }
};
struct RemoveReply {
    static constexpr MessageType kType = MessageType::kRemoveReply;
    I32Column status{};   // kOk, kNotFound, kPartial, …
    KeyList unreached{};  // node ids
    static void fields(auto& m, auto& v) {
        v.rows(1, m.status);
        v.list(2, m.unreached, limits::kMaxNodes);
    }
};

struct List {
    static constexpr MessageType kType = MessageType::kList;
    std::string_view prefix{};
    std::string_view cursor{};  // empty: from the start; else ListReply.cursor
    uint32_t limit = 0;         // 0: kMaxBatchKeys
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.text(1, m.prefix, limits::kMaxKeyBytes);
        v.text(2, m.cursor, 2 * limits::kMaxKeyBytes);
        v.number(3, m.limit);
        v.timeout(40, m.timeout_ms);
    }
};
struct ListReply {
    static constexpr MessageType kType = MessageType::kListReply;
    KeyList keys{};
    std::string_view cursor{};  // empty: that was all
    static void fields(auto& m, auto& v) {
        v.rows(1, m.keys);
        v.text(2, m.cursor, 2 * limits::kMaxKeyBytes);
    }
};

struct Inspect {
    static constexpr MessageType kType = MessageType::kInspect;
    std::string_view key{};
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.text(1, m.key, limits::kMaxKeyBytes);
        v.timeout(40, m.timeout_ms);
    }
};
struct InspectReply {
    static constexpr MessageType kType = MessageType::kInspectReply;
    bool found = false;
    uint64_t size = 0;
    uint64_t version = 0;
    Pin pin = Pin::kNone;
    uint64_t create_ms = 0;  // wall clock
    KeyList replica_node_ids{};
    U8Column replica_tiers{};  // 0 dram, 1 nvme
    uint8_t reason = 0;        // MissReason when not found
    uint32_t replicas_wanted = 0;
    static void fields(auto& m, auto& v) {
        v.number(1, m.found);
        v.number(2, m.size);
        v.number(3, m.version);
        v.number(4, m.pin, 2);
        v.number(5, m.create_ms);
        v.rows(6, m.replica_node_ids);
        v.row(7, m.replica_tiers);
        v.number(8, m.reason);
        v.number(9, m.replicas_wanted);
    }
};

// Sets (soft, hard) or removes (none) the durable pin of each key.
struct SetPin {
    static constexpr MessageType kType = MessageType::kSetPin;
    KeyList keys{};
    U8Column levels{};  // Pin
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.rows(1, m.keys);
        v.row(2, m.levels, 2);
        v.timeout(40, m.timeout_ms);
    }
};

// Flushes the session's namespace.
struct Flush {
    static constexpr MessageType kType = MessageType::kFlush;
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) { v.timeout(40, m.timeout_ms); }
};
struct FlushReply {
    static constexpr MessageType kType = MessageType::kFlushReply;
    int32_t code = 0;
    KeyList unreached{};  // node ids
    uint32_t ns_epoch = 0;
    static void fields(auto& m, auto& v) {
        v.number(1, m.code);
        v.list(2, m.unreached, limits::kMaxNodes);
        v.number(3, m.ns_epoch);
    }
};

}  // namespace kvstore
