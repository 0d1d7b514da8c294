// Placements as they come, and a direct-mapped table of them.
#include "client/placement_cache.h"

#include "base/mutex.h"

namespace kvstore {

Placement ReplyPlacements::next() {
    Placement placement;
    placement.version = reply_.versions[row_];
    placement.size = reply_.sizes[row_];
    placement.noted_ms = now_ms_;
    placement.count = reply_.replica_counts[row_];
    for (size_t i = 0; i < placement.count; ++i) {
        placement.nodes[i] = reply_.nodes[node_++];
    }
    ++row_;
    return placement;
}

void PlacementCache::note(const Hash128& hash, const Placement& placement) {
    const MutexLock lock(mutex_);
    if (entries_.empty()) {
        entries_.resize(kEntries);
    }
    entries_[hash.lo % kEntries] = {hash, placement};
}

void PlacementCache::forget(const Hash128& hash) {
    const MutexLock lock(mutex_);
    if (!entries_.empty() && entries_[hash.lo % kEntries].hash == hash) {
        entries_[hash.lo % kEntries] = {};
    }
}

std::optional<Placement> PlacementCache::find(const Hash128& hash) const {
    const MutexLock lock(mutex_);
    if (entries_.empty()) {
        return std::nullopt;
    }
    const Entry& entry = entries_[hash.lo % kEntries];
    if (entry.hash != hash || entry.placement.count == 0) {
        return std::nullopt;
    }
    return entry.placement;
}

}  // namespace kvstore
