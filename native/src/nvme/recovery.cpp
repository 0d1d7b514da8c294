// Opening: the folder's log files, the removals, then every log file by its manifest or by a scan,
// in the order in which they were written.
#include <algorithm>
#include <set>

#include "base/clock.h"
#include "base/limits.h"
#include "nvme/log.h"
#include "nvme/read_task.h"

namespace kvstore {
namespace {

constexpr uint64_t kBytesAShard = 2ull << 30;

}  // namespace

Status NvmeLog::recover() {
    mutex_.assert_held();  // nobody else has the log before open() returns
    Status shortage;
    Status status = folder_->open_log_files({.size_bytes = options_.size_bytes,
                                             .log_file_bytes = options_.log_file_bytes,
                                             .node_id = options_.node_id,
                                             .cluster_check = options_.cluster_check,
                                             .discard_foreign = options_.discard_foreign,
                                             .keep_free = options_.keep_free},
                                            &shortage);
    if (!status.ok()) {
        return status;
    }
    log_file_bytes_ = folder_->log_file_bytes();
    if (log_file_bytes_ < 2 * kMaxRecordHeadBytes + 2 * kLogFileHeaderBytes) {
        return {Code::kInvalidArgument, "log files of that size hold nothing"};
    }
    if (folder_->files().size() * log_file_bytes_ / kRecordAlign >= NvmeIndex::kMaxUnit) {
        return {Code::kInvalidArgument, "nvme_size is above 64 TiB: lower it"};
    }
    index_ = std::make_unique<NvmeIndex>(
        std::clamp<uint64_t>(options_.size_bytes / kBytesAShard, 64, 4096));
    files_ = LogFiles(folder_->files().size());
    for (uint32_t file = 0; file < files_.count(); ++file) {
        const NvmeFolder::LogFile& opened = folder_->files()[file];
        if (opened.seq != 0) {
            files_.recover(file, opened.seq);
        }
        if (opened.damaged) {
            ++counters_.damaged_log_files;
        }
    }
    Removals removals;
    status = journal_->load(&removals);
    if (!status.ok()) {
        return status;
    }
    counters_.damaged_removals = removals.damaged;
    recovered_applied_ = removals.applied_seq;
    if (!shortage.ok()) {
        fail(NvmeState::kReadOnly,
             {shortage.code(), "nvme_dir has no room for nvme_size (lower it, or free room): " +
                                   shortage.message()});
    }
    recover_files(removals);
    counters_.recovered_objects = counters_.objects;
    return {};
}

void NvmeLog::recover_files(const Removals& removals) {
    std::set<uint64_t> cataloged;
    if (catalog_ != nullptr) {
        const Result<std::vector<uint64_t>> listed = catalog_->list();
        if (listed.ok()) {
            cataloged.insert(listed->begin(), listed->end());
        } else {
            ++counters_.catalog_errors;
        }
    }
    const std::vector<uint32_t> used = files_.recovered();
    LogFileScan last;  // of the last log file that holds records and was not sealed
    uint32_t last_file = UINT32_MAX;
    for (size_t done = 0; done < used.size(); ++done) {
        const uint64_t seq = files_[used[done]].seq();
        LogFileScan scan;
        const bool sealed = recover_file(used[done], cataloged.contains(seq), removals, &scan);
        cataloged.erase(seq);
        if (!sealed && scan.end == kLogFileHeaderBytes && !scan.torn && scan.status.ok()) {
            files_.discard_recovered(used[done]);  // prepared, and never written to
        } else {
            if (!sealed) {
                ++counters_.scanned_log_files;
            }
            if (last_file != UINT32_MAX) {
                save_scanned(last_file, last);
            }
            last_file = sealed ? UINT32_MAX : used[done];
            last = std::move(scan);
        }
        if (options_.on_progress) {
            options_.on_progress(
                {.files_done = done + 1, .files = used.size(), .objects = counters_.objects});
        }
    }
    if (last_file != UINT32_MAX && !continue_head(last_file, last)) {
        save_scanned(last_file, last);
    }
    files_.seal_recovered();
    for (const uint64_t seq : cataloged) {
        if (!catalog_->drop(seq).ok()) {
            ++counters_.catalog_errors;
        }
    }
}

// True: by its manifest, so that it was sealed.
bool NvmeLog::recover_file(uint32_t file, bool cataloged, const Removals& removals,
                           LogFileScan* scan) {
    const uint64_t seq = files_[file].seq();
    if (cataloged) {
        const Result<std::vector<uint8_t>> bytes = catalog_->load(seq);
        if (bytes.ok()) {
            const Result<Manifest> manifest = Manifest::decode(*bytes);
            if (manifest.ok() && manifest->seq() == seq) {
                recover_rows(file, *manifest, removals);
                return true;
            }
        }
        ++counters_.catalog_errors;
    }
    *scan = scan_log_file(io_, fd_of(file), path_of(file), seq, log_file_bytes_, true);
    counters_.damaged_records += scan->damaged;
    if (scan->torn) {
        ++counters_.torn_tails;
    }
    if (!scan->status.ok()) {
        ++counters_.io_errors;
    }
    recover_rows(file, scan->manifest, removals);
    return false;
}

void NvmeLog::recover_rows(uint32_t file, const Manifest& manifest, const Removals& removals) {
    std::vector<std::optional<uint16_t>> slots;
    for (const NamespaceEpoch& ns : manifest.namespaces()) {
        slots.push_back(removals.flushed.contains(ns.id) ? std::nullopt : namespaces_.add(ns));
    }
    uint64_t at = 0;
    ManifestRow row;
    while (manifest.next(&at, &row)) {
        const std::optional<uint16_t> slot = slots[row.ns_index];
        const uint64_t size = record_bytes(row.key.size(), row.length);
        if (!slot || row.offset < kLogFileHeaderBytes || row.offset > log_file_bytes_ ||
            size > log_file_bytes_ - row.offset ||
            removals.covers(manifest.namespaces()[row.ns_index].id, row.hash, row.version)) {
            continue;
        }
        // Of equal versions the later one: it was moved, and its old place may be reused.
        const std::optional<NvmeEntry> present = index_->find(row.hash);
        if (present && present->version > row.version) {
            continue;
        }
        insert(object_of(namespaces_.slot(*slot).names, row), *slot, file, row.offset);
    }
}

// A log file that is not written to any more need not be scanned by the next life.
void NvmeLog::save_scanned(uint32_t file, const LogFileScan& scan) {
    if (catalog_ == nullptr || !scan.status.ok()) {
        return;
    }
    if (!catalog_->save(files_[file].seq(), scan.manifest.encode()).ok()) {
        ++counters_.catalog_errors;
    }
}

// The log goes on where its last log file ends, so that lives that write little cost no log file
// each. The block in which it ends is written again, with what it holds.
bool NvmeLog::continue_head(uint32_t file, const LogFileScan& scan) {
    if (state_ != NvmeState::kActive || !scan.status.ok()) {
        return false;
    }
    const uint64_t block = align_down(scan.end, kIoAlign);
    AlignedBuffer head(kIoAlign);
    if (head.size() == 0) {
        return false;
    }
    const auto head_bytes = static_cast<size_t>(scan.end - block);
    if (head_bytes > 0) {
        const Result<size_t> got =
            read_fully(io_, fd_of(file), head.data(), kIoAlign, block, path_of(file));
        if (!got.ok() || *got < head_bytes) {
            return false;
        }
    }
    if (!buffers_->begin_file(file, files_[file].seq(), scan.end, log_file_bytes_,
                              folder_->session(), {head.data(), head_bytes}, boottime_ms())) {
        return false;
    }
    files_.continue_head(file, scan.manifest);
    return true;
}

}  // namespace kvstore
