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
    return devices_->find(ns->id, key.hash);
}

bool NvmeTier::has(NamespaceId ns, const Hash128& hash, Version version) {
    const std::optional<NvmeFound> found = devices_->find(ns, hash);
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
        const std::optional<NvmeFound> found = devices_->find(ns->id, key.hash);
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
    std::vector<Ahead::Reader> unserved;
    {
        const MutexLock lock(mutex_);
        for (const Hash128& hash : hashes) {
            const auto found = ahead_.find(hash);
            ahead_bytes_ -= found->second.bytes;
            std::ranges::move(found->second.readers, std::back_inserter(unserved));
            ahead_.erase(found);
        }
    }
    NvmeReadResult never_read;
    never_read.status = Status(Code::kOverloaded, "it was not read ahead after all");
    for (const Ahead::Reader& reader : unserved) {
        take_joined(reader, {}, never_read);
    }
}

// True: it is on NVMe alone, nobody brings it yet, and the bounds allow it.
bool NvmeTier::take_ahead(const NamespaceRef& ns, const Hash128& hash) {
    if (domains_.store_of(ns).has_hash(ns->id, hash)) {
        return false;
    }
    const std::optional<NvmeFound> found = devices_->find(ns->id, hash);
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
        !ahead_.emplace(hash, Ahead{.bytes = found->length}).second) {
        return false;
    }
    ahead_room_bytes_ -= found->length;
    ahead_bytes_ += found->length;
    return true;
}

void NvmeTier::start_reading(std::shared_ptr<Reading> reading,
                             std::span<const BlockStore::Key> keys) {
    reading->rows.resize(keys.size());
    reading->objects.resize(keys.size());
    reading->left.store(keys.size() + 1);
    reading->started_us = boottime_us();
    choose_rows(*reading, keys);
    if (reading->purpose == Reading::Purpose::kGet) {
        join_ahead(reading);
    }
    const std::vector<NvmeRead> reads = place_rows(*reading);
    devices_->read(reads, [this, reading](uint64_t row, const NvmeReadResult& result) {
        take_read(*reading, row, result);
    });
    const auto unasked = static_cast<size_t>(std::ranges::count_if(
        reading->rows, [](const Reading::Row& row) { return !row.asked && !row.joined; }));
    note_answered(*reading, unasked + 1);
}

// What is there to be read; the others have their answer then.
void NvmeTier::choose_rows(Reading& reading, std::span<const BlockStore::Key> keys) {
    for (size_t i = 0; i < keys.size(); ++i) {
        const std::optional<NvmeFound> found = devices_->find(reading.ns->id, keys[i].hash);
        if (!found) {
            continue;
        }
        Object& object = reading.objects[i];
        if (keys[i].version != 0 && keys[i].version != found->version) {
            object.reason = MissReason::kVersion;
            continue;
        }
        Reading::Row& row = reading.rows[i];
        row.key = keys[i].key;
        row.hash = keys[i].hash;
        row.asked = true;
        row.promote = reading.purpose != Reading::Purpose::kGet || is_admitted(reading.ns, *found);
        object.version = found->version;
        object.length = found->length;
    }
}

// What is being read ahead is not read twice.
void NvmeTier::join_ahead(const std::shared_ptr<Reading>& reading) {
    std::vector<Hash128> joined;
    {
        const MutexLock lock(mutex_);
        for (size_t i = 0; i < reading->rows.size() && !ahead_.empty(); ++i) {
            Reading::Row& row = reading->rows[i];
            const auto found = row.asked ? ahead_.find(row.hash) : ahead_.end();
            if (found == ahead_.end() || found->second.is_read) {
                continue;
            }
            row.asked = false;
            row.joined = true;
            found->second.readers.push_back({reading, i});
            joined.push_back(row.hash);
        }
    }
    if (!joined.empty()) {
        devices_->hurry(joined);
    }
}

// Gives memory to the rows that are asked for; without any, nothing is asked for.
std::vector<NvmeRead> NvmeTier::place_rows(Reading& reading) {
    std::vector<NvmeRead> reads;
    std::vector<uint64_t> places;
    uint64_t total = 0;
    for (size_t i = 0; i < reading.rows.size(); ++i) {
        if (reading.rows[i].asked) {
            const Object& object = reading.objects[i];
            reads.push_back({reading.ns->id, reading.rows[i].hash, object.version,
                             reading.rows[i].key, nullptr, object.length, i,
                             reading.purpose == Reading::Purpose::kAhead});
            places.push_back(total);
            total += align_up(object.length, kPlaceAlign);
        }
    }
    const std::shared_ptr<uint8_t> memory =
        reads.empty() ? nullptr : buffers_.take(static_cast<size_t>(total));
    if (memory != nullptr) {
        const MutexLock lock(mutex_);
        reading.under_way = !stopping_;
        reads_under_way_ += reading.under_way ? 1 : 0;
    }
    for (size_t i = 0; i < reads.size(); ++i) {
        Object& object = reading.objects[reads[i].tag];
        if (reading.under_way) {
            object.bytes = std::shared_ptr<uint8_t>(memory, memory.get() + places[i]);
            reads[i].to = object.bytes.get();
        } else {
            reading.rows[reads[i].tag].asked = false;
            object.code = Code::kOverloaded;
            object.reason = MissReason::kUnavailable;
        }
    }
    if (!reading.under_way) {
        reads.clear();
    }
    return reads;
}

// From now on a get does not wait for this object's read ahead.
std::vector<NvmeTier::Ahead::Reader> NvmeTier::take_readers(const Hash128& hash) {
    const MutexLock lock(mutex_);
    Ahead& ahead = ahead_.find(hash)->second;
    ahead.is_read = true;
    return std::move(ahead.readers);
}

void NvmeTier::take_read(Reading& reading, size_t row, const NvmeReadResult& result) {
    const bool ahead = reading.purpose == Reading::Purpose::kAhead;
    std::vector<Ahead::Reader> readers;
    if (ahead) {
        readers = take_readers(reading.rows[row].hash);
    }
    Object& object = reading.objects[row];
    object.code = result.status.code();
    if (object.code == Code::kOk) {
        object.reason = MissReason::kNone;
        object.sealed_crc = result.sealed_crc;
        if (reading.purpose == Reading::Purpose::kGet) {
            note_hit(object, result);
        }
        push(reading, row, result, ahead && readers.empty());
    } else {
        object.reason = reason_of(object.code);
        object.bytes.reset();
    }
    for (const Ahead::Reader& reader : readers) {
        take_joined(reader, object, result);
    }
    note_answered(reading, 1);
}

void NvmeTier::take_joined(const Ahead::Reader& reader, const Object& read,
                           const NvmeReadResult& result) {
    Object& object = reader.reading->objects[reader.row];
    const std::string& key = reader.reading->rows[reader.row].key;
    if (!result.status.ok()) {
        object.code = result.status.code();
        object.reason = reason_of(object.code);
    } else if (result.identity.version != object.version || (!key.empty() && key != result.key)) {
        object.reason = MissReason::kVersion;
    } else {
        object.code = Code::kOk;
        object.reason = MissReason::kNone;
        object.sealed_crc = result.sealed_crc;
        object.bytes = read.bytes;
        note_hit(object, result);
    }
    note_answered(*reader.reading, 1);
}

void NvmeTier::note_answered(Reading& reading, size_t rows) {
    if (reading.left.fetch_sub(rows, std::memory_order_acq_rel) == rows) {
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

void NvmeTier::note_hit(const Object& object, const NvmeReadResult& result) {
    counts_->hits.add();
    counts_->hit_bytes.add(object.length);
    domains_.sampler().hit(result.identity.hash, object.length);
}

// Each object as soon as it was read: the next reader may come before the others are.
void NvmeTier::push(const Reading& reading, size_t row, const NvmeReadResult& result, bool ahead) {
    const Object& object = reading.objects[row];
    if (!reading.rows[row].promote) {
        return counts_->promotions_skipped.add();
    }
    Promotion promotion{reading.ns,   std::string(result.key), result,
                        object.bytes, reading.waiting,         ahead};
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
    const std::optional<NvmeFound> still = devices_->find(promotion.ns->id, identity.hash);
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
