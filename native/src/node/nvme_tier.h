// The NVMe tier: what DRAM evicts stays readable from NVMe.
//
// Joins the store (DRAM) with the log (NVMe). One thread demotes: it writes the oldest objects
// while they still are in DRAM, so that eviction finds them written and only has to forget them; an
// object that eviction meets unwritten is lost. Objects on NVMe alone are read from there. A second
// thread promotes those that are read again and those that were asked for. A third one makes
// removals durable before the master hears of them.
//
// An object may be in both tiers, in the same version. It is withdrawn at the master when it leaves
// the last one: whoever takes it from one tier looks into the other afterwards, so of two that do
// so at the same moment at least one finds it in neither.
//
// Thread-safe. A failing log makes the tier read-only or turns it off; DRAM keeps serving.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/histogram.h"
#include "base/mutex.h"
#include "node/chain_map.h"
#include "node/master_link.h"
#include "node/read_buffers.h"
#include "nvme/devices.h"
#include "store/block_store.h"

namespace kvstore {

class Domains;

// The defaults of embedded stores and native tests; a unit test holds them equal to those of
// kvstore/config.py, which nodes use.
struct NvmeTierTunables {
    // Share of DRAM that is kept written, so that evicting it loses nothing: 0 to 1.
    double demote_ahead = 0.5;
    // Reads from NVMe that bring an object back into a full DRAM.
    uint32_t promote_reads = 2;
    NvmePolicy readmission;
    // Pages of a chain that are promoted ahead of the one that was read. 0: none.
    uint32_t prefetch_depth = 16;
    uint64_t prefetch_bytes_per_s = 256 << 20;
};

struct NvmeTierStats {
    bool on = false;  // configured
    NvmeState state = NvmeState::kActive;
    std::string error;  // why it is not active
    std::string read_way;
    NvmeCounters log;
    uint64_t demoted_objects = 0;
    uint64_t demoted_bytes = 0;
    uint64_t demote_failures = 0;
    uint64_t hits = 0;
    uint64_t hit_bytes = 0;
    uint64_t promoted_objects = 0;
    uint64_t promoted_bytes = 0;
    uint64_t promotions_skipped = 0;  // not read often enough, or too many were waiting
    uint64_t prefetched_objects = 0;
    uint64_t prefetched_bytes = 0;
    uint64_t snapshots = 0;
    uint64_t snapshot_objects = 0;  // written by them
    uint64_t snapshot_left = 0;     // objects that the one in progress has still to write
    uint64_t snapshot_at_ms = 0;    // wall clock; end of the last complete one
    Histogram::Snapshot read_us;
};

class NvmeTier {
  public:
    struct Options {
        std::vector<NvmeOptions> devices;
        NvmeTierTunables tunables;
    };
    // Called on the tier's and the logs' threads, one at a time; must not call the tier.
    struct Events {
        std::function<void(const NamespaceRef&, std::vector<WithdrawItem>)> withdraw;
        // Everything up to this operation of the master is durable here.
        std::function<void(uint64_t seq)> applied;
    };
    // One object of a read. Anything but kOk: not from here, for that reason.
    struct Object {
        Code code = Code::kNotFound;
        MissReason reason = MissReason::kAbsent;
        Version version = 0;
        uint64_t length = 0;
        uint32_t sealed_crc = 0;
        std::shared_ptr<uint8_t> bytes;
    };
    using ReadDone = std::function<void(std::vector<Object>)>;
    struct Snapshot {
        uint64_t objects = 0;  // written by this call
        uint64_t bytes = 0;
        uint64_t left = 0;  // in DRAM alone: the deadline passed, or they could not be written
        Status status;
    };

    // Opens the logs and what is in them. `domains` (with Options::tiered) outlive the tier.
    static Result<std::unique_ptr<NvmeTier>> open(Options options, Domains& domains);
    ~NvmeTier();
    void start(Events events);
    // Joins the threads and waits for the reads in progress: no event comes afterwards. Idempotent.
    void stop() KV_EXCLUDES(mutex_, events_mutex_);

    // --- reads ---
    std::optional<NvmeFound> find(const NamespaceRef& ns, const BlockStore::Key& key);
    // In this version or a later one?
    bool has(NamespaceId ns, const Hash128& hash, Version version);
    // Reads, verifies and counts; calls `done` once, perhaps before it returns. What is read again
    // is promoted behind it.
    void read(const NamespaceRef& ns, std::span<const BlockStore::Key> keys, ReadDone done);
    // Brings into DRAM what of these is on NVMe alone, whatever the admission says; then calls
    // `done`, perhaps before it returns.
    void promote(const NamespaceRef& ns, std::span<const BlockStore::Key> keys,
                 std::function<void()> done);

    // Begins to bring into DRAM what of these is on NVMe alone, within the rate.
    void prefetch(const NamespaceRef& ns, std::span<const BlockStore::Key> keys);
    // The same for what follows an object in its chain.
    void read_ahead(const NamespaceRef& ns, const Hash128& hash);

    // --- the master's operations ---
    void remove(const NamespaceRef& ns, const Hash128& hash, Version version);
    void flush(NamespaceId ns);
    void set_pin(const NamespaceRef& ns, const Hash128& hash, Pin pin);
    // Events::applied follows once what was applied is durable.
    void note_applied(uint64_t seq);
    uint64_t recovered_applied() const { return devices_->recovered_applied(); }
    // A version was published in DRAM: older ones must not come back.
    void supersede(const NamespaceRef& ns, const Hash128& hash, Version version);

    // --- the node's view ---
    std::vector<NamespaceRef> namespaces() const { return begun_with_; }
    bool is_empty() const;
    // The next objects that are on NVMe and not in DRAM, as they are announced to the master.
    // False: there are no more. Starts with an empty cursor.
    bool list(NvmeDevices::Cursor* cursor, size_t max, std::vector<AnnounceGroup>* out);
    // Writes what DRAM alone has, the last used first, until the deadline. kOverloaded: another
    // one is in progress.
    Snapshot snapshot(Deadline deadline);
    void set_tunables(const NvmeTierTunables& tunables);
    NvmeTierStats stats() const;

  private:
    class Reading;
    struct Counts;
    struct Promotion {
        NamespaceRef ns;
        std::string key;
        NvmeReadResult what;
        std::shared_ptr<uint8_t> bytes;
        std::shared_ptr<void> waiting;  // somebody waits until this is given up
        bool ahead = false;             // nobody has asked for it yet
    };
    // Being read ahead, and the gets that have asked for it since.
    struct Ahead {
        struct Reader {
            std::shared_ptr<Reading> reading;
            size_t row = 0;
        };
        uint64_t bytes = 0;
        bool is_read = false;
        std::vector<Reader> readers{};
    };
    enum class Demoted : uint8_t { kWritten, kNotNow, kNever };
    static constexpr size_t kMaxWaitingBytes = 64 << 20;
    static constexpr size_t kMaxAheadBytes = 32 << 20;

    NvmeTier(Options options, Domains& domains);

    void demote_loop();
    void promote_loop();
    void durable_loop();
    bool demote_from(BlockStore& store);  // false: nothing was to be done
    uint64_t keep_unwritten_bytes(const BlockStore& store) const KV_EXCLUDES(mutex_);
    bool is_stopping() const KV_EXCLUDES(mutex_);
    Demoted demote(const BlockStore::Unwritten& object, Deadline deadline);
    Status append(const BlockStore::Unwritten& object);
    Status declare(const NamespaceRef& ns);
    NamespaceRef namespace_of(NamespaceId id) const KV_EXCLUDES(mutex_);
    void drop_damaged(const BlockStore::Unwritten& object);
    void withdraw(const NamespaceRef& ns, WithdrawItem item) KV_EXCLUDES(events_mutex_);
    void on_dropped(const NvmeDropped& dropped);
    void write_snapshot(Deadline deadline, Snapshot* result);
    bool snapshot_one(BlockStore& store, Generation generation, Deadline deadline,
                      Snapshot* result);

    // nvme_tier_reads.cpp
    void start_reading(std::shared_ptr<Reading> reading, std::span<const BlockStore::Key> keys);
    bool take_ahead(const NamespaceRef& ns, const Hash128& hash) KV_EXCLUDES(mutex_);
    void start_ahead(const NamespaceRef& ns, std::span<const BlockStore::Key> taken);
    void end_ahead(std::span<const Hash128> hashes) KV_EXCLUDES(mutex_);
    void choose_rows(Reading& reading, std::span<const BlockStore::Key> keys);
    void join_ahead(const std::shared_ptr<Reading>& reading) KV_EXCLUDES(mutex_);
    std::vector<NvmeRead> place_rows(Reading& reading) KV_EXCLUDES(mutex_);
    std::vector<Ahead::Reader> take_readers(const Hash128& hash) KV_EXCLUDES(mutex_);
    void take_read(Reading& reading, size_t row, const NvmeReadResult& result);
    void take_joined(const Ahead::Reader& reader, const Object& read, const NvmeReadResult& result);
    void note_answered(Reading& reading, size_t rows);
    void finish(Reading& reading);
    bool is_admitted(const NamespaceRef& ns, const NvmeFound& found) KV_EXCLUDES(mutex_);
    void note_hit(const Object& object, const NvmeReadResult& result);
    void push(const Reading& reading, size_t row, const NvmeReadResult& result, bool ahead);
    void promote_one(const Promotion& promotion);

    Domains& domains_;
    ReadBuffers buffers_;
    // Held during an event, so that none comes after stop(). Never together with mutex_.
    Mutex events_mutex_;
    Events events_ KV_GUARDED_BY(events_mutex_);

    // Never held while the store, a log or a callback is called.
    mutable Mutex mutex_;
    CondVar changed_;
    bool started_ KV_GUARDED_BY(mutex_) = false;
    bool stopping_ KV_GUARDED_BY(mutex_) = false;
    NvmeTierTunables tunables_ KV_GUARDED_BY(mutex_);
    // Declared to the logs.
    std::unordered_map<NamespaceId, NamespaceRef> namespaces_ KV_GUARDED_BY(mutex_);
    std::deque<Promotion> promotions_ KV_GUARDED_BY(mutex_);
    uint64_t promotion_bytes_ KV_GUARDED_BY(mutex_) = 0;
    std::unordered_map<Hash128, Ahead, Hash128Hasher> ahead_ KV_GUARDED_BY(mutex_);
    uint64_t ahead_bytes_ KV_GUARDED_BY(mutex_) = 0;
    uint64_t ahead_room_bytes_ KV_GUARDED_BY(mutex_) = 0;  // what the rate still allows …
    uint64_t ahead_filled_us_ KV_GUARDED_BY(mutex_) = 0;   // … since then
    uint64_t reads_under_way_ KV_GUARDED_BY(mutex_) = 0;
    uint64_t applied_seq_ KV_GUARDED_BY(mutex_) = 0;  // noted
    uint64_t durable_seq_ KV_GUARDED_BY(mutex_) = 0;  // reported by Events::applied
    bool in_snapshot_ KV_GUARDED_BY(mutex_) = false;

    std::vector<NamespaceRef> begun_with_;  // set by open()

    ChainMap chains_;
    std::unique_ptr<Counts> counts_;
    std::unique_ptr<NvmeDevices> devices_;
    std::array<std::thread, 3> threads_;
};

}  // namespace kvstore
