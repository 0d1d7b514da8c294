// From blocks to runs, from runs to chunks.
#include "memory/chunk_adopter.h"

#include <algorithm>

namespace kvstore {

std::vector<bool> ChunkAdopter::adopt(std::span<const ChunkAllocator::Block> blocks) {
    adopted_.assign(blocks.size(), true);
    collect_runs(blocks);
    uint64_t low = 0;
    for (size_t i = 0; i < runs_.size(); ++i) {
        Run& run = runs_[i];
        const bool last = i + 1 == runs_.size();
        const uint64_t high = last ? table_.space().capacity_bytes() : runs_[i + 1].begin;
        if (widen(run, low, high)) {
            make_chunks(run, blocks);
            low = run.end;
        } else if (!last && joins(run, runs_[i + 1].begin, runs_[i + 1].block_bytes, 0)) {
            // The next run is in its way, and of its kind: together they are long enough.
            run.members.insert(run.members.end(), runs_[i + 1].members.begin(),
                               runs_[i + 1].members.end());
            run.end = runs_[i + 1].end;
            runs_[i + 1] = std::move(run);
        } else {
            for (const size_t member : run.members) {
                adopted_[member] = false;
            }
        }
    }
    return std::move(adopted_);
}

void ChunkAdopter::collect_runs(std::span<const ChunkAllocator::Block> blocks) {
    const uint64_t capacity = table_.space().capacity_bytes();
    uint64_t end = 0;
    for (size_t i = 0; i < blocks.size(); ++i) {
        const auto [offset, size_bytes] = blocks[i];
        const bool inside = size_bytes <= capacity && offset % table_.alignment() == 0;
        const uint64_t bytes = inside ? table_.rounded(size_bytes) : 0;
        if (!inside || offset < end || offset > capacity - bytes) {
            adopted_[i] = false;
            continue;
        }
        if (runs_.empty() || !joins(runs_.back(), offset, bytes, offset - end)) {
            runs_.push_back({offset, offset, bytes, {}});
        }
        runs_.back().members.push_back(i);
        end = runs_.back().end = offset + bytes;
    }
}

bool ChunkAdopter::joins(const Run& run, uint64_t offset, uint64_t block_bytes,
                         uint64_t gap_bytes) const {
    // Wider gaps are more use as free space for everybody.
    const uint64_t close = 8 * table_.space().granule_bytes();
    return run.block_bytes == block_bytes && (offset - run.begin) % block_bytes == 0 &&
           gap_bytes <= close;
}

bool ChunkAdopter::widen(Run& run, uint64_t low, uint64_t high) const {
    const uint64_t bytes = run.block_bytes;
    const uint64_t least = table_.least_chunk_bytes(bytes);
    const uint64_t length = run.end - run.begin;
    if (length >= least) {
        return true;
    }
    const uint64_t missing = (least - length) / bytes;  // both are whole blocks
    const uint64_t down = std::min(missing, (run.begin - low) / bytes);
    const uint64_t up = missing - down;
    if (up > (high - run.end) / bytes) {
        return false;
    }
    run.begin -= down * bytes;
    run.end += up * bytes;
    return true;
}

// A long run becomes chunks of the usual size, so that classes can trade them; the last one takes
// what is left over.
void ChunkAdopter::make_chunks(const Run& run, std::span<const ChunkAllocator::Block> blocks) {
    const uint64_t bytes = run.block_bytes;
    const uint64_t total = (run.end - run.begin) / bytes;
    const uint64_t usual =
        std::clamp<uint64_t>(table_.max_chunk_bytes() / bytes,
                             table_.least_chunk_bytes(bytes) / bytes, ChunkTable::kMaxBlocks / 2);
    uint64_t first = 0;
    size_t member = 0;
    std::vector<ChunkTable::LiveBlock> live;
    while (first < total) {
        const uint64_t count = total - first < 2 * usual ? total - first : usual;
        live.clear();
        for (; member < run.members.size(); ++member) {
            const auto& [offset, size_bytes] = blocks[run.members[member]];
            const uint64_t block = (offset - run.begin) / bytes;
            if (block >= first + count) {
                break;
            }
            live.push_back({static_cast<uint32_t>(block - first), size_bytes});
        }
        // A chunk without a live block is free space.
        if (!live.empty()) {
            table_.adopt_chunk(run.begin + first * bytes, bytes, static_cast<uint32_t>(count),
                               live);
        }
        first += count;
    }
}

}  // namespace kvstore
