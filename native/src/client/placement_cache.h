// Where objects were found lately: reads go there without a lookup, and go on while the master
// does not answer. A wrong entry costs one refused request, since reads name key and version.
// Absence is never remembered.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "base/limits.h"
#include "base/mutex.h"
#include "base/types.h"
#include "wire/messages.h"

namespace kvstore {

struct Placement {
    Version version = 0;
    uint64_t size = 0;
    uint64_t noted_ms = 0;                               // boottime_ms() of the lookup
    uint8_t count = 0;                                   // of nodes
    std::array<uint32_t, limits::kMaxReplicas> nodes{};  // the master's numbers
};

// What a lookup has answered, row by row. The reply outlives it.
class ReplyPlacements {
  public:
    explicit ReplyPlacements(const LookupReply& reply) : reply_(reply), now_ms_(boottime_ms()) {}
    Placement next();  // of the next row; without nodes where there are none

  private:
    const LookupReply& reply_;
    const uint64_t now_ms_;
    size_t row_ = 0;
    size_t node_ = 0;
};

// Thread-safe. Direct-mapped and of fixed size: a newer entry replaces what shares its place.
class PlacementCache {
  public:
    static constexpr size_t kEntries = 8192;  // 0.7 MB, allocated at the first note()

    void note(const Hash128& hash, const Placement& placement);
    void forget(const Hash128& hash);
    std::optional<Placement> find(const Hash128& hash) const;

  private:
    struct Entry {
        Hash128 hash;
        Placement placement;
    };
    mutable Mutex mutex_;
    std::vector<Entry> entries_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
