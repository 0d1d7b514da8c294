// Finds chunks for blocks that are in use already: an allocator's state is never stored, it is the
// complement of the blocks that are known. Private to kv_alloc.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "memory/chunk_allocator.h"
#include "memory/chunk_table.h"

namespace kvstore {

class ChunkAdopter {
  public:
    explicit ChunkAdopter(ChunkTable& table) : table_(table) {}
    // See ChunkAllocator::adopt().
    std::vector<bool> adopt(std::span<const ChunkAllocator::Block> blocks);

  private:
    // Blocks of one size on one grid, close to each other.
    struct Run {
        uint64_t begin = 0;
        uint64_t end = 0;
        uint64_t block_bytes = 0;
        std::vector<size_t> members;  // numbers of its blocks
    };
    void collect_runs(std::span<const ChunkAllocator::Block> blocks);
    bool joins(const Run& run, uint64_t offset, uint64_t block_bytes, uint64_t gap_bytes) const;
    // Widens the run to the least size of a chunk, first downwards: what was one chunk before is
    // always found again that way, whatever its neighbours became.
    bool widen(Run& run, uint64_t low, uint64_t high) const;
    void make_chunks(const Run& run, std::span<const ChunkAllocator::Block> blocks);

    ChunkTable& table_;
    std::vector<Run> runs_;
    std::vector<bool> adopted_;
};

}  // namespace kvstore
