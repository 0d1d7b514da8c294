// Which object follows which in its chain, of those on NVMe: what a read of one may bring along.
//
// Direct-mapped and bounded: a newer pair takes an older one's place, and what is forgotten costs a
// prefetch. Thread-safe.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/mutex.h"
#include "base/types.h"

namespace kvstore {

class ChainMap {
  public:
    explicit ChainMap(size_t places) : places_(std::bit_ceil(places)) {}

    void note(const Hash128& parent, const Hash128& child) {
        if (parent == Hash128{}) {
            return;
        }
        const MutexLock lock(mutex_);
        place(parent) = {parent.hi, child};
    }
    std::optional<Hash128> next(const Hash128& parent) const {
        const MutexLock lock(mutex_);
        const Place& found = places_[parent.lo & (places_.size() - 1)];
        if (found.tag != parent.hi || found.child == Hash128{}) {
            return std::nullopt;
        }
        return found.child;
    }

  private:
    struct Place {
        uint64_t tag = 0;
        Hash128 child;
    };
    Place& place(const Hash128& parent) KV_REQUIRES(mutex_) {
        return places_[parent.lo & (places_.size() - 1)];
    }

    mutable Mutex mutex_;
    std::vector<Place> places_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
