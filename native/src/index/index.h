// The index of a node's published objects, in memory that clients map read-only.
//
// `Index` is the node's side: the only writer, to be called under one external lock. `IndexReader`
// is a client's side: it writes nothing, and whatever bytes it meets, it stays inside its mapping
// and hands out only extents inside the segment. The bytes are drawn in shared_layout.h; the order
// of the accesses, on which correctness rests, is in protocol_steps.h.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/types.h"
#include "index/backed_pages.h"
#include "index/ledger.h"
#include "index/shared_layout.h"
#include "memory/chunk_allocator.h"

namespace kvstore {

// The number of an entry. Entries never move: it names an object while its generation stands.
using EntryRef = uint32_t;
inline constexpr EntryRef kNoEntry = UINT32_MAX;

// A private copy of an entry's words.
struct EntryFields {
    Generation gen = 0;  // 0: empty or invalidated
    Hash128 hash;
    Version version = 0;
    uint64_t offset = 0;
    uint64_t length = 0;
    uint64_t expires_at_ms = 0;  // CLOCK_BOOTTIME; 0: never
    uint32_t crc = 0;            // sealed (checksum.h)
    uint32_t cold = 0;           // granule number in the key heap
};

// What only the node needs of an object. `key` points into the heap: valid until release(ref).
struct ColdFields {
    TenantId tenant = 0;
    NamespaceId ns = 0;
    Hash128 parent;
    uint64_t put_wall_ms = 0;
    Pin pin = Pin::kNone;
    std::string_view key;
};

// The node's side. Not thread-safe: the block store's lock guards it.
class Index {
  public:
    struct Options {
        std::string directory;  // tmpfs mount; empty: an anonymous memfd
        std::string name = "index";
        uint64_t entries = 0;      // at first, rounded up to whole buckets
        uint64_t max_entries = 0;  // how far it may grow(), at most 85 times; 0: not at all
        uint64_t heap_bytes = 0;   // room for cold records; 0: 128 bytes an entry it may have
        uint32_t node_epoch = 0;
        std::string node_id;
        uint64_t segment_bytes = 0;
        uint64_t cluster_check = 0;
    };
    struct NewEntry {
        Identity identity;  // its length is the object's length
        uint64_t offset = 0;
        uint32_t crc = 0;            // sealed
        uint64_t expires_at_ms = 0;  // CLOCK_BOOTTIME; 0: never
        Generation gen = 0;
        std::string_view key;
        Hash128 parent;
        uint64_t put_wall_ms = 0;
        Pin pin = Pin::kNone;
    };

    // Always a new file, under a name of its own until install(): what an earlier life of the node
    // has left stays whole until this one is ready to take its place.
    static Result<std::unique_ptr<Index>> create(const Options& options);
    // What its file may take until it grows; 0 when the options are out of range.
    static uint64_t memory_bytes(const Options& options);
    uint64_t memory_bytes() const;  // as large as it is now
    Status install();
    // Whether its file has lost pages (bus_guard.h): it is not to be believed any more.
    bool torn() const { return mapping_.torn() || growth_.torn() || ledger_->torn(); }
    // A later life must not take this index over: something that it needs could not be written.
    void forbid_keeping();
    ~Index();
    Index(const Index&) = delete;
    Index& operator=(const Index&) = delete;

    // kNoEntry when no valid entry has this namespace and this very key.
    EntryRef find(NamespaceId ns, const Hash128& hash, std::string_view key) const;
    // Any entry with this hash, whatever its key: good for a hint.
    EntryRef find_hash(NamespaceId ns, const Hash128& hash) const;
    // Publishes: visible to readers when it returns. Does not look for an older entry of the same
    // key: insert first, then invalidate the old one, so that no reader meets a gap. kNoSpace: its
    // buckets or the key heap are full; grow(), or evict one of candidates(hash), and try again.
    Result<EntryRef> insert(const NewEntry& entry);
    // Generation to 0, then a full fence: after it a scan of the hazards decides about the block.
    void invalidate(EntryRef ref);
    // Frees the entry and its cold record. Only after invalidate(ref).
    void release(EntryRef ref);

    bool has_free_entry(const Hash128& hash) const { return free_entry(hash) != kNoEntry; }
    // Entries that grow() adds; 0: the index is as large as it gets.
    uint64_t growth_entries() const;
    // What they take, with their part of the key heap.
    uint64_t growth_bytes() const;
    // A further level. kNoSpace when the file system has no memory for its tags; entries get theirs
    // as they are inserted.
    Status grow();

    EntryFields entry(EntryRef ref) const;
    ColdFields cold(EntryRef ref) const;  // of a used entry (inserted and not yet released)
    void set_pin(EntryRef ref, Pin pin);
    // Entries whose eviction would make room for `hash` (at most 64 a level), used ones only.
    void candidates(const Hash128& hash, std::vector<EntryRef>* out) const;
    // Calls fn for every valid entry; fn may invalidate and release the entry it was given.
    void for_each(const std::function<void(EntryRef, const EntryFields&)>& fn) const;

    // Tells clients that a namespace they resolved may have a new epoch.
    void bump_flush_counter();
    // Tells clients, forever, to trust nothing read through this index; then a full fence.
    void retire();

    uint64_t size() const { return used_; }  // valid and invalidated, not yet released
    uint64_t capacity() const { return geometry_.levels[levels_ - 1].end() * kBucketSlots; }
    uint64_t max_capacity() const { return geometry_.all_entries(); }
    uint64_t mapped_bytes() const { return geometry_.total_bytes; }  // before the ledger
    Recency recency() const;                                         // of all possible entries
    int fd() const { return fd_.get(); }
    const std::string& name() const { return name_; }
    Ledger& ledger() { return *ledger_; }
    // What clients are given: the same file, which a mapping through it cannot write.
    int client_fd() const { return client_fd_.get(); }
    // Why it got no memory when it last needed some, with the folder's name; Ok when it did.
    Status growth_status() const;
    Status audit() const;  // tags, entries and heap agree; slow, for tests and audits

  private:
    Index() = default;
    static std::optional<IndexGeometry> geometry_of(const Options& options);
    template <class Matches>  // bool(const ColdFields&)
    EntryRef find_valid(const Hash128& hash, Matches&& matches) const;
    // What the entries of so many levels may take of the file.
    static uint64_t planned_bytes(const IndexGeometry& geometry, uint32_t levels);
    std::span<const BucketRange> levels() const { return {geometry_.levels.data(), levels_}; }
    Status grow_heap();
    std::optional<uint32_t> store_cold(const NewEntry& entry);
    EntryRef free_entry(const Hash128& hash) const;
    Status back_entry(EntryRef ref);
    bool has_memory(EntryRef ref) const;
    uint64_t growth_offset_of(EntryRef ref) const;  // of an entry behind the first level
    void write_header(const Options& options);

    std::string directory_;
    std::string name_;
    Fd fd_;
    Fd client_fd_;
    Mapping mapping_;
    Mapping growth_;
    IndexGeometry geometry_;
    IndexView view_;
    uint32_t levels_ = 1;
    BackedPages growth_pages_;
    std::unique_ptr<Ledger> ledger_;
    std::unique_ptr<ChunkAllocator> heap_;
    uint64_t heap_ready_bytes_ = 0;
    Status memory_status_;  // of the last attempt to get memory for heap, level or entry
    uint64_t used_ = 0;
};

// A client's side. Thread-safe after attach(): it only reads.
class IndexReader {
  public:
    struct Found {
        EntryRef ref = kNoEntry;
        Generation gen = 0;
        uint64_t offset = 0;
        uint64_t length = 0;
        Version version = 0;
        uint32_t crc = 0;  // sealed
    };

    // Maps and checks the header; `segment_bytes` is the size of the segment that the caller has
    // mapped: no extent beyond it is ever handed out. `fd` stays the caller's.
    static Result<std::unique_ptr<IndexReader>> attach(int fd, uint64_t segment_bytes);
    // Whether the file has lost pages (bus_guard.h).
    bool torn() const { return mapping_.torn() || growth_.torn(); }

    // Starts loading the cache lines that probe(hash) will read; for batches (in_pipeline()). Each
    // stage reads what the one before has asked for: 0 the tags, 1 the entries with an equal tag, 2
    // the full keys of those.
    static constexpr size_t kPrefetchStages = 3;
    // False from stage 1 on: no tag is equal, and probe(hash) would find nothing.
    bool prefetch(size_t stage, const Hash128& hash) const;
    // The valid, unexpired object under exactly this namespace and key. `now_ms` is boottime_ms().
    // Empty also when the index is retired.
    std::optional<Found> probe(NamespaceId ns, const Hash128& hash, std::string_view key,
                               uint64_t now_ms) const;
    // After everything read so far: does the entry still have this generation, and is the index not
    // retired? (Acquire fence included.)
    bool still_valid(EntryRef ref, Generation gen) const;

    // Whether `found` can be used here at all: its numbers stay within index and segment.
    bool well_formed(const Found& found) const;

    uint64_t flush_counter() const;
    bool retired() const;
    uint32_t node_epoch() const { return node_epoch_; }
    const std::string& node_id() const { return node_id_; }
    uint64_t segment_bytes() const { return segment_bytes_; }
    const IndexView& view() const { return view_; }  // for the steps in object_reader.cpp

  private:
    IndexReader() = default;
    struct Level {  // whose buckets and entries are counted from 0
        const TagLine* tags = nullptr;
        const IndexEntry* entries = nullptr;
        uint64_t first_entry = 0;
        uint64_t buckets = 0;
    };
    std::span<const Level> levels() const;
    enum class Match { kNo, kYes, kChanged };
    bool cold_matches(uint32_t cold, NamespaceId ns, std::string_view key) const;
    bool in_segment(uint64_t offset, uint64_t length) const;
    Match match(const IndexEntry& entry, NamespaceId ns, const Hash128& hash, std::string_view key,
                uint64_t now_ms, Found* found) const;

    Mapping mapping_;
    Mapping growth_;
    IndexGeometry geometry_;
    IndexView view_;
    std::array<Level, kIndexLevels> levels_;
    uint32_t node_epoch_ = 0;
    std::string node_id_;
    uint64_t segment_bytes_ = 0;
};

}  // namespace kvstore
