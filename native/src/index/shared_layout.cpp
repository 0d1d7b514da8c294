// Geometry of the index file: where its parts lie, and which entries may hold an object.
#include "index/shared_layout.h"

#include "base/checksum.h"

namespace kvstore {
namespace {

// Maps a uniform 64-bit value to [0, n) without a division.
uint64_t scale(uint64_t value, uint64_t n) {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(value) * n >> 64);
}

constexpr uint64_t whole_pages(uint64_t bytes) { return (bytes + 4095) / 4096 * 4096; }

}  // namespace

uint64_t IndexGeometry::ledger_blocks_offset() const {
    return kLedgerHeaderBytes + whole_pages(entry_count() * sizeof(uint64_t));
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

std::optional<IndexGeometry> IndexGeometry::of(uint64_t bucket_count, uint64_t heap_bytes) {
    if (bucket_count < 2 || bucket_count > kMaxIndexEntries / kBucketSlots) {
        return std::nullopt;
    }
    if (heap_bytes < kMaxColdBytes || heap_bytes > kMaxHeapBytes || heap_bytes % 4096 != 0) {
        return std::nullopt;
    }
    IndexGeometry g;
    g.bucket_count = bucket_count;
    g.heap_bytes = heap_bytes;
    g.entries_offset = kIndexHeaderBytes + bucket_count * sizeof(TagLine);
    const uint64_t entries_end = g.entries_offset + g.entry_count() * sizeof(IndexEntry);
    g.heap_offset = whole_pages(entries_end);
    g.total_bytes = g.heap_offset + heap_bytes;
    return g;
}

IndexPlace IndexPlace::of(const Hash128& hash, uint64_t bucket_count) {
    IndexPlace place{};
    place.buckets[0] = scale(hash.lo, bucket_count);
    place.buckets[1] = scale(hash.hi, bucket_count);
    if (place.buckets[1] == place.buckets[0]) {
        place.buckets[1] = (place.buckets[0] + 1) % bucket_count;
    }
    // The buckets come from the hashes' high bits, the tag from low ones.
    const auto tag = static_cast<uint16_t>(hash.hi);
    place.tag = tag == 0 ? uint16_t{1} : tag;
    return place;
}

IndexView IndexView::over(uint8_t* base, const IndexGeometry& geometry) {
    IndexView view;
    view.header = reinterpret_cast<IndexHeader*>(base);
    view.tags = reinterpret_cast<TagLine*>(base + kIndexHeaderBytes);
    view.entries = reinterpret_cast<IndexEntry*>(base + geometry.entries_offset);
    view.heap = reinterpret_cast<SharedWord*>(base + geometry.heap_offset);
    return view;
}

}  // namespace kvstore
