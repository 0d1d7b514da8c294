// Objects that clients of other hosts read so often that another replica is worth its memory.
#pragma once

#include <cstdint>
#include <vector>

#include "base/mutex.h"
#include "base/types.h"

namespace kvstore {

struct HotReadsPolicy {
    uint32_t reads_per_s = 10;  // of one object, from which on it is hot; 0: none is
    uint8_t replicas = 4;       // asked for at most
};

// Thread-safe. A table of fixed size, allocated with the first read. An object keeps its place
// until its window is over; then the next read of any object that belongs there has it.
class HotReads {
  public:
    static constexpr size_t kEntries = 16384;
    static constexpr uint64_t kWindowMs = 1000;
    // For a copy to be made, and for readers to find it, before a further one is asked for.
    static constexpr uint64_t kSettleMs = 2000;

    struct Verdict {
        bool is_hot = false;   // more replicas than one were asked for, and it is still read often
        uint8_t replicas = 0;  // to ask for now; 0: none
    };

    void set_policy(HotReadsPolicy policy);
    Verdict note(const Hash128& hash, Version version, uint64_t now_ms);

  private:
    struct Entry {
        Hash128 hash;
        Version version = 0;  // 0: nothing is here
        uint64_t window_ms = 0;
        uint64_t asked_ms = 0;
        uint32_t reads = 0;    // in this window
        uint8_t replicas = 1;  // asked for
    };
    void end_window(Entry& entry, uint64_t now_ms) KV_REQUIRES(mutex_);

    Mutex mutex_;
    HotReadsPolicy policy_ KV_GUARDED_BY(mutex_);
    std::vector<Entry> entries_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
