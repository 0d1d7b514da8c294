// Reads from NVMe, and what they bring back to DRAM.
#include <algorithm>

#include "kvstore/checksum.h"
#include "nvme_tier_reading.h"

namespace kvstore {
namespace {

constexpr uint64_t kPlaceAlign = 64;
constexpr uint64_t kFreeShare = 16;  // DRAM with so much free takes everything that is read
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
    start_reading(ns, keys, std::move(done), nullptr);
}

void NvmeTier::promote(const NamespaceRef& ns, std::span<const BlockStore::Key> keys,
                       std::function<void()> done) {
    std::vector<BlockStore::Key> below;
    uint64_t bytes = 0;
    for (const BlockStore::Key& key : keys) {
        if (store_.contains(ns, {key.key, key.hash})) continue;
        const std::optional<NvmeFound> found = log_->find(ns->id, key.hash);
        if (!found || bytes + found->length > kMaxWaitingBytes) break;
        bytes += found->length;
        below.push_back(key);
    }
    // Runs when nobody waits for a promotion any more, whatever has become of it.
    const std::shared_ptr<void> waiting(this, [done = std::move(done)](void*) { done(); });
    if (!below.empty()) start_reading(ns, below, [](std::vector<Object>) {}, waiting);
}

void NvmeTier::start_reading(const NamespaceRef& ns, std::span<const BlockStore::Key> keys,
                             ReadDone done, std::shared_ptr<void> waiting) {
    auto reading = std::make_shared<Reading>();
    reading->ns = ns;
    reading->rows.resize(keys.size());
    reading->objects.resize(keys.size());
    reading->done = std::move(done);
    reading->started_us = boottime_us();
    std::vector<uint64_t> places(keys.size(), 0);
    uint64_t total = 0;
    size_t asked = 0;
    for (size_t i = 0; i < keys.size(); ++i) {
        const std::optional<NvmeFound> found = log_->find(ns->id, keys[i].hash);
        if (!found) continue;
        Object& object = reading->objects[i];
        if (keys[i].version != 0 && keys[i].version != found->version) {
            object.reason = MissReason::kVersion;
            continue;
        }
        Reading::Row& row = reading->rows[i];
        row.key = keys[i].key;
        row.asked = true;
        row.promote = waiting != nullptr || is_admitted(*found);
        object.version = found->version;
        object.length = found->length;
        places[i] = total;
        total += (found->length + kPlaceAlign - 1) / kPlaceAlign * kPlaceAlign;
        ++asked;
    }
    std::shared_ptr<uint8_t> memory;
    if (asked != 0) memory = buffers_.take(static_cast<size_t>(total));
    bool refused = memory == nullptr;
    if (!refused) {
        const std::lock_guard lock(mutex_);
        refused = stopping_;
        if (!refused) ++reads_under_way_;
    }
    if (refused) {
        for (size_t i = 0; i < keys.size(); ++i) {
            if (!reading->rows[i].asked) continue;
            reading->objects[i].code = Code::kOverloaded;
            reading->objects[i].reason = MissReason::kUnavailable;
        }
        return reading->done(std::move(reading->objects));
    }
    reading->waiting = std::move(waiting);
    reading->left.store(asked);
    std::vector<NvmeRead> reads;
    for (size_t i = 0; i < keys.size(); ++i) {
        if (!reading->rows[i].asked) continue;
        Object& object = reading->objects[i];
        object.bytes = std::shared_ptr<uint8_t>(memory, memory.get() + places[i]);
        reads.push_back({ns->id, keys[i].hash, object.version, reading->rows[i].key,
                         object.bytes.get(), object.length, i});
    }
    memory.reset();
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
        reading.rows[row].what = result;
        counts_->hits.add();
        counts_->hit_bytes.add(object.length);
    } else {
        object.reason = reason_of(object.code);
        object.bytes.reset();
    }
    if (reading.left.fetch_sub(1, std::memory_order_acq_rel) == 1) finish(reading);
}

void NvmeTier::finish(Reading& reading) {
    counts_->read_us.record(boottime_us() - reading.started_us);
    for (size_t i = 0; i < reading.rows.size(); ++i) {
        Reading::Row& row = reading.rows[i];
        if (!row.asked || reading.objects[i].code != Code::kOk) continue;
        if (!row.promote) {
            counts_->promotions_skipped.add();
            continue;
        }
        push({reading.ns, std::move(row.key), row.what, reading.objects[i].bytes, reading.waiting});
    }
    reading.waiting.reset();
    const ReadDone done = std::move(reading.done);
    done(std::move(reading.objects));
    const std::lock_guard lock(mutex_);
    --reads_under_way_;
    changed_.notify_all();
}

// ---- promotion -------------------------------------------------------------------------------

// A single read must not push out what is read more often; where nothing is pushed out, it may.
bool NvmeTier::is_admitted(const NvmeFound& found) {
    {
        const std::lock_guard lock(mutex_);
        if (uint32_t{found.touches} + 1 >= tunables_.promote_reads) return true;
    }
    return store_.free_bytes() >= store_.segment_bytes() / kFreeShare + found.length;
}

void NvmeTier::push(Promotion promotion) {
    {
        const std::lock_guard lock(mutex_);
        const uint64_t bytes = promotion.what.identity.length;
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
    std::unique_lock lock(mutex_);
    while (true) {
        changed_.wait(lock, [this] { return stopping_ || !promotions_.empty(); });
        if (stopping_) return;
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
    if (what.expiry_ms != 0 && what.expiry_ms <= now) return;
    BlockStore::ReserveItem item;
    item.key = promotion.key;
    item.hash = identity.hash;
    item.size_bytes = identity.length;
    item.ttl_ms = what.expiry_ms == 0 ? 0 : what.expiry_ms - now;
    item.pin = what.pin;
    item.parent_hash = what.parent;
    item.put_wall_ms = what.put_wall_ms;
    const BlockStore::Reserved block = store_.reserve(kTier, promotion.ns, item);
    if (block.code != Code::kOk) return;
    const uint32_t crc = copy_crc32c(block.data, promotion.bytes.get(), identity.length, 0);
    const BlockStore::PublishItem publish{block.generation, crc, identity.version};
    const std::vector<BlockStore::Published> published = store_.publish(kTier, {&publish, 1});
    if (published[0].code != Code::kOk) {
        static_cast<void>(store_.abort(kTier, block.generation));  // unknown where it is freed
        return;
    }
    store_.note_written({&block.generation, 1});
    // Removed, replaced or dropped meanwhile: what was read is no longer to be had.
    const std::optional<NvmeFound> still = log_->find(promotion.ns->id, identity.hash);
    if (!still || still->version != identity.version) {
        static_cast<void>(store_.unpublish(block.generation));
        withdraw(promotion.ns, {promotion.key, identity.version, MissReason::kEvicted});
        return;
    }
    counts_->promoted_objects.add();
    counts_->promoted_bytes.add(identity.length);
}

}  // namespace kvstore
