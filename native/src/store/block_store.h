// The node's store of blocks: joins segment, allocator, index and client slots.
//
// Private to the node and thread-safe: one mutex inside, never held while bulk bytes are copied or
// the withdraw callback runs. Nothing that a client can write (slots, rings, the segment's bytes,
// generations in messages) is used before it is checked against private state.
//
// Life of a write: reserve → grant (the master gave a version) → publish | abort. A reservation
// that has expired, or whose session closed while its slot lives, is quarantined: it can no longer
// publish, and its block is not reused until the writer aborts or its slot is dead.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "base/limits.h"
#include "base/namespace_epoch.h"
#include "base/status.h"
#include "base/types.h"
#include "store/store_types.h"

namespace kvstore {

class ClientSlots;
class StoreFiles;
class UseSampler;

NamespaceRef make_namespace(const HashSecret& secret, std::string_view tenant,
                            std::string_view name, uint32_t epoch);

class BlockStore {
  public:
    struct Options {
        uint64_t size_bytes = 0;
        uint32_t index_entries = 0;      // at first; 0: size_bytes / 3277, at least 1024
        uint32_t max_index_entries = 0;  // how far the index grows; 0: an entry every 64 bytes
        std::string node_id;
        uint32_t node_epoch = 1;
        HashSecret secret{};
        uint64_t client_cap_bytes = 0;  // unpublished bytes of one client; 0: half of the segment
        uint64_t lease_cap_bytes = 0;   // leased bytes of one tenant; 0: half of the segment
        uint64_t pin_cap_bytes = 0;     // hard-pinned bytes of one tenant; 0: half of the segment
        uint32_t reservation_ms = limits::kReservationMs;
        uint32_t tombstone_ms = 60'000;   // at least twice reservation_ms is used
        uint32_t prefault_wait_ms = 250;  // how long a reserve waits for pre-faulting, then evicts
        bool allow_cold_restart = false;  // rather start empty than not at all, for lack of room
        bool tiered = false;              // there is an NVMe tier: it is told what it lacks
        // Of several stores of one node each draws every `generation_step`-th generation, so that
        // no two draw the same.
        uint32_t generation_first = 1;  // 1 to generation_step
        uint32_t generation_step = 1;
        // Whose objects of an earlier life are taken over; null: everybody's.
        std::function<bool(std::string_view tenant)> keeps;
        std::shared_ptr<UseSampler> sampler;  // hears of every hit; null: nobody asks
        uint64_t seed = 0;                    // of the eviction sample; 0: drawn from the system
        std::function<uint64_t()> now_ms;     // boottime_ms unless a test says otherwise
        std::function<bool(int slot)> slot_alive;  // the record lock unless a test says otherwise
    };

    struct ReserveItem {
        std::string_view key;
        Hash128 hash;
        uint64_t size_bytes = 0;
        uint64_t ttl_ms = 0;  // from publish on; 0: none
        Pin pin = Pin::kNone;
        std::string_view
            parent;           // key of the previous block of the chain, same namespace; or empty
        Hash128 parent_hash;  // of it, where the key is not known
        uint64_t put_wall_ms = 0;  // when it was first put; 0: now
        Generation spare = 0;      // write it into this block of reserve_spare(); 0: into a new one
        bool force = false;        // an upsert or a copy: kAlreadyExists is no obstacle
        bool is_copy = false;      // of an object that has its pin already: no cap of pins
        bool lossless = false;     // rather kNoSpace than evict what NVMe lacks
    };
    // code: kOk, kAlreadyExists (published here; its recency is refreshed), kNoSpace, kTooLarge,
    // kInvalidArgument (bad key), kRemoved (the namespace was flushed), kExpired (the spare cannot
    // be used any more: abort it). Only kOk fills the rest.
    struct Reserved {
        Code code = Code::kInternal;
        Generation generation = 0;
        uint64_t offset = 0;
        uint8_t* data = nullptr;  // in this process's mapping, size_bytes long
        std::string message;      // for kNoSpace and kTooLarge: names the setting
    };

    // Keeps a published block's bytes where they are for as long as any copy of it lives; it may
    // outlive the store. Removing, flushing or replacing the object does not disturb a held block.
    using HoldToken = std::shared_ptr<const void>;

    struct PublishItem {
        Generation generation = 0;
        uint32_t data_crc = 0;  // CRC32C of the data alone; the store seals it
        Version version = 0;    // 0: the one given to grant()
    };
    // code: kOk, kExpired (quarantined: the writer has to abort), kRemoved (a remove or flush
    // overtook it), kAlreadyExists (this or a higher version is here), kNoSpace (index full,
    // nothing evictable), kInvalidArgument (unknown generation, other owner, no version). Unless
    // kExpired or kInvalidArgument the reservation has ended and its block, if not published, is
    // free again.
    struct Published {
        Code code = Code::kInternal;
        uint32_t sealed_crc = 0;
        // With kOk: the object is neither evicted nor expired while this lives. Drop it once the
        // announce is queued, so that no withdraw can be queued before the announce.
        HoldToken hold;
    };

    struct Key {
        std::string_view key;
        Hash128 hash;
        Version version = 0;  // find: 0 is any, another must match (else kVersion)
    };
    struct Found {
        HoldToken hold;  // null: a miss
        MissReason reason = MissReason::kNone;
        const uint8_t* data = nullptr;
        uint64_t length = 0;
        Version version = 0;
        Generation generation = 0;
        uint32_t sealed_crc = 0;
        uint64_t ttl_ms = 0;  // remaining; 0: never
        Pin pin = Pin::kNone;
    };

    // What is known of a key, for display.
    struct Explained {
        bool here = false;
        Version version = 0;
        uint64_t length = 0;
        uint64_t put_wall_ms = 0;
        uint64_t used_wall_ms = 0;              // last use, about; 0: before this life
        MissReason reason = MissReason::kNone;  // when it is not here
        uint64_t gone_wall_ms = 0;              // since when; 0: not known
    };

    struct LeaseGrant {
        uint64_t lease_id = 0;  // 0 when length is 0
        uint32_t length = 0;    // leading keys that are leased
    };

    struct Withdrawn {
        NamespaceRef ns;
        std::string key;
        Hash128 hash;
        Version version = 0;
        MissReason reason =
            MissReason::kNone;  // kEvicted, kExpired, kRemoved, kFlushed, kVersion (replaced)
    };
    using WithdrawFn = std::function<void(std::span<const Withdrawn>)>;

    struct ObjectInfo {
        NamespaceRef ns;
        std::string key;
        Hash128 hash;
        Version version = 0;
        Generation generation = 0;
        uint64_t length = 0;
        uint32_t sealed_crc = 0;
        Pin pin = Pin::kNone;
        uint64_t ttl_ms = 0;  // remaining; 0: never
    };

    // A published object that the NVMe tier does not have.
    struct Unwritten {
        HoldToken hold;
        NamespaceRef ns;
        std::string key;
        Hash128 hash;
        Hash128 parent;
        Version version = 0;
        Generation generation = 0;
        const uint8_t* data = nullptr;
        uint64_t length = 0;
        uint32_t sealed_crc = 0;
        Pin pin = Pin::kNone;
        uint64_t ttl_ms = 0;  // remaining; 0: never
        uint64_t put_wall_ms = 0;
    };

    struct Stats {
        uint64_t capacity_bytes = 0;   // pre-faulted so far
        uint64_t segment_bytes = 0;    // in the end
        uint64_t used_bytes = 0;       // rounded bytes of all live blocks
        uint64_t requested_bytes = 0;  // exact bytes of all live blocks
        uint64_t objects = 0;
        uint64_t object_bytes = 0;    // exact bytes of published objects
        uint64_t index_capacity = 0;  // entries that it has now
        uint64_t index_max = 0;       // that it can grow to
        uint64_t index_used = 0;
        std::string growth_error;   // why the index could not grow; empty: it could
        uint64_t reservations = 0;  // that may still publish, spares not counted
        uint64_t spares = 0;
        uint64_t reserved_bytes = 0;  // of both
        uint64_t quarantined = 0;
        uint64_t quarantined_bytes = 0;
        uint64_t deferred = 0;  // withdrawn blocks that a hold or a hazard still names
        uint64_t deferred_bytes = 0;
        uint64_t leases = 0;
        uint64_t leased_bytes = 0;
        uint64_t soft_pinned_bytes = 0;
        uint64_t hard_pinned_bytes = 0;
        uint64_t tombstones = 0;
        uint64_t unwritten = 0;  // objects that the NVMe tier does not have
        uint64_t unwritten_bytes = 0;
        // Counters since the start.
        uint64_t reserves = 0;
        uint64_t publishes = 0;
        uint64_t aborts = 0;
        uint64_t evictions = 0;
        uint64_t index_evictions = 0;  // of these: not for memory, for an entry of the index
        uint64_t evicted_bytes = 0;
        uint64_t prefetch_used = 0;      // objects brought ahead of a read that came
        uint64_t prefetch_wasted = 0;    // … and that were gone before one came
        uint64_t evicted_unwritten = 0;  // of them, those that no tier has any more
        uint64_t expirations = 0;
        uint64_t removals = 0;
        uint64_t replaced = 0;
        uint64_t flushed = 0;
        uint64_t no_space = 0;
        uint64_t reclaims = 0;  // times a whole chunk changed its size
        uint64_t touches = 0;
    };

    // How a store began: with the objects of an earlier life of the node (warm), or empty.
    struct Beginning {
        bool warm = false;
        std::string why_cold;       // although something was there; for display
        std::string restart_loses;  // why the next life could not take this memory over
        uint64_t objects = 0;
        uint64_t object_bytes = 0;
        uint64_t dropped = 0;      // expired, flushed or damaged
        uint64_t quarantined = 0;  // blocks that living clients may still write into
        uint64_t deferred = 0;     // blocks that they may still read
        uint64_t applied_seq = 0;  // last operation of the master that the earlier life applied
        uint64_t took_us = 0;
        std::vector<NamespaceRef> namespaces;  // in their current incarnation
    };

    // In anonymous memory.
    static Result<std::unique_ptr<BlockStore>> create(const Options& options);
    // In a folder: takes over what an earlier life has left there, which stays as it was when this
    // fails. kInvalidArgument, kVersionMismatch: it is not this node's to take.
    static Result<std::unique_ptr<BlockStore>> create(const Options& options,
                                                      std::unique_ptr<StoreFiles> files);
    // The files of a folder stay, for the next life. Held bytes stay mapped.
    ~BlockStore();
    void remove_files();  // no next life will take them over
    // What somebody has done to the shared memory from outside (shortened a file, punched holes):
    // a sentence, empty while it is whole. It does not become whole again: what it still holds is
    // safe to read, for checksums prove it, but a new store has to take its place.
    std::string damage();
    const Beginning& beginning() const;
    // Recorded for the next life, which need not apply it again.
    void note_applied(uint64_t seq);
    BlockStore(const BlockStore&) = delete;
    BlockStore& operator=(const BlockStore&) = delete;

    // --- writes ---
    // Evicts as much as this needs and no more.
    Reserved reserve(const Owner& owner, const NamespaceRef& ns, const ReserveItem& item);
    // One result per item. What they evict is told at once, not item by item.
    std::vector<Reserved> reserve_all(const Owner& owner, const NamespaceRef& ns,
                                      std::span<const ReserveItem> items);
    // A block that its writer may fill before it says what with: a later reserve() names it. Lives
    // like any reservation. kNoSpace when spares would take too much of the segment.
    Reserved reserve_spare(const Owner& owner, uint64_t size_bytes);
    // Notes the version of a claim: kOk, kExpired (quarantined), kRemoved (a tombstone at or above
    // it), kInvalidArgument (unknown). The reservation stays until publish or abort in every case.
    Code grant(Generation generation, Version version);
    // One result per item. Keep the order of the chain (head first): stamps are written so that a
    // chain loses its tail before its head.
    std::vector<Published> publish(const Owner& owner, std::span<const PublishItem> items);
    // The writer says that its copies into the block have stopped. kInvalidArgument: unknown or of
    // another owner. Quarantined reservations are accepted, whatever session of the slot speaks.
    Code abort(const Owner& owner, Generation generation);
    // The same for a spare that its owner has not named yet; false: it is none.
    bool give_back_spare(const Owner& owner, Generation generation);
    // The slot's process says so of everything that it reserved in epochs below this one.
    void end_earlier_writes(int slot, uint32_t node_epoch);
    // Withdraws a published object by its generation (its announce was lost): kOk or kNotFound.
    Code unpublish(Generation generation);
    // The session is gone but its process may still write: its reservations are quarantined (with
    // slot -1 they are freed: the node has stopped writing when it calls this); its leases end.
    void on_session_closed(uint64_t session);
    // The slot's lock is gone: what it reserved is free again. tick() finds dead slots by itself.
    void on_slot_dead(int slot);

    UseSampler& sampler();
    // Uses of the chain that begins with a key: hits of any of its objects since the last call,
    // the most used chains first. One whose beginning lies elsewhere is named by its first key
    // here.
    struct PrefixUse {
        NamespaceRef ns;
        std::string key;
        uint64_t uses = 0;
        uint64_t bytes = 0;
    };
    std::vector<PrefixUse> take_prefixes(size_t most);

    // --- reads ---
    Found find(const NamespaceRef& ns, const Key& key, bool touch = true);
    // All keys of one batch; recency is written tail first, head last.
    std::vector<Found> find(const NamespaceRef& ns, std::span<const Key> keys, bool touch = true);
    bool contains(const NamespaceRef& ns, const Key& key);      // neither holds nor touches
    Explained explain(const NamespaceRef& ns, const Key& key);  // as contains()
    // Key of the object before this one in its chain; empty without one, or when it is not here.
    std::string parent_key(Generation generation);
    // A hold by socket for a client whose slot is full; ended by unhold or the session's end.
    Code hold(const Owner& owner, Generation generation);
    Code unhold(const Owner& owner, Generation generation);

    // --- policy ---
    // kOk when an object was withdrawn, kNotFound otherwise. Either way the tombstone is kept.
    Code remove_upto(const NamespaceRef& ns, const Key& key, Version version);
    // The tombstone alone: no version up to this one is published any more.
    void refuse_upto(const Hash128& hash, Version version);
    // Every id of this incarnation is unreachable at once; blocks are swept by tick().
    void flush(const NamespaceRef& old_ns);
    // kOk, kNotFound, or kNoSpace: a hard pin beyond the tenant's cap is a soft one.
    Code set_pin(const NamespaceRef& ns, const Key& key, Pin pin);
    // The longest prefix whose objects are here and fit the tenant's cap, in whole pages of
    // `stride` keys. Durations above limits::kMaxLeaseMs are cut to it.
    LeaseGrant lease_acquire(const Owner& owner, const NamespaceRef& ns, std::span<const Key> keys,
                             uint32_t stride, uint32_t lease_ms);
    Code lease_renew(const Owner& owner, uint64_t lease_id, uint32_t lease_ms);  // or kExpired
    Code lease_release(const Owner& owner, uint64_t lease_id);                   // or kExpired

    // Expired reservations, objects and leases; dead slots; deferred blocks; touch rings; the sweep
    // after a flush. Bounded work per call; call it every 100 ms or so.
    void tick();

    // --- the NVMe tier ---
    // Hands out the unwritten objects that were published first, while more than `keep_bytes` are
    // unwritten or eviction has met some: at most `max_objects` of about `max_bytes` in all. Put
    // back those that could not be written.
    void take_unwritten(uint64_t keep_bytes, size_t max_objects, uint64_t max_bytes,
                        std::vector<Unwritten>* out);
    void put_back(std::span<const Unwritten> objects);
    // All unwritten objects, the last used first.
    std::vector<Generation> unwritten_hottest_first();
    bool describe_unwritten(Generation generation, Unwritten* out);  // false: no longer
    // NVMe has these now. Objects that are gone are ignored.
    void note_written(std::span<const Generation> generations);
    // It was brought from NVMe before anybody asked for it.
    void note_prefetched(Generation generation);
    bool has_hash(NamespaceId ns, const Hash128& hash);
    // NVMe has lost this version. Ok: it is here, and unwritten again.
    Code note_lost_on_nvme(const NamespaceRef& ns, const Key& key);
    uint64_t free_bytes();  // of what is pre-faulted; about
    // For the answers to later misses.
    void note_miss_reason(const Hash128& hash, MissReason reason);

    // Both as in Options, from the next reservation on; what is reserved keeps its deadline.
    void set_limits(uint32_t reservation_ms, uint64_t client_cap_bytes);
    // Hard-pinned bytes of one tenant from now on; 0: half of the segment.
    void set_pin_cap(uint64_t bytes);

    // --- the node's view ---
    // Called outside the mutex, in the order in which the objects were withdrawn, by one thread at
    // a time; not necessarily before the call that caused it returns. Set it before the first
    // write. Waits for a callback in progress (so never from the callback): with null, none runs
    // afterwards.
    void set_on_withdraw(WithdrawFn fn);
    // Fills `out` with up to `max` objects from `cursor` (0 at first); returns the next cursor, or
    // 0 when done. Objects present all along are listed exactly once.
    uint32_t list_objects(uint32_t cursor, size_t max, std::vector<ObjectInfo>& out);
    void for_each_object(const std::function<void(std::span<const ObjectInfo>)>& fn);
    Stats stats();
    // Free + used = total, no overlap, every block owned by one object, reservation or deferral,
    // counts agree. For tests; slow.
    Status audit();

    // A descriptor for a client that may write, or for one that only reads.
    int segment_fd(bool writable) const;
    int index_fd() const;
    uint64_t segment_bytes() const;
    const uint8_t* segment_data() const;
    uint64_t ready_bytes() const;    // of the segment, from its beginning: they have memory
    Status prefault_status() const;  // why no more of the segment will be ready, Ok otherwise
    uint64_t flush_counter() const;
    ClientSlots& client_slots();  // assigned and confirmed by the node server; thread-safe itself

  private:
    struct State;
    explicit BlockStore(std::shared_ptr<State> state);
    std::shared_ptr<State> state_;  // shared with the hold tokens
};

}  // namespace kvstore
