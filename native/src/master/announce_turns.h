// Full announces take turns: a node goes on once its last frames are answered, so those that wait
// are not answered yet. All at once, a thousand nodes would keep everybody's frames, hellos among
// them, behind their own for seconds, and none would be through before the others.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "base/types.h"

namespace kvstore {

// Thread-safe; answers run without its lock held.
class AnnounceTurns {
  public:
    static constexpr size_t kAtOnce = 16;
    // Who sends nothing for that time passes its turn on, and waits for another one.
    static constexpr uint64_t kIdleMs = 2'000;
    using Answer = std::function<void()>;

    // Of a frame of the link's full announce: now, or when it gets its turn, which ends with the
    // answer to the last one.
    void answer(LinkId link, uint64_t now_ms, bool is_last, Answer answer) KV_EXCLUDES(mutex_);
    // The link is lost: what it still waits for is dropped.
    void lost(LinkId link, uint64_t now_ms) KV_EXCLUDES(mutex_);
    void expire(uint64_t now_ms) KV_EXCLUDES(mutex_);

  private:
    struct Held {
        std::vector<Answer> answers;
        bool is_last = false;
    };
    // Those that get their turn now; what is to be answered is added to `out`.
    void give(uint64_t now_ms, std::vector<Answer>& out) KV_REQUIRES(mutex_);

    Mutex mutex_;
    std::unordered_map<LinkId, uint64_t> having_ KV_GUARDED_BY(mutex_);  // since when idle
    std::deque<LinkId> waiting_ KV_GUARDED_BY(mutex_);  // some of which may have ended
    std::unordered_map<LinkId, Held> held_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
