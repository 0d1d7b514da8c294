// What a reclaim does with each object of the file that it empties. Pure: it knows the policy and
// what it is told, and does not look into the log.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/types.h"
#include "nvme/index.h"
#include "nvme/manifest.h"

namespace kvstore {

// What to readmit when a log file is reclaimed. Objects with a hard pin always are, unless no room
// is left anywhere, which the bound on what may be pinned is to prevent.
struct NvmePolicy {
    uint8_t min_touches = 1;     // reads since it was written, 0 (everything) to kMaxTouches
    double readmit_share = 0.5;  // of a file's bytes, at most (and at most 15/16)

    NvmePolicy clamped() const {
        return {std::min(min_touches, NvmeIndex::kMaxTouches), std::clamp(readmit_share, 0.0, 1.0)};
    }
};

class ReclaimPlan {
  public:
    enum class Fate : uint8_t {
        kMove,         // to the head of the log
        kDropCold,     // the owner is told
        kDropExpired,  // the owner is told
        kForget,       // its namespace was flushed: the owner knows
    };
    // Of an object that the index still finds in this file.
    struct Facts {
        bool is_live = false;  // readers may find it
        bool is_flushed = false;
        Pin pin = Pin::kNone;
        uint8_t touches = 0;
        uint64_t record_bytes = 0;
    };
    struct Move {
        ManifestRow row;  // its key is the manifest's, which must outlive the plan
        NamespaceId ns = 0;
        uint64_t record_bytes = 0;
        uint64_t room_needed = 0;  // by this object and those that are moved after it
    };

    ReclaimPlan(const NvmePolicy& policy, uint64_t file_bytes);

    // Objects compete for the share in the order of the calls.
    Fate decide(const Facts& facts);
    void add_move(const ManifestRow& row, NamespaceId ns, uint64_t record_bytes);
    // In the order of the file, with what room they need. After the last add_move().
    std::span<const Move> finish();

  private:
    const uint8_t min_touches_;
    const uint64_t share_bytes_;
    uint64_t moved_bytes_ = 0;
    std::vector<Move> moves_;
};

}  // namespace kvstore
