// Fuzzes the reading of an index file that an earlier life of the node has left. Input: patches of
// a small valid file, each {region (1 byte), offset (2, little-endian), length (1), bytes}; bit 7
// of a region leaves the header's checksum as it is, so that it no longer matches. Whatever the
// file says, what is handed out lies within file and segment.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "base/status.h"
#include "index/index.h"
#include "index/kept_index.h"

namespace kvstore {
namespace {

constexpr uint64_t kSegmentBytes = 1u << 20;
constexpr uint32_t kEpoch = 3;
constexpr uint64_t kWindowBytes = 4096;  // of each region that can be patched
constexpr uint64_t kObjects = 100;       // more than the first level holds

// A valid index with objects, records and a namespace; `parts` are its bytes but for the holes.
class Base {
  public:
    Base() {
        char path[] = "/dev/shm/kvstore-fuzz-XXXXXX";
        KV_ASSERT(mkdtemp(path) != nullptr);
        directory = path;
        Index::Options options;
        options.directory = directory;
        options.name = "base";
        options.entries = 64;
        options.max_entries = 320;
        options.node_epoch = kEpoch;
        options.node_id = "node";
        options.segment_bytes = kSegmentBytes;
        auto index = Index::create(options);
        KV_ASSERT(index.ok());
        fill(**index);
        IndexHeader header{};
        KV_ASSERT(pread((*index)->fd(), &header, sizeof header, 0) == ssize_t{sizeof header});
        geometry = *IndexGeometry::of(header.bucket_count, header.heap_bytes, header.all_buckets);
        const uint64_t ledger = geometry.total_bytes;
        const uint64_t blocks = ledger + geometry.ledger_blocks_offset();
        const uint64_t names = ledger + geometry.ledger_names_offset();
        regions = {0,
                   kIndexHeaderBytes,
                   geometry.entries_offset,
                   geometry.heap_offset,
                   ledger,
                   blocks,
                   ledger + kLedgerHeaderBytes,
                   names,
                   geometry.growth_offset,
                   geometry.growth_entries_offset};
        copy((*index)->fd(), 0, blocks + kWindowBytes);
        copy((*index)->fd(), names, kWindowBytes);
        copy((*index)->fd(), geometry.growth_offset, geometry.growth_end - geometry.growth_offset);
    }
    ~Base() { std::filesystem::remove_all(directory); }

    std::string directory;
    IndexGeometry geometry;
    std::array<uint64_t, 10> regions{};  // where each begins in the file
    std::vector<std::pair<uint64_t, std::vector<uint8_t>>> parts;

  private:
    static void fill(Index& index) {
        for (uint64_t i = 1; i <= kObjects; ++i) {
            const std::string key = "key-" + std::to_string(i);
            Index::NewEntry entry;
            entry.identity = {1, 2, {i * 0x9e3779b97f4a7c15, i}, i, 1000};
            entry.offset = i * 4096;
            entry.gen = pack_epoch(kEpoch, i);
            entry.key = key;
            KV_ASSERT(index.insert(entry).ok() || (index.grow().ok() && index.insert(entry).ok()));
        }
        Ledger& ledger = index.ledger();
        ledger.note_ready(kSegmentBytes);
        KV_ASSERT(ledger.note_namespace("tenant", "space", 0, 1, 2).ok());
        uint64_t counter = kObjects;
        for (const BlockUse use : {BlockUse::kReserved, BlockUse::kDeferred, BlockUse::kHeld}) {
            ++counter;
            ledger.add_block(use, pack_epoch(kEpoch, counter), counter * 4096, 64, 2);
        }
    }
    void copy(int fd, uint64_t begin, uint64_t bytes) {
        std::vector<uint8_t> part(bytes);
        KV_ASSERT(pread(fd, part.data(), bytes, static_cast<off_t>(begin)) ==
                  static_cast<ssize_t>(bytes));
        parts.emplace_back(begin, std::move(part));
    }
};

void write(int fd, const void* bytes, size_t size, uint64_t at) {
    KV_ASSERT(pwrite(fd, bytes, size, static_cast<off_t>(at)) == static_cast<ssize_t>(size));
}

void write_patched(const Base& base, int fd, std::span<const uint8_t> input) {
    KV_ASSERT(ftruncate(fd, static_cast<off_t>(base.geometry.file_bytes())) == 0);
    for (const auto& [at, bytes] : base.parts) {
        write(fd, bytes.data(), bytes.size(), at);
    }
    bool is_sealed = true;
    while (input.size() >= 4) {
        const uint64_t begin = base.regions[input[0] % base.regions.size()];
        is_sealed = is_sealed && (input[0] & 0x80) == 0;
        const uint64_t offset = (input[1] | uint64_t{input[2]} << 8) % kWindowBytes;
        const size_t size = std::min<size_t>(input[3], input.size() - 4);
        if (size > 0) {
            write(fd, input.data() + 4, size, begin + offset);
        }
        input = input.subspan(4 + size);
    }
    IndexHeader header{};
    KV_ASSERT(pread(fd, &header, sizeof header, 0) == ssize_t{sizeof header});
    if (is_sealed) {
        const uint32_t crc = index_header_crc(header);
        write(fd, &crc, sizeof crc, offsetof(IndexHeader, header_crc));
    }
}

void check_extent(const KeptIndex& kept, Generation gen, uint64_t offset, uint64_t length) {
    KV_ASSERT(gen != 0 && epoch_of(gen) <= kept.node_epoch());
    KV_ASSERT(length <= kept.ready_bytes() && offset <= kept.ready_bytes() - length);
}

void check(const KeptIndex& kept) {
    KV_ASSERT(kept.node_id().size() <= limits::kMaxNameBytes);
    KV_ASSERT(kept.ready_bytes() <= kept.segment_bytes());
    uint64_t damaged = 0;
    for (const KeptObject& object : kept.objects(&damaged)) {
        check_extent(kept, object.gen, object.offset, object.identity.length);
        KV_ASSERT(!object.whole || is_valid_key(object.key));
    }
    for (const KeptBlock& block : kept.blocks(&damaged)) {
        check_extent(kept, block.gen, block.offset, block.length);
        KV_ASSERT(block.slot >= -1 && block.slot < static_cast<int>(kSlotCount));
    }
    for (const NamespaceEpoch& ns : kept.namespaces()) {
        KV_ASSERT(is_valid_name(ns.tenant) && is_valid_name(ns.name));
    }
}

}  // namespace
}  // namespace kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace kvstore;
    static const Base base;
    const std::string path = base.directory + "/index";
    {
        const Fd fd(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
        KV_ASSERT(fd.valid());
        write_patched(base, fd.get(), {data, size});
    }
    const auto kept = KeptIndex::open(base.directory, "index");
    if (kept.ok()) {
        check(**kept);
    }
    KV_ASSERT(size > 0 || (kept.ok() && (*kept)->namespaces().size() == 1));
    return 0;
}
