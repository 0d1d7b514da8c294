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
    std::memcpy(static_cast<void*>(&header), mapping->data(), sizeof header);
    if (header.magic != kIndexMagic) {
        return {Code::kIoError, path + " is not an index file"};
    }
    if (header.layout_version != kLayoutVersion) {
        return {Code::kVersionMismatch, path + " has format " +
                                            std::to_string(header.layout_version) +
                                            ", this build reads " + std::to_string(kLayoutVersion)};
    }
    const auto geometry = IndexGeometry::of(header.bucket_count, header.heap_bytes);
    if (header.header_crc != index_header_crc(header) || !geometry ||
        header.total_bytes != geometry->total_bytes ||
        static_cast<uint64_t>(info.st_size) < geometry->file_bytes() ||
        header.node_id_bytes > limits::kMaxNameBytes) {
        return {Code::kIoError, path + " has a damaged header"};
    }
    kept->fd_ = std::move(*fd);
    kept->geometry_ = *geometry;
    kept->mapping_ = std::move(*mapping);
    kept->view_ = IndexView::over(kept->mapping_.data(), *geometry);
    kept->ledger_ =
        reinterpret_cast<const LedgerHeader*>(kept->mapping_.data() + geometry->total_bytes);
    kept->ready_bytes_ = std::min(kept->ledger_->ready_bytes.load(), header.segment_bytes);
    return kept;
}

bool KeptIndex::in_segment(uint64_t offset, uint64_t length) const {
    return offset % kBlockAlignment == 0 && length <= ready_bytes_ &&
           offset <= ready_bytes_ - length;
}

std::vector<KeptObject> KeptIndex::objects(uint64_t* damaged) const {
    const auto* recency = reinterpret_cast<const uint64_t*>(
        reinterpret_cast<const uint8_t*>(ledger_) + kLedgerHeaderBytes);
    std::vector<KeptObject> objects;
    for (uint64_t ref = 0; ref < geometry_.entry_count(); ++ref) {
        const IndexEntry& entry = view_.entries[ref];
        const Generation gen = entry.gen.load(kRelaxed);
        if (gen == 0) {
            continue;
        }
        KeptObject object;
        object.gen = gen;
        object.offset = entry.offset.load(kRelaxed);
        object.identity.length = entry.length.load(kRelaxed);
        if (!is_generation(gen, header_.node_epoch) ||
            !in_segment(object.offset, object.identity.length)) {
            ++*damaged;
            continue;
        }
        object.identity.hash = {entry.hash_lo.load(kRelaxed), entry.hash_hi.load(kRelaxed)};
        object.identity.version = entry.version.load(kRelaxed);
        object.expires_at_ms = entry.expires_at_ms.load(kRelaxed);
        object.crc = static_cast<uint32_t>(entry.crc_cold.load(kRelaxed));
        object.recency = recency[ref];
        const IndexPlace place = IndexPlace::of(object.identity.hash, geometry_.bucket_count);
        const uint64_t bucket = ref / kBucketSlots;
        object.whole = (bucket == place.buckets[0] || bucket == place.buckets[1]) &&
                       object.identity.version != 0 && read_cold(entry, &object);
        objects.push_back(object);
    }
    return objects;
}

bool KeptIndex::read_cold(const IndexEntry& entry, KeptObject* object) const {
    const uint64_t at = (entry.crc_cold.load(kRelaxed) >> 32) * kGranuleBytes;
    if (at + cold_record_bytes(0) > geometry_.heap_bytes) {
        return false;
    }
    const SharedWord* words = view_.heap + at / 8;
    const uint64_t key_bytes_pin = words[kColdKeyBytesPin].load(kRelaxed);
    const uint64_t key_bytes = key_bytes_pin & 0xffff;
    const uint64_t pin = key_bytes_pin >> 16 & 0xff;
    if (at + cold_record_bytes(key_bytes) > geometry_.heap_bytes ||
        pin > static_cast<uint64_t>(Pin::kHard)) {
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

std::vector<KeptBlock> KeptIndex::blocks(uint64_t* damaged) const {
    const auto* records = reinterpret_cast<const LedgerBlock*>(
        reinterpret_cast<const uint8_t*>(ledger_) + geometry_.ledger_blocks_offset());
    const uint64_t used = ledger_->blocks_used.load(kRelaxed);
    if (used > kLedgerBlocks) {
        ++*damaged;
    }
    std::vector<KeptBlock> blocks;
    for (uint64_t i = 0; i < std::min(used, kLedgerBlocks); ++i) {
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
    const uint64_t used = std::min(ledger_->names_used.load(kRelaxed), kLedgerNames);
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
