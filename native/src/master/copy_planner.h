// Which objects need another copy, and which order to give next: for replicas > 1, drain and
// repair.
//
// Only objects that somebody asked about (want) are looked at; the directory says what is missing
// when an order is due. The target is the better of two random nodes by weight, on a host without a
// copy if there is one.
//
// The life of an order:
//
//   want ─> queued ──plan──> in flight ──done(Ok)──> landing ──landed──> finished
//              ^                 │                      │
//              │                 │ done(error), timeout, link lost, never announced
//              └──── backoff <───┴──────────────────────┘    (given up after max_attempts)
//
// Each retry goes to another target if there is one, later each time. After a connection failure,
// a timeout or a copy that was never announced, the target may hold the copy all the same, unknown
// to the master: it is in doubt. Removes and flushes must reach such targets too (targets,
// may_hold). A doubt ends when the target announces the copy, when its node is removed, or when the
// target is connected after the order's timeout and some time for a lost link to come back: it has
// announced what it holds by then.
//
// Thread-safe; calls the directory while it holds its own mutex.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "directory/directory.h"
#include "directory/ns_key.h"
#include "wire/link_types.h"

namespace kvstore {

struct CopyPolicy {
    double copies_per_s = 5000;
    double bytes_per_s = 2e9;
    uint32_t max_in_flight = 256;
    uint32_t order_timeout_ms = 30'000;
    uint32_t max_attempts = 8;
    bool repair = true;                 // copy again what a dead or removed node held
    uint32_t repair_delay_ms = 10'000;  // after the death
};

struct CopyNode {
    NodeNumber slot = kNoNode;
    bool source = false;  // connected, alive or draining
    bool target = false;  // connected, alive, weight above 0
    bool counts = false;  // alive: a replica there is a replica
    bool connected = false;
    uint32_t weight = 0;
    std::string id;
    std::string host;
    std::string endpoint;
};

class CopyPlanner {
  public:
    static constexpr size_t kMaxTasks = 100'000;

    CopyPlanner(Directory& directory, uint64_t seed) : directory_(directory), random_(seed) {}
    void set_policy(const CopyPolicy& policy);
    CopyPolicy policy() const;

    // Looks at this object soon. False when the queue is full (a later scan finds it again).
    bool want(const DirectoryEpoch& ns, std::string_view key);
    bool idle() const { return size() == 0 && doubts_count_.load(std::memory_order_relaxed) == 0; }
    size_t size() const { return tasks_count_.load(std::memory_order_relaxed); }
    // The node has announced the object: its copy has landed.
    void landed(const DirectoryEpoch& ns, std::string_view key, NodeNumber node);
    void done(uint64_t copy_id, Code code, uint64_t now_ms);
    // Targets of orders that may still land, or have landed without the master's knowing: an order
    // that failed on the way there may have arrived.
    std::vector<NodeNumber> targets(const DirectoryEpoch& ns, std::string_view key) const;
    // Whether the node is such a target of any object.
    bool may_hold(NodeNumber node) const;

    struct Dispatch {
        NodeNumber source = kNoNode;
        CopyOrder order;
    };
    // Orders that are due now, within the rates. `nodes` is indexed by slot.
    std::vector<Dispatch> plan(uint64_t now_ms, const std::vector<CopyNode>& nodes);

    struct Stats {
        uint64_t queued = 0;
        uint64_t in_flight = 0;
        uint64_t ordered = 0;
        uint64_t done = 0;
        uint64_t failed = 0;
        uint64_t given_up = 0;
    };
    Stats stats() const;

  private:
    struct InFlight {
        uint64_t copy_id;
        NodeNumber source;
        NodeNumber target;
        uint64_t deadline_ms;
        bool landing;  // CopyDone said Ok, the announcement is still on its way
    };
    struct Task {
        const DirectoryEpoch* ns = nullptr;
        uint32_t attempts = 0;
        bool queued = false;
        std::vector<InFlight> orders;
        NodeNumber avoid = kNoNode;  // the target that failed last
    };
    // A failed order whose copy may lie at the target all the same (see the top).
    struct Doubt {
        NodeNumber target;
        uint64_t until_ms;  // a connected target has announced the copy by then
    };
    using Tasks = std::unordered_map<std::string, Task, NsKey::Hash, std::equal_to<>>;
    using Doubts =
        std::unordered_map<std::string, std::vector<Doubt>, NsKey::Hash, std::equal_to<>>;

    void enqueue(Tasks::iterator at, uint64_t due_ms) KV_REQUIRES(mutex_);
    void end_order(Tasks::iterator at, std::vector<InFlight>::iterator order) KV_REQUIRES(mutex_);
    void fail(Tasks::iterator at, std::vector<InFlight>::iterator order, uint64_t now_ms)
        KV_REQUIRES(mutex_);
    void doubt(const std::string& name, NodeNumber target, uint64_t now_ms) KV_REQUIRES(mutex_);
    void end_doubts(uint64_t now_ms, const std::vector<CopyNode>& nodes) KV_REQUIRES(mutex_);
    void retry(Tasks::iterator at, uint64_t now_ms) KV_REQUIRES(mutex_);
    void drop_if_done(Tasks::iterator at) KV_REQUIRES(mutex_);
    void refill(uint64_t now_ms) KV_REQUIRES(mutex_);
    void expire(uint64_t now_ms, const std::vector<CopyNode>& nodes) KV_REQUIRES(mutex_);
    void plan_task(Tasks::iterator at, uint64_t now_ms, const std::vector<CopyNode>& nodes,
                   std::vector<Dispatch>& out) KV_REQUIRES(mutex_);
    void order_copy(Tasks::iterator at, const ObjectInfo& info, const CopyNode& source,
                    const CopyNode& target, uint64_t now_ms, std::vector<Dispatch>& out)
        KV_REQUIRES(mutex_);
    NodeNumber choose_target(const ObjectInfo& info, const Task& task,
                             const std::vector<CopyNode>& nodes) KV_REQUIRES(mutex_);

    Directory& directory_;
    mutable Mutex mutex_;
    CopyPolicy policy_ KV_GUARDED_BY(mutex_);
    std::mt19937_64 random_ KV_GUARDED_BY(mutex_);
    Tasks tasks_ KV_GUARDED_BY(mutex_);
    std::multimap<uint64_t, std::string> queue_ KV_GUARDED_BY(mutex_);        // by due time
    std::unordered_map<uint64_t, std::string> orders_ KV_GUARDED_BY(mutex_);  // copy id → task
    std::atomic<size_t> tasks_count_{0};
    Doubts doubts_ KV_GUARDED_BY(mutex_);  // as many as orders fail until they are over, at most
    std::atomic<size_t> doubts_count_{0};
    uint64_t doubts_seen_ms_ KV_GUARDED_BY(mutex_) = 0;
    uint64_t next_copy_id_ KV_GUARDED_BY(mutex_) = 1;
    double copy_tokens_ KV_GUARDED_BY(mutex_) = 0;
    double byte_tokens_ KV_GUARDED_BY(mutex_) = 0;
    uint64_t refilled_ms_ KV_GUARDED_BY(mutex_) = 0;
    Stats stats_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
