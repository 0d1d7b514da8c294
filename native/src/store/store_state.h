// What a BlockStore consists of. Private to kv_store: block_store.cpp (creation and end),
// store_attach.cpp, store_writes.cpp, store_reads.cpp, store_prefixes.cpp, store_policy.cpp,
// store_space.cpp (room, eviction), store_tiering.cpp and store_audit.cpp implement it.
//
// The fields of one object lie in flat arrays indexed by its entry number; only what is in progress
// (reservations, leases, deferred blocks) has nodes of its own.
#pragma once

#include <deque>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/frequent_items.h"
#include "base/growing_array.h"
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
#include "store/use_sampler.h"
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
    EntryRef first = kNoEntry;       // of its chain, as found last; like `parent`
    uint32_t first_generation = 0;
    uint32_t ns = 0;  // place in State::namespaces
    Pin pin = Pin::kNone;
    bool written = false;     // the NVMe tier has it too
    bool prefetched = false;  // brought from there before anybody asked, and not used yet
    uint8_t rarity = 0;       // of the key in samples of uses
};
struct GenerationOf {
    const GrowingArray<StoredObject>* objects;
    uint64_t operator()(uint32_t ref) const { return (*objects)[ref].generation; }
};
struct OffsetOf {
    const GrowingArray<StoredObject>* objects;
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
    // A client that puts one object after the other uses its spare sooner; one that does not has it
    // taken back before anything published is evicted.
    static constexpr uint64_t kSpareIdleMs = 250;
    static constexpr size_t kMaxFlushedIds = 65'536;
    static constexpr size_t kExpiriesPerTick = 4096;
    static constexpr uint32_t kSweepPerTick = 65'536;
    static constexpr uint64_t kGrowAgainMs = 10'000;
    static constexpr size_t kPrefixes = 512;  // counted between two calls of take_prefixes()

    State(const Options& given, const std::string& directory_in,
          std::unique_ptr<Segment> segment_in, std::unique_ptr<Index> index_in,
          std::unique_ptr<ClientSlots> slots_in);
    static Result<std::shared_ptr<State>> create(const Options& options, StoreFiles& files);
    static Segment::Options segment_options(const Options& options, const StoreFiles& files);
    static Status choose_room(const Options& options, const StoreFiles& files,
                              uint64_t* beside_bytes);
    static Index::Options index_options(const Options& options, const StoreFiles& files);
    Status install() KV_EXCLUDES(mutex);  // an index that was taken over
    void close() KV_EXCLUDES(mutex);
    void remove_files() KV_EXCLUDES(mutex);

    // --- store_attach.cpp ---
    class TakeOver;
    // kIoError: the files are damaged in a way that could hurt a client; start cold.
    static Result<std::shared_ptr<State>> attach(const Options& options, StoreFiles& files);

    // --- store_writes.cpp ---
    Reserved reserve(const Owner& owner, const NamespaceRef& ns, const ReserveItem& item)
        KV_REQUIRES(mutex);
    Reserved reserve_spare(const Owner& owner, uint64_t size_bytes) KV_REQUIRES(mutex);
    Reserved assign_spare(const Owner& owner, const NamespaceRef& ns, const ReserveItem& item)
        KV_REQUIRES(mutex);
    bool revoke_spares(uint64_t deadline_ms) KV_REQUIRES(mutex);
    bool revoke_spare(Generation generation, int slot) KV_REQUIRES(mutex);
    Reserved no_room(uint64_t size_bytes) KV_REQUIRES(mutex);
    Reservation reservation_of(const Owner& owner, const NamespaceRef& ns, const ReserveItem& item,
                               uint64_t offset) const KV_REQUIRES(mutex);
    bool add_reservation(Generation generation, Reservation reservation) KV_REQUIRES(mutex);
    Generation draw_generation() KV_REQUIRES(mutex);
    Reserved block_of(Generation generation, uint64_t offset) const KV_REQUIRES(mutex);
    Code grant(Generation generation, Version version) KV_REQUIRES(mutex);
    Published publish(const Owner& owner, const PublishItem& item, EntryRef* published)
        KV_REQUIRES(mutex);
    Code abort(const Owner& owner, Generation generation) KV_REQUIRES(mutex);
    Code check_version(const Reservation& reservation, Version version) const KV_REQUIRES(mutex);
    Result<EntryRef> insert(const Reservation& reservation, Generation generation, Version version,
                            uint32_t sealed_crc, EntryRef old) KV_REQUIRES(mutex);
    void adopt(EntryRef ref, const Reservation& reservation, Generation generation,
               uint64_t expires_at_ms) KV_REQUIRES(mutex);
    void enter(EntryRef ref, const StoredObject& object) KV_REQUIRES(mutex);
    void link_parent(StoredObject* object, EntryRef parent) const KV_REQUIRES(mutex);
    void stamp_batch(std::span<const EntryRef> published) KV_REQUIRES(mutex);
    void drop_reservation(Generation generation) KV_REQUIRES(mutex);
    void drop_quarantined() KV_REQUIRES(mutex);
    // Frees the block or quarantines it, as may_reuse_reservation() decides.
    void end_reservation(Generation generation, bool writer_said_stopped, bool writer_lock_held)
        KV_REQUIRES(mutex);
    void session_closed(uint64_t session) KV_REQUIRES(mutex);
    void slot_dead(int slot) KV_REQUIRES(mutex);

    // --- store_reads.cpp ---
    EntryRef find_valid(const NamespaceRef& ns, std::string_view key, const Hash128& hash)
        KV_REQUIRES(mutex);
    Found find(const NamespaceRef& ns, const Key& key, EntryRef* ref) KV_REQUIRES(mutex);
    EntryRef parent_of(EntryRef ref) const KV_REQUIRES(mutex);  // kNoEntry: none, or it is gone
    MissReason miss_reason(const NamespaceRef& ns, const Key& key) const KV_REQUIRES(mutex);
    HoldToken make_hold(EntryRef ref) KV_REQUIRES(mutex);
    void drop_hold(Generation generation, EntryRef ref) KV_EXCLUDES(mutex);
    void release_hold(Generation generation, EntryRef ref) KV_REQUIRES(mutex);
    void release_holds(std::span<const SocketHolds::Ended> ended) KV_REQUIRES(mutex);
    uint64_t ttl_ms(const StoredObject& object) const KV_REQUIRES(mutex);
    void touch_reversed(std::span<const EntryRef> refs) KV_REQUIRES(mutex);
    void hit_reversed(std::span<const EntryRef> refs) KV_REQUIRES(mutex);
    void touch(EntryRef ref) KV_REQUIRES(mutex);
    void note_hit(EntryRef ref) KV_REQUIRES(mutex);
    void note_exists(uint64_t session, EntryRef ref) KV_REQUIRES(mutex);
    void apply_exists() KV_REQUIRES(mutex);
    void drain_rings() KV_REQUIRES(mutex);

    // --- store_prefixes.cpp ---
    EntryRef first_of(EntryRef ref) KV_REQUIRES(mutex);
    void note_prefix(EntryRef ref) KV_REQUIRES(mutex);

    // --- store_policy.cpp ---
    bool is_flushed(NamespaceId id) const KV_REQUIRES(mutex) { return flushed_ids.contains(id); }
    void end_leases(std::span<const LeaseTable::Lease> leases_over) KV_REQUIRES(mutex);
    void set_pin(EntryRef ref, Pin pin) KV_REQUIRES(mutex);
    void count_pin(const StoredObject& object, bool add) KV_REQUIRES(mutex);
    // Whether the tenant may have so many hard-pinned bytes more, written or being written.
    bool has_pin_room(TenantId tenant, uint64_t bytes) const KV_REQUIRES(mutex);
    void reap_slots() KV_REQUIRES(mutex);
    bool is_alive(int slot) const KV_REQUIRES(mutex);  // false for -1
    // An object is a member of the evictor unless a lease or a hard pin protects it.
    void update_evictable(EntryRef ref) KV_REQUIRES(mutex);
    uint32_t use_namespace(const NamespaceRef& ns) KV_REQUIRES(mutex);
    void leave_namespace(uint32_t place) KV_REQUIRES(mutex);
    Status note_namespace(const NamespaceEpoch& ns) KV_REQUIRES(mutex);

    // --- store_space.cpp ---
    // Unlocks while it waits for pre-faulting.
    std::optional<uint64_t> obtain_block(uint64_t size_bytes, bool lossless) KV_REQUIRES(mutex);
    std::optional<uint64_t> try_allocate(uint64_t size_bytes) KV_REQUIRES(mutex);
    std::optional<uint64_t> wait_for_prefault(uint64_t size_bytes) KV_REQUIRES(mutex);
    std::optional<uint64_t> evict_for(uint64_t size_bytes, bool lossless) KV_REQUIRES(mutex);
    bool evict_some(uint64_t size_bytes) KV_REQUIRES(mutex);
    bool evict_lossless(uint64_t size_bytes) KV_REQUIRES(mutex);
    std::optional<uint32_t> coldest_written(uint64_t size_bytes, bool thorough) KV_REQUIRES(mutex);
    bool evict_plan(uint64_t size_bytes, bool soft_too) KV_REQUIRES(mutex);
    bool is_unbalanced(uint64_t size_bytes, EntryRef victim) KV_REQUIRES(mutex);
    bool evict_for_index(const Hash128& hash) KV_REQUIRES(mutex);
    // A further level of the index when the buckets of `hash` are full, if there is room for it and
    // for a second index as large as it, which a restart needs.
    bool grow_index(const Hash128& hash, bool taking_over) KV_REQUIRES(mutex);
    bool grow_tables(uint64_t entries) KV_REQUIRES(mutex);
    void evict(EntryRef ref, MissReason reason = MissReason::kEvicted) KV_REQUIRES(mutex);
    // Held by a token, by socket, or by a client's hazard.
    bool is_blocked(EntryRef ref) const KV_REQUIRES(mutex);
    // Out of the index; the block is reused once it is proved that nobody reads it.
    void withdraw(EntryRef ref, MissReason reason, bool tell = true) KV_REQUIRES(mutex);
    void leave(EntryRef ref) KV_REQUIRES(mutex);
    void use_ready_memory() KV_REQUIRES(mutex);
    void expire_objects(size_t max) KV_REQUIRES(mutex);
    void sweep_flushed(uint32_t max) KV_REQUIRES(mutex);
    void deliver() KV_REQUIRES(mutex);
    uint64_t now() const KV_REQUIRES(mutex) { return options.now_ms(); }

    // --- store_tiering.cpp ---
    void set_written(StoredObject& object, bool written) KV_REQUIRES(mutex);  // of a live object
    void describe(EntryRef ref, Unwritten* out) KV_REQUIRES(mutex);

    // --- store_audit.cpp ---
    Stats collect_stats() KV_REQUIRES(mutex);
    Status audit() KV_REQUIRES(mutex);
    Status audit_objects(std::unordered_map<uint64_t, uint64_t>* blocks) KV_REQUIRES(mutex);
    Status audit_blocks(const std::unordered_map<uint64_t, uint64_t>& blocks) const
        KV_REQUIRES(mutex);
    Status audit_counts() const KV_REQUIRES(mutex);

    // The mutex for the length of a call; on the way out, frees what can be freed and delivers what
    // was withdrawn.
    class KV_THREAD_ANNOTATION(scoped_lockable) Lock {
      public:
        explicit Lock(State& state) KV_ACQUIRE(state.mutex) : state_(state) { state_.mutex.lock(); }
        ~Lock() KV_RELEASE() {
            state_.deferred.settle();
            state_.deliver();
            state_.mutex.unlock();
        }
        Lock(const Lock&) = delete;
        Lock& operator=(const Lock&) = delete;

      private:
        State& state_;
    };

    // Guards everything that has no lock of its own. The mutexes of `slots` and `segment` are taken
    // inside it; the withdraw callback runs without it.
    Mutex mutex;
    const std::string directory;             // empty: anonymous memory
    Beginning beginning;                     // does not change once the store is handed out
    const std::unique_ptr<Segment> segment;  // thread-safe itself
    std::unique_ptr<ClientSlots> slots;      // thread-safe itself
    CondVar delivered;                       // waited for when the callback is changed
    Options options KV_GUARDED_BY(mutex);
    const std::unique_ptr<Index> index KV_PT_GUARDED_BY(mutex);
    ChunkAllocator allocator KV_GUARDED_BY(mutex);
    const std::shared_ptr<UseSampler> sampler;                // thread-safe itself
    GrowingArray<StoredObject> objects KV_GUARDED_BY(mutex);  // by entry number
    RefMap<GenerationOf> by_generation KV_GUARDED_BY(mutex);
    RefMap<OffsetOf> by_offset KV_GUARDED_BY(mutex);
    Evictor evictor KV_GUARDED_BY(mutex);
    LeaseTable leases KV_GUARDED_BY(mutex);
    ReservationTable reservations KV_GUARDED_BY(mutex);
    TombstoneTable tombstones KV_GUARDED_BY(mutex);
    MissHistory history KV_GUARDED_BY(mutex);
    UseTimes uses KV_GUARDED_BY(mutex);
    // Hits by the first object of their chain.
    FrequentItems<Generation> prefixes KV_GUARDED_BY(mutex){kPrefixes};

    std::vector<NamespaceUse> namespaces KV_GUARDED_BY(mutex);
    std::vector<uint32_t> free_namespaces KV_GUARDED_BY(mutex);
    std::unordered_map<TenantId, uint64_t> hard_pinned KV_GUARDED_BY(mutex);  // bytes
    std::unordered_map<NamespaceId, uint32_t> namespace_places KV_GUARDED_BY(mutex);
    std::unordered_set<NamespaceId> noted_namespaces KV_GUARDED_BY(mutex);  // those in the ledger
    std::unordered_set<NamespaceId> flushed_ids KV_GUARDED_BY(mutex);
    std::deque<NamespaceId> flushed_order KV_GUARDED_BY(mutex);
    uint64_t flush_counter KV_GUARDED_BY(mutex) = 0;
    // Entries that the sweep after a flush has still to look at.
    uint64_t sweep_left KV_GUARDED_BY(mutex) = 0;
    EntryRef sweep_at KV_GUARDED_BY(mutex) = 0;

    SocketHolds socket_holds KV_GUARDED_BY(mutex);
    DeferredBlocks deferred KV_GUARDED_BY(mutex);
    // More than the order of publishing asks for.
    uint64_t write_soon_bytes KV_GUARDED_BY(mutex) = 0;
    // In the order of publishing; may name objects that are gone.
    std::deque<Generation> to_write KV_GUARDED_BY(mutex);
    // A heap, the soonest first; may name objects that are gone.
    std::vector<Expiry> expiries KV_GUARDED_BY(mutex);
    // Touches of AlreadyExists answers, in the batch's order.
    std::vector<EntryRef> exists_batch KV_GUARDED_BY(mutex);
    uint64_t exists_session KV_GUARDED_BY(mutex) = 0;
    uint32_t evictions_since_balance KV_GUARDED_BY(mutex) = 0;
    // Why the index does not grow, and until when that is not asked again.
    std::string no_growth KV_GUARDED_BY(mutex);
    uint64_t no_growth_until_ms KV_GUARDED_BY(mutex) = 0;

    uint64_t generation_counter KV_GUARDED_BY(mutex) = 0;
    Stats totals KV_GUARDED_BY(mutex);  // the counters, and sums kept as objects come and go
    WithdrawFn on_withdraw KV_GUARDED_BY(mutex);
    std::vector<Withdrawn> withdrawn KV_GUARDED_BY(mutex);
    bool delivering KV_GUARDED_BY(mutex) = false;
};

}  // namespace kvstore
