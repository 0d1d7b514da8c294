// A direct-mapped table of placements.
#include "client/placement_cache.h"

#include "base/clock.h"
#include "base/mutex.h"

namespace kvstore {

void PlacementCache::note(const Hash128& hash, const Placement& placement) {
    const MutexLock lock(mutex_);
    if (entries_.empty()) {
        entries_.resize(kEntries);
    }
    Entry& entry = entries_[hash.lo % kEntries];
    entry = {hash, placement};
    entry.placement.noted_ms = boottime_ms();
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
