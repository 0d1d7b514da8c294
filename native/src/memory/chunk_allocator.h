// Divides [0, capacity) into blocks: exact rounded size classes in chunks, extents for large
// blocks. Process-private bookkeeping only: it never touches the memory it divides. Not
// thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/status.h"

namespace kvstore {

class ChunkAllocator {
  public:
    struct Stats {
        uint64_t capacity_bytes = 0;   // grown so far
        uint64_t allocated_bytes = 0;  // rounded bytes of live blocks
        uint64_t requested_bytes = 0;  // exact bytes of live blocks
        uint64_t live_blocks = 0;
        uint64_t chunks = 0;
    };
    // `max_capacity` bounds what grow() may reach; `alignment` is the smallest rounding (a power of
    // 2).
    explicit ChunkAllocator(uint64_t max_capacity, uint32_t alignment = 64);
    ~ChunkAllocator();
    // More bytes became usable: [0, capacity_bytes).
    void grow(uint64_t capacity_bytes);

    // Offset of a block of at least `size_bytes` (0 is treated as 1), or nothing.
    std::optional<uint64_t> allocate(uint64_t size_bytes);
    void free(uint64_t offset);
    // Makes these blocks live, on an allocator that has none. In ascending order of their offsets.
    // Which of them could be: not those that overlap or that no chunk can hold.
    struct Block {
        uint64_t offset = 0;
        uint64_t size_bytes = 0;
    };
    std::vector<bool> adopt(std::span<const Block> blocks);
    // Rounded bytes the block at `offset` occupies; 0 when no live block starts there.
    uint64_t block_bytes(uint64_t offset) const;
    // Whether two sizes are served by the same class (evicting one makes room for the other).
    bool same_class(uint64_t size_a, uint64_t size_b) const;

    // When fragmentation, not bytes, is short: the live blocks to evict so that
    // allocate(size_bytes) then succeeds, chosen as the coldest chunk or run of chunks.
    // `heat(offset)` returns a block's recency (greater is hotter) or UINT64_MAX when it must not
    // be evicted. Empty when impossible.
    std::vector<uint64_t> reclaim_plan(uint64_t size_bytes,
                                       const std::function<uint64_t(uint64_t offset)>& heat) const;
    Stats stats() const;
    // Free + used = total, no overlap, lists and maps agree. For tests and audits; slow.
    Status audit() const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace kvstore
