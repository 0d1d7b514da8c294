// What a BlockStore consists of. Private to kv_store: block_store.cpp (creation and end),
// store_attach.cpp, store_writes.cpp, store_reads.cpp, store_policy.cpp, store_space.cpp (room,
// eviction), store_tiering.cpp and store_audit.cpp implement it.
//
// Methods expect the mutex to be held unless they say otherwise. What concerns one object lies in
// flat arrays indexed by its entry number; only what is under way (reservations, leases, deferred
// blocks) has nodes of its own.
#pragma once

#include <deque>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "index/client_slots.h"
#include "index/index.h"
#include "memory/chunk_allocator.h"
#include "memory/segment.h"
#include "store/block_store.h"
#include "store/deferred_blocks.h"
#include "store/evictor.h"
#include "store/lease_table.h"
#include "store/ref_map.h"
#include "store/reservation_table.h"
#include "store/socket_holds.h"
#include "store/store_files.h"
#include "store/use_times.h"
#include "store/withdrawal_memory.h"

namespace kvstore {

// The private side of an index entry.
struct StoredObject {
    Generation generation = 0;  // 0: no object here
    uint64_t offset = 0;
    uint64_t length = 0;
    uint64_t expires_at_ms = 0;  // 0: never
    uint32_t holds = 0;          // tokens and holds by socket
    uint32_t leases = 0;
    EntryRef parent = kNoEntry;      // a hint for recency, believed only with its generation
    uint32_t parent_generation = 0;  // low half
    uint32_t ns = 0;                 // place in State::namespaces
    Pin pin = Pin::kNone;
    bool written = false;     // the lower tier has it too
    bool prefetched = false;  // brought from there before anybody asked, and not used yet
};
struct GenerationOf {
    const std::vector<StoredObject>* objects;
    uint64_t operator()(uint32_t ref) const { return (*objects)[ref].generation; }
};
struct OffsetOf {
    const std::vector<StoredObject>* objects;
    uint64_t operator()(uint32_t ref) const { return (*objects)[ref].offset; }
};

struct BlockStore::State : std::enable_shared_from_this<BlockStore::State> {
    struct NamespaceUse {
        NamespaceRef ns;
        uint64_t objects = 0;
    };
    struct HoldRecord {  // what a HoldToken points to
        std::shared_ptr<State> state;
        Generation generation = 0;
        EntryRef ref = kNoEntry;
        ~HoldRecord() { state->drop_hold(generation, ref); }
    };
    struct Expiry {
        uint64_t at_ms = 0;
        Generation generation = 0;
        bool operator>(const Expiry& other) const { return at_ms > other.at_ms; }
    };
    static constexpr uint64_t kSpareShare = 32;  // of the segment, for all spares together
    static constexpr size_t kMaxFlushedIds = 65'536;
    static constexpr size_t kExpiriesPerTick = 4096;
    static constexpr uint32_t kSweepPerTick = 65'536;

    State(const Options& given, const std::string& directory_in,
          std::unique_ptr<Segment> segment_in, std::unique_ptr<Index> index_in,
          std::unique_ptr<ClientSlots> slots_in);
    static Result<std::shared_ptr<State>> create(const Options& options, StoreFiles& files);
    static Segment::Options segment_options(const Options& options, const StoreFiles& files);
    static Index::Options index_options(const Options& options, const StoreFiles& files);
    void close();         // takes the mutex
    void remove_files();  // takes the mutex

    // --- store_attach.cpp ---
    class TakeOver;
    // kIoError: what is there is damaged in a way that could hurt somebody; start cold.
    static Result<std::shared_ptr<State>> attach(const Options& options, StoreFiles& files);

    // --- store_writes.cpp ---
    Reserved reserve(MutexLock& lock, const Owner& owner, const NamespaceRef& ns,
                     const ReserveItem& item);
    Reserved reserve_spare(MutexLock& lock, const Owner& owner, uint64_t size_bytes);
    Reserved assign_spare(const Owner& owner, const NamespaceRef& ns, const ReserveItem& item);
    Reservation reservation_of(const Owner& owner, const NamespaceRef& ns, const ReserveItem& item,
                               uint64_t offset) const;
    bool add_reservation(Generation generation, Reservation reservation);
    Generation draw_generation();
    Reserved block_of(Generation generation, uint64_t offset) const;
    Code grant(Generation generation, Version version);
    Published publish(const Owner& owner, const PublishItem& item, EntryRef* published);
    Code abort(const Owner& owner, Generation generation);
    Code check_version(const Reservation& reservation, Version version) const;
    Result<EntryRef> insert(const Reservation& reservation, Generation generation, Version version,
                            uint32_t sealed_crc, EntryRef old);
    void adopt(EntryRef ref, const Reservation& reservation, Generation generation,
               uint64_t expires_at_ms);
    void enter(EntryRef ref, const StoredObject& object);
    void link_parent(StoredObject* object, EntryRef parent) const;
    void stamp_batch(std::span<const EntryRef> published);
    void drop_reservation(Generation generation);
    void drop_quarantined();
    // Frees the block or quarantines it, as may_reuse_reservation() decides.
    void end_reservation(Generation generation, bool writer_said_stopped, bool writer_lock_held);
    void session_closed(uint64_t session);
    void slot_dead(int slot);

    // --- store_reads.cpp ---
    EntryRef find_valid(const NamespaceRef& ns, std::string_view key, const Hash128& hash);
    Found find(const NamespaceRef& ns, const Key& key, EntryRef* ref);
    EntryRef parent_of(EntryRef ref) const;  // kNoEntry: none, or it is gone
    MissReason miss_reason(const NamespaceRef& ns, const Key& key) const;
    HoldToken make_hold(EntryRef ref);
    void drop_hold(Generation generation, EntryRef ref);  // takes the mutex
    void release_hold(Generation generation, EntryRef ref);
    void release_holds(std::span<const SocketHolds::Ended> ended);
    uint64_t ttl_ms(const StoredObject& object) const;
    void touch_reversed(std::span<const EntryRef> refs);
    void touch(EntryRef ref);
    void note_exists(uint64_t session, EntryRef ref);
    void apply_exists();
    void drain_rings();

    // --- store_policy.cpp ---
    bool is_flushed(NamespaceId id) const { return flushed_ids.contains(id); }
    void end_leases(std::span<const LeaseTable::Lease> leases_over);
    void set_pin(EntryRef ref, Pin pin);
    void count_pin(const StoredObject& object, bool add);
    void reap_slots();
    bool is_alive(int slot) const;  // false for -1
    // An object is a member of the evictor unless a lease or a hard pin protects it.
    void update_evictable(EntryRef ref);
    uint32_t use_namespace(const NamespaceRef& ns);
    void leave_namespace(uint32_t place);
    Status note_namespace(const NamespaceEpoch& ns);

    // --- store_space.cpp ---
    // Unlocks while it waits for pre-faulting.
    std::optional<uint64_t> obtain_block(MutexLock& lock, uint64_t size_bytes, bool lossless);
    std::optional<uint64_t> try_allocate(uint64_t size_bytes);
    std::optional<uint64_t> wait_for_prefault(MutexLock& lock, uint64_t size_bytes);
    std::optional<uint64_t> evict_for(uint64_t size_bytes, bool lossless);
    bool evict_some(uint64_t size_bytes);
    bool evict_lossless(uint64_t size_bytes);
    std::optional<uint32_t> coldest_written(uint64_t size_bytes, bool thorough);
    bool evict_plan(uint64_t size_bytes, bool soft_too);
    bool is_unbalanced(uint64_t size_bytes, EntryRef victim);
    bool evict_for_index(const Hash128& hash);
    void evict(EntryRef ref);
    bool is_blocked(EntryRef ref) const;  // held by a token, by socket, or by a client's hazard
    // Out of the index; the block is reused once it is proved that nobody reads it.
    void withdraw(EntryRef ref, MissReason reason, bool tell = true);
    void leave(EntryRef ref);
    void use_ready_memory();
    void expire_objects(size_t max);
    void sweep_flushed(uint32_t max);
    void deliver(MutexLock& lock);
    uint64_t now() const { return options.now_ms(); }

    // --- store_tiering.cpp ---
    void set_written(StoredObject& object, bool written);  // of a live object
    void describe(EntryRef ref, Unwritten* out);

    // --- store_audit.cpp ---
    Stats collect_stats();
    Status audit();
    Status audit_objects(std::unordered_map<uint64_t, uint64_t>* blocks);
    Status audit_blocks(const std::unordered_map<uint64_t, uint64_t>& blocks) const;
    Status audit_counts() const;

    // The mutex for the length of a call; on the way out, frees what can be freed and delivers what
    // was withdrawn.
    class Lock {
      public:
        explicit Lock(State& state) : held(state.mutex), state_(state) {}
        ~Lock() {
            state_.deferred.settle();
            state_.deliver(held);
        }
        Lock(const Lock&) = delete;
        Lock& operator=(const Lock&) = delete;
        MutexLock held;

      private:
        State& state_;
    };

    Options options;
    std::string directory;  // empty: anonymous memory
    Beginning beginning;
    std::unique_ptr<Segment> segment;
    std::unique_ptr<Index> index;
    std::unique_ptr<ClientSlots> slots;
    ChunkAllocator allocator;
    std::vector<StoredObject> objects;  // by entry number
    RefMap<GenerationOf> by_generation;
    RefMap<OffsetOf> by_offset;
    Evictor evictor;
    LeaseTable leases;
    ReservationTable reservations;
    TombstoneTable tombstones;
    MissHistory history;
    UseTimes uses;

    std::vector<NamespaceUse> namespaces;
    std::vector<uint32_t> free_namespaces;
    std::unordered_map<NamespaceId, uint32_t> namespace_places;
    std::unordered_set<NamespaceId> noted_namespaces;  // those in the ledger
    std::unordered_set<NamespaceId> flushed_ids;
    std::deque<NamespaceId> flushed_order;
    uint64_t flush_counter = 0;
    uint64_t sweep_left = 0;  // entries that the sweep after a flush has still to look at
    EntryRef sweep_at = 0;

    SocketHolds socket_holds;
    DeferredBlocks deferred;
    uint64_t write_soon_bytes = 0;       // more than the order of publishing asks for
    std::deque<Generation> to_write;     // in the order of publishing; may name what is gone
    std::vector<Expiry> expiries;        // a heap, the soonest first; may name what is gone
    std::vector<EntryRef> exists_batch;  // touches of AlreadyExists answers, in the batch's order
    uint64_t exists_session = 0;
    uint32_t evictions_since_balance = 0;

    uint64_t generation_counter = 0;
    Stats totals;  // the counters, and sums kept as objects come and go
    WithdrawFn on_withdraw;
    std::vector<Withdrawn> withdrawn;
    bool delivering = false;
    CondVar delivered;  // waited for when the callback is changed
    Mutex mutex;
};

}  // namespace kvstore
