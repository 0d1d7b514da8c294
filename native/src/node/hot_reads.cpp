// Counting in windows; when to ask.
#include "node/hot_reads.h"

#include <algorithm>

namespace kvstore {
namespace {

constexpr uint32_t kColdShare = 4;  // below this part of the rate, an object is not hot any more

}  // namespace

void HotReads::set_policy(HotReadsPolicy policy) {
    const MutexLock lock(mutex_);
    policy_ = policy;
    if (policy_.reads_per_s == 0) {
        entries_ = {};
    }
}

HotReads::Verdict HotReads::note(const Hash128& hash, Version version, uint64_t now_ms) {
    const MutexLock lock(mutex_);
    if (policy_.reads_per_s == 0) {
        return {};
    }
    if (entries_.empty()) {
        entries_.resize(kEntries);
    }
    Entry& entry = entries_[hash.lo % kEntries];
    const bool is_over = now_ms >= entry.window_ms + kWindowMs;
    if (entry.version != version || entry.hash != hash) {
        if (entry.version != 0 && entry.hash != hash && !is_over) {
            return {};
        }
        entry = {.hash = hash, .version = version, .window_ms = now_ms};
    } else if (is_over) {
        end_window(entry, now_ms);
    }
    Verdict verdict;
    if (++entry.reads >= policy_.reads_per_s && now_ms >= entry.asked_ms + kSettleMs) {
        entry.replicas = std::min<uint8_t>(entry.replicas + 1, policy_.replicas);
        entry.asked_ms = now_ms;
        verdict.replicas = entry.replicas;
    }
    verdict.is_hot = entry.replicas > 1;
    return verdict;
}

void HotReads::end_window(Entry& entry, uint64_t now_ms) {
    const uint64_t elapsed_ms = now_ms - entry.window_ms;
    const uint64_t wanted = policy_.reads_per_s * elapsed_ms / 1000 / kColdShare;
    if (entry.reads < wanted) {
        entry.replicas = 1;
    }
    entry.window_ms = now_ms;
    entry.reads = 0;
}

}  // namespace kvstore
