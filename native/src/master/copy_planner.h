// Which objects need another copy, and which order to give next: for replicas > 1, drain and
// repair.
//
// Only objects that somebody asked about (want) are looked at; the directory says what is missing
// when an order is due. The target is the better of two random nodes by weight, on a host that has
// no copy where there is one. A failed or silent order is tried again elsewhere, later each time.
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
    // A copy that may lie at the target all the same.
    struct Doubt {
        NodeNumber target;
        uint64_t until_ms;  // then it has been announced, if the target is connected
    };
    using Tasks = std::unordered_map<std::string, Task, NsKey::Hash, std::equal_to<>>;
    using Doubts =
        std::unordered_map<std::string, std::vector<Doubt>, NsKey::Hash, std::equal_to<>>;

    void enqueue(Tasks::iterator at, uint64_t due_ms);
    void end_order(Tasks::iterator at, std::vector<InFlight>::iterator order);
    void fail(Tasks::iterator at, std::vector<InFlight>::iterator order, uint64_t now_ms);
    void doubt(const std::string& name, NodeNumber target, uint64_t now_ms);
    void end_doubts(uint64_t now_ms, const std::vector<CopyNode>& nodes);
    void retry(Tasks::iterator at, uint64_t now_ms);
    void drop_if_done(Tasks::iterator at);
    void refill(uint64_t now_ms);
    void expire(uint64_t now_ms, const std::vector<CopyNode>& nodes);
    void plan_task(Tasks::iterator at, uint64_t now_ms, const std::vector<CopyNode>& nodes,
                   std::vector<Dispatch>& out);
    void order_copy(Tasks::iterator at, const ObjectInfo& info, const CopyNode& source,
                    const CopyNode& target, uint64_t now_ms, std::vector<Dispatch>& out);
    NodeNumber choose_target(const ObjectInfo& info, const Task& task,
                             const std::vector<CopyNode>& nodes);

    Directory& directory_;
    mutable Mutex mutex_;
    CopyPolicy policy_;
    std::mt19937_64 random_;
    Tasks tasks_;
    std::multimap<uint64_t, std::string> queue_;        // by due time
    std::unordered_map<uint64_t, std::string> orders_;  // copy id → task
    std::atomic<size_t> tasks_count_{0};
    Doubts doubts_;  // as many as orders fail until they are over, at most
    std::atomic<size_t> doubts_count_{0};
    uint64_t doubts_seen_ms_ = 0;
    uint64_t next_copy_id_ = 1;
    double copy_tokens_ = 0;
    double byte_tokens_ = 0;
    uint64_t refilled_ms_ = 0;
    Stats stats_;
};

}  // namespace kvstore
