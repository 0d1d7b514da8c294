#include "nvme/log_files.h"

#include <algorithm>
#include <utility>

#include "base/status.h"

namespace kvstore {

bool LogFiles::is_legal(LogFileState from, LogFileState to) {
    using S = LogFileState;
    switch (from) {
        case S::kFree:
            return to == S::kPrepared || to == S::kRecovered;
        case S::kPrepared:
            return to == S::kHead || to == S::kFree;
        case S::kHead:
            return to == S::kSealing;
        case S::kSealing:
            return to == S::kSealed;
        case S::kSealed:
            return to == S::kReclaiming;
        case S::kReclaiming:
            return to == S::kFree || to == S::kSealed;
        case S::kRecovered:
            return to == S::kFree || to == S::kHead || to == S::kSealed;
    }
    return false;
}

void LogFiles::change(uint32_t file, LogFileState to) {
    File& one = files_[file];
    KV_ASSERT(is_legal(one.state_, to));
    if (one.state_ == LogFileState::kFree) {
        --free_;
    }
    if (to == LogFileState::kFree) {
        ++free_;
    }
    one.state_ = to;
}

void LogFiles::make_free(uint32_t file) {
    change(file, LogFileState::kFree);
    files_[file].seq_ = 0;
}

std::optional<uint32_t> LogFiles::prepare() {
    for (uint32_t file = 0; file < count(); ++file) {
        if (files_[file].state_ == LogFileState::kFree) {
            change(file, LogFileState::kPrepared);
            files_[file].seq_ = next_seq_++;
            return file;
        }
    }
    return std::nullopt;
}

void LogFiles::header_written(uint32_t file) {
    KV_ASSERT(files_[file].state_ == LogFileState::kPrepared);
    ready_.push_back(file);
}

void LogFiles::header_failed(uint32_t file) {
    KV_ASSERT(files_[file].state_ == LogFileState::kPrepared);
    make_free(file);
}

std::optional<uint32_t> LogFiles::next_ready() const {
    return ready_.empty() ? std::nullopt : std::optional(ready_.front());
}

void LogFiles::begin_head(uint32_t file) {
    KV_ASSERT(next_ready() == file);
    change(file, LogFileState::kHead);
    ready_.pop_front();
    files_[file].manifest_ = std::make_shared<Manifest>(files_[file].seq_);
}

void LogFiles::end_head(uint32_t file) { change(file, LogFileState::kSealing); }

void LogFiles::seal(uint32_t file) {
    KV_ASSERT(files_[file].state_ == LogFileState::kSealing);
    change(file, LogFileState::kSealed);
    // Without a row in the catalog the file itself is read when its manifest is needed.
    files_[file].manifest_ = nullptr;
}

void LogFiles::begin_reclaim(uint32_t file) { change(file, LogFileState::kReclaiming); }

void LogFiles::stop_reclaim(uint32_t file) {
    KV_ASSERT(files_[file].state_ == LogFileState::kReclaiming);
    change(file, LogFileState::kSealed);
}

void LogFiles::release(uint32_t file) {
    KV_ASSERT(files_[file].state_ == LogFileState::kReclaiming);
    make_free(file);
}

void LogFiles::recover(uint32_t file, uint64_t seq) {
    change(file, LogFileState::kRecovered);
    files_[file].seq_ = seq;
    next_seq_ = std::max(next_seq_, seq + 1);
}

void LogFiles::discard_recovered(uint32_t file) {
    KV_ASSERT(files_[file].state_ == LogFileState::kRecovered && files_[file].live_objects == 0);
    make_free(file);
}

void LogFiles::continue_head(uint32_t file, Manifest manifest) {
    KV_ASSERT(files_[file].state_ == LogFileState::kRecovered);
    change(file, LogFileState::kHead);
    files_[file].manifest_ = std::make_shared<Manifest>(std::move(manifest));
}

void LogFiles::seal_recovered() {
    for (const uint32_t file : recovered()) {
        change(file, LogFileState::kSealed);
    }
}

std::optional<uint32_t> LogFiles::oldest(uint64_t least_seq) const {
    std::optional<uint32_t> found;
    for (uint32_t file = 0; file < count(); ++file) {
        const File& one = files_[file];
        const bool has_records =
            one.state_ != LogFileState::kFree && one.state_ != LogFileState::kPrepared;
        if (has_records && one.seq_ >= least_seq && (!found || one.seq_ < files_[*found].seq_)) {
            found = file;
        }
    }
    return found;
}

std::optional<uint32_t> LogFiles::sealed_without_objects() const {
    for (uint32_t file = 0; file < count(); ++file) {
        if (files_[file].state_ == LogFileState::kSealed && files_[file].live_objects == 0) {
            return file;
        }
    }
    return std::nullopt;
}

std::vector<uint32_t> LogFiles::recovered() const {
    std::vector<uint32_t> found;
    for (uint32_t file = 0; file < count(); ++file) {
        if (files_[file].state_ == LogFileState::kRecovered) {
            found.push_back(file);
        }
    }
    std::sort(found.begin(), found.end(),
              [this](uint32_t a, uint32_t b) { return files_[a].seq_ < files_[b].seq_; });
    return found;
}

uint64_t LogFiles::oldest_seq() const {
    uint64_t oldest = next_seq_;
    for (const File& one : files_) {
        if (one.seq_ != 0) {
            oldest = std::min(oldest, one.seq_);
        }
    }
    return oldest;
}

}  // namespace kvstore
