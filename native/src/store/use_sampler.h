// Collects the uses of a sample of the objects, from which the master estimates hit rates at other
// sizes (master/reuse_curve.h). A use is a read that found its object, or a put that a writer had
// to make because no read did.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "base/key_sample.h"
#include "base/mutex.h"
#include "base/types.h"

namespace kvstore {

// Thread-safe. A use outside of the sample costs a comparison and an addition.
class UseSampler {
  public:
    // Kept between two calls of take(). Above it the sample is halved: a burst costs precision and
    // nothing else.
    static constexpr size_t kMaxUses = 16'384;

    struct Use {
        uint64_t hash = 0;
        uint64_t size_bytes = 0;
        bool hit = false;
    };
    struct Taken {
        uint32_t level = 0;  // of every use below
        std::vector<Use> uses;
        // Of all keys, sampled or not.
        uint64_t hits = 0;
        uint64_t puts = 0;
        uint64_t lost = 0;  // hits that a client's ring has overwritten: only their number is known
    };

    static uint8_t rarity(const Hash128& hash) { return key_rarity(hash.lo); }
    // Counts a hit. True: the object is in the sample, and wants keep_hit().
    bool count_hit(uint8_t rarity) {
        hits_.fetch_add(1, std::memory_order_relaxed);
        return rarity >= level_.load(std::memory_order_relaxed);
    }
    void keep_hit(const Hash128& hash, uint64_t size_bytes) { keep({hash.lo, size_bytes, true}); }
    void hit(const Hash128& hash, uint64_t size_bytes) {
        if (count_hit(rarity(hash))) {
            keep_hit(hash, size_bytes);
        }
    }
    void put(const Hash128& hash, uint64_t size_bytes) {
        puts_.fetch_add(1, std::memory_order_relaxed);
        if (rarity(hash) >= level_.load(std::memory_order_relaxed)) {
            keep({hash.lo, size_bytes, false});
        }
    }
    void lose_hits(uint64_t count) { lost_.fetch_add(count, std::memory_order_relaxed); }

    // Everything since the last call; from now on uses are kept at `level`. Nothing is kept before
    // the first call: a store without a master of its own has nobody to report to.
    Taken take(uint32_t level);

  private:
    static constexpr uint32_t kOff = kMaxSampleLevel + 1;

    void keep(const Use& use);

    std::atomic<uint32_t> level_{kOff};
    std::atomic<uint64_t> hits_{0};
    std::atomic<uint64_t> puts_{0};
    std::atomic<uint64_t> lost_{0};
    Mutex mutex_;
    std::vector<Use> uses_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
