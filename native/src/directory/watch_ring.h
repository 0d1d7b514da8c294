// A ring of packed directory events for routers (Watch). It costs one relaxed load without
// watchers.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "base/mutex.h"
#include "base/types.h"

namespace kvstore {

enum class WatchKind : uint8_t { kPublish = 1, kWithdraw = 2, kRemove = 3, kFlush = 4, kNode = 5 };

struct WatchEvent {
    uint64_t number = 0;
    WatchKind kind = WatchKind::kPublish;
    NodeNumber node = kNoNode;  // kNode: the node whose replicas came or went as a whole
    Version version = 0;
    uint64_t size = 0;
    std::string tenant;
    std::string ns;
    std::string key;
};

class WatchRing {
  public:
    struct Batch {
        std::vector<WatchEvent> events;
        uint64_t next_cursor = 0;
        bool resync = false;  // events were lost (or this is the first poll): list, then go on here
    };
    static constexpr uint64_t kIdleMs = 60'000;  // without a poll for this long, recording stops

    explicit WatchRing(size_t capacity_bytes = 4u << 20);
    bool active() const { return active_.load(std::memory_order_relaxed); }
    void record(WatchKind kind, std::string_view tenant, std::string_view ns, std::string_view key,
                Version version, uint64_t size, NodeNumber node);
    // Cursor 0 starts a watch. Returns at once; `max` bounds the events.
    Batch poll(uint64_t cursor, size_t max, uint64_t now_ms);
    // Blocks until there are events that a cursor does not know, at most for this long; counts as a
    // poll. False: there are none.
    bool wait(uint64_t cursor, uint32_t timeout_ms);
    void interrupt();              // ends all waits, from here on at once
    void expire(uint64_t now_ms);  // stops recording when nobody polls any more

  private:
    void drop_oldest() KV_REQUIRES(mutex_);

    const size_t capacity_bytes_;
    mutable Mutex mutex_;
    std::atomic<bool> active_{false};
    std::vector<uint8_t> ring_ KV_GUARDED_BY(mutex_);  // allocated while there are watchers
    size_t head_ KV_GUARDED_BY(mutex_) = 0;            // next byte to write
    size_t tail_ KV_GUARDED_BY(mutex_) = 0;            // oldest event's first byte
    size_t used_ KV_GUARDED_BY(mutex_) = 0;            // bytes between tail and head
    uint64_t first_ KV_GUARDED_BY(mutex_) = 1;         // number of the oldest event kept
    uint64_t next_ KV_GUARDED_BY(mutex_) = 1;          // number of the next event
    uint64_t last_poll_ms_ KV_GUARDED_BY(mutex_) = 0;
    CondVar changed_;
    size_t waiting_ KV_GUARDED_BY(mutex_) = 0;
    bool interrupted_ KV_GUARDED_BY(mutex_) = false;
    std::deque<std::pair<uint64_t, size_t>> marks_
        KV_GUARDED_BY(mutex_);  // where every 256th event lies
};

}  // namespace kvstore
