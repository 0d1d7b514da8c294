// Reads from NVMe, and what they bring back to DRAM.
#include <algorithm>

#include "base/checksum.h"
#include "base/fault_point.h"
#include "base/mutex.h"
#include "node/domains.h"
#include "node/nvme_tier_reading.h"

namespace kvstore {
namespace {

constexpr uint64_t kPlaceAlign = 64;
constexpr uint64_t kRateWindowUs = 250'000;  // unused room of the rate is kept for this long
constexpr uint64_t kFreeShare = 16;          // of DRAM: with more free, every read is promoted
// Writes of the node itself: no session has this number.
constexpr Owner kTier{UINT64_MAX, -1};

MissReason reason_of(Code code) {
    switch (code) {
        case Code::kChecksumMismatch:
            return MissReason::kChecksum;
        case Code::kIoError:
            return MissReason::kIoError;
        case Code::kBufferTooSmall:  // another version took its place
            return MissReason::kVersion;
        case Code::kNotFound:
            return MissReason::kEvicted;
        default:
            return MissReason::kUnavailable;
    }
}

}  // namespace

std::optional<NvmeFound> NvmeTier::find(const NamespaceRef& ns, const BlockStore::Key& key) {
    return log_->find(ns->id, key.hash);
}

bool NvmeTier::has(NamespaceId ns, const Hash128& hash, Version version) {
    const std::optional<NvmeFound> found = log_->find(ns, hash);
    return found && found->version >= version;
}

void NvmeTier::read(const NamespaceRef& ns, std::span<const BlockStore::Key> keys, ReadDone done) {
    auto reading = std::make_shared<Reading>(ns, Reading::Purpose::kGet);
    reading->done = std::move(done);
    start_reading(std::move(reading), keys);
}

void NvmeTier::promote(const NamespaceRef& ns, std::span<const BlockStore::Key> keys,
                       std::function<void()> done) {
    std::vector<BlockStore::Key> on_nvme;
    uint64_t bytes = 0;
    for (const BlockStore::Key& key : keys) {
        if (domains_.store_of(ns).contains(ns, {key.key, key.hash})) {
            continue;
        }
        const std::optional<NvmeFound> found = log_->find(ns->id, key.hash);
        if (!found || bytes + found->length > kMaxWaitingBytes) {
            break;
        }
        bytes += found->length;
        on_nvme.push_back(key);
    }
    auto reading = std::make_shared<Reading>(ns, Reading::Purpose::kPromote);
    // Runs when nobody waits for a promotion any more, whatever has become of it.
    reading->waiting = std::shared_ptr<void>(this, [done = std::move(done)](void*) { done(); });
    if (!on_nvme.empty()) {
        start_reading(std::move(reading), on_nvme);
    }
}

void NvmeTier::prefetch(const NamespaceRef& ns, std::span<const BlockStore::Key> keys) {
    std::vector<BlockStore::Key> taken;
    for (const BlockStore::Key& key : keys) {
        if (take_ahead(ns, key.hash)) {
            taken.push_back(key);
        }
    }
    start_ahead(ns, taken);
}

void NvmeTier::read_ahead(const NamespaceRef& ns, const Hash128& hash) {
    uint32_t depth = 0;
    {
        const MutexLock lock(mutex_);
        depth = tunables_.prefetch_depth;
    }
    std::vector<BlockStore::Key> taken;
    std::optional<Hash128> at = hash;
    for (uint32_t i = 0; i < depth; ++i) {
        at = chains_.next(*at);
        if (!at) {
            break;
        }
        if (take_ahead(ns, *at)) {
            taken.push_back({{}, *at});
        }
    }
    start_ahead(ns, taken);
}

void NvmeTier::start_ahead(const NamespaceRef& ns, std::span<const BlockStore::Key> taken) {
    if (taken.empty()) {
        return;
    }
    auto reading = std::make_shared<Reading>(ns, Reading::Purpose::kAhead);
    std::vector<Hash128> hashes;
    for (const BlockStore::Key& key : taken) {
        hashes.push_back(key.hash);
    }
    reading->waiting = std::shared_ptr<void>(
        this, [this, hashes = std::move(hashes)](void*) { end_ahead(hashes); });
    start_reading(std::move(reading), taken);
}

// They are in DRAM now, or will not be.
void NvmeTier::end_ahead(std::span<const Hash128> hashes) {
    const MutexLock lock(mutex_);
    for (const Hash128& hash : hashes) {
        const auto found = ahead_.find(hash);
        ahead_bytes_ -= found->second;
        ahead_.erase(found);
    }
}

// True: it is on NVMe alone, nobody brings it yet, and the bounds allow it.
bool NvmeTier::take_ahead(const NamespaceRef& ns, const Hash128& hash) {
    if (domains_.store_of(ns).has_hash(ns->id, hash)) {
        return false;
    }
    const std::optional<NvmeFound> found = log_->find(ns->id, hash);
    if (!found) {
        return false;
    }
    const MutexLock lock(mutex_);
    const uint64_t rate = tunables_.prefetch_bytes_per_s;
    const uint64_t now_us = boottime_us();
    const uint64_t passed_us = std::min<uint64_t>(now_us - ahead_filled_us_, kRateWindowUs);
    ahead_filled_us_ = now_us;
    ahead_room_bytes_ = std::min(ahead_room_bytes_ + rate * passed_us / 1'000'000,
                                 rate * kRateWindowUs / 1'000'000);
    if (stopping_ || found->length > ahead_room_bytes_ ||
        ahead_bytes_ + found->length > kMaxAheadBytes ||
        !ahead_.emplace(hash, found->length).second) {
        return false;
    }
    ahead_room_bytes_ -= found->length;
    ahead_bytes_ += found->length;
    return true;
}

void NvmeTier::start_reading(std::shared_ptr<Reading> reading,
                             std::span<const BlockStore::Key> keys) {
    const NamespaceRef& ns = reading->ns;
    reading->rows.resize(keys.size());
    reading->objects.resize(keys.size());
    reading->started_us = boottime_us();
    std::vector<uint64_t> places(keys.size(), 0);
    uint64_t total = 0;
    size_t asked = 0;
    for (size_t i = 0; i < keys.size(); ++i) {
        const std::optional<NvmeFound> found = log_->find(ns->id, keys[i].hash);
        if (!found) {
            continue;
        }
        Object& object = reading->objects[i];
        if (keys[i].version != 0 && keys[i].version != found->version) {
            object.reason = MissReason::kVersion;
            continue;
        }
        Reading::Row& row = reading->rows[i];
        row.key = keys[i].key;
        row.asked = true;
        row.promote =
            reading->purpose != Reading::Purpose::kGet || is_admitted(reading->ns, *found);
        object.version = found->version;
        object.length = found->length;
        places[i] = total;
        total += (found->length + kPlaceAlign - 1) / kPlaceAlign * kPlaceAlign;
        ++asked;
    }
    const std::shared_ptr<uint8_t> memory =
        asked == 0 ? nullptr : buffers_.take(static_cast<size_t>(total));
    if (memory != nullptr) {
        const MutexLock lock(mutex_);
        reading->under_way = !stopping_;
        reads_under_way_ += reading->under_way ? 1 : 0;
    }
    if (!reading->under_way) {
        for (size_t i = 0; i < keys.size(); ++i) {
            if (!reading->rows[i].asked) {
                continue;
            }
            reading->objects[i].code = Code::kOverloaded;
            reading->objects[i].reason = MissReason::kUnavailable;
        }
        return finish(*reading);
    }
    reading->left.store(asked);
    std::vector<NvmeRead> reads;
    for (size_t i = 0; i < keys.size(); ++i) {
        if (!reading->rows[i].asked) {
            continue;
        }
        Object& object = reading->objects[i];
        object.bytes = std::shared_ptr<uint8_t>(memory, memory.get() + places[i]);
        reads.push_back({ns->id, keys[i].hash, object.version, reading->rows[i].key,
                         object.bytes.get(), object.length, i});
    }
    log_->read(reads, [this, reading](uint64_t row, const NvmeReadResult& result) {
        take_read(*reading, row, result);
    });
}

void NvmeTier::take_read(Reading& reading, size_t row, const NvmeReadResult& result) {
    Object& object = reading.objects[row];
    object.code = result.status.code();
    if (object.code == Code::kOk) {
        object.reason = MissReason::kNone;
        object.sealed_crc = result.sealed_crc;
        push(reading, row, result);
    } else {
        object.reason = reason_of(object.code);
        object.bytes.reset();
    }
    if (reading.left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        finish(reading);
    }
}

void NvmeTier::finish(Reading& reading) {
    reading.waiting.reset();
    if (reading.purpose == Reading::Purpose::kGet) {
        counts_->read_us.record(boottime_us() - reading.started_us);
        reading.done(std::move(reading.objects));
    }
    if (!reading.under_way) {
        return;
    }
    const MutexLock lock(mutex_);
    --reads_under_way_;
    changed_.notify_all();
}

// ---- promotion -------------------------------------------------------------------------------

// A single read must not push out what is read more often; where nothing is pushed out, it may.
bool NvmeTier::is_admitted(const NamespaceRef& ns, const NvmeFound& found) {
    {
        const MutexLock lock(mutex_);
        if (uint32_t{found.touches} + 1 >= tunables_.promote_reads) {
            return true;
        }
    }
    BlockStore& store = domains_.store_of(ns);
    return store.free_bytes() >= store.segment_bytes() / kFreeShare + found.length;
}

// Each object as soon as it was read: the next reader may come before the others are.
void NvmeTier::push(const Reading& reading, size_t row, const NvmeReadResult& result) {
    const Object& object = reading.objects[row];
    if (reading.purpose == Reading::Purpose::kGet) {
        counts_->hits.add();
        counts_->hit_bytes.add(object.length);
        domains_.sampler().hit(result.identity.hash, object.length);
    }
    if (!reading.rows[row].promote) {
        return counts_->promotions_skipped.add();
    }
    Promotion promotion{reading.ns,      std::string(result.key),
                        result,          object.bytes,
                        reading.waiting, reading.purpose == Reading::Purpose::kAhead};
    promotion.what.key = {};  // a view that ends with this call
    {
        const MutexLock lock(mutex_);
        const uint64_t bytes = object.length;
        // Somebody waits for it, and has bounded how much.
        const bool wanted = promotion.waiting != nullptr;
        if (!stopping_ && (wanted || promotion_bytes_ + bytes <= kMaxWaitingBytes)) {
            promotion_bytes_ += bytes;
            promotions_.push_back(std::move(promotion));
            changed_.notify_all();
            return;
        }
    }
    counts_->promotions_skipped.add();
}

void NvmeTier::promote_loop() {
    MutexLock lock(mutex_);
    while (true) {
        changed_.wait(mutex_,
                      [this]() KV_REQUIRES(mutex_) { return stopping_ || !promotions_.empty(); });
        if (stopping_) {
            return;
        }
        {
            const Promotion promotion = std::move(promotions_.front());
            promotions_.pop_front();
            promotion_bytes_ -= promotion.what.identity.length;
            lock.unlock();
            promote_one(promotion);
        }  // who waits for it is told, without the mutex
        lock.lock();
    }
}

void NvmeTier::promote_one(const Promotion& promotion) {
    const NvmeReadResult& what = promotion.what;
    const Identity& identity = what.identity;
    const uint64_t now = wall_ms();
    if ((what.expires_at_ms != 0 && what.expires_at_ms <= now) ||
        !domains_.has_memory_for(promotion.ns->tenant)) {
        return;
    }
    BlockStore& store = domains_.store_of(promotion.ns);
    BlockStore::ReserveItem item;
    item.key = promotion.key;
    item.hash = identity.hash;
    item.size_bytes = identity.length;
    item.ttl_ms = what.expires_at_ms == 0 ? 0 : what.expires_at_ms - now;
    item.pin = what.pin;
    item.is_copy = true;
    item.parent_hash = what.parent;
    item.put_wall_ms = what.put_wall_ms;
    item.lossless = true;
    const BlockStore::Reserved block = store.reserve(kTier, promotion.ns, item);
    if (block.code != Code::kOk) {
        return;
    }
    const uint32_t crc = copy_crc32c(block.data, promotion.bytes.get(), identity.length, 0);
    const BlockStore::PublishItem publish{block.generation, crc, identity.version};
    fault_point("promote");
    const std::vector<BlockStore::Published> published = store.publish(kTier, {&publish, 1});
    if (published[0].code != Code::kOk) {
        static_cast<void>(store.abort(kTier, block.generation));  // unknown where it is freed
        return;
    }
    fault_point("promoted");
    store.note_written({&block.generation, 1});
    if (promotion.ahead) {
        store.note_prefetched(block.generation);
    }
    // Removed, replaced or dropped meanwhile: it must not be found any more.
    const std::optional<NvmeFound> still = log_->find(promotion.ns->id, identity.hash);
    if (!still || still->version != identity.version) {
        static_cast<void>(store.unpublish(block.generation));
        withdraw(promotion.ns, {promotion.key, identity.version, MissReason::kEvicted});
        return;
    }
    counts_->promoted_objects.add();
    counts_->promoted_bytes.add(identity.length);
    counts_->prefetched_objects.add(promotion.ahead ? 1 : 0);
    counts_->prefetched_bytes.add(promotion.ahead ? identity.length : 0);
}

}  // namespace kvstore
