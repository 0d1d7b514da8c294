// Emptying the oldest log file: what is still hot moves to the head of the log, the rest is
// dropped. Also listing, which reads the same manifests.
#include <algorithm>
#include <chrono>

#include "base/mutex.h"
#include "nvme/log.h"
#include "nvme/read_task.h"

namespace kvstore {
namespace {

constexpr size_t kRowsUnderLock = 256;

NvmeDropped::Reason reason_of(const Status& status) {
    switch (status.code()) {
        case Code::kChecksumMismatch:
            return NvmeDropped::Reason::kChecksum;
        case Code::kIoError:
            return NvmeDropped::Reason::kIoError;
        default:
            return NvmeDropped::Reason::kReclaimed;
    }
}

}  // namespace

// Its key is the row's: a view into the manifest.
NvmeObject NvmeLog::object_of(const NamespaceEpoch& ns, const ManifestRow& row) {
    return {.identity = {.tenant = ns.tenant_id,
                         .ns = ns.id,
                         .hash = row.hash,
                         .version = row.version,
                         .length = row.length},
            .sealed_crc = row.sealed_crc,
            .expires_at_ms = row.expires_at_ms,
            .put_wall_ms = row.put_wall_ms,
            .pin = row.pin,
            .parent = row.parent,
            .key = row.key};
}

// From the catalog, else from the log file itself.
std::shared_ptr<const Manifest> NvmeLog::manifest_of(uint32_t file, uint64_t seq) {
    if (catalog_ != nullptr) {
        const Result<std::vector<uint8_t>> bytes = catalog_->load(seq);
        if (bytes.ok()) {
            Result<Manifest> manifest = Manifest::decode(*bytes);
            if (manifest.ok() && manifest->seq() == seq) {
                return std::make_shared<const Manifest>(std::move(*manifest));
            }
        }
    }
    LogFileScan scan = scan_log_file(io_, fd_of(file), path_of(file), seq, log_file_bytes_, false);
    return std::make_shared<const Manifest>(std::move(scan.manifest));
}

// Decides about every object of the log file; what does not move is dropped at once.
ReclaimPlan NvmeLog::plan_reclaim(uint32_t file, const Manifest& manifest,
                                  std::vector<NvmeDropped>* dropped) {
    using Fate = ReclaimPlan::Fate;
    ReclaimPlan plan(policy_, log_file_bytes_);
    uint64_t at = 0;
    ManifestRow row;
    for (size_t rows = 1; manifest.next(&at, &row); ++rows) {
        if (rows % kRowsUnderLock == 0) {
            mutex_.unlock();
            mutex_.lock();
        }
        const std::optional<NvmeEntry> entry = index_->find(row.hash);
        if (!entry || entry->unit != unit_of(file, row.offset)) {
            continue;
        }
        const NvmeNamespaces::Slot& slot = namespaces_.slot(entry->ns_slot);
        const NamespaceId ns = slot.names.id;
        const uint64_t size = record_bytes(row.key.size(), row.length);
        switch (plan.decide({.is_live = visible(*entry, ns),
                             .is_flushed = slot.flushed,
                             .pin = entry->pin,
                             .touches = entry->touches,
                             .record_bytes = size})) {
            case Fate::kMove:
                row.pin = entry->pin;
                plan.add_move(row, ns, size);
                break;
            case Fate::kDropCold:
                drop(row, *entry, ns, NvmeDropped::Reason::kReclaimed, dropped);
                break;
            case Fate::kDropExpired:
                drop(row, *entry, ns, NvmeDropped::Reason::kExpired, dropped);
                break;
            case Fate::kForget:
                erase(row.hash, *entry);
                break;
        }
    }
    return plan;
}

// The owner is told of what was added to `*dropped` once the mutex is released.
void NvmeLog::drop(const ManifestRow& row, const NvmeEntry& entry, NamespaceId ns,
                   NvmeDropped::Reason reason, std::vector<NvmeDropped>* dropped) {
    erase(row.hash, entry);
    ++counters_.dropped_objects;
    dropped->push_back({.ns = ns,
                        .hash = row.hash,
                        .version = row.version,
                        .key = std::string(row.key),
                        .reason = reason});
}

// Moves what was planned; what cannot be moved is dropped. Stops early when the log does.
void NvmeLog::move_objects(uint32_t file, std::span<const ReclaimPlan::Move> moves,
                           FileWindow& window, std::vector<NvmeDropped>* dropped) {
    std::vector<uint8_t> data;
    for (const ReclaimPlan::Move& one : moves) {
        if (must_stop()) {
            return;
        }
        reclaim_needs_ = one.room_needed;
        const Status moved = move(file, one, window, data);
        if (moved.ok()) {
            continue;
        }
        if (must_stop()) {
            return;
        }
        const std::optional<NvmeEntry> entry = index_->find(one.row.hash);
        if (entry && entry->unit == unit_of(file, one.row.offset)) {
            drop(one.row, *entry, one.ns, reason_of(moved), dropped);
        }
    }
}

// Appends an object of a log file again. Not Ok: it could not, and is to be dropped.
Status NvmeLog::move(uint32_t file, const ReclaimPlan::Move& moving, FileWindow& window,
                     std::vector<uint8_t>& data) {
    const ManifestRow& row = moving.row;
    const std::optional<uint16_t> slot = namespaces_.find(moving.ns);
    if (!slot) {
        return {Code::kNotFound, "its namespace is gone"};
    }
    const NvmeObject object = object_of(namespaces_.slot(*slot).names, row);
    mutex_.unlock();
    data.resize(row.length);
    const bool got =
        window.copy(row.offset + record_head_bytes(row.key.size()), data.data(), data.size());
    Status status = window.status();
    if (!got && status.ok()) {
        status = {Code::kIoError, path_of(file) + " ends early"};
    }
    mutex_.lock();
    if (!got) {
        ++counters_.io_errors;
        return status;
    }
    status = append_moved(object, data, unit_of(file, row.offset));
    if (status.ok()) {
        ++counters_.readmitted_objects;
        counters_.readmitted_bytes += row.length;
    } else if (status.code() == Code::kChecksumMismatch) {
        ++counters_.checksum_errors;
    }
    // Removed: by somebody else, in the meantime.
    return status.code() == Code::kRemoved ? Status() : status;
}

// Appends as soon as there is room. Overloaded: there is none, and there will be none.
Status NvmeLog::append_moved(const NvmeObject& object, std::span<const uint8_t> data,
                             uint64_t unit) {
    mutex_.unlock();
    Status status = append_record({.object = object, .data = data, .moved_from = unit});
    mutex_.lock();
    while (status.code() == Code::kOverloaded && state_ == NvmeState::kActive) {
        // This thread is the one that seals and prepares.
        seal_ready();
        prepare_files();
        changed_.wait_for(mutex_, std::chrono::milliseconds(1));
        // Nothing is left to write to, and nothing will be: every other log file is full.
        const bool is_hopeless = files_.free_or_ready() == 0 && buffers_->idle();
        mutex_.unlock();
        status = append_record({.object = object, .data = data, .moved_from = unit});
        mutex_.lock();
        if (is_hopeless) {
            break;
        }
    }
    return status;
}

// Entries that no manifest speaks of, because it was lost and the log file is damaged.
void NvmeLog::sweep(uint32_t file) {
    for (size_t shard = 0; shard < index_->shards(); ++shard) {
        index_->erase_if(shard, [&](const NvmeEntry& entry) KV_REQUIRES(mutex_) {
            if (file_of(entry.unit) != file) {
                return false;
            }
            account(entry, false);
            ++counters_.dropped_objects;
            return true;
        });
        mutex_.unlock();
        mutex_.lock();
    }
}

// Makes one log file free. Live objects are dropped or moved in the order of the log only: so no
// older version of an object is on disk any more when its newest one goes. What has no live object
// left may go at any time, and goes first. False: there is nothing to reclaim, or it failed.
bool NvmeLog::reclaim() {
    if (const std::optional<uint32_t> empty = files_.sealed_without_objects()) {
        files_.begin_reclaim(*empty);
        return free_file(*empty);
    }
    return reclaim_oldest();
}

bool NvmeLog::reclaim_oldest() {
    const std::optional<uint32_t> oldest = files_.oldest();
    // A younger one may be sealed before it, but must not go before it.
    if (!oldest || files_[*oldest].state() != LogFileState::kSealed) {
        return false;
    }
    const uint32_t file = *oldest;
    files_.begin_reclaim(file);
    reclaiming_ = true;
    reclaim_needs_ = log_file_bytes_;
    const uint64_t seq = files_[file].seq();
    mutex_.unlock();
    const std::shared_ptr<const Manifest> manifest = manifest_of(file, seq);
    FileWindow window(io_, fd_of(file), path_of(file), log_file_bytes_);
    mutex_.lock();

    std::vector<NvmeDropped> dropped;
    ReclaimPlan plan = plan_reclaim(file, *manifest, &dropped);
    move_objects(file, plan.finish(), window, &dropped);
    reclaim_needs_ = 0;
    mutex_.unlock();
    report(dropped);
    mutex_.lock();
    if (must_stop()) {
        files_.stop_reclaim(file);
        return false;
    }
    if (files_[file].live_objects != 0) {
        sweep(file);
    }
    return free_file(file);
}

// What moved must be on disk before its old place is reused, and so must what replaced or
// removed an object of the log file: that object hides the older versions that others still hold.
// The header goes first, so that nothing of the log file comes back; then its row and what the
// journal says of it.
bool NvmeLog::free_file(uint32_t file) {
    changed_.wait(mutex_, [&]() KV_REQUIRES(mutex_) { return files_[file].readers == 0; });
    const uint64_t seq = files_[file].seq();
    const Status appends = sync_appends();
    mutex_.unlock();
    if (!appends.ok() || !sync_removals().ok()) {
        mutex_.lock();
        files_.stop_reclaim(file);
        return false;
    }
    Status status = write_header(file, 0);
    if (status.ok() && catalog_ != nullptr && !catalog_->drop(seq).ok()) {
        const MutexLock guard(mutex_);
        ++counters_.catalog_errors;
    }
    mutex_.lock();
    if (!status.ok()) {
        ++counters_.io_errors;
        files_.stop_reclaim(file);
        fail(NvmeState::kReadOnly, status);
        return false;
    }
    files_.release(file);
    reclaiming_ = false;
    ++counters_.log_files_reclaimed;
    const uint64_t oldest = files_.oldest_seq();
    changed_.notify_all();
    mutex_.unlock();
    journal_->drop_before(oldest);
    mutex_.lock();
    return true;
}

Status NvmeLog::list(NvmeCursor* cursor, size_t max, std::vector<NvmeListed>* out) {
    size_t wanted = std::min<size_t>(max, 1 << 16);
    MutexLock lock(mutex_);
    while (!cursor->done && wanted > 0) {
        if (state_ == NvmeState::kOff) {
            return error_;
        }
        const std::optional<uint32_t> found = files_.oldest(cursor->seq);
        if (!found) {
            cursor->done = true;
            break;
        }
        const uint32_t file = *found;
        const uint64_t seq = files_[file].seq();
        if (seq != cursor->seq) {
            *cursor = {.seq = seq, .manifest = nullptr};
        }
        if (files_[file].manifest() == nullptr &&
            (cursor->manifest == nullptr || cursor->manifest->seq() != seq)) {
            lock.unlock();
            // Its rows may stand in another order than those of the open log file did.
            *cursor = {.seq = seq, .manifest = manifest_of(file, seq)};
            lock.lock();
            continue;  // look again: it may have been reclaimed meanwhile
        }
        const Manifest& manifest =
            files_[file].manifest() != nullptr ? *files_[file].manifest() : *cursor->manifest;
        if (!list_rows(file, manifest, cursor, &wanted, out)) {
            *cursor = {.seq = seq + 1, .manifest = nullptr};
        }
        lock.unlock();
        lock.lock();
    }
    return {};
}

// At most kRowsUnderLock rows. False: there are no more.
bool NvmeLog::list_rows(uint32_t file, const Manifest& manifest, NvmeCursor* cursor, size_t* wanted,
                        std::vector<NvmeListed>* out) {
    ManifestRow row;
    for (size_t rows = 0; rows < kRowsUnderLock && *wanted > 0; ++rows) {
        if (!manifest.next(&cursor->at, &row)) {
            return false;
        }
        const std::optional<NvmeEntry> entry = index_->find(row.hash);
        if (!entry || entry->unit != unit_of(file, row.offset)) {
            continue;
        }
        const NamespaceEpoch& names = namespaces_.slot(entry->ns_slot).names;
        const uint64_t now = now_ms();
        if (!visible(*entry, names.id) || (row.expires_at_ms != 0 && row.expires_at_ms <= now)) {
            continue;
        }
        out->push_back({.ns = names,
                        .key = std::string(row.key),
                        .identity = object_of(names, row).identity,
                        .sealed_crc = row.sealed_crc,
                        .ttl_ms = row.expires_at_ms == 0 ? 0 : row.expires_at_ms - now,
                        .put_wall_ms = row.put_wall_ms,
                        .pin = entry->pin,
                        .parent = row.parent});
        --*wanted;
    }
    return true;
}

}  // namespace kvstore
