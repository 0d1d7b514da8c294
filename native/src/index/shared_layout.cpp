// Geometry of the index file: where its parts lie, and which entries may hold an object.
#include "index/shared_layout.h"

#include <algorithm>

#include "base/checksum.h"
#include "base/status.h"

namespace kvstore {
namespace {

// Maps a uniform 64-bit value to [0, n) without a division.
uint64_t scale(uint64_t value, uint64_t n) {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(value) * n >> 64);
}

constexpr uint64_t round_up(uint64_t bytes, uint64_t unit) {
    return (bytes + unit - 1) / unit * unit;
}
constexpr uint64_t whole_pages(uint64_t bytes) { return round_up(bytes, 4096); }

}  // namespace

const BucketRange& IndexGeometry::level_of(uint64_t bucket) const {
    const auto level = std::ranges::find_if(
        levels, [bucket](const BucketRange& range) { return bucket < range.end(); });
    KV_ASSERT(level != levels.end());
    return *level;
}

uint64_t IndexGeometry::ledger_blocks_offset() const {
    return kLedgerHeaderBytes + whole_pages(first_entries() * sizeof(uint64_t));
}

uint64_t IndexGeometry::ledger_names_offset() const {
    return ledger_blocks_offset() + kLedgerBlocks * sizeof(LedgerBlock);
}

uint64_t IndexGeometry::ledger_bytes() const { return ledger_names_offset() + kLedgerNames; }

uint32_t index_header_crc(const IndexHeader& header) {
    constexpr size_t kEnd = offsetof(IndexHeader, header_crc);
    constexpr size_t kAgain = offsetof(IndexHeader, owner_pid);
    const auto* bytes = reinterpret_cast<const uint8_t*>(&header);
    return crc32c(bytes + kAgain, sizeof(IndexHeader) - kAgain, crc32c(bytes, kEnd));
}

std::optional<IndexGeometry> IndexGeometry::of(uint64_t bucket_count, uint64_t heap_bytes,
                                               uint64_t all_buckets) {
    constexpr uint64_t kMaxBuckets = kMaxIndexEntries / kBucketSlots;
    constexpr uint64_t kGrowthAlignment = 2u << 20;  // a huge page
    all_buckets = all_buckets == 0 ? bucket_count : all_buckets;
    if (bucket_count < 2 || bucket_count > all_buckets || all_buckets > kMaxBuckets) {
        return std::nullopt;
    }
    if (heap_bytes < kMaxColdBytes || heap_bytes > kMaxHeapBytes || heap_bytes % 4096 != 0) {
        return std::nullopt;
    }
    IndexGeometry g;
    uint64_t first = 0;
    for (uint64_t count = bucket_count; first < all_buckets; count *= kLevelFactor) {
        if (g.level_count == kIndexLevels) {
            return std::nullopt;
        }
        g.levels[g.level_count] = {first, std::min(count, all_buckets - first)};
        first = g.levels[g.level_count++].end();
    }
    g.bucket_count = bucket_count;
    g.heap_bytes = heap_bytes;
    g.entries_offset = kIndexHeaderBytes + bucket_count * sizeof(TagLine);
    g.heap_offset = whole_pages(g.entries_offset + g.first_entries() * sizeof(IndexEntry));
    g.total_bytes = g.heap_offset + heap_bytes;
    g.growth_offset = g.total_bytes + g.ledger_bytes();
    if (g.level_count == 1) {
        return g;
    }
    const uint64_t buckets = all_buckets - bucket_count;
    const uint64_t entries = buckets * kBucketSlots;
    g.growth_offset = round_up(g.growth_offset, kGrowthAlignment);
    g.growth_entries_offset = g.growth_offset + whole_pages(buckets * sizeof(TagLine));
    g.growth_recency_offset = g.growth_entries_offset + whole_pages(entries * sizeof(IndexEntry));
    g.growth_end = g.growth_recency_offset + whole_pages(entries * sizeof(uint64_t));
    return g;
}

uint16_t IndexPlace::tag_of(const Hash128& hash) {
    // The buckets come from the hashes' high bits, the tag from low ones.
    const auto tag = static_cast<uint16_t>(hash.hi);
    return tag == 0 ? uint16_t{1} : tag;
}

IndexPlace IndexPlace::of(const Hash128& hash, const BucketRange& level) {
    uint64_t first = scale(hash.lo, level.count);
    uint64_t second = scale(hash.hi, level.count);
    if (second == first) {
        second = (first + 1) % level.count;
    }
    return {{level.first + first, level.first + second}, tag_of(hash)};
}

IndexView IndexView::over(uint8_t* base, const IndexGeometry& geometry, uint8_t* growth) {
    IndexView view;
    view.header = reinterpret_cast<IndexHeader*>(base);
    view.heap = reinterpret_cast<SharedWord*>(base + geometry.heap_offset);
    view.first_buckets_ = geometry.bucket_count;
    view.tags_ = reinterpret_cast<TagLine*>(base + kIndexHeaderBytes);
    view.entries_ = reinterpret_cast<IndexEntry*>(base + geometry.entries_offset);
    if (growth != nullptr) {
        view.more_tags_ = reinterpret_cast<TagLine*>(growth);
        view.more_entries_ = reinterpret_cast<IndexEntry*>(
            growth + (geometry.growth_entries_offset - geometry.growth_offset));
    }
    return view;
}

}  // namespace kvstore
