// Where objects were found lately: reads go there without a lookup, and go on while the master
// does not answer. A wrong entry costs one refused request, since reads name key and version.
// Absence is never remembered.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/limits.h"
#include "base/mutex.h"
#include "base/types.h"

namespace kvstore {

struct Placement {
    Version version = 0;
    uint64_t size = 0;
    uint64_t noted_ms = 0;                               // when it was looked up
    uint8_t count = 0;                                   // of nodes
    std::array<uint32_t, limits::kMaxReplicas> nodes{};  // the master's numbers
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
