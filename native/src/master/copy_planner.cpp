// Tasks by object, a queue by due time, orders in flight, and token buckets for the rates.
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

bool CopyPlanner::want(const DirectoryEpoch& ns, std::string_view key) {
    const MutexLock lock(mutex_);
    const NsKey name(ns.ref, key);
    auto at = tasks_.find(name.view());
    if (at == tasks_.end()) {
        if (tasks_.size() >= kMaxTasks) {
            return false;
        }
        at = tasks_.emplace(name.view(), Task{.ns = &ns, .orders = {}}).first;
        tasks_count_.store(tasks_.size(), std::memory_order_relaxed);
    }
    enqueue(at, 0);
    return true;
}

void CopyPlanner::enqueue(Tasks::iterator at, uint64_t due_ms) {
    if (!at->second.queued) {
        at->second.queued = true;
        queue_.emplace(due_ms, at->first);
    }
}

void CopyPlanner::drop_if_done(Tasks::iterator at) {
    if (!at->second.queued && at->second.orders.empty()) {
        tasks_.erase(at);
        tasks_count_.store(tasks_.size(), std::memory_order_relaxed);
    }
}

void CopyPlanner::end_order(Tasks::iterator at, std::vector<InFlight>::iterator order) {
    orders_.erase(order->copy_id);
    at->second.orders.erase(order);
}

void CopyPlanner::landed(const DirectoryEpoch& ns, std::string_view key, NodeNumber node) {
    if (idle()) {
        return;
    }
    const MutexLock lock(mutex_);
    const NsKey name(ns.ref, key);
    if (const auto doubts = doubts_.find(name.view()); doubts != doubts_.end()) {
        std::erase_if(doubts->second, [&](const Doubt& one) { return one.target == node; });
    }
    const auto at = tasks_.find(name.view());
    if (at == tasks_.end()) {
        return;
    }
    std::vector<InFlight>& orders = at->second.orders;
    const auto order = std::find_if(orders.begin(), orders.end(),
                                    [&](const InFlight& one) { return one.target == node; });
    if (order != orders.end()) {
        ++stats_.done;
        end_order(at, order);
        at->second.attempts = 0;
        enqueue(at, 0);  // perhaps another copy is missing
    }
}

void CopyPlanner::done(uint64_t copy_id, Code code, uint64_t now_ms) {
    const MutexLock lock(mutex_);
    const auto name = orders_.find(copy_id);
    if (name == orders_.end()) {
        return;
    }
    const auto at = tasks_.find(name->second);
    std::vector<InFlight>& orders = at->second.orders;
    const auto order = std::find_if(orders.begin(), orders.end(),
                                    [&](const InFlight& one) { return one.copy_id == copy_id; });
    if (code == Code::kOk || code == Code::kAlreadyExists) {
        order->landing = true;
        order->deadline_ms = now_ms + kLandingMs;
    } else {
        if (is_connection_failure(code)) {
            doubt(at->first, order->target, now_ms);
        }
        fail(at, order, now_ms);
    }
}

void CopyPlanner::doubt(const std::string& name, NodeNumber target, uint64_t now_ms) {
    if (!KV_GUARD("unheard-copies", true)) {
        return;
    }
    doubts_[name].push_back({target, now_ms + policy_.order_timeout_ms + kDoubtMs});
    doubts_count_.store(doubts_.size(), std::memory_order_relaxed);
}

void CopyPlanner::end_doubts(uint64_t now_ms, const std::vector<CopyNode>& nodes) {
    if (doubts_.empty() || now_ms < doubts_seen_ms_ + kDoubtsMs) {
        return;
    }
    doubts_seen_ms_ = now_ms;
    for (auto& [name, doubts] : doubts_) {
        std::erase_if(doubts, [&](const Doubt& one) {
            const CopyNode* target = node_at(nodes, one.target);
            return target == nullptr || (target->connected && one.until_ms <= now_ms);
        });
    }
    std::erase_if(doubts_, [](const auto& entry) { return entry.second.empty(); });
    doubts_count_.store(doubts_.size(), std::memory_order_relaxed);
}

void CopyPlanner::fail(Tasks::iterator at, std::vector<InFlight>::iterator order, uint64_t now_ms) {
    Task& task = at->second;
    task.avoid = order->target;
    ++stats_.failed;
    end_order(at, order);
    retry(at, now_ms);
}

void CopyPlanner::retry(Tasks::iterator at, uint64_t now_ms) {
    Task& task = at->second;
    if (++task.attempts >= policy_.max_attempts) {
        ++stats_.given_up;
        drop_if_done(at);
        return;
    }
    enqueue(at, now_ms + (kBackoffMs << std::min<uint32_t>(task.attempts, 8)));
}

std::vector<NodeNumber> CopyPlanner::targets(const DirectoryEpoch& ns, std::string_view key) const {
    std::vector<NodeNumber> out;
    if (idle()) {
        return out;
    }
    const MutexLock lock(mutex_);
    const NsKey name(ns.ref, key);
    if (const auto at = tasks_.find(name.view()); at != tasks_.end()) {
        for (const InFlight& order : at->second.orders) {
            out.push_back(order.target);
        }
    }
    if (const auto at = doubts_.find(name.view()); at != doubts_.end()) {
        for (const Doubt& doubt : at->second) {
            out.push_back(doubt.target);
        }
    }
    return out;
}

bool CopyPlanner::may_hold(NodeNumber node) const {
    if (idle()) {
        return false;
    }
    const auto is_node = [&](const auto& one) { return one.target == node; };
    const MutexLock lock(mutex_);
    return std::any_of(tasks_.begin(), tasks_.end(),
                       [&](const auto& entry) {
                           const std::vector<InFlight>& orders = entry.second.orders;
                           return std::any_of(orders.begin(), orders.end(), is_node);
                       }) ||
           std::any_of(doubts_.begin(), doubts_.end(), [&](const auto& entry) {
               return std::any_of(entry.second.begin(), entry.second.end(), is_node);
           });
}

void CopyPlanner::expire(uint64_t now_ms, const std::vector<CopyNode>& nodes) {
    std::vector<std::pair<std::string, uint64_t>> over;
    for (const auto& [copy_id, name] : orders_) {
        for (const InFlight& order : tasks_.find(name)->second.orders) {
            const CopyNode* source = node_at(nodes, order.source);
            const CopyNode* target = node_at(nodes, order.target);
            const bool lost =
                source == nullptr || !source->source || target == nullptr || !target->connected;
            if (order.copy_id == copy_id &&
                (order.deadline_ms <= now_ms || (lost && !order.landing))) {
                over.emplace_back(name, copy_id);
            }
        }
    }
    for (const auto& [name, copy_id] : over) {
        const auto at = tasks_.find(name);
        std::vector<InFlight>& orders = at->second.orders;
        const auto order = std::find_if(orders.begin(), orders.end(), [&](const InFlight& one) {
            return one.copy_id == copy_id;
        });
        doubt(name, order->target, now_ms);
        fail(at, order, now_ms);
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
        const auto at = tasks_.find(queue_.begin()->second);
        queue_.erase(queue_.begin());
        at->second.queued = false;
        plan_task(at, now_ms, nodes, out);
    }
    return out;
}

void CopyPlanner::plan_task(Tasks::iterator at, uint64_t now_ms, const std::vector<CopyNode>& nodes,
                            std::vector<Dispatch>& out) {
    Task& task = at->second;
    ObjectInfo info;
    if (!task.ns->is_current() || !directory_.inspect(*task.ns, NsKey::key_of(at->first), info)) {
        return drop_if_done(at);
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
    for (const InFlight& order : task.orders) {
        const bool recorded = std::any_of(info.replicas.begin(), info.replicas.end(),
                                          [&](Replica one) { return one.node() == order.target; });
        have += recorded ? 0 : 1;
    }
    if (source == nullptr) {
        return drop_if_done(at);  // repaired when one of its holders is back
    }
    while (have < info.replicas_wanted) {
        const NodeNumber target = choose_target(info, task, nodes);
        if (target == kNoNode) {
            return retry(at, now_ms);
        }
        order_copy(at, info, *source, nodes[target], now_ms, out);
        ++have;
    }
    drop_if_done(at);
}

void CopyPlanner::order_copy(Tasks::iterator at, const ObjectInfo& info, const CopyNode& source,
                             const CopyNode& target, uint64_t now_ms, std::vector<Dispatch>& out) {
    Dispatch& dispatch = out.emplace_back();
    dispatch.source = source.slot;
    dispatch.order = {.copy_id = next_copy_id_++,
                      .ns = {info.ns->owner->tenant, info.ns->owner->name, info.ns->epoch},
                      .key = info.key,
                      .version = info.version,
                      .target_node = target.id,
                      .target_endpoint = target.endpoint};
    at->second.orders.push_back({dispatch.order.copy_id, source.slot, target.slot,
                                 now_ms + policy_.order_timeout_ms, false});
    orders_.emplace(dispatch.order.copy_id, at->first);
    copy_tokens_ -= 1;
    byte_tokens_ -= static_cast<double>(info.size);
    ++stats_.ordered;
}

NodeNumber CopyPlanner::choose_target(const ObjectInfo& info, const Task& task,
                                      const std::vector<CopyNode>& nodes) {
    const auto busy = [&](NodeNumber slot) {
        return std::any_of(info.replicas.begin(), info.replicas.end(),
                           [&](Replica one) { return one.node() == slot; }) ||
               std::any_of(task.orders.begin(), task.orders.end(),
                           [&](const InFlight& one) { return one.target == slot; });
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
        std::erase(from, task.avoid);
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
