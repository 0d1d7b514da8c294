// The sample of uses between two reports.
#include "store/use_sampler.h"

#include <algorithm>
#include <utility>

namespace kvstore {

void UseSampler::keep(const Use& use) {
    const MutexLock lock(mutex_);
    uses_.push_back(use);
    if (uses_.size() < kMaxUses) {
        return;
    }
    const uint32_t level =
        std::min(level_.load(std::memory_order_relaxed) + kHalfSample, kMaxSampleLevel);
    const size_t erased =
        std::erase_if(uses_, [level](const Use& one) { return key_rarity(one.hash) < level; });
    if (erased < kMaxUses / 8) {
        // Nearly all are of a few keys, which any sample may have: they are counted, no more.
        uses_.clear();
        return;
    }
    level_.store(level, std::memory_order_relaxed);
}

UseSampler::Taken UseSampler::take(uint32_t level) {
    const MutexLock lock(mutex_);
    Taken taken;
    taken.level = level_.exchange(level, std::memory_order_relaxed);
    taken.uses = std::exchange(uses_, {});
    taken.hits = hits_.exchange(0, std::memory_order_relaxed);
    taken.puts = puts_.exchange(0, std::memory_order_relaxed);
    taken.lost = lost_.exchange(0, std::memory_order_relaxed);
    if (taken.level == kOff) {
        taken = {};  // what was counted before has no sample beside it
        taken.level = level;
        return taken;
    }
    // One that was compared with the level of before, and kept behind it.
    std::erase_if(taken.uses,
                  [&taken](const Use& one) { return key_rarity(one.hash) < taken.level; });
    return taken;
}

}  // namespace kvstore
