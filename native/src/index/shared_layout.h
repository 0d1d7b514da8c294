// The bytes of the shared files: the index, and the slots of clients. Everything is little-endian
// and fixed-width; a change of any of it is a new format version.
//
// index file (written by the node; clients map the parts with a star, read-only)
//
//   0          * IndexHeader                             one page
//   4096       * tag lines      bucket_count × 64 B      32 tags of 16 bits: a bucket's cache line
//   …          * entries        bucket_count × 32 × 64 B entry n belongs to bucket n / 32
//   …          * key heap       heap_bytes               cold records, in granules of 16 B
//   …            ledger                                  what a node needs besides the entries to
//                                                        take its memory over again (below)
//   n × 2 MiB  * tag lines      of the buckets that the index can grow by: all_buckets less the
//   …          * entries        first bucket_count
//   …            recency        8 B an entry of these
//
//   tag line     | t3 t2 t1 t0 | t7 … t4 | … | t31 … t28 |   8 words of 4 tags; tag 0 = free entry
//
//   entry (64 B) 0  gen       8  hash lo  16 hash hi  24 version
//                32 offset    40 length   48 expiry   56 crc | cold<<32
//
//   cold record  0  tenant    8  namespace  16 parent lo  24 parent hi
//                32 put wall ms             40 key bytes (low 16) | pin << 16 (8)
//                48 key, padded with zeros to whole words
//
// The buckets form levels: the first has bucket_count of them, each further one four times as many
// as the one before it, the last one what is left. `grown` levels besides the first are in use: all
// of their tag lines have memory. Their entries and stamps get it a page at a time, before a tag
// names them; a page without memory must not be read, which would take it.
//
// An object lives in one of the two buckets that its hash names in one of the levels, and never
// moves.
//
//   ledger       0     LedgerHeader                          one page
//                4096  recency        32 × 8 B a bucket      the eviction stamp of each first entry
//                …     blocks         kLedgerBlocks × 32 B   blocks that no valid entry owns
//                …     namespaces     kLedgerNames bytes     records, appended
//
//   block (32 B) 0  gen (0: free)     8  offset    16 length    24 slot + 1 | use<<32
//   namespace    0  crc of the rest   4  epoch      8 tenant id  16 namespace id
//                24 tenant bytes (16) | name bytes << 16 (16)    28 tenant, name, zeros to 8 B
//
// clients file (the node's alone)
//
//   0            ClientsHeader; byte 0 carries the node's record lock
//
// slot file (one for each client process, mapped by it and by the node)
//
//   0            SlotHeader, one page; byte 0 carries the node's record lock
//   4096         SlotPage, written by the client; its first byte carries the client's record lock
#pragma once

#include <array>
#include <atomic>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/limits.h"
#include "base/types.h"

namespace kvstore {

using SharedWord = std::atomic<uint64_t>;
inline constexpr auto kRelaxed = std::memory_order_relaxed;
using SharedHalf = std::atomic<uint32_t>;
static_assert(SharedWord::is_always_lock_free && sizeof(SharedWord) == 8);
static_assert(SharedHalf::is_always_lock_free && sizeof(SharedHalf) == 4);

inline constexpr uint64_t kIndexMagic = 0x31584449564b5651;    // arbitrary, never reused
inline constexpr uint64_t kClientsMagic = 0x31544e4c43564b51;  // arbitrary, never reused
inline constexpr uint64_t kSlotMagic = 0x31544f4c53564b51;     // arbitrary, never reused
inline constexpr uint32_t kLayoutVersion = 1;
inline constexpr uint32_t kClientsVersion = 2;  // 1: all slots lay in the clients file

// ---- index -----------------------------------------------------------------------------------

inline constexpr uint64_t kIndexHeaderBytes = 4096;
inline constexpr uint32_t kBucketSlots = 32;
inline constexpr uint32_t kTagWords = 8;
inline constexpr uint64_t kGranuleBytes = 16;
inline constexpr uint64_t kMaxIndexEntries = uint64_t{1} << 31;  // entry numbers fit 32 bits
inline constexpr uint64_t kMaxHeapBytes = uint64_t{1} << 36;     // granule numbers fit 32 bits
inline constexpr uint32_t kIndexLevels = 4;
inline constexpr uint64_t kLevelFactor = 4;

struct IndexHeader {
    uint64_t magic;
    uint32_t layout_version;
    uint32_t node_epoch;
    uint64_t bucket_count;
    uint64_t heap_bytes;
    uint64_t segment_bytes;
    uint64_t total_bytes;    // of the part that clients map
    uint64_t cluster_check;  // a keyed hash: equal for equal hash secrets
    uint32_t header_crc;     // CRC32C of what never changes: bytes 0 to 55 and 192 to the end
    uint32_t reserved0;
    SharedHalf retired;  // 0, then 1 forever
    uint8_t reserved1[60];
    SharedWord flush_counter;
    SharedHalf grown;  // levels in use besides the first
    uint8_t reserved2[52];
    uint32_t owner_pid;  // for display
    uint16_t node_id_bytes;
    uint8_t reserved3[2];
    char node_id[256];
    uint64_t all_buckets;  // of all levels; 0 in files of earlier builds: the first level alone
    uint8_t reserved4[kIndexHeaderBytes - 464];
};
static_assert(sizeof(IndexHeader) == kIndexHeaderBytes);
static_assert(offsetof(IndexHeader, header_crc) == 56);
static_assert(offsetof(IndexHeader, retired) == 64);
static_assert(offsetof(IndexHeader, flush_counter) == 128 && offsetof(IndexHeader, grown) == 136);
static_assert(offsetof(IndexHeader, owner_pid) == 192 && offsetof(IndexHeader, node_id) == 200);
static_assert(offsetof(IndexHeader, all_buckets) == 456);

struct TagLine {
    SharedWord words[kTagWords];
};
static_assert(sizeof(TagLine) == 64);

struct IndexEntry {
    SharedWord gen;
    SharedWord hash_lo;
    SharedWord hash_hi;
    SharedWord version;
    SharedWord offset;
    SharedWord length;
    SharedWord expires_at_ms;
    SharedWord crc_cold;  // sealed crc in the low half, granule number of the cold record above
};
static_assert(sizeof(IndexEntry) == 64);
static_assert(offsetof(IndexEntry, offset) == 32 && offsetof(IndexEntry, crc_cold) == 56);

// Word numbers inside a cold record.
inline constexpr uint32_t kColdTenant = 0;
inline constexpr uint32_t kColdNamespace = 1;
inline constexpr uint32_t kColdParentLo = 2;
inline constexpr uint32_t kColdParentHi = 3;
inline constexpr uint32_t kColdPutWallMs = 4;
inline constexpr uint32_t kColdKeyBytesPin = 5;
inline constexpr uint32_t kColdKey = 6;
constexpr uint64_t cold_record_bytes(uint64_t key_bytes) {
    return kColdKey * 8 + (key_bytes + 7) / 8 * 8;
}
inline constexpr uint64_t kMaxColdBytes = cold_record_bytes(limits::kMaxKeyBytes);

struct BucketRange {
    uint64_t first = 0;
    uint64_t count = 0;
    uint64_t end() const { return first + count; }
};

// Sizes and places, computed from three numbers and compared with what a header claims.
struct IndexGeometry {
    uint64_t bucket_count = 0;  // of the first level
    uint64_t heap_bytes = 0;
    uint64_t entries_offset = 0;
    uint64_t heap_offset = 0;
    uint64_t total_bytes = 0;  // before the ledger
    std::array<BucketRange, kIndexLevels> levels{};
    uint32_t level_count = 0;
    // The part that the index grows into: its tag lines, entries and stamps, counted in the file.
    uint64_t growth_offset = 0;
    uint64_t growth_entries_offset = 0;
    uint64_t growth_recency_offset = 0;
    uint64_t growth_end = 0;

    uint64_t first_entries() const { return bucket_count * kBucketSlots; }
    const BucketRange& level_of(uint64_t bucket) const;
    uint64_t all_entries() const { return levels[level_count - 1].end() * kBucketSlots; }
    // The ledger's parts, counted from total_bytes on.
    uint64_t ledger_blocks_offset() const;
    uint64_t ledger_names_offset() const;
    uint64_t ledger_bytes() const;
    uint64_t file_bytes() const { return level_count == 1 ? growth_offset : growth_end; }
    // Nothing when a number is out of range.
    static std::optional<IndexGeometry> of(uint64_t bucket_count, uint64_t heap_bytes,
                                           uint64_t all_buckets = 0);
};

uint32_t index_header_crc(const IndexHeader& header);

// Both buckets of a hash in a level, and its tag, which is never 0.
struct IndexPlace {
    std::array<uint64_t, 2> buckets;
    uint16_t tag;
    static IndexPlace of(const Hash128& hash, const BucketRange& level);
    static uint16_t tag_of(const Hash128& hash);  // the same in every level
};

// Typed access to a mapped index; holds no memory.
class IndexView {
  public:
    IndexHeader* header = nullptr;
    SharedWord* heap = nullptr;

    // `growth` is where the file's part from growth_offset on is mapped; it may be missing when
    // nothing asks for buckets behind the first level.
    static IndexView over(uint8_t* base, const IndexGeometry& geometry, uint8_t* growth = nullptr);
    TagLine& tags(uint64_t bucket) const {
        return bucket < first_buckets_ ? tags_[bucket] : more_tags_[bucket - first_buckets_];
    }
    IndexEntry& entry(uint64_t ref) const {
        const uint64_t first = first_buckets_ * kBucketSlots;
        return ref < first ? entries_[ref] : more_entries_[ref - first];
    }

  private:
    uint64_t first_buckets_ = 0;
    TagLine* tags_ = nullptr;
    IndexEntry* entries_ = nullptr;
    TagLine* more_tags_ = nullptr;
    IndexEntry* more_entries_ = nullptr;
};

// ---- ledger ----------------------------------------------------------------------------------

// Both are bounds on address space: memory is taken as it is needed.
inline constexpr uint64_t kLedgerBlocks = uint64_t{1} << 22;
inline constexpr uint64_t kLedgerNames = uint64_t{64} << 20;
inline constexpr uint64_t kLedgerHeaderBytes = 4096;

struct LedgerHeader {
    SharedWord ready_bytes;  // of the segment are backed by memory; every block lies below
    SharedWord blocks_used;  // records behind this one were never written
    SharedWord names_used;   // bytes of namespace records
    SharedWord applied_seq;  // last operation of the master that was applied here
    uint8_t reserved[kLedgerHeaderBytes - 32];
};
static_assert(sizeof(LedgerHeader) == kLedgerHeaderBytes);

struct LedgerBlock {
    SharedWord gen;  // 0: free
    SharedWord offset;
    SharedWord length;
    SharedWord slot_use;
};
static_assert(sizeof(LedgerBlock) == 32);

// Why a block is not free although no valid entry owns it.
enum class BlockUse : uint32_t {
    kReserved = 1,  // somebody writes it
    kDeferred = 2,  // withdrawn, and perhaps still read
    kHeld = 3,      // held by socket for a client whose slot was full; its entry may be valid
};

// ---- clients ---------------------------------------------------------------------------------

inline constexpr uint64_t kSlotBytes = 16384;
inline constexpr uint32_t kSlotHazards = 64;
inline constexpr uint32_t kSlotTouches = 2048;
inline constexpr uint32_t kSlotCounterCount = 32;
inline constexpr uint32_t kSlotSpares = 32;

struct ClientsHeader {
    uint64_t magic;
    uint32_t layout_version;
    uint32_t slot_count;
    uint32_t slot_bytes;
    uint32_t owner_pid;  // for display
};
static_assert(sizeof(ClientsHeader) == 24);

struct SlotHeader {
    uint64_t magic;
    uint32_t layout_version;
    uint32_t slot_bytes;
    uint32_t number;
    uint32_t owner_pid;  // for display
};
static_assert(sizeof(SlotHeader) == 24);

struct Hazard {
    SharedWord gen;     // 0: free
    SharedWord offset;  // of the block: a node that attaches may not know the generation any more
};

struct SlotPage {
    Hazard hazards[kSlotHazards];            // 0
    SharedWord counters[kSlotCounterCount];  // 1024
    SharedWord touch_count;  // 1280: touches ever made; the next goes to count % 2048
    // 1288: 1 when GPUs of this process reach the segment. What they were told to copy goes on for
    // a moment after its death. Files of earlier builds hold zeros here.
    SharedWord devices;
    uint8_t reserved0[48];
    SharedHalf touches[kSlotTouches];  // 1344: entry number + 1; 0: never written
    // 9536: generations of spare blocks that lie unused; who takes one out (the client to write
    // into the block, the node to have it back) sets it to 0. Files of earlier builds hold zeros
    // here.
    SharedWord spares[kSlotSpares];
    uint8_t reserved1[kSlotBytes - 9792];
};
static_assert(sizeof(SlotPage) == kSlotBytes);
static_assert(offsetof(SlotPage, counters) == 1024);
static_assert(offsetof(SlotPage, touch_count) == 1280);
static_assert(offsetof(SlotPage, devices) == 1288);
static_assert(offsetof(SlotPage, touches) == 1344);
static_assert(offsetof(SlotPage, spares) == 9536);

inline constexpr uint64_t kSlotPageOffset = 4096;
inline constexpr uint64_t kSlotFileBytes = kSlotPageOffset + kSlotBytes;
inline constexpr uint32_t kSlotCount = limits::kMaxClients;

// Which file a record lock is on.
struct FileKey {
    uint64_t device = 0;
    uint64_t inode = 0;
    friend auto operator<=>(const FileKey&, const FileKey&) = default;
};

}  // namespace kvstore
