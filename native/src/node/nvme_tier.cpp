// Demotion, snapshots, the master's operations, and what the master is told.
#include "node/nvme_tier.h"

#include <algorithm>
#include <chrono>

#include "base/fault_point.h"
#include "node/domains.h"
#include "node/nvme_tier_reading.h"

namespace kvstore {
namespace {

constexpr auto kDemotePause = std::chrono::milliseconds(5);
constexpr size_t kDemoteObjects = 64;  // held at a time, so that eviction passes them over
constexpr uint64_t kDemoteBytes = 8 << 20;
constexpr uint32_t kSpaceWaitMs = 100;
constexpr size_t kKeptBuffers = 64 << 20;
// Memory of the chains: 24 bytes a place, 24 MiB at most.
constexpr uint64_t kBytesAChainPlace = 4096;
constexpr uint64_t kFewChainPlaces = 1 << 12;
constexpr uint64_t kManyChainPlaces = 1 << 20;

MissReason reason_of(NvmeDropped::Reason reason) {
    switch (reason) {
        case NvmeDropped::Reason::kReclaimed:
            return MissReason::kEvicted;
        case NvmeDropped::Reason::kExpired:
            return MissReason::kExpired;
        case NvmeDropped::Reason::kChecksum:
            return MissReason::kChecksum;
        case NvmeDropped::Reason::kIoError:
        case NvmeDropped::Reason::kWriteFailed:
            return MissReason::kIoError;
    }
    return MissReason::kAbsent;
}

uint64_t total_bytes(const NvmeTier::Options& options) {
    uint64_t total = 0;
    for (const NvmeOptions& device : options.devices) {
        total += device.size_bytes;
    }
    return total;
}

}  // namespace

NvmeTier::NvmeTier(Options options, Domains& domains)
    : domains_(domains),
      buffers_(kKeptBuffers),
      tunables_(options.tunables),
      chains_(std::clamp<uint64_t>(total_bytes(options) / kBytesAChainPlace, kFewChainPlaces,
                                   kManyChainPlaces)),
      counts_(std::make_unique<Counts>()) {}

Result<std::unique_ptr<NvmeTier>> NvmeTier::open(Options options, Domains& domains) {
    std::unique_ptr<NvmeTier> tier(new NvmeTier(options, domains));
    for (NvmeOptions& device : options.devices) {
        device.policy = options.tunables.readmission;
        device.on_dropped = [raw = tier.get()](const NvmeDropped& dropped) {
            raw->on_dropped(dropped);
        };
    }
    Result<std::unique_ptr<NvmeDevices>> devices = NvmeDevices::open(options.devices);
    if (!devices.ok()) {
        return devices.status();
    }
    tier->devices_ = std::move(*devices);
    for (const NamespaceEpoch& names : tier->devices_->namespaces()) {
        auto ns = std::make_shared<const NamespaceEpoch>(names);
        tier->begun_with_.push_back(ns);
        const MutexLock lock(tier->mutex_);
        tier->namespaces_.emplace(names.id, std::move(ns));
    }
    return tier;
}

NvmeTier::~NvmeTier() {
    stop();
    devices_.reset();  // its last reports still come here
}

void NvmeTier::start(Events events) {
    {
        const MutexLock lock(events_mutex_);
        events_ = std::move(events);
    }
    const MutexLock lock(mutex_);
    if (started_) {
        return;
    }
    started_ = true;
    threads_ = {std::thread([this] { demote_loop(); }), std::thread([this] { promote_loop(); }),
                std::thread([this] { durable_loop(); })};
}

void NvmeTier::stop() {
    std::deque<Promotion> dropped;
    {
        MutexLock lock(mutex_);
        stopping_ = true;
        dropped.swap(promotions_);
        changed_.notify_all();
    }
    dropped.clear();  // who waits for them is told, without the mutex
    for (std::thread& thread : threads_) {
        if (thread.joinable()) {
            thread.join();
        }
    }
    {
        MutexLock lock(mutex_);
        changed_.wait(mutex_, [this]() KV_REQUIRES(mutex_) {
            return reads_under_way_ == 0 && !in_snapshot_;
        });
    }
    const MutexLock lock(events_mutex_);
    events_ = {};
}

void NvmeTier::set_tunables(const NvmeTierTunables& tunables) {
    devices_->set_policy(tunables.readmission);
    const MutexLock lock(mutex_);
    tunables_ = tunables;
}

// ---- demotion --------------------------------------------------------------------------------

uint64_t NvmeTier::keep_unwritten_bytes(const BlockStore& store) const {
    const MutexLock lock(mutex_);
    const double kept = 1 - std::clamp(tunables_.demote_ahead, 0.0, 1.0);
    return static_cast<uint64_t>(kept * static_cast<double>(store.segment_bytes()));
}

void NvmeTier::demote_loop() {
    while (true) {
        bool worked = false;
        for (const auto& domain : domains_.all()) {
            worked |= demote_from(*domain->store);
        }
        MutexLock lock(mutex_);
        const auto stopping = [this]() KV_REQUIRES(mutex_) { return stopping_; };
        if (worked ? stopping_ : changed_.wait_for(mutex_, kDemotePause, stopping)) {
            return;
        }
    }
}

bool NvmeTier::demote_from(BlockStore& store) {
    std::vector<BlockStore::Unwritten> batch;
    if (devices_->is_active()) {
        store.take_unwritten(keep_unwritten_bytes(store), kDemoteObjects, kDemoteBytes, &batch);
    }
    std::vector<Generation> written;
    size_t done = 0;
    while (done < batch.size() && !is_stopping()) {
        const Demoted result = demote(batch[done], Deadline::after_ms(kSpaceWaitMs));
        if (result == Demoted::kWritten) {
            written.push_back(batch[done].generation);
        }
        if (result == Demoted::kNotNow) {
            break;
        }
        ++done;
    }
    if (!batch.empty()) {
        store.note_written(written);
        store.put_back(std::span(batch).subspan(done));
    }
    return !batch.empty();
}

bool NvmeTier::is_stopping() const {
    const MutexLock lock(mutex_);
    return stopping_;
}

NvmeTier::Demoted NvmeTier::demote(const BlockStore::Unwritten& object, Deadline deadline) {
    while (true) {
        fault_point("demote");
        const Status status = append(object);
        switch (status.code()) {
            case Code::kOk:
                fault_point("demoted");
                counts_->demoted_objects.add();
                counts_->demoted_bytes.add(object.length);
                return Demoted::kWritten;
            case Code::kAlreadyExists:
                return Demoted::kWritten;
            case Code::kRemoved:
                return Demoted::kNever;
            case Code::kOverloaded: {
                const auto left = static_cast<uint32_t>(deadline.left_ms());
                if (!devices_->await_space(object.hash, object.length, left) &&
                    deadline.expired()) {
                    return Demoted::kNotNow;
                }
                if (is_stopping()) {
                    return Demoted::kNotNow;
                }
                break;
            }
            default:
                if (!devices_->is_active()) {
                    return Demoted::kNotNow;
                }
                counts_->demote_failures.add();
                if (status.code() == Code::kChecksumMismatch) {
                    drop_damaged(object);
                }
                return Demoted::kNever;
        }
    }
}

Status NvmeTier::append(const BlockStore::Unwritten& object) {
    if (Status status = declare(object.ns); !status.ok()) {
        return status;
    }
    NvmeObject record;
    record.identity = {object.ns->tenant_id, object.ns->id, object.hash, object.version,
                       object.length};
    record.sealed_crc = object.sealed_crc;
    record.put_wall_ms = object.put_wall_ms;
    record.expires_at_ms = object.ttl_ms == 0 ? 0 : wall_ms() + object.ttl_ms;
    record.pin = object.pin;
    record.parent = object.parent;
    record.key = object.key;
    const std::span<const uint8_t> data(object.data, static_cast<size_t>(object.length));
    Status status = devices_->append(record, data, object.hold);
    if (status.ok()) {
        chains_.note(object.parent, object.hash);
    }
    return status;
}

Status NvmeTier::declare(const NamespaceRef& ns) {
    {
        const MutexLock lock(mutex_);
        namespaces_.emplace(ns->id, ns);
    }
    return devices_->register_namespace(*ns);
}

NamespaceRef NvmeTier::namespace_of(NamespaceId id) const {
    const MutexLock lock(mutex_);
    const auto found = namespaces_.find(id);
    return found == namespaces_.end() ? nullptr : found->second;
}

// What DRAM holds is not what was put: nobody may find it.
void NvmeTier::drop_damaged(const BlockStore::Unwritten& object) {
    BlockStore& store = domains_.store_of(object.ns);
    if (store.unpublish(object.generation) != Code::kOk) {
        return;
    }
    store.note_miss_reason(object.hash, MissReason::kChecksum);
    withdraw(object.ns, {object.key, object.version, MissReason::kChecksum});
}

void NvmeTier::withdraw(const NamespaceRef& ns, WithdrawItem item) {
    const MutexLock lock(events_mutex_);
    if (events_.withdraw) {
        events_.withdraw(ns, {std::move(item)});
    }
}

void NvmeTier::on_dropped(const NvmeDropped& dropped) {
    const NamespaceRef ns = namespace_of(dropped.ns);
    if (ns == nullptr) {
        return;
    }
    BlockStore& store = domains_.store_of(ns);
    const BlockStore::Key key{dropped.key, dropped.hash, dropped.version};
    if (dropped.reason != NvmeDropped::Reason::kExpired &&
        store.note_lost_on_nvme(ns, key) == Code::kOk) {
        return;
    }
    const MissReason reason = reason_of(dropped.reason);
    store.note_miss_reason(dropped.hash, reason);
    withdraw(ns, {dropped.key, dropped.version, reason});
}

// ---- the master's operations -----------------------------------------------------------------

void NvmeTier::remove(const NamespaceRef& ns, const Hash128& hash, Version version) {
    devices_->remove(ns->id, hash, version);
}

void NvmeTier::flush(NamespaceId ns) { devices_->flush_namespace(ns); }

void NvmeTier::set_pin(const NamespaceRef& ns, const Hash128& hash, Pin pin) {
    // Refused when too much is pinned: then the object is protected in DRAM only.
    devices_->set_pin(ns->id, hash, pin);
}

void NvmeTier::note_applied(uint64_t seq) {
    const MutexLock lock(mutex_);
    applied_seq_ = std::max(applied_seq_, seq);
    changed_.notify_all();
}

// After an error the number on disk stays lower, and the next life applies again what is not there.
void NvmeTier::durable_loop() {
    MutexLock lock(mutex_);
    while (true) {
        changed_.wait(mutex_, [this]() KV_REQUIRES(mutex_) {
            return stopping_ || applied_seq_ > durable_seq_;
        });
        if (stopping_) {
            return;
        }
        const uint64_t seq = applied_seq_;
        lock.unlock();
        devices_->note_applied(seq);
        static_cast<void>(devices_->sync_removals());
        fault_point("removal_durable");
        {
            const MutexLock events(events_mutex_);
            if (events_.applied) {
                events_.applied(seq);
            }
        }
        lock.lock();
        durable_seq_ = seq;
    }
}

void NvmeTier::supersede(const NamespaceRef& ns, const Hash128& hash, Version version) {
    const std::optional<NvmeFound> found = devices_->find(ns->id, hash);
    if (!found || found->version >= version) {
        return;
    }
    domains_.store_of(ns).refuse_upto(hash, version - 1);  // a promotion of it may be in progress
    devices_->remove(ns->id, hash, version - 1);
}

// ---- the node's view -------------------------------------------------------------------------

bool NvmeTier::is_empty() const { return devices_->counters().objects == 0; }

bool NvmeTier::list(NvmeDevices::Cursor* cursor, size_t max, std::vector<AnnounceGroup>* out) {
    std::vector<NvmeListed> objects;
    if (!devices_->list(cursor, max, &objects).ok()) {
        return false;
    }
    for (NvmeListed& object : objects) {
        const NamespaceRef ns = namespace_of(object.ns.id);
        if (ns == nullptr) {
            continue;
        }
        chains_.note(object.parent, object.identity.hash);
        const BlockStore::Found here =
            domains_.store_of(ns).find(ns, {object.key, object.identity.hash}, /*touch=*/false);
        if (here.hold != nullptr) {
            if (here.version > object.identity.version) {
                devices_->remove(ns->id, object.identity.hash, here.version - 1);
            }
            continue;
        }
        if (out->empty() || out->back().ns != ns) {
            out->push_back({ns, {}});
        }
        out->back().items.push_back({0, std::move(object.key), object.identity.version,
                                     object.identity.length, object.pin, 0, object.ttl_ms});
    }
    return !cursor->done;
}

NvmeTier::Snapshot NvmeTier::snapshot(Deadline deadline) {
    Snapshot result;
    {
        const MutexLock lock(mutex_);
        if (in_snapshot_ || stopping_) {
            result.status = {Code::kOverloaded, stopping_ ? "the node is stopping"
                                                          : "a snapshot is being written already"};
            return result;
        }
        in_snapshot_ = true;
    }
    write_snapshot(deadline, &result);
    counts_->snapshots.add();
    counts_->snapshot_objects.add(result.objects);
    counts_->snapshot_left.store(0);
    if (result.left == 0 && result.status.ok()) {
        counts_->snapshot_at_ms.store(wall_ms());
    }
    const MutexLock lock(mutex_);
    in_snapshot_ = false;
    changed_.notify_all();
    return result;
}

// The domains take turns, each with the object used last: whatever the deadline leaves out was used
// least of its own.
void NvmeTier::write_snapshot(Deadline deadline, Snapshot* result) {
    struct Part {
        BlockStore& store;
        std::vector<Generation> wanted;
        std::vector<Generation> written;
    };
    std::vector<Part> parts;
    size_t turns = 0;
    for (const auto& domain : domains_.all()) {
        parts.push_back({*domain->store, domain->store->unwritten_hottest_first(), {}});
        result->left += parts.back().wanted.size();
        turns = std::max(turns, parts.back().wanted.size());
    }
    const auto is_over = [&] {
        return deadline.expired() || is_stopping() || !devices_->is_active();
    };
    for (size_t turn = 0; turn < turns && !is_over(); ++turn) {
        for (Part& part : parts) {
            counts_->snapshot_left.store(result->left);
            if (turn >= part.wanted.size() || is_over()) {
                continue;
            }
            if (snapshot_one(part.store, part.wanted[turn], deadline, result)) {
                part.written.push_back(part.wanted[turn]);
            }
            if (part.written.size() >= kDemoteObjects) {
                part.store.note_written(part.written);
                part.written.clear();
            }
        }
    }
    for (const Part& part : parts) {
        part.store.note_written(part.written);
    }
    result->status = devices_->is_active() ? devices_->sync() : devices_->error();
}

// True: it was written now. What cannot be written yet stays among those that are left.
bool NvmeTier::snapshot_one(BlockStore& store, Generation generation, Deadline deadline,
                            Snapshot* result) {
    BlockStore::Unwritten object;
    Demoted done = Demoted::kNever;
    if (store.describe_unwritten(generation, &object)) {
        fault_point("snapshot");
        done = demote(object, deadline);
    }
    if (done == Demoted::kNotNow) {
        return false;
    }
    --result->left;
    if (done == Demoted::kWritten) {
        ++result->objects;
        result->bytes += object.length;
    }
    return done == Demoted::kWritten;
}

NvmeTierStats NvmeTier::stats() const {
    NvmeTierStats stats;
    stats.on = true;
    stats.state = devices_->state();
    stats.error = devices_->error().message();
    stats.read_way = devices_->read_way();
    stats.log = devices_->counters();
    stats.demoted_objects = counts_->demoted_objects.get();
    stats.demoted_bytes = counts_->demoted_bytes.get();
    stats.demote_failures = counts_->demote_failures.get();
    stats.hits = counts_->hits.get();
    stats.hit_bytes = counts_->hit_bytes.get();
    stats.promoted_objects = counts_->promoted_objects.get();
    stats.promoted_bytes = counts_->promoted_bytes.get();
    stats.promotions_skipped = counts_->promotions_skipped.get();
    stats.prefetched_objects = counts_->prefetched_objects.get();
    stats.prefetched_bytes = counts_->prefetched_bytes.get();
    stats.snapshots = counts_->snapshots.get();
    stats.snapshot_objects = counts_->snapshot_objects.get();
    stats.snapshot_left = counts_->snapshot_left.load();
    stats.snapshot_at_ms = counts_->snapshot_at_ms.load();
    stats.read_us = counts_->read_us.snapshot();
    return stats;
}

}  // namespace kvstore
