// Objects with their tasks and copies, a queue by due time, and token buckets for the rates.
#include "master/copy_planner.h"

#include <algorithm>

#include "base/mutation.h"
#include "directory/ns_key.h"

namespace kvstore {
namespace {

constexpr uint64_t kLandingMs = 2'000;  // from CopyDone to the target's announcement
constexpr uint64_t kBackoffMs = 50;     // doubled with every attempt
constexpr uint64_t kDoubtMs = 10'000;   // beyond an order's time: a lost link is noticed, and back
constexpr uint64_t kDoubtsMs = 1'000;   // between two looks at all of them
constexpr uint64_t kRounding = 8;       // a block is larger than its object by this part at most

const CopyNode* node_at(const std::vector<CopyNode>& nodes, NodeNumber slot) {
    return slot < nodes.size() && nodes[slot].slot == slot ? &nodes[slot] : nullptr;
}

}  // namespace

void CopyPlanner::set_policy(const CopyPolicy& policy) {
    const MutexLock lock(mutex_);
    policy_ = policy;
}

CopyPolicy CopyPlanner::policy() const {
    const MutexLock lock(mutex_);
    return policy_;
}

bool CopyPlanner::want(const DirectoryEpoch& ns, std::string_view key, uint8_t replicas) {
    const MutexLock lock(mutex_);
    const NsKey name(ns.ref, key);
    auto at = objects_.find(name.view());
    if ((at == objects_.end() || !at->second.task.has_value()) && size() >= kMaxTasks) {
        return false;
    }
    if (at == objects_.end()) {
        at = objects_.emplace(name.view(), Object{.ns = &ns}).first;
        objects_count_.store(objects_.size(), std::memory_order_relaxed);
    }
    enqueue(*at, 0);
    Task& task = *at->second.task;
    task.replicas = std::max(task.replicas, replicas);
    return true;
}

void CopyPlanner::enqueue(Entry& object, uint64_t due_ms) {
    std::optional<Task>& task = object.second.task;
    if (!task.has_value()) {
        task.emplace();
        tasks_count_.fetch_add(1, std::memory_order_relaxed);
    }
    if (!task->queued) {
        task->queued = true;
        queue_.emplace(due_ms, &object);
    }
}

// Call it last: the object may be gone after it.
void CopyPlanner::drop_if_done(Entry& object) {
    std::optional<Task>& task = object.second.task;
    const std::vector<Copy*>& copies = object.second.copies;
    if (task.has_value() && !task->queued &&
        std::all_of(copies.begin(), copies.end(),
                    [](const Copy* one) { return one->in_doubt(); })) {
        task.reset();
        tasks_count_.fetch_sub(1, std::memory_order_relaxed);
    }
    if (!task.has_value() && copies.empty()) {
        objects_.erase(objects_.find(object.first));
        objects_count_.store(objects_.size(), std::memory_order_relaxed);
    }
}

void CopyPlanner::forget(Copy& copy) {
    std::erase(copy.object->second.copies, &copy);
    Copies& from = copy.in_doubt() ? doubts_ : orders_;
    from.erase(from.find(copy.id));
}

void CopyPlanner::landed(const DirectoryEpoch& ns, std::string_view key, NodeNumber node) {
    if (idle()) {
        return;
    }
    const MutexLock lock(mutex_);
    const auto at = objects_.find(NsKey(ns.ref, key).view());
    if (at == objects_.end()) {
        return;
    }
    const std::vector<Copy*> copies = at->second.copies;
    for (Copy* const copy : copies) {
        if (copy->target != node) {
            continue;
        }
        if (!copy->in_doubt()) {
            ++stats_.done;
            at->second.task->attempts = 0;
            enqueue(*at, 0);  // perhaps another copy is missing
        }
        forget(*copy);
    }
    drop_if_done(*at);
}

void CopyPlanner::done(uint64_t copy_id, Code code, uint64_t now_ms) {
    const MutexLock lock(mutex_);
    const auto order = orders_.find(copy_id);
    if (order == orders_.end()) {
        return;
    }
    Copy& copy = order->second;
    if (code == Code::kOk || code == Code::kAlreadyExists) {
        copy.stage = Stage::kLanding;
        copy.until_ms = now_ms + kLandingMs;
    } else {
        fail(copy, is_connection_failure(code), now_ms);
    }
}

void CopyPlanner::fail(Copy& copy, bool in_doubt, uint64_t now_ms) {
    Entry& object = *copy.object;
    object.second.task->avoid = copy.target;
    ++stats_.failed;
    if (KV_GUARD("unheard-copies", in_doubt)) {
        copy.stage = Stage::kDoubt;
        copy.until_ms = now_ms + policy_.order_timeout_ms + kDoubtMs;
        doubts_.insert(orders_.extract(copy.id));
    } else {
        forget(copy);
    }
    retry(object, now_ms);
}

void CopyPlanner::end_doubts(uint64_t now_ms, const std::vector<CopyNode>& nodes) {
    if (doubts_.empty() || now_ms < doubts_seen_ms_ + kDoubtsMs) {
        return;
    }
    doubts_seen_ms_ = now_ms;
    for (auto next = doubts_.begin(); next != doubts_.end();) {
        Copy& copy = (next++)->second;
        const CopyNode* target = node_at(nodes, copy.target);
        if (target == nullptr || (target->connected && copy.until_ms <= now_ms)) {
            Entry& object = *copy.object;
            forget(copy);
            drop_if_done(object);
        }
    }
}

void CopyPlanner::retry(Entry& object, uint64_t now_ms) {
    Task& task = *object.second.task;
    if (++task.attempts >= policy_.max_attempts) {
        ++stats_.given_up;
        drop_if_done(object);
        return;
    }
    enqueue(object, now_ms + (kBackoffMs << std::min<uint32_t>(task.attempts, 8)));
}

std::vector<NodeNumber> CopyPlanner::targets(const DirectoryEpoch& ns, std::string_view key) const {
    std::vector<NodeNumber> out;
    if (idle()) {
        return out;
    }
    const MutexLock lock(mutex_);
    if (const auto at = objects_.find(NsKey(ns.ref, key).view()); at != objects_.end()) {
        for (const Copy* copy : at->second.copies) {
            out.push_back(copy->target);
        }
    }
    return out;
}

void CopyPlanner::add_refs(std::unordered_set<uint32_t>& refs) const {
    const MutexLock lock(mutex_);
    for (const auto& [name, object] : objects_) {
        refs.insert(object.ns->ref);
    }
}

bool CopyPlanner::may_hold(NodeNumber node) const {
    if (idle()) {
        return false;
    }
    const auto lies_there = [node](const auto& entry) { return entry.second.target == node; };
    const MutexLock lock(mutex_);
    return std::any_of(orders_.begin(), orders_.end(), lies_there) ||
           std::any_of(doubts_.begin(), doubts_.end(), lies_there);
}

void CopyPlanner::expire(uint64_t now_ms, const std::vector<CopyNode>& nodes) {
    for (auto next = orders_.begin(); next != orders_.end();) {
        Copy& copy = (next++)->second;
        const CopyNode* source = node_at(nodes, copy.source);
        const CopyNode* target = node_at(nodes, copy.target);
        const bool lost =
            source == nullptr || !source->source || target == nullptr || !target->connected;
        if (copy.until_ms <= now_ms || (lost && copy.stage == Stage::kOrdered)) {
            fail(copy, true, now_ms);
        }
    }
}

void CopyPlanner::refill(uint64_t now_ms) {
    // A second's worth at most is saved up, so that a burst of replicated puts is not slowed.
    const double seconds = static_cast<double>(now_ms - std::min(now_ms, refilled_ms_)) / 1000;
    copy_tokens_ = std::min(copy_tokens_ + seconds * policy_.copies_per_s, policy_.copies_per_s);
    byte_tokens_ = std::min(byte_tokens_ + seconds * policy_.bytes_per_s, policy_.bytes_per_s);
    refilled_ms_ = now_ms;
}

std::vector<CopyPlanner::Dispatch> CopyPlanner::plan(uint64_t now_ms,
                                                     const std::vector<CopyNode>& nodes) {
    const MutexLock lock(mutex_);
    refill(now_ms);
    expire(now_ms, nodes);
    end_doubts(now_ms, nodes);
    std::vector<Dispatch> out;
    while (!queue_.empty() && queue_.begin()->first <= now_ms && copy_tokens_ >= 1 &&
           byte_tokens_ > 0 && orders_.size() < policy_.max_in_flight) {
        Entry& object = *queue_.begin()->second;
        queue_.erase(queue_.begin());
        object.second.task->queued = false;
        plan_task(object, now_ms, nodes, out);
    }
    return out;
}

void CopyPlanner::plan_task(Entry& object, uint64_t now_ms, const std::vector<CopyNode>& nodes,
                            std::vector<Dispatch>& out) {
    const DirectoryEpoch& ns = *object.second.ns;
    ObjectInfo info;
    if (!ns.is_current() || !directory_.inspect(ns, NsKey::key_of(object.first), info)) {
        return drop_if_done(object);
    }
    const CopyNode* source = nullptr;
    size_t have = 0;
    for (const Replica replica : info.replicas) {
        const CopyNode* node = node_at(nodes, replica.node());
        if (node == nullptr) {
            continue;
        }
        have += node->counts ? 1 : 0;
        if (node->source && (source == nullptr || random_() % 2 == 0)) {
            source = node;
        }
    }
    for (const Copy* copy : object.second.copies) {
        const bool recorded = std::any_of(info.replicas.begin(), info.replicas.end(),
                                          [&](Replica one) { return one.node() == copy->target; });
        have += copy->in_doubt() || recorded ? 0 : 1;
    }
    if (source == nullptr) {
        return drop_if_done(object);  // repaired when one of its holders is back
    }
    while (have < std::max(info.replicas_wanted, object.second.task->replicas)) {
        const NodeNumber target = choose_target(info, object.second, nodes);
        if (target == kNoNode && have >= info.replicas_wanted) {
            break;
        }
        if (target == kNoNode) {
            return retry(object, now_ms);
        }
        order_copy(object, info, *source, nodes[target], now_ms, out);
        ++have;
    }
    drop_if_done(object);
}

void CopyPlanner::order_copy(Entry& object, const ObjectInfo& info, const CopyNode& source,
                             const CopyNode& target, uint64_t now_ms, std::vector<Dispatch>& out) {
    Dispatch& dispatch = out.emplace_back();
    dispatch.source = source.slot;
    const uint64_t id = next_copy_id_++;
    dispatch.order = {.copy_id = id,
                      .ns = {info.ns->owner->tenant, info.ns->owner->name, info.ns->epoch},
                      .key = info.key,
                      .version = info.version,
                      .target_node = target.id,
                      .target_endpoint = target.endpoint};
    const Copy copy{id,       &object, source.slot, target.slot, now_ms + policy_.order_timeout_ms,
                    info.size};
    ordered_[target.slot].bytes += info.size;
    object.second.copies.push_back(&orders_.emplace(id, copy).first->second);
    copy_tokens_ -= 1;
    byte_tokens_ -= static_cast<double>(info.size);
    ++stats_.ordered;
}

bool CopyPlanner::has_room(const CopyNode& target, uint64_t size) {
    Ordered& ordered = ordered_[target.slot];
    if (ordered.free_bytes != target.free_bytes) {
        // What is in flight may have arrived before it told, or not: it counts.
        ordered = {.free_bytes = target.free_bytes};
        for (const auto& [id, copy] : orders_) {
            ordered.bytes += copy.target == target.slot ? copy.size : 0;
        }
    }
    return target.free_bytes >= ordered.bytes + size + size / kRounding;
}

NodeNumber CopyPlanner::choose_target(const ObjectInfo& info, const Object& object,
                                      const std::vector<CopyNode>& nodes) {
    const auto busy = [&](NodeNumber slot) {
        return std::any_of(info.replicas.begin(), info.replicas.end(),
                           [&](Replica one) { return one.node() == slot; }) ||
               std::any_of(object.copies.begin(), object.copies.end(), [&](const Copy* one) {
                   return one->target == slot && !one->in_doubt();
               });
    };
    std::vector<std::string_view> hosts;  // that have, or will have, a copy which counts
    for (const CopyNode& node : nodes) {
        if (node.slot != kNoNode && node.counts && busy(node.slot)) {
            hosts.push_back(node.host);
        }
    }
    std::vector<NodeNumber> free;
    std::vector<NodeNumber> other_host;
    for (const CopyNode& node : nodes) {
        if (node.slot != kNoNode && node.target && !busy(node.slot)) {
            free.push_back(node.slot);
            if (std::find(hosts.begin(), hosts.end(), node.host) == hosts.end()) {
                other_host.push_back(node.slot);
            }
        }
    }
    std::vector<NodeNumber>& from = other_host.empty() ? free : other_host;
    if (from.size() > 1) {
        std::erase(from, object.task->avoid);
    }
    std::vector<NodeNumber> roomy;
    for (const NodeNumber slot : from) {
        if (has_room(nodes[slot], info.size)) {
            roomy.push_back(slot);
        }
    }
    if (!roomy.empty()) {
        from = std::move(roomy);
    }
    if (from.empty()) {
        return kNoNode;
    }
    const NodeNumber a = from[random_() % from.size()];
    const NodeNumber b = from[random_() % from.size()];
    return nodes[a].weight >= nodes[b].weight ? a : b;
}

CopyPlanner::Stats CopyPlanner::stats() const {
    const MutexLock lock(mutex_);
    Stats stats = stats_;
    stats.queued = queue_.size();
    stats.in_flight = orders_.size();
    return stats;
}

}  // namespace kvstore
