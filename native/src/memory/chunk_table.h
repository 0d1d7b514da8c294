// Size classes and their chunks: an extent of k equal blocks each. Private to kv_alloc.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "memory/extent_space.h"

namespace kvstore {

// Every size, rounded up to the alignment, is a class of its own. A chunk grows with what its class
// already holds: the first ones are small (a rare large size gets an extent for one block), and a
// class with many live blocks gets chunks of `max_chunk_bytes`, so that classes can trade them.
class ChunkTable {
  public:
    using Id = ExtentSpace::Id;
    static constexpr Id kNone = ExtentSpace::kNone;
    static constexpr uint32_t kMaxBlocks = 4096;  // of one chunk: 64 words, one summary word

    struct Chunk {
        uint32_t class_id = kNone;
        uint32_t blocks = 0;
        uint32_t free_blocks = 0;
        Id partial_prev = kNone;  // chunks of the class with a free block
        Id partial_next = kNone;
        uint64_t free_words = 0;            // bit w: free_bits[w] has a free block
        std::vector<uint64_t> free_bits;    // bit b of word w: block 64 w + b is free
        std::vector<uint16_t> slack_bytes;  // rounded minus requested, of live blocks
    };
    struct SizeClass {
        uint64_t block_bytes = 0;
        uint64_t live_blocks = 0;
        uint32_t chunks = 0;
        Id partial = kNone;
    };

    ChunkTable(uint64_t max_capacity, uint32_t alignment);
    void grow(uint64_t capacity_bytes);
    std::optional<uint64_t> allocate(uint64_t size_bytes);
    void free(uint64_t offset);
    // Makes the parts of one new chunk live: `blocks` blocks of `block_bytes` (rounded) at
    // `offset`, behind all other chunks. `live` are the places and exact sizes of those in use.
    struct LiveBlock {
        uint32_t block = 0;
        uint64_t size_bytes = 0;
    };
    void adopt_chunk(uint64_t offset, uint64_t block_bytes, uint32_t blocks,
                     std::span<const LiveBlock> live);

    uint64_t rounded(uint64_t size_bytes) const;
    // The live block that starts at `offset`: its chunk and index, or nothing.
    struct Place {
        Id chunk;
        uint32_t block;
    };
    std::optional<Place> place_of(uint64_t offset) const;
    // Bytes that a new chunk for blocks of this rounded size would have, room permitting.
    uint64_t wanted_chunk_bytes(uint64_t block_bytes) const;
    uint64_t least_chunk_bytes(uint64_t block_bytes) const;

    const ExtentSpace& space() const { return space_; }
    const Chunk& chunk(Id id) const { return chunks_[id]; }
    uint64_t block_bytes(Id id) const { return classes_[chunks_[id].class_id].block_bytes; }
    bool is_live(Id id, uint32_t block) const {
        return (chunks_[id].free_bits[block / 64] >> (block % 64) & 1) == 0;
    }
    uint64_t offset_of(Id id, uint32_t block) const {
        return space_.at(id).offset + block * block_bytes(id);
    }
    uint64_t allocated_bytes() const { return allocated_bytes_; }
    uint64_t requested_bytes() const { return requested_bytes_; }
    uint64_t live_blocks() const { return live_blocks_; }
    uint64_t chunk_count() const { return chunk_count_; }
    uint64_t max_chunk_bytes() const { return max_chunk_bytes_; }
    uint32_t alignment() const { return alignment_; }
    Status audit() const;

  private:
    uint32_t class_for(uint64_t block_bytes);
    Id new_chunk(uint32_t class_id);
    void set_up_chunk(Id id, uint32_t class_id, uint64_t chunk_bytes);
    void take_block(Id id, uint32_t block, uint64_t size_bytes);
    void drop_chunk(Id id);
    void link_partial(Id id);
    void unlink_partial(Id id);
    uint32_t least_blocks(uint64_t block_bytes) const;
    Status audit_chunk(Id id) const;
    Status audit_partial_lists() const;

    uint64_t max_capacity_;
    uint32_t alignment_;
    uint64_t first_chunk_bytes_;
    uint64_t max_chunk_bytes_;
    ExtentSpace space_;
    std::vector<Chunk> chunks_;  // by extent id
    std::vector<SizeClass> classes_;
    std::vector<uint32_t> vacant_classes_;
    std::unordered_map<uint64_t, uint32_t> class_by_size_;
    uint64_t allocated_bytes_ = 0;
    uint64_t requested_bytes_ = 0;
    uint64_t live_blocks_ = 0;
    uint64_t chunk_count_ = 0;
};

}  // namespace kvstore
