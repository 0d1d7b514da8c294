// What is remembered of objects that are gone: tombstones (a promise) and miss reasons (a
// courtesy). Both bounded. Private to the node and not thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/status.h"
#include "base/types.h"

namespace kvstore {

// The highest version that was removed, per key hash. Nothing at or below it is ever published.
// When the table overflows, its oldest tombstones melt into one floor for all keys: a put that is
// refused by the floor may be tried again, a removed object never comes back.
class TombstoneTable {
  public:
    static constexpr size_t kMaxTombstones = 1u << 20;
    explicit TombstoneTable(uint64_t keep_ms, size_t max = kMaxTombstones)
        : keep_ms_(keep_ms), max_(max) {}

    void keep_at_least(uint64_t keep_ms) { keep_ms_ = std::max(keep_ms_, keep_ms); }
    void note(const Hash128& hash, Version version, uint64_t now_ms);
    Version removed_upto(const Hash128& hash) const;  // 0: nothing known
    void forget_old(uint64_t now_ms);
    bool has(const Hash128& hash) const { return by_hash_.contains(hash); }
    size_t size() const { return by_hash_.size(); }

  private:
    struct Tombstone {
        Version version = 0;
        uint64_t until_ms = 0;
    };
    void drop_front();

    uint64_t keep_ms_;
    size_t max_;
    Version floor_ = 0;
    std::unordered_map<Hash128, Tombstone, Hash128Hasher> by_hash_;
    std::deque<std::pair<uint64_t, Hash128>> order_;  // by time; a renewed one appears again
};

// The last reason why a key went away, and when: direct-mapped, so an older one may be overwritten.
class MissHistory {
  public:
    MissHistory()
        : tags_(kPlaces, 0), times_ms_(kPlaces, 0), reasons_(kPlaces, MissReason::kNone) {}
    void note(const Hash128& hash, MissReason reason, uint64_t wall_ms) {
        tags_[hash.lo % kPlaces] = hash.hi;
        times_ms_[hash.lo % kPlaces] = wall_ms;
        reasons_[hash.lo % kPlaces] = reason;
    }
    // kNone when nothing is known.
    MissReason reason(const Hash128& hash) const {
        return tags_[hash.lo % kPlaces] == hash.hi ? reasons_[hash.lo % kPlaces]
                                                   : MissReason::kNone;
    }
    // Wall clock, of what reason() says; 0 when nothing is known.
    uint64_t time_ms(const Hash128& hash) const {
        return tags_[hash.lo % kPlaces] == hash.hi ? times_ms_[hash.lo % kPlaces] : 0;
    }

  private:
    static constexpr size_t kPlaces = 1u << 16;
    std::vector<uint64_t> tags_;
    std::vector<uint64_t> times_ms_;
    std::vector<MissReason> reasons_;
};

}  // namespace kvstore
