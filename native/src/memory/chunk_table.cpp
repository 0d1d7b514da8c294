// Chunks: which block is free, when a chunk is made and when its extent goes back.
#include "memory/chunk_table.h"

#include <algorithm>
#include <bit>
#include <string>

namespace kvstore {
namespace {

// One granule is 1/262144 of the largest capacity, so the granule table stays at a megabyte; beyond
// 4 GiB it grows with the capacity, because a granule is also the shortest extent.
uint64_t granule_for(uint64_t max_capacity, uint32_t alignment) {
    const uint64_t granule = std::bit_ceil(std::max<uint64_t>(max_capacity >> 18, 1));
    return std::max<uint64_t>(std::clamp<uint64_t>(granule, 256, 16u << 10), alignment);
}

// A class grows its chunks to this part of what it holds: its free blocks stay a small part of it.
constexpr uint64_t kGrowthDivisor = 8;

}  // namespace

ChunkTable::ChunkTable(uint64_t max_capacity, uint32_t alignment)
    : max_capacity_(max_capacity),
      alignment_(alignment),
      space_(granule_for(max_capacity, alignment)) {
    KV_ASSERT(std::has_single_bit(alignment) && alignment <= 4096);
    first_chunk_bytes_ = 8 * space_.granule_bytes();
    const uint64_t part = std::bit_ceil(std::max<uint64_t>(max_capacity >> 10, 1));
    max_chunk_bytes_ = std::max(first_chunk_bytes_, std::min<uint64_t>(part, 2u << 20));
}

void ChunkTable::grow(uint64_t capacity_bytes) {
    KV_ASSERT(capacity_bytes <= max_capacity_);
    space_.grow(capacity_bytes / alignment_ * alignment_);
}

uint64_t ChunkTable::rounded(uint64_t size_bytes) const {
    const uint64_t mask = uint64_t{alignment_} - 1;
    return (std::max<uint64_t>(size_bytes, 1) + mask) & ~mask;
}

std::optional<uint64_t> ChunkTable::allocate(uint64_t size_bytes) {
    if (size_bytes > max_capacity_) {
        return std::nullopt;
    }
    const uint64_t bytes = rounded(size_bytes);
    const uint32_t class_id = class_for(bytes);
    Id id = classes_[class_id].partial;
    if (id == kNone) {
        id = new_chunk(class_id);
    }
    if (id == kNone) {
        return std::nullopt;
    }
    const Chunk& chunk = chunks_[id];
    const auto word = static_cast<uint32_t>(std::countr_zero(chunk.free_words));
    const auto bit = static_cast<uint32_t>(std::countr_zero(chunk.free_bits[word]));
    const uint32_t block = word * 64 + bit;
    take_block(id, block, size_bytes);
    return space_.at(id).offset + block * bytes;
}

void ChunkTable::take_block(Id id, uint32_t block, uint64_t size_bytes) {
    Chunk& chunk = chunks_[id];
    SizeClass& size_class = classes_[chunk.class_id];
    const uint32_t word = block / 64;
    chunk.free_bits[word] &= ~(uint64_t{1} << (block % 64));
    if (chunk.free_bits[word] == 0) {
        chunk.free_words &= ~(uint64_t{1} << word);
    }
    if (--chunk.free_blocks == 0) {
        unlink_partial(id);
    }
    chunk.slack_bytes[block] = static_cast<uint16_t>(size_class.block_bytes - size_bytes);
    ++size_class.live_blocks;
    ++live_blocks_;
    allocated_bytes_ += size_class.block_bytes;
    requested_bytes_ += size_bytes;
}

void ChunkTable::adopt_chunk(uint64_t offset, uint64_t block_bytes, uint32_t blocks,
                             std::span<const LiveBlock> live) {
    KV_ASSERT(!live.empty() && blocks <= kMaxBlocks);
    const Id id = space_.take_at(offset, blocks * block_bytes);
    set_up_chunk(id, class_for(block_bytes), blocks * block_bytes);
    for (const LiveBlock& one : live) {
        KV_ASSERT(one.block < blocks && rounded(one.size_bytes) == block_bytes);
        KV_ASSERT(!is_live(id, one.block));
        take_block(id, one.block, one.size_bytes);
    }
}

void ChunkTable::free(uint64_t offset) {
    const std::optional<Place> place = place_of(offset);
    KV_ASSERT(place.has_value());  // a double free would hand one block to two writers
    const auto [id, block] = *place;
    Chunk& chunk = chunks_[id];
    SizeClass& size_class = classes_[chunk.class_id];
    --size_class.live_blocks;
    --live_blocks_;
    allocated_bytes_ -= size_class.block_bytes;
    requested_bytes_ -= size_class.block_bytes - chunk.slack_bytes[block];
    if (chunk.free_blocks + 1 == chunk.blocks) {
        drop_chunk(id);
        return;
    }
    if (chunk.free_blocks++ == 0) {
        link_partial(id);
    }
    chunk.free_bits[block / 64] |= uint64_t{1} << (block % 64);
    chunk.free_words |= uint64_t{1} << (block / 64);
}

std::optional<ChunkTable::Place> ChunkTable::place_of(uint64_t offset) const {
    const Id id = space_.find(offset);
    if (id == kNone) {
        return std::nullopt;
    }
    const uint64_t inside = offset - space_.at(id).offset;
    const uint64_t bytes = block_bytes(id);
    const uint64_t block = inside / bytes;
    if (block * bytes != inside || !is_live(id, static_cast<uint32_t>(block))) {
        return std::nullopt;
    }
    return Place{id, static_cast<uint32_t>(block)};
}

uint32_t ChunkTable::least_blocks(uint64_t block_bytes) const {
    return static_cast<uint32_t>((space_.granule_bytes() + block_bytes - 1) / block_bytes);
}

uint64_t ChunkTable::least_chunk_bytes(uint64_t block_bytes) const {
    return least_blocks(block_bytes) * block_bytes;
}

uint64_t ChunkTable::wanted_chunk_bytes(uint64_t block_bytes) const {
    const auto found = class_by_size_.find(block_bytes);
    const uint64_t live = found == class_by_size_.end() ? 0 : classes_[found->second].live_blocks;
    const uint64_t wanted =
        std::clamp(live * block_bytes / kGrowthDivisor, first_chunk_bytes_, max_chunk_bytes_);
    return std::clamp<uint64_t>(wanted / block_bytes, least_blocks(block_bytes), kMaxBlocks) *
           block_bytes;
}

uint32_t ChunkTable::class_for(uint64_t block_bytes) {
    const auto [entry, inserted] = class_by_size_.try_emplace(block_bytes, 0);
    if (inserted) {
        if (vacant_classes_.empty()) {
            vacant_classes_.push_back(static_cast<uint32_t>(classes_.size()));
            classes_.emplace_back();
        }
        entry->second = vacant_classes_.back();
        vacant_classes_.pop_back();
        classes_[entry->second] = SizeClass{.block_bytes = block_bytes};
    }
    return entry->second;
}

ChunkTable::Id ChunkTable::new_chunk(uint32_t class_id) {
    const uint64_t bytes = classes_[class_id].block_bytes;
    uint64_t chunk_bytes = wanted_chunk_bytes(bytes);
    Id id = space_.take(chunk_bytes);
    if (id == kNone) {
        // No extent for a whole chunk: the largest that is left holds at least some blocks.
        chunk_bytes = std::min(chunk_bytes, space_.largest_free_bytes() / bytes * bytes);
        if (chunk_bytes >= least_chunk_bytes(bytes)) {
            id = space_.take(chunk_bytes);
        }
    }
    if (id == kNone) {
        if (classes_[class_id].chunks == 0) {
            class_by_size_.erase(bytes);
            vacant_classes_.push_back(class_id);
        }
        return kNone;
    }
    set_up_chunk(id, class_id, chunk_bytes);
    return id;
}

// All of its blocks are free.
void ChunkTable::set_up_chunk(Id id, uint32_t class_id, uint64_t chunk_bytes) {
    const uint64_t bytes = classes_[class_id].block_bytes;
    if (id >= chunks_.size()) {
        chunks_.resize(space_.id_limit());
    }
    Chunk& chunk = chunks_[id];
    chunk.class_id = class_id;
    chunk.blocks = static_cast<uint32_t>(chunk_bytes / bytes);
    chunk.free_blocks = chunk.blocks;
    const uint32_t words = (chunk.blocks + 63) / 64;
    chunk.free_bits.assign(words, ~uint64_t{0});
    if (chunk.blocks % 64 != 0) {
        chunk.free_bits.back() = (uint64_t{1} << (chunk.blocks % 64)) - 1;
    }
    chunk.free_words = words == 64 ? ~uint64_t{0} : (uint64_t{1} << words) - 1;
    chunk.slack_bytes.resize(chunk.blocks);
    ++classes_[class_id].chunks;
    ++chunk_count_;
    link_partial(id);
}

void ChunkTable::drop_chunk(Id id) {
    Chunk& chunk = chunks_[id];
    if (chunk.free_blocks > 0) {
        unlink_partial(id);
    }
    SizeClass& size_class = classes_[chunk.class_id];
    if (--size_class.chunks == 0) {
        class_by_size_.erase(size_class.block_bytes);
        vacant_classes_.push_back(chunk.class_id);
    }
    chunk.class_id = kNone;
    --chunk_count_;
    space_.give_back(id);
}

void ChunkTable::link_partial(Id id) {
    SizeClass& size_class = classes_[chunks_[id].class_id];
    chunks_[id].partial_prev = kNone;
    chunks_[id].partial_next = size_class.partial;
    if (size_class.partial != kNone) {
        chunks_[size_class.partial].partial_prev = id;
    }
    size_class.partial = id;
}

void ChunkTable::unlink_partial(Id id) {
    const Id prev = chunks_[id].partial_prev;
    const Id next = chunks_[id].partial_next;
    SizeClass& size_class = classes_[chunks_[id].class_id];
    (prev == kNone ? size_class.partial : chunks_[prev].partial_next) = next;
    if (next != kNone) {
        chunks_[next].partial_prev = prev;
    }
}

Status ChunkTable::audit() const {
    if (Status status = space_.audit(); !status.ok()) {
        return status;
    }
    uint64_t live = 0;
    uint64_t allocated = 0;
    uint64_t chunks = 0;
    std::vector<SizeClass> seen(classes_.size());
    for (Id id = space_.first(); id != kNone; id = space_.at(id).next) {
        if (!space_.at(id).used) {
            continue;
        }
        if (Status status = audit_chunk(id); !status.ok()) {
            return status;
        }
        const uint64_t blocks = chunks_[id].blocks - chunks_[id].free_blocks;
        ++chunks;
        live += blocks;
        allocated += blocks * block_bytes(id);
        ++seen[chunks_[id].class_id].chunks;
        seen[chunks_[id].class_id].live_blocks += blocks;
    }
    if (live != live_blocks_ || allocated != allocated_bytes_ || chunks != chunk_count_ ||
        requested_bytes_ > allocated_bytes_) {
        return {Code::kInternal, "the chunks do not add up to the totals"};
    }
    for (const auto& [bytes, id] : class_by_size_) {
        if (classes_[id].block_bytes != bytes || classes_[id].chunks == 0 ||
            classes_[id].chunks != seen[id].chunks ||
            classes_[id].live_blocks != seen[id].live_blocks) {
            return {Code::kInternal, "wrong counts in class " + std::to_string(bytes)};
        }
    }
    if (class_by_size_.size() + vacant_classes_.size() != classes_.size()) {
        return {Code::kInternal, "classes are lost"};
    }
    return audit_partial_lists();
}

Status ChunkTable::audit_chunk(Id id) const {
    const Chunk& chunk = chunks_[id];
    const std::string where = " in the chunk at " + std::to_string(space_.at(id).offset);
    if (chunk.class_id >= classes_.size() || chunk.blocks == 0 ||
        chunk.blocks * block_bytes(id) != space_.at(id).bytes) {
        return {Code::kInternal, "wrong geometry" + where};
    }
    uint64_t free_blocks = 0;
    for (size_t word = 0; word < chunk.free_bits.size(); ++word) {
        free_blocks += static_cast<uint64_t>(std::popcount(chunk.free_bits[word]));
        if ((chunk.free_words >> word & 1) != (chunk.free_bits[word] != 0 ? 1u : 0u)) {
            return {Code::kInternal, "the summary disagrees with the bits" + where};
        }
    }
    // A chunk without live blocks would have been given back.
    if (free_blocks != chunk.free_blocks || free_blocks == chunk.blocks) {
        return {Code::kInternal, "wrong number of free blocks" + where};
    }
    return {};
}

Status ChunkTable::audit_partial_lists() const {
    uint64_t listed = 0;
    for (const auto& [bytes, class_id] : class_by_size_) {
        for (Id id = classes_[class_id].partial; id != kNone; id = chunks_[id].partial_next) {
            ++listed;
            if (chunks_[id].class_id != class_id || chunks_[id].free_blocks == 0 ||
                listed > chunk_count_) {
                return {Code::kInternal, "wrong chunk listed in class " + std::to_string(bytes)};
            }
        }
    }
    for (Id id = space_.first(); id != kNone; id = space_.at(id).next) {
        if (space_.at(id).used && chunks_[id].free_blocks > 0) {
            --listed;
        }
    }
    return listed == 0 ? Status() : Status(Code::kInternal, "a partial chunk is not listed");
}

}  // namespace kvstore
