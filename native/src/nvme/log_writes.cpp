// The writer threads, and the maintenance that seals full log files and prepares empty ones.
#include <algorithm>
#include <chrono>

#include "base/clock.h"
#include "base/mutex.h"
#include "nvme/log.h"
#include "nvme/read_task.h"

namespace kvstore {
namespace {

constexpr uint64_t kFolderCheckMs = 1000;
constexpr size_t kPreparedFiles = 2;
constexpr uint64_t kMaxFreeTarget = 8;

}  // namespace

void NvmeLog::report(const std::vector<NvmeDropped>& dropped) {
    if (!options_.on_dropped) {
        return;
    }
    for (const NvmeDropped& one : dropped) {
        options_.on_dropped(one);
    }
}

void NvmeLog::write_loop() {
    MutexLock lock(mutex_);
    while (true) {
        std::vector<std::shared_ptr<WriteBuffer>> run;
        write_wake_.wait(mutex_, [&]() KV_REQUIRES(mutex_) {
            run = buffers_->next_to_write();
            return !run.empty() || (stopping_ && buffers_->idle() && !buffers_->has_file());
        });
        if (run.empty()) {
            return;
        }
        lock.unlock();
        const Status status = write_run(run);
        lock.lock();
        std::vector<NvmeDropped> dropped;
        ++files_[run.front()->file].writes;
        if (!status.ok()) {
            ++counters_.io_errors;
            lost_writes_ = true;
            fail(NvmeState::kReadOnly, status);
        }
        for (const auto& buffer : run) {
            if (status.ok()) {
                counters_.bytes_written += buffer->used;
            } else {
                drop_failed(*buffer, &dropped);
            }
            buffers_->written(buffer, status.ok());
        }
        run.clear();
        must_maintain_ = true;
        maintain_wake_.notify_one();
        changed_.notify_all();
        give_back();
        if (!dropped.empty()) {
            lock.unlock();
            report(dropped);
            lock.lock();
        }
    }
}

// Lent memory that is not needed any more.
void NvmeLog::give_back() {
    std::vector<std::shared_ptr<const void>> returned = buffers_->take_returned();
    if (!returned.empty()) {
        mutex_.unlock();
        returned.clear();
        mutex_.lock();
    }
}

Status NvmeLog::write_run(std::span<const std::shared_ptr<WriteBuffer>> run) {
    const WriteBuffer& first = *run.front();
    std::vector<iovec> parts;
    parts.reserve(run.size());
    for (const auto& buffer : run) {
        parts.push_back({buffer->data, buffer->used});
    }
    return write_fully(io_, fd_of(first.file), parts, first.start, path_of(first.file));
}

// What was in a buffer that could not be written is gone, although it was readable.
void NvmeLog::drop_failed(const WriteBuffer& buffer, std::vector<NvmeDropped>* dropped) {
    const auto manifest = files_[buffer.file].manifest();
    if (manifest == nullptr) {
        return;
    }
    uint64_t at = 0;
    ManifestRow row;
    while (manifest->next(&at, &row)) {
        if (row.offset >= buffer.start + buffer.used ||
            row.offset + record_bytes(row.key.size(), row.length) <= buffer.start) {
            continue;
        }
        const std::optional<NvmeEntry> entry = index_->find(row.hash);
        if (!entry || entry->unit != unit_of(buffer.file, row.offset)) {
            continue;
        }
        erase(row.hash, *entry);
        // The bytes may have reached the disk all the same: they must not come back.
        journal_->remove(row.hash, row.version, files_.newest_seq());
        ++counters_.dropped_objects;
        dropped->push_back({.ns = manifest->namespaces()[row.ns_index].id,
                            .hash = row.hash,
                            .version = row.version,
                            .key = std::string(row.key),
                            .reason = NvmeDropped::Reason::kWriteFailed});
    }
}

void NvmeLog::maintain_loop() {
    MutexLock lock(mutex_);
    const auto pause = std::chrono::milliseconds(std::clamp(options_.flush_after_ms, 5u, 1000u));
    uint64_t checked_ms = boottime_ms();
    while (!stopping_) {
        maintain_wake_.wait_for(
            mutex_, pause, [this]() KV_REQUIRES(mutex_) { return stopping_ || must_maintain_; });
        must_maintain_ = false;
        give_back();  // what a reader or a sync had in its hands when it was written
        maintain();
        if (boottime_ms() - checked_ms >= kFolderCheckMs) {
            checked_ms = boottime_ms();
            lock.unlock();
            const bool there = folder_->still_there();
            lock.lock();
            if (!there) {
                fail(NvmeState::kOff,
                     {Code::kIoError, "nvme_dir " + folder_->path() + " was removed or replaced"});
            }
        }
    }
}

void NvmeLog::maintain() {
    const uint64_t since_ms = buffers_->open_since_ms();
    if (since_ms != UINT64_MAX &&
        boottime_ms() - std::min(since_ms, boottime_ms()) >= options_.flush_after_ms &&
        buffers_->close_buffer()) {
        write_wake_.notify_all();
    }
    seal_ready();
    if (journal_->has_pending() && state_ == NvmeState::kActive) {
        mutex_.unlock();
        sync_removals().ok();  // counted; the state says so
        mutex_.lock();
    }
    while (state_ == NvmeState::kActive && !stopping_) {
        prepare_files();
        const uint64_t target =
            std::clamp<uint64_t>(files_.count() / 16, reserve() + 1, kMaxFreeTarget);
        if (state_ != NvmeState::kActive || files_.free_or_ready() >= target) {
            break;
        }
        if (!reclaim()) {
            break;
        }
    }
}

// Log files that are full and wholly written: durable first, then their manifest, so that no row
// speaks of what a power loss may still take.
void NvmeLog::seal_ready() {
    for (uint32_t file = 0; file < files_.count(); ++file) {
        LogFiles::File& one = files_[file];
        if (one.state() != LogFileState::kSealing || buffers_->unwritten(one.seq())) {
            continue;
        }
        const std::shared_ptr<Manifest> manifest = one.manifest();
        const bool whole = state_ == NvmeState::kActive;
        const uint64_t writes = one.writes;
        mutex_.unlock();
        const int synced = io_.sync(fd_of(file));
        Status saved;
        if (synced >= 0 && whole && catalog_ != nullptr) {
            saved = catalog_->save(manifest->seq(), manifest->encode());
        }
        mutex_.lock();
        if (synced < 0) {
            ++counters_.io_errors;
            lost_writes_ = true;
            fail(NvmeState::kReadOnly, io_status("fdatasync", path_of(file), synced));
        }
        if (synced >= 0) {
            one.synced_writes = writes;
        }
        if (!saved.ok()) {
            ++counters_.catalog_errors;
        }
        files_.seal(file);
        changed_.notify_all();
    }
}

Status NvmeLog::write_header(uint32_t file, uint64_t seq) {
    AlignedBuffer block(kLogFileHeaderBytes);
    if (block.size() == 0) {
        return {Code::kNoSpace, "no memory for a log file's header"};
    }
    std::fill(block.data(), block.data() + block.size(), uint8_t{0});
    if (seq != 0) {
        encode_log_file_header({.seq = seq,
                                .log_file_bytes = log_file_bytes_,
                                .cluster_check = options_.cluster_check,
                                .node_id = options_.node_id},
                               {block.data(), block.size()});
    }
    const int fd = fd_of(file);
    Status status = write_fully(io_, fd, block.data(), block.size(), 0, path_of(file));
    if (!status.ok()) {
        return status;
    }
    const int synced = io_.sync(fd);
    return synced < 0 ? io_status("fdatasync", path_of(file), synced) : Status();
}

void NvmeLog::prepare_files() {
    while (files_.ready() < kPreparedFiles && state_ == NvmeState::kActive) {
        const std::optional<uint32_t> file = files_.prepare();
        if (!file) {
            return;
        }
        const uint64_t seq = files_[*file].seq();
        mutex_.unlock();
        Status status = write_header(*file, seq);
        mutex_.lock();
        if (!status.ok()) {
            ++counters_.io_errors;
            files_.header_failed(*file);
            fail(NvmeState::kReadOnly, status);
            return;
        }
        files_.header_written(*file);
        changed_.notify_all();
    }
}

Status NvmeLog::sync() {
    MutexLock lock(mutex_);
    return sync_appends();
}

Status NvmeLog::sync_appends() {
    buffers_->close_buffer();
    write_wake_.notify_all();
    std::vector<std::shared_ptr<WriteBuffer>> wanted = buffers_->unwritten_buffers();
    changed_.wait(mutex_, [&] {
        return std::all_of(wanted.begin(), wanted.end(), [](const auto& one) {
            return one->state == WriteBuffer::State::kWritten ||
                   one->state == WriteBuffer::State::kFailed;
        });
    });
    wanted.clear();
    std::vector<std::pair<uint32_t, uint64_t>> dirty;
    for (uint32_t file = 0; file < files_.count(); ++file) {
        const LogFiles::File& one = files_[file];
        if (one.writes != one.synced_writes) {
            dirty.emplace_back(file, one.writes);
        }
    }
    for (const auto& [file, writes] : dirty) {
        mutex_.unlock();
        const int synced = io_.sync(fd_of(file));
        mutex_.lock();
        if (synced < 0) {
            ++counters_.io_errors;
            lost_writes_ = true;
            fail(NvmeState::kReadOnly, io_status("fdatasync", path_of(file), synced));
        } else {
            uint64_t& done = files_[file].synced_writes;
            done = std::max(done, writes);
        }
    }
    // A failed sync may have cost the kernel's copy, and behind a failed write nothing is found
    // again: that the next call succeeds says nothing about them.
    return lost_writes_ || state_ == NvmeState::kOff ? error_ : Status();
}

}  // namespace kvstore
