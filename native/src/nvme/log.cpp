// Opening and closing, finding and removing; what the index says and what it counts.
#include "nvme/log.h"

#include <algorithm>
#include <array>

#include "base/checksum.h"
#include "base/clock.h"
#include "base/limits.h"
#include "nvme/read_task.h"

namespace kvstore {
namespace {

constexpr size_t kRememberedRemovals = 1 << 16;

uint32_t to_expires_at_s(uint64_t expires_at_ms) {
    return static_cast<uint32_t>(std::min<uint64_t>((expires_at_ms + 999) / 1000, UINT32_MAX));
}

NvmeOptions completed(NvmeOptions options) {
    if (options.io == nullptr) {
        options.io = &FileIo::system();
    }
    if (!options.wall_ms) {
        options.wall_ms = kvstore::wall_ms;
    }
    return options;
}

}  // namespace

NvmeLog::NvmeLog(const NvmeOptions& options)
    : options_(completed(options)), io_(*options_.io), catalog_(options_.catalog) {
    set_policy(options_.policy);
}

Result<std::unique_ptr<NvmeLog>> NvmeLog::open(const NvmeOptions& options) {
    if (options.buffers < 3 || options.writers < 1 || options.buffer_bytes < 64 << 10 ||
        options.buffer_bytes % kIoAlign != 0 || options.buffer_bytes > 1u << 30 ||
        options.node_id.size() > limits::kMaxNameBytes || options.directory.empty()) {
        return {Code::kInvalidArgument,
                "the NVMe tier needs a folder, 3 write buffers of 64 KiB or more in steps of "
                "4 KiB, and a writer"};
    }
    std::unique_ptr<NvmeLog> log(new NvmeLog(options));
    if (Status status = log->start(); !status.ok()) {
        return status;
    }
    return log;
}

Status NvmeLog::start() {
    Result<std::unique_ptr<NvmeFolder>> folder = NvmeFolder::open(io_, options_.directory);
    if (!folder.ok()) {
        return folder.status();
    }
    folder_ = std::move(*folder);
    journal_ = std::make_unique<RemovalJournal>(io_, *folder_);
    auto buffers = std::make_unique<WriteBuffers>(options_.buffer_bytes, options_.buffers);
    if (!buffers->has_memory()) {
        return {Code::kNoSpace, "no memory for NVMe write buffers"};
    }
    const uint64_t max_record_bytes = buffers->max_record_bytes();
    buffers_ = std::move(buffers);
    if (Status status = recover(); !status.ok()) {
        return status;
    }
    // Its namespace's record, and the pad in front of what is not copied, too.
    const uint64_t overhead = 2 * kMaxRecordHeadBytes + kRecordAlign + kIoAlign;
    const uint64_t room =
        std::min(log_file_bytes_ - kLogFileHeaderBytes, max_record_bytes - options_.buffer_bytes);
    max_object_bytes_ = std::min<uint64_t>(room - overhead, UINT32_MAX);
    Result<std::unique_ptr<NvmeReadEngine>> engine = NvmeReadEngine::create(io_, options_.reads);
    if (!engine.ok()) {
        return engine.status();
    }
    engine_ = std::move(*engine);
    {
        MutexLock lock(mutex_);
        if (state_ == NvmeState::kActive) {
            prepare_files();
        }
    }
    for (size_t i = 0; i < options_.writers; ++i) {
        writers_.emplace_back([this] { write_loop(); });
    }
    maintainer_ = std::thread([this] { maintain_loop(); });
    return {};
}

NvmeLog::~NvmeLog() {
    {
        MutexLock lock(mutex_);
        stopping_ = true;
        maintain_wake_.notify_all();
    }
    if (maintainer_.joinable()) {
        maintainer_.join();
    }
    if (!writers_.empty()) {
        sync().ok();  // an error was counted, and there is nobody left to be told
        sync_removals().ok();
        {
            MutexLock lock(mutex_);
            buffers_->end_file();
            write_wake_.notify_all();
            changed_.wait(mutex_, [this]() KV_REQUIRES(mutex_) {
                return waiting_reads_.empty() && waiting_ahead_.empty() && reads_under_way_ == 0;
            });
        }
        for (std::thread& writer : writers_) {
            writer.join();
        }
    }
    engine_.reset();
}

NvmeState NvmeLog::state() const {
    const MutexLock lock(mutex_);
    return state_;
}

Status NvmeLog::error() const {
    const MutexLock lock(mutex_);
    return error_;
}

NvmeCounters NvmeLog::counters() const {
    const MutexLock lock(mutex_);
    NvmeCounters counters = counters_;
    counters.index_bytes = index_->memory_bytes();
    counters.bytes_capacity = files_.count() * log_file_bytes_;
    counters.free_log_files = files_.free_or_ready();
    return counters;
}

// A log only gets worse.
void NvmeLog::fail(NvmeState state, const Status& why) {
    if (state > state_) {
        state_ = state;
        error_ = why;
    }
    maintain_wake_.notify_all();
    changed_.notify_all();
}

Status NvmeLog::register_namespace(const NamespaceEpoch& ns) {
    if (ns.tenant.size() > limits::kMaxNameBytes || ns.name.size() > limits::kMaxNameBytes ||
        ns.epoch > kMaxEpoch) {
        return {Code::kInvalidArgument, "names of at most 255 bytes and an epoch of 24 bits"};
    }
    const MutexLock lock(mutex_);
    if (namespaces_.add(ns)) {
        return {};
    }
    return {Code::kNoSpace, "more than " + std::to_string(NvmeNamespaces::kMax) +
                                " namespaces have objects on NVMe"};
}

void NvmeLog::remember_removal(const Hash128& hash, Version version) {
    const auto [found, is_new] = lately_removed_.try_emplace(hash, version);
    found->second = std::max(found->second, version);
    if (!is_new) {
        return;
    }
    lately_order_.push_back(hash);
    if (lately_order_.size() > kRememberedRemovals) {
        lately_removed_.erase(lately_order_.front());
        lately_order_.pop_front();
    }
}

bool NvmeLog::removed_lately(const Hash128& hash, Version version) const {
    const auto found = lately_removed_.find(hash);
    return found != lately_removed_.end() && version <= found->second;
}

void NvmeLog::account(const NvmeEntry& entry, bool added) {
    const auto change = [added](uint64_t& count, uint64_t by) {
        added ? count += by : count -= by;
    };
    NvmeNamespaces::Slot& slot = namespaces_.slot(entry.ns_slot);
    change(slot.objects, 1);
    change(slot.bytes, entry.length);
    if (entry.pin == Pin::kHard) {
        change(slot.pinned_bytes, entry_bytes(entry));
    }
    change(files_[file_of(entry.unit)].live_objects, 1);
    if (slot.flushed) {
        return;  // hidden: not counted since the flush
    }
    change(counters_.objects, 1);
    change(counters_.bytes_live, entry.length);
    if (entry.pin == Pin::kHard) {
        change(pinned_bytes_, entry_bytes(entry));
    }
}

void NvmeLog::erase(const Hash128& hash, const NvmeEntry& entry) {
    account(entry, false);
    index_->erase(hash);
}

void NvmeLog::insert(const NvmeObject& object, uint16_t ns_slot, uint32_t file, uint64_t offset) {
    const Hash128& hash = object.identity.hash;
    NvmeEntry entry{
        .version = object.identity.version,
        .unit = unit_of(file, offset),
        .length = static_cast<uint32_t>(object.identity.length),
        .expires_at_s = to_expires_at_s(object.expires_at_ms),
        .ns_slot = ns_slot,
        .head_units = static_cast<uint8_t>(record_head_bytes(object.key.size()) / kRecordAlign),
        .pin = object.pin};
    if (const std::optional<NvmeEntry> old = index_->find(hash)) {
        erase(hash, *old);
    }
    if (!index_->put(hash, entry)) {
        return;  // no memory: as if it had been evicted at once
    }
    account(entry, true);
    Manifest* const manifest = files_[file].manifest().get();
    if (manifest == nullptr) {
        return;
    }
    manifest->add({.ns_index = manifest->add_namespace(namespaces_.slot(ns_slot).names),
                   .offset = offset,
                   .hash = hash,
                   .version = entry.version,
                   .length = entry.length,
                   .sealed_crc = object.sealed_crc,
                   .expires_at_ms = object.expires_at_ms,
                   .put_wall_ms = object.put_wall_ms,
                   .parent = object.parent,
                   .pin = object.pin,
                   .key = object.key});
}

bool NvmeLog::await_space(uint64_t data_bytes, uint32_t timeout_ms) {
    const uint64_t size = record_bytes(limits::kMaxKeyBytes, data_bytes) + kMaxRecordHeadBytes;
    if (data_bytes > max_object_bytes()) {
        return false;
    }
    MutexLock lock(mutex_);
    const auto has_room = [&]() KV_REQUIRES(mutex_) {
        return buffers_->has_room(size) && buffers_->has_room_to_lend(data_bytes) &&
               ensure_head(size + kIoAlign, false);
    };
    changed_.wait_for(mutex_, std::chrono::milliseconds(timeout_ms), [&]() KV_REQUIRES(mutex_) {
        return state_ != NvmeState::kActive || has_room();
    });
    return state_ == NvmeState::kActive && has_room();
}

bool NvmeLog::visible(const NvmeEntry& entry, NamespaceId ns) const {
    const NvmeNamespaces::Slot& slot = namespaces_.slot(entry.ns_slot);
    return state_ != NvmeState::kOff && slot.names.id == ns && !slot.flushed &&
           (entry.expires_at_s == 0 || uint64_t{entry.expires_at_s} * 1000 > now_ms());
}

std::optional<NvmeFound> NvmeLog::find(NamespaceId ns, const Hash128& hash, bool touch) {
    const MutexLock lock(mutex_);
    const std::optional<NvmeEntry> entry = index_->find(hash);
    if (!entry || !visible(*entry, ns)) {
        return std::nullopt;
    }
    if (touch) {
        index_->touch(hash);
    }
    return NvmeFound{.version = entry->version,
                     .length = entry->length,
                     .pin = entry->pin,
                     .touches = entry->touches,
                     .file = file_of(entry->unit),
                     .offset = offset_of(entry->unit)};
}

bool NvmeLog::remove(NamespaceId ns, const Hash128& hash, Version version) {
    const MutexLock lock(mutex_);
    remember_removal(hash, version);
    const std::optional<NvmeEntry> entry = index_->find(hash);
    const bool present =
        entry && entry->version <= version && namespaces_.slot(entry->ns_slot).names.id == ns;
    const bool counts = present && visible(*entry, ns);
    if (present) {
        erase(hash, *entry);
    }
    if (present || reclaiming_ || state_ != NvmeState::kActive) {
        journal_->remove(hash, version, files_.newest_seq());
    }
    return counts;
}

void NvmeLog::flush_namespace(NamespaceId ns) {
    const MutexLock lock(mutex_);
    if (const std::optional<uint16_t> number = namespaces_.find(ns)) {
        NvmeNamespaces::Slot& slot = namespaces_.slot(*number);
        if (slot.flushed) {
            return;
        }
        slot.flushed = true;
        counters_.objects -= slot.objects;
        counters_.bytes_live -= slot.bytes;
        pinned_bytes_ -= slot.pinned_bytes;
    }
    journal_->flush(ns, files_.newest_seq());
}

void NvmeLog::note_applied(uint64_t applied_seq) { journal_->note_applied(applied_seq); }

std::vector<NamespaceEpoch> NvmeLog::namespaces() const {
    const MutexLock lock(mutex_);
    std::vector<NamespaceEpoch> with_objects;
    for (uint16_t number = 0; number < namespaces_.size(); ++number) {
        const NvmeNamespaces::Slot& slot = namespaces_.slot(number);
        if (slot.objects != 0 && !slot.flushed) {
            with_objects.push_back(slot.names);
        }
    }
    return with_objects;
}

Status NvmeLog::sync_removals() {
    Status status = journal_->sync();
    if (!status.ok()) {
        const MutexLock lock(mutex_);
        ++counters_.io_errors;
        fail(NvmeState::kReadOnly, status);
    }
    return status;
}

Status NvmeLog::set_pin(NamespaceId ns, const Hash128& hash, Pin pin) {
    const MutexLock lock(mutex_);
    std::optional<NvmeEntry> entry = index_->find(hash);
    if (!entry || !visible(*entry, ns)) {
        return {Code::kNotFound, "not on NVMe"};
    }
    if (pin == Pin::kHard && entry->pin != Pin::kHard) {
        if (Status status = check_pinned(entry_bytes(*entry)); !status.ok()) {
            return status;
        }
    }
    account(*entry, false);
    entry->pin = pin;
    account(*entry, true);
    index_->set_pin(hash, pin);
    return {};
}

void NvmeLog::set_policy(const NvmePolicy& policy) {
    const MutexLock lock(mutex_);
    policy_ = policy.clamped();
}

}  // namespace kvstore
