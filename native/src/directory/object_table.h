// One shard of the directory: the objects of its part of the hash space, 64 bytes each beside the
// key.
//
// An entry never moves. The index is open addressing over 8-byte slots {32-bit hash, entry number +
// 1} with linear probing, so that a lookup touches two cache lines (index, entry), which a batch
// prefetches one pass after the other. Keys lie in size classes of 8 bytes without headers.
// Not thread-safe: the directory's shard lock guards it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "base/limits.h"
#include "base/status.h"
#include "base/types.h"
#include "directory/shard_hash.h"
#include "directory/table_memory.h"

namespace kvstore {

// Where one copy lies: node slot (12 bits), tier (2 bits, 0 dram), mark of the announce round (1
// bit).
class Replica {
  public:
    Replica() = default;
    Replica(NodeNumber node, uint8_t tier, bool mark)
        : bits_(static_cast<uint16_t>(node | (tier & 3) << 12 | (mark ? 1 : 0) << 14)) {}
    bool empty() const { return bits_ == kEmpty; }
    NodeNumber node() const { return bits_ & 0xFFF; }
    uint8_t tier() const { return static_cast<uint8_t>(bits_ >> 12 & 3); }
    bool mark() const { return (bits_ >> 14 & 1) != 0; }

  private:
    static constexpr uint16_t kEmpty = 0xFFFF;
    uint16_t bits_ = kEmpty;
};
inline constexpr NodeNumber kMaxNodeSlots = limits::kMaxNodes - 1;  // 0xFFF would read as empty

// A cache line, and never in two.
struct alignas(64) ObjectEntry {
    const char* key_data = nullptr;  // nullptr: a free entry
    Version version = 0;
    uint64_t size : 41 = 0;
    uint64_t check_high : 23 = 0;
    uint64_t expires_at_ms : 48 = 0;  // boot time; 0 never
    uint64_t check_low : 16 = 0;
    uint32_t ns = 0;         // DirectoryEpoch::ref
    uint32_t hash = 0;       // the index's part of the hash; next free entry while free
    uint32_t created_s = 0;  // wall clock, when the master first heard of this version
    uint16_t key_bytes = 0;
    Pin pin = Pin::kNone;
    uint8_t replicas_wanted = 0;
    std::array<Replica, limits::kMaxReplicas> replicas;  // the empty ones last

    std::string_view key() const { return {key_data, key_bytes}; }
    void set_size(uint64_t bytes) { size = bytes & ((uint64_t{1} << 41) - 1); }
    void set_expiry(uint64_t at_ms) { expires_at_ms = at_ms & ((uint64_t{1} << 48) - 1); }
    void set_check(const KeyHash& of) {
        check_high = high_check(of) & 0x7FFFFF;
        check_low = of.check & 0xFFFF;
    }
    // Compares 39 bits, besides the 38 of the shard and the index, in place of the key: among 100
    // million objects that is wrong once in 10^15 lookups of absent keys.
    bool has_check(const KeyHash& of) const {
        return check_high == high_check(of) && check_low == (of.check & 0xFFFF);
    }
    static uint64_t high_check(const KeyHash& of) { return of.check >> 41; }
    size_t replica_count() const;
    // Position of the node's replica, or -1.
    int find_replica(NodeNumber node) const;
    void erase_replica(size_t position);
};
static_assert(sizeof(ObjectEntry) == 64);
static_assert(limits::kMaxObjectBytes < uint64_t{1} << 41);

class ObjectTable {
  public:
    static constexpr uint32_t kNone = UINT32_MAX;

    ObjectTable();
    // Before the first insert; it outlives this table.
    void set_memory(TableMemory* memory) { memory_ = memory; }
    ~ObjectTable();
    ObjectTable(const ObjectTable&) = delete;
    ObjectTable& operator=(const ObjectTable&) = delete;

    // The passes of a batched lookup: all keys of a batch go through one before the next starts.
    void prefetch_index(uint32_t hash) const { __builtin_prefetch(&slots_[hash & mask_]); }
    // The first entry with this hash, or kNone when there is none: the hint of the next passes.
    uint32_t prefetch_entry(uint32_t hash) const;
    uint32_t find_hinted(uint32_t hint, const KeyHash& hash, uint32_t ns,
                         std::string_view key) const {
        if (hint == kNone || (at(hint).ns == ns && at(hint).has_check(hash))) {
            return hint;
        }
        return find(hash.index, ns, key);
    }

    uint32_t find(uint32_t hash, uint32_t ns, std::string_view key) const;  // entry number or kNone
    // The key must be absent.
    uint32_t insert(const KeyHash& hash, uint32_t ns, std::string_view key);
    void erase(uint32_t number);

    ObjectEntry& at(uint32_t number) { return blocks_[number >> kBlockBits][number & kBlockMask]; }
    const ObjectEntry& at(uint32_t number) const {
        return blocks_[number >> kBlockBits][number & kBlockMask];
    }
    uint32_t end() const { return used_; }  // entry numbers below it exist, free ones included
    uint32_t size() const { return count_; }
    uint64_t memory_bytes() const;  // what it allocated, besides what it took from its memory

  private:
    struct Slot {
        uint32_t hash;
        uint32_t number_plus_one;  // 0: empty
    };
    static constexpr uint32_t kBlockBits = 8;
    static constexpr uint32_t kBlockMask = (1u << kBlockBits) - 1;
    static constexpr size_t kKeyClasses = limits::kMaxKeyBytes / 8;
    static constexpr size_t kKeysPerChunk = 64;

    void grow();
    char* allocate_key(size_t bytes);
    void free_key(const char* data, size_t bytes);

    std::vector<Slot, TableAllocator<Slot>> slots_;
    uint32_t mask_ = 0;
    uint32_t count_ = 0;
    uint32_t used_ = 0;
    uint32_t free_head_ = kNone;
    std::vector<ObjectEntry*> blocks_;
    TableMemory* memory_ = nullptr;  // of entries and keys
    std::array<char*, kKeyClasses> free_keys_{};
    // Chunks start at a cache line, so that short keys lie in one.
    std::array<char*, kKeyClasses> chunk_next_{};
    std::array<char*, kKeyClasses> chunk_end_{};
};

}  // namespace kvstore
