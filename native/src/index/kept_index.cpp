// Reading what an earlier life of the node has left, entry by entry.
#include "index/kept_index.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "base/hash.h"
#include "index/index_words.h"
#include "index/ledger.h"

namespace kvstore {
namespace {

constexpr uint64_t kBlockAlignment = 64;

bool is_generation(Generation gen, uint32_t node_epoch) {
    return epoch_of(gen) != 0 && epoch_of(gen) <= node_epoch && (gen & kMaxCounter) != 0;
}

}  // namespace

Result<std::unique_ptr<KeptIndex>> KeptIndex::open(const std::string& directory,
                                                   const std::string& name) {
    const std::string path = directory + "/" + name;
    auto fd = open_region(directory, name);
    if (!fd.ok()) {
        return fd.status();
    }
    struct stat info{};
    if (fstat(fd->get(), &info) != 0) {
        return errno_status("fstat", path);
    }
    std::unique_ptr<KeptIndex> kept(new KeptIndex);
    IndexHeader& header = kept->header_;
    // A hugetlbfs file cannot be read, only mapped.
    if (static_cast<uint64_t>(info.st_size) < sizeof header) {
        return {Code::kIoError, path + " is shorter than its header"};
    }
    auto mapping = Mapping::map(fd->get(), static_cast<uint64_t>(info.st_size), true);
    if (!mapping.ok()) {
        return mapping.status();
    }
    FileExtents extents(fd->get());
    if (!extents.has_data(0, sizeof header)) {
        return {Code::kIoError, path + " is empty"};
    }
    std::memcpy(static_cast<void*>(&header), mapping->data(), sizeof header);
    if (header.magic != kIndexMagic) {
        return {Code::kIoError, path + " is not an index file"};
    }
    if (header.layout_version != kLayoutVersion) {
        return {Code::kVersionMismatch, path + " has format " +
                                            std::to_string(header.layout_version) +
                                            ", this build reads " + std::to_string(kLayoutVersion)};
    }
    const auto geometry =
        IndexGeometry::of(header.bucket_count, header.heap_bytes, header.all_buckets);
    if (header.header_crc != index_header_crc(header) || !geometry ||
        header.total_bytes != geometry->total_bytes ||
        static_cast<uint64_t>(info.st_size) < geometry->file_bytes() ||
        header.node_id_bytes > limits::kMaxNameBytes ||
        !extents.has_data(geometry->total_bytes, sizeof(LedgerHeader))) {
        return {Code::kIoError, path + " has a damaged header"};
    }
    kept->fd_ = std::move(*fd);
    kept->geometry_ = *geometry;
    kept->mapping_ = std::move(*mapping);
    kept->view_ = IndexView::over(kept->mapping_.data(), *geometry,
                                  kept->mapping_.data() + geometry->growth_offset);
    kept->ledger_ =
        reinterpret_cast<const LedgerHeader*>(kept->mapping_.data() + geometry->total_bytes);
    kept->ready_bytes_ = std::min(kept->ledger_->ready_bytes.load(), header.segment_bytes);
    return kept;
}

bool KeptIndex::in_segment(uint64_t offset, uint64_t length) const {
    return offset % kBlockAlignment == 0 && length <= ready_bytes_ &&
           offset <= ready_bytes_ - length;
}

// Reads the entries in the order of their numbers; each part of the file with extents of its own.
class KeptIndex::Entries {
  public:
    Entries(const KeptIndex& kept, uint64_t* damaged)
        : kept_(kept),
          geometry_(kept.geometry_),
          damaged_(damaged),
          entries_(kept.fd_.get()),
          stamps_(kept.fd_.get()),
          cold_(kept.fd_.get()) {}

    // `count` entries from `first` on, which lie at entries_offset, as their stamps at
    // stamps_offset.
    void read(uint64_t first, uint64_t count, uint64_t entries_offset, uint64_t stamps_offset);
    std::vector<KeptObject> take() { return std::move(objects_); }

  private:
    void read_entry(uint64_t ref, uint64_t stamp_offset);
    bool read_cold(const IndexEntry& entry, KeptObject* object);

    const KeptIndex& kept_;
    const IndexGeometry& geometry_;
    uint64_t* damaged_;
    FileExtents entries_;
    FileExtents stamps_;
    FileExtents cold_;
    std::vector<KeptObject> objects_;
};

void KeptIndex::Entries::read(uint64_t first, uint64_t count, uint64_t entries_offset,
                              uint64_t stamps_offset) {
    const uint64_t end = entries_offset + count * sizeof(IndexEntry);
    uint64_t at = entries_.next_data(entries_offset);
    while (at < end) {
        const uint64_t i = (at - entries_offset) / sizeof(IndexEntry);
        read_entry(first + i, stamps_offset + i * sizeof(uint64_t));
        at = entries_.next_data(at + sizeof(IndexEntry));
    }
}

void KeptIndex::Entries::read_entry(uint64_t ref, uint64_t stamp_offset) {
    const IndexEntry& entry = kept_.view_.entry(ref);
    KeptObject object;
    object.gen = entry.gen.load(kRelaxed);
    if (object.gen == 0) {
        return;
    }
    object.offset = entry.offset.load(kRelaxed);
    object.identity.length = entry.length.load(kRelaxed);
    if (!is_generation(object.gen, kept_.header_.node_epoch) ||
        !kept_.in_segment(object.offset, object.identity.length)) {
        ++*damaged_;
        return;
    }
    object.identity.hash = {entry.hash_lo.load(kRelaxed), entry.hash_hi.load(kRelaxed)};
    object.identity.version = entry.version.load(kRelaxed);
    object.expires_at_ms = entry.expires_at_ms.load(kRelaxed);
    object.crc = static_cast<uint32_t>(entry.crc_cold.load(kRelaxed));
    if (stamps_.has_data(stamp_offset, sizeof object.recency)) {
        std::memcpy(&object.recency, kept_.mapping_.data() + stamp_offset, sizeof object.recency);
    }
    const uint64_t bucket = ref / kBucketSlots;
    const IndexPlace place = IndexPlace::of(object.identity.hash, geometry_.level_of(bucket));
    object.whole = (bucket == place.buckets[0] || bucket == place.buckets[1]) &&
                   object.identity.version != 0 && read_cold(entry, &object);
    objects_.push_back(object);
}

bool KeptIndex::Entries::read_cold(const IndexEntry& entry, KeptObject* object) {
    const uint64_t at = (entry.crc_cold.load(kRelaxed) >> 32) * kGranuleBytes;
    const auto is_there = [&](uint64_t bytes) {
        return at + bytes <= geometry_.heap_bytes &&
               cold_.has_data(geometry_.heap_offset + at, bytes);
    };
    if (!is_there(cold_record_bytes(0))) {
        return false;
    }
    const SharedWord* words = kept_.view_.heap + at / 8;
    const uint64_t key_bytes_pin = words[kColdKeyBytesPin].load(kRelaxed);
    const uint64_t key_bytes = key_bytes_pin & 0xffff;
    const uint64_t pin = key_bytes_pin >> 16 & 0xff;
    if (!is_there(cold_record_bytes(key_bytes)) || pin > static_cast<uint64_t>(Pin::kHard)) {
        return false;
    }
    object->identity.tenant = words[kColdTenant].load(kRelaxed);
    object->identity.ns = words[kColdNamespace].load(kRelaxed);
    object->parent = {words[kColdParentLo].load(kRelaxed), words[kColdParentHi].load(kRelaxed)};
    object->put_wall_ms = words[kColdPutWallMs].load(kRelaxed);
    object->pin = static_cast<Pin>(pin);
    object->key = {reinterpret_cast<const char*>(words + kColdKey), key_bytes};
    return is_valid_key(object->key);
}

std::vector<KeptObject> KeptIndex::objects(uint64_t* damaged) const {
    const IndexGeometry& g = geometry_;
    Entries entries(*this, damaged);
    entries.read(0, g.first_entries(), g.entries_offset, g.total_bytes + kLedgerHeaderBytes);
    entries.read(g.first_entries(), g.all_entries() - g.first_entries(), g.growth_entries_offset,
                 g.growth_recency_offset);
    return entries.take();
}

std::vector<KeptBlock> KeptIndex::blocks(uint64_t* damaged) const {
    const auto* records = reinterpret_cast<const LedgerBlock*>(
        reinterpret_cast<const uint8_t*>(ledger_) + geometry_.ledger_blocks_offset());
    const uint64_t used = ledger_->blocks_used.load(kRelaxed);
    if (used > kLedgerBlocks) {
        ++*damaged;
    }
    FileExtents extents(fd_.get());
    std::vector<KeptBlock> blocks;
    for (uint64_t i = 0; i < std::min(used, kLedgerBlocks); ++i) {
        const uint64_t at = geometry_.total_bytes + geometry_.ledger_blocks_offset();
        if (!extents.has_data(at + i * sizeof(LedgerBlock), sizeof(LedgerBlock))) {
            continue;
        }
        const Generation gen = records[i].gen.load(std::memory_order_acquire);
        if (gen == 0) {
            continue;
        }
        KeptBlock block;
        block.gen = gen;
        block.offset = records[i].offset.load(kRelaxed);
        block.length = records[i].length.load(kRelaxed);
        const uint64_t slot_use = records[i].slot_use.load(kRelaxed);
        const auto slot = static_cast<uint32_t>(slot_use);
        block.slot = static_cast<int>(slot) - 1;
        block.use = static_cast<BlockUse>(slot_use >> 32);
        const bool possible = is_generation(gen, header_.node_epoch) && slot <= kSlotCount &&
                              block.use >= BlockUse::kReserved && block.use <= BlockUse::kHeld &&
                              in_segment(block.offset, block.length);
        if (!possible) {
            ++*damaged;
            continue;
        }
        blocks.push_back(block);
    }
    return blocks;
}

std::vector<NamespaceEpoch> KeptIndex::namespaces() const {
    const uint64_t begin = geometry_.total_bytes + geometry_.ledger_names_offset();
    const uint64_t data = FileExtents(fd_.get()).data_end(begin) - begin;
    const uint64_t used = std::min({ledger_->names_used.load(kRelaxed), data, kLedgerNames});
    std::span<const uint8_t> left{
        reinterpret_cast<const uint8_t*>(ledger_) + geometry_.ledger_names_offset(), used};
    std::vector<NamespaceEpoch> names;
    while (!left.empty()) {
        size_t bytes = 0;
        const auto name = decode_ledger_name(left, &bytes);
        if (!name || !is_valid_name(name->tenant) || !is_valid_name(name->name)) {
            break;
        }
        names.push_back({std::string(name->tenant), std::string(name->name), name->epoch,
                         name->tenant_id, name->id});
        left = left.subspan(bytes);
    }
    return names;
}

}  // namespace kvstore
