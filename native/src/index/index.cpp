// The node's side of the index: insertion, invalidation and the key heap.
#include "index/index.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "index/index_words.h"
#include "index/protocol_steps.h"

namespace kvstore {
namespace {

constexpr uint64_t kHeapStepBytes = 4u << 20;  // how much of the heap is reserved at a time
constexpr uint64_t kHeapPerEntry = 128;
constexpr uint64_t kMinHeapBytes = 1u << 20;
constexpr const char* kNewSuffix = ".new";

void set_tag(TagLine& line, uint32_t slot, uint16_t tag) {
    SharedWord& word = line.words[slot / 4];
    const unsigned shift = slot % 4 * 16;
    const uint64_t cleared = word.load(kRelaxed) & ~(uint64_t{0xffff} << shift);
    word.store(cleared | uint64_t{tag} << shift, std::memory_order_release);
}

uint16_t tag_of(const TagLine& line, uint32_t slot) {
    return static_cast<uint16_t>(line.words[slot / 4].load(kRelaxed) >> (slot % 4 * 16));
}

uint32_t free_slots(const TagLine& line) {
    uint32_t count = 0;
    for_each_tag(line, 0, [&](uint32_t) { return ++count, false; });
    return count;
}

EntryFields load_entry(const IndexEntry& e) {
    EntryFields fields;
    fields.gen = e.gen.load(std::memory_order_acquire);
    fields.hash = {e.hash_lo.load(kRelaxed), e.hash_hi.load(kRelaxed)};
    fields.version = e.version.load(kRelaxed);
    fields.offset = e.offset.load(kRelaxed);
    fields.length = e.length.load(kRelaxed);
    fields.expires_at_ms = e.expires_at_ms.load(kRelaxed);
    const uint64_t crc_cold = e.crc_cold.load(kRelaxed);
    fields.crc = static_cast<uint32_t>(crc_cold);
    fields.cold = static_cast<uint32_t>(crc_cold >> 32);
    return fields;
}

}  // namespace

std::optional<IndexGeometry> Index::geometry_of(const Options& options) {
    const auto buckets_for = [](uint64_t entries) {
        return (entries + kBucketSlots - 1) / kBucketSlots;
    };
    const uint64_t buckets = std::max<uint64_t>(2, buckets_for(options.entries));
    uint64_t most = buckets;
    uint64_t all_levels = 0;
    for (uint32_t level = 0; level < kIndexLevels; ++level) {
        all_levels = all_levels * kLevelFactor + buckets;
    }
    if (options.max_entries > options.entries) {
        most = std::clamp(buckets_for(std::min(options.max_entries, kMaxIndexEntries)), buckets,
                          all_levels);
    }
    const uint64_t wanted =
        options.heap_bytes != 0 ? options.heap_bytes : most * kBucketSlots * kHeapPerEntry;
    const uint64_t heap_bytes = std::clamp(wanted, kMinHeapBytes, kMaxHeapBytes);
    return IndexGeometry::of(buckets, (heap_bytes + 4095) / 4096 * 4096, most);
}

uint64_t Index::planned_bytes(const IndexGeometry& geometry, uint32_t levels) {
    const uint64_t entries = geometry.levels[levels - 1].end() * kBucketSlots;
    const uint64_t growth = entries - geometry.first_entries();
    const uint64_t heap =
        (entries * kHeapPerEntry + kHeapStepBytes - 1) / kHeapStepBytes * kHeapStepBytes;
    return geometry.heap_offset + std::min(heap, geometry.heap_bytes) +
           Ledger::first_bytes(geometry) + growth / kBucketSlots * sizeof(TagLine) +
           growth * (sizeof(IndexEntry) + sizeof(uint64_t));
}

uint64_t Index::memory_bytes(const Options& options) {
    const auto geometry = geometry_of(options);
    return geometry ? planned_bytes(*geometry, 1) : 0;
}

uint64_t Index::memory_bytes() const { return planned_bytes(geometry_, levels_); }

Result<std::unique_ptr<Index>> Index::create(const Options& options) {
    if (options.node_id.size() > limits::kMaxNameBytes) {
        return {Code::kInvalidArgument, "node id longer than 255 bytes"};
    }
    const auto geometry = geometry_of(options);
    if (options.entries > kMaxIndexEntries || !geometry) {
        return {Code::kInvalidArgument,
                "index of " + std::to_string(options.entries) + " entries is out of range"};
    }
    auto fd = create_region(options.directory, options.name + kNewSuffix);
    if (!fd.ok()) {
        return fd.status();
    }
    std::unique_ptr<Index> index(new Index);
    index->directory_ = options.directory;
    index->name_ = options.name;
    index->fd_ = std::move(*fd);
    auto client_fd = reopen_read_only(index->fd_);
    if (!client_fd.ok()) {
        return client_fd.status();
    }
    index->client_fd_ = std::move(*client_fd);
    index->geometry_ = *geometry;
    const Status sized =
        size_region(index->fd_.get(), options.directory, geometry->file_bytes(), options.name);
    if (!sized.ok()) {
        return sized;
    }
    Status reserved = reserve_bytes(index->fd_.get(), 0, geometry->heap_offset, "index");
    if (!reserved.ok()) {
        return reserved;
    }
    auto mapping = Mapping::map(index->fd_.get(), geometry->total_bytes, true);
    if (!mapping.ok()) {
        return mapping.status();
    }
    index->mapping_ = std::move(*mapping);
    if (geometry->level_count > 1) {
        const uint64_t growth_bytes = geometry->growth_end - geometry->growth_offset;
        auto growth = Mapping::map(index->fd_.get(), growth_bytes, true, geometry->growth_offset);
        if (!growth.ok()) {
            return growth.status();
        }
        index->growth_ = std::move(*growth);
        index->growth_pages_ =
            BackedPages(index->fd_.get(), geometry->growth_offset, geometry->growth_end);
    }
    index->view_ = IndexView::over(index->mapping_.data(), *geometry, index->growth_.data());
    index->heap_ = std::make_unique<ChunkAllocator>(geometry->heap_bytes, kGranuleBytes);
    if (Status grown = index->grow_heap(); !grown.ok()) {
        return grown;
    }
    auto ledger = Ledger::create(index->fd_.get(), *geometry);
    if (!ledger.ok()) {
        return ledger.status();
    }
    index->ledger_ = std::move(*ledger);
    index->write_header(options);
    return index;
}

void Index::write_header(const Options& options) {
    IndexHeader& header = *view_.header;
    header.layout_version = kLayoutVersion;
    header.node_epoch = options.node_epoch;
    header.bucket_count = geometry_.bucket_count;
    header.all_buckets = geometry_.levels[geometry_.level_count - 1].end();
    header.heap_bytes = geometry_.heap_bytes;
    header.segment_bytes = options.segment_bytes;
    header.total_bytes = geometry_.total_bytes;
    header.cluster_check = options.cluster_check;
    header.owner_pid = static_cast<uint32_t>(getpid());
    header.node_id_bytes = static_cast<uint16_t>(options.node_id.size());
    std::memcpy(header.node_id, options.node_id.data(), options.node_id.size());
    header.magic = kIndexMagic;
    header.header_crc = index_header_crc(header);
}

Status Index::install() {
    return directory_.empty() ? Status() : rename_region(directory_, name_ + kNewSuffix, name_);
}

Status Index::growth_status() const {
    const Status& status = memory_status_.ok() ? ledger_->growth_status() : memory_status_;
    if (status.ok()) {
        return {};
    }
    const std::string where = directory_.empty() ? "memory" : "segment_dir " + directory_;
    return {status.code(), where + " has no room for the index to grow (" + status.message() +
                               "): free room there, or restart with a smaller segment_size"};
}

uint64_t Index::growth_entries() const {
    return levels_ == geometry_.level_count ? 0 : geometry_.levels[levels_].count * kBucketSlots;
}

uint64_t Index::growth_bytes() const {
    return growth_entries() == 0 ? 0 : planned_bytes(geometry_, levels_ + 1) - memory_bytes();
}

Status Index::grow() {
    KV_ASSERT(growth_entries() > 0);
    const BucketRange& level = geometry_.levels[levels_];
    const uint64_t begin =
        geometry_.growth_offset + (level.first - geometry_.bucket_count) * sizeof(TagLine);
    memory_status_ = growth_pages_.back(begin, begin + level.count * sizeof(TagLine));
    if (!memory_status_.ok()) {
        return memory_status_;
    }
    // Its tags read as zeros, so readers may come at once.
    view_.header->grown.store(levels_++, std::memory_order_release);
    return {};
}

uint64_t Index::growth_offset_of(EntryRef ref) const {
    return geometry_.growth_entries_offset + (ref - geometry_.first_entries()) * sizeof(IndexEntry);
}

// An entry of the first level has had its memory from the start.
Status Index::back_entry(EntryRef ref) {
    if (ref < geometry_.first_entries()) {
        return {};
    }
    const uint64_t entry = growth_offset_of(ref);
    const uint64_t stamp =
        geometry_.growth_recency_offset + (ref - geometry_.first_entries()) * sizeof(uint64_t);
    memory_status_ = growth_pages_.back(entry, entry + sizeof(IndexEntry));
    if (memory_status_.ok()) {
        memory_status_ = growth_pages_.back(stamp, stamp + sizeof(uint64_t));
    }
    return memory_status_;
}

bool Index::has_memory(EntryRef ref) const {
    return ref < geometry_.first_entries() || growth_pages_.is_backed(growth_offset_of(ref));
}

Recency Index::recency() const {
    Recency recency{ledger_->recency(), {}};
    if (geometry_.level_count > 1) {
        const uint64_t offset = geometry_.growth_recency_offset - geometry_.growth_offset;
        recency.more = {reinterpret_cast<uint64_t*>(growth_.data() + offset),
                        geometry_.all_entries() - geometry_.first_entries()};
    }
    return recency;
}

void Index::forbid_keeping() { view_.header->header_crc = ~index_header_crc(*view_.header); }

Index::~Index() = default;

Status Index::grow_heap() {
    const uint64_t end = std::min(geometry_.heap_bytes, heap_ready_bytes_ + kHeapStepBytes);
    if (end == heap_ready_bytes_) {
        return {Code::kNoSpace, "key heap is full"};
    }
    Status reserved = reserve_bytes(fd_.get(), geometry_.heap_offset + heap_ready_bytes_,
                                    geometry_.heap_offset + end, "index");
    memory_status_ = reserved;
    if (!reserved.ok()) {
        return reserved;
    }
    heap_ready_bytes_ = end;
    heap_->grow(end);
    return {};
}

std::optional<uint32_t> Index::store_cold(const NewEntry& entry) {
    const uint64_t bytes = cold_record_bytes(entry.key.size());
    auto offset = heap_->allocate(bytes);
    while (!offset) {
        if (!grow_heap().ok()) {
            return std::nullopt;
        }
        offset = heap_->allocate(bytes);
    }
    KV_ASSERT(*offset % kGranuleBytes == 0 && *offset + bytes <= geometry_.heap_bytes);
    SharedWord* words = view_.heap + *offset / 8;
    words[kColdTenant].store(entry.identity.tenant, kRelaxed);
    words[kColdNamespace].store(entry.identity.ns, kRelaxed);
    words[kColdParentLo].store(entry.parent.lo, kRelaxed);
    words[kColdParentHi].store(entry.parent.hi, kRelaxed);
    words[kColdPutWallMs].store(entry.put_wall_ms, kRelaxed);
    words[kColdKeyBytesPin].store(entry.key.size() | static_cast<uint64_t>(entry.pin) << 16,
                                  kRelaxed);
    for (size_t i = 0; i * 8 < entry.key.size(); ++i) {
        words[kColdKey + i].store(key_word(entry.key, i), kRelaxed);
    }
    return static_cast<uint32_t>(*offset / kGranuleBytes);
}

// The first level with room takes it, so that an index which once was fuller gets fast again.
EntryRef Index::free_entry(const Hash128& hash) const {
    for (const BucketRange& level : levels()) {
        const IndexPlace place = IndexPlace::of(hash, level);
        const uint32_t first = free_slots(view_.tags(place.buckets[0]));
        const uint32_t second = free_slots(view_.tags(place.buckets[1]));
        if (first + second == 0) {
            continue;
        }
        const uint64_t bucket = place.buckets[first >= second ? 0 : 1];
        EntryRef found = kNoEntry;
        for_each_tag(view_.tags(bucket), 0, [&](uint32_t slot) {
            found = static_cast<EntryRef>(bucket * kBucketSlots + slot);
            return true;
        });
        return found;
    }
    return kNoEntry;
}

template <class Matches>
EntryRef Index::find_valid(const Hash128& hash, Matches&& matches) const {
    EntryRef found = kNoEntry;
    for (const BucketRange& level : levels()) {
        const IndexPlace place = IndexPlace::of(hash, level);
        for (const uint64_t bucket : place.buckets) {
            for_each_tag(view_.tags(bucket), place.tag, [&](uint32_t slot) {
                const auto ref = static_cast<EntryRef>(bucket * kBucketSlots + slot);
                const EntryFields fields = load_entry(view_.entry(ref));
                if (fields.gen == 0 || fields.hash != hash || !matches(cold(ref))) {
                    return false;
                }
                found = ref;
                return true;
            });
            if (found != kNoEntry) {
                return found;
            }
        }
    }
    return found;
}

EntryRef Index::find(NamespaceId ns, const Hash128& hash, std::string_view key) const {
    return find_valid(
        hash, [&](const ColdFields& record) { return record.ns == ns && record.key == key; });
}

EntryRef Index::find_hash(NamespaceId ns, const Hash128& hash) const {
    return find_valid(hash, [&](const ColdFields& record) { return record.ns == ns; });
}

Result<EntryRef> Index::insert(const NewEntry& entry) {
    KV_ASSERT(entry.gen != 0 && !entry.key.empty() && entry.key.size() <= limits::kMaxKeyBytes);
    KV_ASSERT(entry.identity.length <= view_.header->segment_bytes &&
              entry.offset <= view_.header->segment_bytes - entry.identity.length);
    const EntryRef ref = free_entry(entry.identity.hash);
    if (ref == kNoEntry || !back_entry(ref).ok()) {
        return Code::kNoSpace;
    }
    const auto cold_ref = store_cold(entry);
    if (!cold_ref) {
        return Code::kNoSpace;
    }

    IndexEntry& e = view_.entry(ref);
    KV_ASSERT(e.gen.load(kRelaxed) == 0);
    steps::publish_entry(steps::RealMemory{}, e.gen, entry.gen, [&] {
        e.hash_lo.store(entry.identity.hash.lo, kRelaxed);
        e.hash_hi.store(entry.identity.hash.hi, kRelaxed);
        e.version.store(entry.identity.version, kRelaxed);
        e.offset.store(entry.offset, kRelaxed);
        e.length.store(entry.identity.length, kRelaxed);
        e.expires_at_ms.store(entry.expires_at_ms, kRelaxed);
        e.crc_cold.store(entry.crc | uint64_t{*cold_ref} << 32, kRelaxed);
    });
    set_tag(view_.tags(ref / kBucketSlots), ref % kBucketSlots,
            IndexPlace::tag_of(entry.identity.hash));
    ++used_;
    return ref;
}

void Index::invalidate(EntryRef ref) {
    KV_ASSERT(ref < capacity());
    steps::invalidate_entry(steps::RealMemory{}, view_.entry(ref).gen);
}

void Index::release(EntryRef ref) {
    KV_ASSERT(ref < capacity() && used_ > 0);
    const EntryFields fields = load_entry(view_.entry(ref));
    KV_ASSERT(fields.gen == 0);
    TagLine& line = view_.tags(ref / kBucketSlots);
    KV_ASSERT(tag_of(line, ref % kBucketSlots) != 0);
    set_tag(line, ref % kBucketSlots, 0);
    heap_->free(uint64_t{fields.cold} * kGranuleBytes);
    --used_;
}

EntryFields Index::entry(EntryRef ref) const {
    KV_ASSERT(ref < capacity());
    return has_memory(ref) ? load_entry(view_.entry(ref)) : EntryFields{};
}

ColdFields Index::cold(EntryRef ref) const {
    KV_ASSERT(ref < capacity());
    const uint64_t cold_ref = view_.entry(ref).crc_cold.load(kRelaxed) >> 32;
    const SharedWord* words = view_.heap + cold_ref * (kGranuleBytes / 8);
    const uint64_t key_bytes_pin = words[kColdKeyBytesPin].load(kRelaxed);
    ColdFields record;
    record.tenant = words[kColdTenant].load(kRelaxed);
    record.ns = words[kColdNamespace].load(kRelaxed);
    record.parent = {words[kColdParentLo].load(kRelaxed), words[kColdParentHi].load(kRelaxed)};
    record.put_wall_ms = words[kColdPutWallMs].load(kRelaxed);
    record.pin = static_cast<Pin>(key_bytes_pin >> 16 & 0xff);
    // Only this process writes the heap, and under the caller's lock: a plain view is safe here.
    record.key = {reinterpret_cast<const char*>(words + kColdKey), key_bytes_pin & 0xffff};
    return record;
}

void Index::set_pin(EntryRef ref, Pin pin) {
    KV_ASSERT(ref < capacity());
    const uint64_t cold_ref = view_.entry(ref).crc_cold.load(kRelaxed) >> 32;
    SharedWord& word = view_.heap[cold_ref * (kGranuleBytes / 8) + kColdKeyBytesPin];
    word.store((word.load(kRelaxed) & 0xffff) | static_cast<uint64_t>(pin) << 16, kRelaxed);
}

void Index::candidates(const Hash128& hash, std::vector<EntryRef>* out) const {
    for (const BucketRange& level : levels()) {
        for (const uint64_t bucket : IndexPlace::of(hash, level).buckets) {
            for (uint32_t slot = 0; slot < kBucketSlots; ++slot) {
                if (tag_of(view_.tags(bucket), slot) != 0) {
                    out->push_back(static_cast<EntryRef>(bucket * kBucketSlots + slot));
                }
            }
        }
    }
}

void Index::for_each(const std::function<void(EntryRef, const EntryFields&)>& fn) const {
    const uint64_t buckets = capacity() / kBucketSlots;
    for (uint64_t word = 0; word < buckets * kTagWords; ++word) {
        const TagLine& line = view_.tags(word / kTagWords);
        if (line.words[word % kTagWords].load(kRelaxed) == 0) {
            continue;
        }
        for (uint32_t lane = 0; lane < 4; ++lane) {
            const auto ref = static_cast<EntryRef>(word * 4 + lane);
            if (tag_of(line, ref % kBucketSlots) == 0) {
                continue;
            }
            const EntryFields fields = load_entry(view_.entry(ref));
            if (fields.gen != 0) {
                fn(ref, fields);
            }
        }
    }
}

void Index::bump_flush_counter() {
    SharedWord& counter = view_.header->flush_counter;
    counter.store(counter.load(kRelaxed) + 1, std::memory_order_release);
}

void Index::retire() { steps::retire_index(steps::RealMemory{}, view_.header->retired); }

Status Index::audit() const {
    uint64_t used = 0;
    for (EntryRef ref = 0; ref < capacity(); ++ref) {
        const EntryFields fields = entry(ref);
        const uint16_t tag = tag_of(view_.tags(ref / kBucketSlots), ref % kBucketSlots);
        const std::string name = "entry " + std::to_string(ref);
        if (tag == 0) {
            if (fields.gen != 0) {
                return {Code::kInternal, name + " is valid but has no tag"};
            }
            continue;
        }
        ++used;
        if (!has_memory(ref)) {
            return {Code::kInternal, name + " has a tag but no memory"};
        }
        const uint64_t bucket = ref / kBucketSlots;
        const IndexPlace place = IndexPlace::of(fields.hash, geometry_.level_of(bucket));
        if (tag != place.tag || (bucket != place.buckets[0] && bucket != place.buckets[1])) {
            return {Code::kInternal, name + " is in the wrong place"};
        }
        if (heap_->block_bytes(uint64_t{fields.cold} * kGranuleBytes) == 0) {
            return {Code::kInternal, name + " has no cold record"};
        }
    }
    if (used != used_ || heap_->stats().live_blocks != used) {
        return {Code::kInternal, std::to_string(used) + " tags, " + std::to_string(used_) +
                                     " entries, " + std::to_string(heap_->stats().live_blocks) +
                                     " cold records"};
    }
    return heap_->audit();
}

}  // namespace kvstore
