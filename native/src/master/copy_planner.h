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
#include <map>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
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
    uint64_t free_bytes = 0;  // as it told last
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
    // `replicas`: wanted for now, where that is more than the object's own number. Nobody waits for
    // those: they are made where there is a node for them.
    bool want(const DirectoryEpoch& ns, std::string_view key, uint8_t replicas = 0);
    // No object is looked after, and no copy is in doubt.
    bool idle() const { return objects_count_.load(std::memory_order_relaxed) == 0; }
    // Objects that are looked after: doubts alone do not count.
    size_t size() const { return tasks_count_.load(std::memory_order_relaxed); }
    // The node has announced the object: its copy has landed.
    void landed(const DirectoryEpoch& ns, std::string_view key, NodeNumber node);
    void done(uint64_t copy_id, Code code, uint64_t now_ms);
    // Targets of orders that may still land, or have landed without the master's knowing: an order
    // that failed on the way there may have arrived.
    std::vector<NodeNumber> targets(const DirectoryEpoch& ns, std::string_view key) const;
    // Whether the node is such a target of any object.
    bool may_hold(NodeNumber node) const;
    void add_refs(std::unordered_set<uint32_t>& refs) const;  // of the epochs of all objects

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
    enum class Stage : uint8_t {
        kOrdered,
        kLanding,  // CopyDone said Ok, the announcement is still on its way
        kDoubt,    // the order has failed, but its copy may lie at the target (see the top)
    };
    struct Copy;
    // What is being done about an object: it is queued, or orders for it are in flight, or both.
    struct Task {
        uint32_t attempts = 0;
        bool queued = false;
        uint8_t replicas = 0;        // wanted for now; 0: no more than the object's own number
        NodeNumber avoid = kNoNode;  // the target that failed last
    };
    struct Object {
        const DirectoryEpoch* ns = nullptr;
        std::optional<Task> task{};   // none: only doubts are left of it
        std::vector<Copy*> copies{};  // orders and doubts
    };
    using Objects = std::unordered_map<std::string, Object, NsKey::Hash, std::equal_to<>>;
    using Entry = Objects::value_type;
    struct Copy {
        uint64_t id;
        Entry* object;
        NodeNumber source;
        NodeNumber target;
        uint64_t
            until_ms;  // the order fails then; a connected target has announced a doubt by then
        uint64_t size = 0;
        Stage stage = Stage::kOrdered;

        bool in_doubt() const { return stage == Stage::kDoubt; }
    };
    // What was ordered to a target since it told how much is free.
    struct Ordered {
        uint64_t free_bytes = 0;
        uint64_t bytes = 0;
    };
    using Copies = std::map<uint64_t, Copy>;  // by copy id: the oldest is looked at first

    void enqueue(Entry& object, uint64_t due_ms) KV_REQUIRES(mutex_);
    void forget(Copy& copy) KV_REQUIRES(mutex_);
    void fail(Copy& copy, bool in_doubt, uint64_t now_ms) KV_REQUIRES(mutex_);
    void retry(Entry& object, uint64_t now_ms) KV_REQUIRES(mutex_);
    void drop_if_done(Entry& object) KV_REQUIRES(mutex_);
    void refill(uint64_t now_ms) KV_REQUIRES(mutex_);
    void expire(uint64_t now_ms, const std::vector<CopyNode>& nodes) KV_REQUIRES(mutex_);
    void end_doubts(uint64_t now_ms, const std::vector<CopyNode>& nodes) KV_REQUIRES(mutex_);
    void plan_task(Entry& object, uint64_t now_ms, const std::vector<CopyNode>& nodes,
                   std::vector<Dispatch>& out) KV_REQUIRES(mutex_);
    void order_copy(Entry& object, const ObjectInfo& info, const CopyNode& source,
                    const CopyNode& target, uint64_t now_ms, std::vector<Dispatch>& out)
        KV_REQUIRES(mutex_);
    // False: it would evict objects for one of this size.
    bool has_room(const CopyNode& target, uint64_t size) KV_REQUIRES(mutex_);
    NodeNumber choose_target(const ObjectInfo& info, const Object& object,
                             const std::vector<CopyNode>& nodes) KV_REQUIRES(mutex_);

    Directory& directory_;
    mutable Mutex mutex_;
    CopyPolicy policy_ KV_GUARDED_BY(mutex_);
    std::mt19937_64 random_ KV_GUARDED_BY(mutex_);
    Objects objects_ KV_GUARDED_BY(mutex_);  // with a task, or a copy in doubt
    std::atomic<size_t> objects_count_{0};
    std::atomic<size_t> tasks_count_{0};
    std::multimap<uint64_t, Entry*> queue_ KV_GUARDED_BY(mutex_);  // tasks by due time
    // A copy is in one of these, and moves when its order fails: every round looks at all orders,
    // which are few, and seldom at the doubts, of which a dead node may leave many.
    Copies orders_ KV_GUARDED_BY(mutex_);
    Copies doubts_ KV_GUARDED_BY(mutex_);
    std::unordered_map<NodeNumber, Ordered> ordered_ KV_GUARDED_BY(mutex_);
    uint64_t doubts_seen_ms_ KV_GUARDED_BY(mutex_) = 0;
    uint64_t next_copy_id_ KV_GUARDED_BY(mutex_) = 1;
    double copy_tokens_ KV_GUARDED_BY(mutex_) = 0;
    double byte_tokens_ KV_GUARDED_BY(mutex_) = 0;
    uint64_t refilled_ms_ KV_GUARDED_BY(mutex_) = 0;
    Stats stats_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
