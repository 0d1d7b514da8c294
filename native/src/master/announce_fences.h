// Waiting for what nodes have sent: a node may answer a put when its announce is on the way, so who
// asks for that key is answered when that announce has come.
//
// A fence is a Ping on the node's link: its answer comes behind every announce that the node sent
// before. A fence ends, too, when its link is lost, and what was not recorded with it. After
// kWaitMs nobody knows: the node hangs, or the network between does not carry its bytes.
// Thread-safe; `then` is called once, from any thread, perhaps with locks of the master held: it
// only posts.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "base/types.h"

namespace kvstore {

class AnnounceFences {
  public:
    static constexpr uint64_t kWaitMs = 1000;
    static constexpr size_t kMaxBytes = 64u << 20;  // of requests that wait; more are kOverloaded

    using Ping = std::function<void(LinkId link, uint64_t token)>;
    using Then = std::function<void(bool known)>;

    // False: there is no room for a request of this size. Without links `then` is called at once.
    bool wait(std::span<const LinkId> links, size_t request_bytes, uint64_t now_ms, Then then,
              const Ping& ping) KV_EXCLUDES(mutex_);
    void passed(LinkId link, uint64_t token) KV_EXCLUDES(mutex_);  // the node has answered
    void lost(LinkId link) KV_EXCLUDES(mutex_);
    void expire(uint64_t now_ms) KV_EXCLUDES(mutex_);
    void end_all() { expire(UINT64_MAX); }

  private:
    struct Wait {
        size_t left = 0;  // of its fences
        size_t bytes = 0;
        bool known = true;
        Then then;
    };
    struct Fence {
        LinkId link = 0;
        uint64_t until_ms = 0;
        std::shared_ptr<Wait> wait;
    };
    using Fences = std::map<uint64_t, Fence>;  // by token: the oldest, which ends first, in front

    using Ended = std::vector<std::shared_ptr<Wait>>;

    // Adds its wait to `ended` if this was its last fence.
    void end(Fences::iterator at, bool known, Ended* ended) KV_REQUIRES(mutex_);
    static void call(const Ended& ended);

    Mutex mutex_;
    uint64_t next_token_ KV_GUARDED_BY(mutex_) = 1;
    size_t bytes_ KV_GUARDED_BY(mutex_) = 0;
    Fences fences_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
