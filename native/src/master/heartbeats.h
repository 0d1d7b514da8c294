// Heartbeats that came over the nodes' links, until the control plane takes them: in batches, so
// that a thousand nodes wake it a few times a second.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/limits.h"
#include "base/mutex.h"
#include "base/types.h"

namespace kvstore {

struct NodeHeartbeat {
    LinkId link = 0;
    uint64_t request_id = 0;
    // Of the link, which has proved them; nobody has looked into the request.
    std::string node_id;
    uint64_t session_id = 0;
    std::string request;
};

// Thread-safe.
class Heartbeats {
  public:
    // A batch comes at the earliest that long after the one before. Few nodes are answered at once;
    // with many, what Python has to look at is cold in the caches for the first of a batch alone.
    static uint64_t gap_ms(size_t links) { return std::min<uint64_t>(2 * links, kMostGapMs); }
    static constexpr uint64_t kMostGapMs = 200;
    static constexpr size_t kMostTaken = 256;  // so that the first of many is not answered late

    // The request that will not be taken: an older one of the same link, whose node has given it
    // up; or this one, as too many bytes wait.
    std::optional<uint64_t> add(NodeHeartbeat heartbeat) KV_EXCLUDES(mutex_);
    void lost(LinkId link) KV_EXCLUDES(mutex_);
    // Blocks until there are some; none when the time has passed, or after stop().
    std::vector<NodeHeartbeat> take(uint32_t timeout_ms, uint64_t gap_ms) KV_EXCLUDES(mutex_);
    void stop() KV_EXCLUDES(mutex_);

  private:
    Mutex mutex_;
    CondVar changed_;
    std::vector<NodeHeartbeat> waiting_ KV_GUARDED_BY(mutex_);  // one of a link
    size_t bytes_ KV_GUARDED_BY(mutex_) = 0;
    uint64_t taken_ms_ KV_GUARDED_BY(mutex_) = 0;
    bool stopped_ KV_GUARDED_BY(mutex_) = false;
};

}  // namespace kvstore
