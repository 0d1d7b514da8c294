#include "nvme/reclaim_plan.h"

#include "nvme/file_io.h"
#include "nvme/format.h"

namespace kvstore {
namespace {

// Always a little less than a file: then a reclaim never needs more than one to empty one.
constexpr double kMaxShare = 15.0 / 16;
// Besides the records: a namespace's record in each of two files, and the blocks at their ends.
constexpr uint64_t kOverheadBytes = 2 * kMaxRecordHeadBytes + 2 * kIoAlign;

}  // namespace

ReclaimPlan::ReclaimPlan(const NvmePolicy& policy, uint64_t file_bytes)
    : min_touches_(policy.min_touches),
      share_bytes_(static_cast<uint64_t>(std::min(policy.readmit_share, kMaxShare) *
                                         static_cast<double>(file_bytes))) {}

ReclaimPlan::Fate ReclaimPlan::decide(const Facts& facts) {
    if (facts.is_live) {
        const bool is_hot =
            facts.touches >= min_touches_ && moved_bytes_ + facts.record_bytes <= share_bytes_;
        if (is_hot || facts.pin == Pin::kHard) {
            moved_bytes_ += facts.record_bytes;
            return Fate::kMove;
        }
    }
    if (facts.is_flushed) {
        return Fate::kForget;
    }
    return facts.is_live ? Fate::kDropCold : Fate::kDropExpired;
}

void ReclaimPlan::add_move(const ManifestRow& row, NamespaceId ns, uint64_t record_bytes) {
    moves_.push_back({.row = row, .ns = ns, .record_bytes = record_bytes});
}

std::span<const ReclaimPlan::Move> ReclaimPlan::finish() {
    std::sort(moves_.begin(), moves_.end(),
              [](const Move& a, const Move& b) { return a.row.offset < b.row.offset; });
    // The last record of a file may not fit and leave its room unused.
    uint64_t needed = 0;
    for (const Move& one : moves_) {
        needed = std::max(needed, one.record_bytes);
    }
    needed += kOverheadBytes;
    for (auto one = moves_.rbegin(); one != moves_.rend(); ++one) {
        needed += one->record_bytes;
        one->room_needed = needed;
    }
    return moves_;
}

}  // namespace kvstore
