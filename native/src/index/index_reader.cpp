// A client's side of the index: bounded, lock-free lookups in memory that another process writes.
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "index/index.h"
#include "index/index_words.h"
#include "index/protocol_steps.h"

namespace kvstore {
namespace {

constexpr int kProbeTries = 4;

template <class T>
T field(const std::array<uint8_t, kIndexHeaderBytes>& header, size_t offset) {
    T value;
    std::memcpy(&value, header.data() + offset, sizeof(T));
    return value;
}

}  // namespace

Result<std::unique_ptr<IndexReader>> IndexReader::attach(int fd, uint64_t segment_bytes) {
    // The header is copied before it is judged, so that it cannot change between check and use.
    std::array<uint8_t, kIndexHeaderBytes> header{};
    struct stat info{};
    if (fstat(fd, &info) != 0) {
        return errno_status("fstat", "index");
    }
    if (pread(fd, header.data(), header.size(), 0) != static_cast<ssize_t>(header.size())) {
        return {Code::kVersionMismatch, "index file is shorter than its header"};
    }
    if (field<uint64_t>(header, offsetof(IndexHeader, magic)) != kIndexMagic) {
        return {Code::kVersionMismatch, "not an index file"};
    }
    const auto version = field<uint32_t>(header, offsetof(IndexHeader, layout_version));
    if (version != kLayoutVersion) {
        return {Code::kVersionMismatch, "index format " + std::to_string(version) +
                                            ", this client reads " +
                                            std::to_string(kLayoutVersion)};
    }
    const auto geometry =
        IndexGeometry::of(field<uint64_t>(header, offsetof(IndexHeader, bucket_count)),
                          field<uint64_t>(header, offsetof(IndexHeader, heap_bytes)),
                          field<uint64_t>(header, offsetof(IndexHeader, all_buckets)));
    const auto claimed_segment = field<uint64_t>(header, offsetof(IndexHeader, segment_bytes));
    const auto node_id_bytes = field<uint16_t>(header, offsetof(IndexHeader, node_id_bytes));
    if (!geometry ||
        field<uint64_t>(header, offsetof(IndexHeader, total_bytes)) != geometry->total_bytes ||
        static_cast<uint64_t>(info.st_size) < geometry->file_bytes() ||
        claimed_segment > segment_bytes || node_id_bytes > limits::kMaxNameBytes) {
        return {Code::kVersionMismatch, "index header contradicts itself or the segment"};
    }
    auto mapping = Mapping::map(fd, geometry->total_bytes, false);
    if (!mapping.ok()) {
        return mapping.status();
    }
    std::unique_ptr<IndexReader> reader(new IndexReader);
    reader->mapping_ = std::move(*mapping);
    reader->geometry_ = *geometry;
    if (geometry->level_count > 1) {
        auto growth = Mapping::map(fd, geometry->growth_recency_offset - geometry->growth_offset,
                                   false, geometry->growth_offset);
        // A process with a bound on its address space finds what is in the first level.
        if (growth.ok()) {
            reader->growth_ = std::move(*growth);
        } else {
            reader->geometry_.level_count = 1;
        }
    }
    reader->view_ = IndexView::over(reader->mapping_.data(), *geometry, reader->growth_.data());
    for (uint32_t i = 0; i < reader->geometry_.level_count; ++i) {
        const BucketRange& level = geometry->levels[i];
        const uint64_t first_entry = level.first * kBucketSlots;
        reader->levels_[i] = {&reader->view_.tags(level.first), &reader->view_.entry(first_entry),
                              first_entry, level.count};
    }
    reader->node_epoch_ = field<uint32_t>(header, offsetof(IndexHeader, node_epoch));
    reader->node_id_.assign(
        reinterpret_cast<const char*>(header.data()) + offsetof(IndexHeader, node_id),
        node_id_bytes);
    reader->segment_bytes_ = claimed_segment;
    return reader;
}

// Those in use: the header's number is believed as far as the mapping goes.
inline std::span<const IndexReader::Level> IndexReader::levels() const {
    const uint32_t grown = view_.header->grown.load(std::memory_order_acquire);
    if (grown == 0) [[likely]] {
        return {levels_.data(), 1};
    }
    return {levels_.data(), std::min<size_t>(size_t{grown} + 1, geometry_.level_count)};
}

bool IndexReader::prefetch(size_t stage, const Hash128& hash) const {
    bool may_be = stage == 0;
    for (const Level& level : levels()) {
        const IndexPlace place = IndexPlace::of(hash, {0, level.buckets});
        const TagLine* const tags = level.tags;  // members are loaded again after each acquire
        if (stage == 0) {
            __builtin_prefetch(&tags[place.buckets[0]]);
            __builtin_prefetch(&tags[place.buckets[1]]);
            continue;
        }
        const IndexEntry* const entries = level.entries;
        const auto* const heap = reinterpret_cast<const uint8_t*>(view_.heap);
        const uint64_t heap_bytes = geometry_.heap_bytes;
        for (const uint64_t bucket : place.buckets) {
            for_each_tag(tags[bucket], place.tag, [=, &may_be](uint32_t slot) {
                const IndexEntry& entry = entries[bucket * kBucketSlots + slot];
                may_be = true;
                if (stage == 1) {
                    __builtin_prefetch(&entry);
                    return false;
                }
                const uint64_t offset = (entry.crc_cold.load(kRelaxed) >> 32) * kGranuleBytes;
                if (offset < heap_bytes) {
                    __builtin_prefetch(heap + offset);
                    __builtin_prefetch(heap + offset + 64);  // most keys end here
                }
                return false;
            });
        }
    }
    return may_be;
}

bool IndexReader::cold_matches(uint32_t cold, NamespaceId ns, std::string_view key) const {
    const uint64_t offset = uint64_t{cold} * kGranuleBytes;
    if (offset + cold_record_bytes(key.size()) > geometry_.heap_bytes) {
        return false;
    }
    const SharedWord* words = view_.heap + offset / 8;
    return (words[kColdKeyBytesPin].load(kRelaxed) & 0xffff) == key.size() &&
           words[kColdNamespace].load(kRelaxed) == ns && key_equals(words + kColdKey, key);
}

bool IndexReader::in_segment(uint64_t offset, uint64_t length) const {
    return length <= segment_bytes_ && offset <= segment_bytes_ - length;
}

IndexReader::Match IndexReader::match(const IndexEntry& e, NamespaceId ns, const Hash128& hash,
                                      std::string_view key, uint64_t now_ms, Found* found) const {
    bool equal = false;
    Found f;
    const bool stable =
        steps::read_stable(steps::RealMemory{}, e.gen, view_.header->retired, 0, &f.gen, [&] {
            if (e.hash_lo.load(kRelaxed) != hash.lo || e.hash_hi.load(kRelaxed) != hash.hi) {
                return;
            }
            const uint64_t crc_cold = e.crc_cold.load(kRelaxed);
            const uint64_t expires_at_ms = e.expires_at_ms.load(kRelaxed);
            f.offset = e.offset.load(kRelaxed);
            f.length = e.length.load(kRelaxed);
            f.version = e.version.load(kRelaxed);
            f.crc = static_cast<uint32_t>(crc_cold);
            equal = (expires_at_ms == 0 || now_ms < expires_at_ms) &&
                    in_segment(f.offset, f.length) &&
                    cold_matches(static_cast<uint32_t>(crc_cold >> 32), ns, key);
        });
    if (!stable) {
        return Match::kChanged;
    }
    if (!equal) {
        return Match::kNo;
    }
    *found = f;
    return Match::kYes;
}

std::optional<IndexReader::Found> IndexReader::probe(NamespaceId ns, const Hash128& hash,
                                                     std::string_view key, uint64_t now_ms) const {
    if (key.empty() || key.size() > limits::kMaxKeyBytes) {
        return std::nullopt;
    }
    Found found;
    for (int attempt = 0; attempt < kProbeTries; ++attempt) {
        if (retired()) {
            return std::nullopt;
        }
        bool changed = false;
        for (const Level& level : levels()) {
            const IndexPlace place = IndexPlace::of(hash, {0, level.buckets});
            const TagLine* const tags = level.tags;
            const IndexEntry* const entries = level.entries;
            for (const uint64_t bucket : place.buckets) {
                const bool hit = for_each_tag(tags[bucket], place.tag, [&](uint32_t slot) {
                    const uint64_t i = bucket * kBucketSlots + slot;
                    const Match m = match(entries[i], ns, hash, key, now_ms, &found);
                    found.ref = static_cast<EntryRef>(level.first_entry + i);
                    changed |= m == Match::kChanged;
                    return m == Match::kYes;
                });
                if (hit) {
                    return found;
                }
            }
        }
        // An entry that changed under us may have been this key's, replaced by one in a bucket that
        // we had already left: look again.
        if (!changed) {
            return std::nullopt;
        }
    }
    return std::nullopt;
}

bool IndexReader::still_valid(EntryRef ref, Generation gen) const {
    if (ref >= geometry_.all_entries() || gen == 0) {
        return false;
    }
    return steps::still_valid(steps::RealMemory{}, view_.entry(ref).gen, view_.header->retired,
                              gen);
}

bool IndexReader::well_formed(const Found& found) const {
    return found.ref < geometry_.all_entries() && found.gen != 0 &&
           in_segment(found.offset, found.length);
}

uint64_t IndexReader::flush_counter() const {
    return view_.header->flush_counter.load(std::memory_order_acquire);
}

bool IndexReader::retired() const {
    return view_.header->retired.load(std::memory_order_acquire) != 0;
}

}  // namespace kvstore
