// Opening: the folder's segments, the removals, then every segment by its manifest or by a scan, in
// the order in which they were written.
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
    Status shortage;
    Status status = folder_->open_segments({.size_bytes = options_.size_bytes,
                                            .segment_bytes = options_.segment_bytes,
                                            .node_id = options_.node_id,
                                            .cluster_check = options_.cluster_check,
                                            .discard_foreign = options_.discard_foreign},
                                           &shortage);
    if (!status.ok()) {
        return status;
    }
    segment_bytes_ = folder_->segment_bytes();
    if (segment_bytes_ < 2 * kMaxRecordHeadBytes + 2 * kSegmentHeaderBytes) {
        return {Code::kInvalidArgument, "segments of that size hold nothing"};
    }
    if (folder_->files().size() * segment_bytes_ / kRecordAlign >= NvmeIndex::kMaxUnit) {
        return {Code::kInvalidArgument, "nvme_size is above 64 TiB: lower it"};
    }
    index_ = std::make_unique<NvmeIndex>(
        std::clamp<uint64_t>(options_.size_bytes / kBytesAShard, 64, 4096));
    files_ = LogFiles(folder_->files().size());
    for (uint32_t number = 0; number < files_.count(); ++number) {
        const NvmeFolder::LogFile& file = folder_->files()[number];
        if (file.seq != 0) {
            files_.recover(number, file.seq);
        }
        if (file.damaged) {
            ++counters_.damaged_segments;
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
    recover_segments(removals);
    counters_.recovered_objects = counters_.objects;
    return {};
}

void NvmeLog::recover_segments(const Removals& removals) {
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
    LogFileScan last;  // of the last segment that holds records and was not sealed
    uint32_t last_number = UINT32_MAX;
    for (size_t done = 0; done < used.size(); ++done) {
        const uint64_t seq = files_[used[done]].seq();
        LogFileScan scan;
        const bool sealed = recover_segment(used[done], cataloged.contains(seq), removals, &scan);
        cataloged.erase(seq);
        if (!sealed && scan.end == kSegmentHeaderBytes && !scan.torn && scan.status.ok()) {
            files_.discard_recovered(used[done]);  // prepared, and never written to
        } else {
            if (!sealed) {
                ++counters_.scanned_segments;
            }
            if (last_number != UINT32_MAX) {
                save_scanned(last_number, last);
            }
            last_number = sealed ? UINT32_MAX : used[done];
            last = std::move(scan);
        }
        if (options_.on_progress) {
            options_.on_progress(
                {.segments_done = done + 1, .segments = used.size(), .objects = counters_.objects});
        }
    }
    if (last_number != UINT32_MAX && !continue_head(last_number, last)) {
        save_scanned(last_number, last);
    }
    files_.seal_recovered();
    for (const uint64_t seq : cataloged) {
        if (!catalog_->drop(seq).ok()) {
            ++counters_.catalog_errors;
        }
    }
}

// True: by its manifest, so that it was sealed.
bool NvmeLog::recover_segment(uint32_t number, bool cataloged, const Removals& removals,
                              LogFileScan* scan) {
    const uint64_t seq = files_[number].seq();
    if (cataloged) {
        const Result<std::vector<uint8_t>> bytes = catalog_->load(seq);
        if (bytes.ok()) {
            const Result<Manifest> manifest = Manifest::decode(*bytes);
            if (manifest.ok() && manifest->seq() == seq) {
                recover_rows(number, *manifest, removals);
                return true;
            }
        }
        ++counters_.catalog_errors;
    }
    *scan = scan_segment(io_, fd_of(number), path_of(number), seq, segment_bytes_, true);
    counters_.damaged_records += scan->damaged;
    if (scan->torn) {
        ++counters_.torn_tails;
    }
    if (!scan->status.ok()) {
        ++counters_.io_errors;
    }
    recover_rows(number, scan->manifest, removals);
    return false;
}

void NvmeLog::recover_rows(uint32_t number, const Manifest& manifest, const Removals& removals) {
    std::vector<std::optional<uint16_t>> slots;
    for (const NamespaceEpoch& ns : manifest.namespaces()) {
        slots.push_back(removals.flushed.contains(ns.id) ? std::nullopt : namespaces_.add(ns));
    }
    uint64_t at = 0;
    ManifestRow row;
    while (manifest.next(&at, &row)) {
        const std::optional<uint16_t> slot = slots[row.ns_index];
        const uint64_t size = record_bytes(row.key.size(), row.length);
        if (!slot || row.offset < kSegmentHeaderBytes || row.offset > segment_bytes_ ||
            size > segment_bytes_ - row.offset ||
            removals.covers(manifest.namespaces()[row.ns_index].id, row.hash, row.version)) {
            continue;
        }
        // Of equal versions the later one: it was moved, and its old place may be given away.
        const std::optional<NvmeEntry> present = index_->find(row.hash);
        if (present && present->version > row.version) {
            continue;
        }
        insert(object_of(namespaces_.slot(*slot).names, row), *slot, number, row.offset);
    }
}

// A segment that is not written to any more need not be scanned by the next life.
void NvmeLog::save_scanned(uint32_t number, const LogFileScan& scan) {
    if (catalog_ == nullptr || !scan.status.ok()) {
        return;
    }
    if (!catalog_->save(files_[number].seq(), scan.manifest.encode()).ok()) {
        ++counters_.catalog_errors;
    }
}

// The log goes on where its last segment ends, so that lives that write little cost no segment
// each. The block in which it ends is written again, with what it holds.
bool NvmeLog::continue_head(uint32_t number, const LogFileScan& scan) {
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
            read_fully(io_, fd_of(number), head.data(), kIoAlign, block, path_of(number));
        if (!got.ok() || *got < head_bytes) {
            return false;
        }
    }
    if (!buffers_->begin_segment(number, files_[number].seq(), scan.end, segment_bytes_,
                                 folder_->session(), {head.data(), head_bytes}, boottime_ms())) {
        return false;
    }
    files_.continue_head(number, scan.manifest);
    return true;
}

}  // namespace kvstore
