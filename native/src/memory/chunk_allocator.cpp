// The allocator as others see it, in front of the chunk table and the reclaim planner.
#include "memory/chunk_allocator.h"

#include "memory/chunk_adopter.h"
#include "memory/chunk_table.h"
#include "memory/reclaim_planner.h"

namespace kvstore {

struct ChunkAllocator::Impl {
    ChunkTable table;
    uint64_t plans = 0;  // each plan samples other places
};

ChunkAllocator::ChunkAllocator(uint64_t max_capacity, uint32_t alignment)
    : impl_(new Impl{ChunkTable(max_capacity, alignment)}) {}

ChunkAllocator::~ChunkAllocator() = default;

void ChunkAllocator::grow(uint64_t capacity_bytes) { impl_->table.grow(capacity_bytes); }

std::optional<uint64_t> ChunkAllocator::allocate(uint64_t size_bytes) {
    return impl_->table.allocate(size_bytes);
}

void ChunkAllocator::free(uint64_t offset) { impl_->table.free(offset); }

std::vector<bool> ChunkAllocator::adopt(std::span<const Block> blocks) {
    KV_ASSERT(impl_->table.live_blocks() == 0);
    return ChunkAdopter(impl_->table).adopt(blocks);
}

uint64_t ChunkAllocator::block_bytes(uint64_t offset) const {
    const auto place = impl_->table.place_of(offset);
    return place ? impl_->table.block_bytes(place->chunk) : 0;
}

bool ChunkAllocator::same_class(uint64_t size_a, uint64_t size_b) const {
    return impl_->table.rounded(size_a) == impl_->table.rounded(size_b);
}

std::vector<uint64_t> ChunkAllocator::reclaim_plan(
    uint64_t size_bytes, const std::function<uint64_t(uint64_t offset)>& heat) const {
    return ReclaimPlanner(impl_->table, heat, impl_->plans++).plan(size_bytes);
}

ChunkAllocator::Stats ChunkAllocator::stats() const {
    const ChunkTable& table = impl_->table;
    return {.capacity_bytes = table.space().capacity_bytes(),
            .allocated_bytes = table.allocated_bytes(),
            .requested_bytes = table.requested_bytes(),
            .live_blocks = table.live_blocks(),
            .chunks = table.chunk_count()};
}

Status ChunkAllocator::audit() const { return impl_->table.audit(); }

}  // namespace kvstore
