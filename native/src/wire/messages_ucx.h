// One-sided transfers by UCX: what a client asks a node, and what a node and its UCX processes say
// to each other.
#pragma once

#include "wire/fields.h"
#include "wire/frame.h"

namespace kvstore {

inline constexpr size_t kMaxUcxAddressBytes = 4096;
inline constexpr size_t kMaxUcxPieces = 65536;     // of all objects of a put
inline constexpr uint32_t kInPieces = UINT32_MAX;  // of key_of: the row's bytes are the next pieces

// By which the memory of the session's domain is read. Only for tenants that may write it by
// mapping it, too: a key lets its holder write.
struct UcxOpen {
    static constexpr MessageType kType = MessageType::kUcxOpen;
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) { v.timeout(40, m.timeout_ms); }
};
struct UcxOpenReply {
    static constexpr MessageType kType = MessageType::kUcxOpenReply;
    int32_t code = 0;
    std::string_view text{};    // why not
    uint64_t life = 0;          // of the UCX process: the address and keys end with it
    std::string_view worker{};  // its address
    U64Column offsets{};        // a row for each registered slice of the segment, ascending
    U64Column sizes{};
    U64Column addresses{};  // where it lies in that process
    KeyList keys{};
    static void fields(auto& m, auto& v) {
        v.rows(1, m.offsets);
        v.row(2, m.sizes);
        v.row(3, m.addresses);
        v.row(4, m.keys);
        v.number(5, m.code);
        v.text(6, m.text, kMaxErrorTextBytes);
        v.number(7, m.life);
        v.text(8, m.worker, kMaxUcxAddressBytes);
    }
};

// As Get, but the client fetches the bytes itself. What is found is held until UcxDone names the
// request.
struct UcxGet {
    static constexpr MessageType kType = MessageType::kUcxGet;
    KeyList keys{};
    U64Column versions{};
    U64Column max_sizes{};
    uint32_t timeout_ms = 0;
    static void fields(auto& m, auto& v) {
        v.rows(1, m.keys);
        v.row(2, m.versions);
        v.row(3, m.max_sizes);
        v.timeout(40, m.timeout_ms);
    }
};
inline constexpr uint64_t kNotInSegment = UINT64_MAX;  // of UcxGetReply::offsets: use Get
struct UcxGetReply {
    static constexpr MessageType kType = MessageType::kUcxGetReply;
    I32Column status{};
    U64Column sizes{};
    U64Column versions{};
    U32Column crcs{};  // sealed
    U8Column reasons{};
    U64Column offsets{};  // into the segment
    uint64_t life = 0;    // of the UCX process that it is registered with
    U8Column hot{};       // as in GetReply
    static void fields(auto& m, auto& v) {
        v.rows(1, m.status);
        v.row(2, m.sizes);
        v.row(3, m.versions);
        v.row(4, m.crcs);
        v.row(5, m.reasons);
        v.row(6, m.offsets);
        v.number(7, m.life);
        v.row(8, m.hot, 1);
    }
};
// No more reads of what was found for these requests. Not answered.
struct UcxDone {
    static constexpr MessageType kType = MessageType::kUcxDone;
    U64Column requests{};
    static void fields(auto& m, auto& v) { v.rows(1, m.requests); }
};

// As Put, but the node fetches the bytes from the client's registered memory.
struct UcxPut {
    static constexpr MessageType kType = MessageType::kUcxPut;
    KeyList keys{};
    U64Column sizes{};
    U8Column pins{};
    U8Column replicas{};
    U32Column ttl_ms{};
    U8Column flags{};
    KeyList parents{};
    U32Column crcs{};           // of the data, not sealed
    U64Column addresses{};      // in the client's process
    U32Column key_of{};         // which of memory_keys, or kInPieces
    std::string_view worker{};  // the client's address
    KeyList memory_keys{};
    uint32_t fetch_ms = 0;  // for the bytes; those that have not come by then are kUnavailable
    U64Column piece_addresses{};
    U64Column piece_sizes{};
    U32Column piece_keys{};
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
        v.row(9, m.addresses);
        v.row(10, m.key_of);
        v.text(11, m.worker, kMaxUcxAddressBytes);
        v.list(12, m.memory_keys, limits::kMaxBatchKeys);
        v.number(13, m.fetch_ms, limits::kMaxTimeoutMs);
        v.list(14, m.piece_addresses, kMaxUcxPieces);
        v.list(15, m.piece_sizes, kMaxUcxPieces);
        v.list(16, m.piece_keys, kMaxUcxPieces);
        v.timeout(40, m.timeout_ms);
    }
};

// ---- between a node and its UCX processes ----------------------------------------------------

// Process → node: it can be reached.
struct UcxReady {
    static constexpr MessageType kType = MessageType::kUcxReady;
    std::string_view worker{};
    std::string_view library{};  // path and version
    static void fields(auto& m, auto& v) {
        v.text(1, m.worker, kMaxUcxAddressBytes);
        v.text(2, m.library, kMaxErrorTextBytes);
    }
};
// Node → process: so much of the segment has memory, and may be registered.
struct UcxGrow {
    static constexpr MessageType kType = MessageType::kUcxGrow;
    uint64_t ready_bytes = 0;
    static void fields(auto& m, auto& v) { v.number(1, m.ready_bytes); }
};
// Process → node: a slice has been registered, or why none will be any more.
struct UcxSlice {
    static constexpr MessageType kType = MessageType::kUcxSlice;
    uint64_t offset = 0;
    uint64_t size = 0;
    uint64_t address = 0;
    std::string_view key{};
    std::string_view text{};
    static void fields(auto& m, auto& v) {
        v.number(1, m.offset);
        v.number(2, m.size);
        v.number(3, m.address);
        v.text(4, m.key, limits::kMaxKeyBytes);
        v.text(5, m.text, kMaxErrorTextBytes);
    }
};
// Node → process: fetch these into their blocks.
struct UcxPull {
    static constexpr MessageType kType = MessageType::kUcxPull;
    U64Column offsets{};  // of the blocks
    U64Column sizes{};
    U64Column addresses{};
    U32Column key_of{};
    std::string_view worker{};
    KeyList memory_keys{};
    U64Column piece_addresses{};  // as in UcxPut
    U64Column piece_sizes{};
    U32Column piece_keys{};
    static void fields(auto& m, auto& v) {
        v.rows(1, m.offsets);
        v.row(2, m.sizes);
        v.row(3, m.addresses);
        v.row(4, m.key_of);
        v.text(5, m.worker, kMaxUcxAddressBytes);
        v.list(6, m.memory_keys, limits::kMaxBatchKeys);
        v.list(7, m.piece_addresses, kMaxUcxPieces);
        v.list(8, m.piece_sizes, kMaxUcxPieces);
        v.list(9, m.piece_keys, kMaxUcxPieces);
    }
};
// Process → node: nothing is written into the blocks of this request any more.
struct UcxPulled {
    static constexpr MessageType kType = MessageType::kUcxPulled;
    I32Column status{};
    U32Column crcs{};  // of the bytes as they lie in the block
    static void fields(auto& m, auto& v) {
        v.rows(1, m.status);
        v.row(2, m.crcs);
    }
};

}  // namespace kvstore
