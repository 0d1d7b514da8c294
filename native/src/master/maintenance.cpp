// What the master does by itself: expired claims and waits, copy orders, the scan for missing
// copies.
#include <algorithm>
#include <chrono>

#include "base/clock.h"
#include "base/mutex.h"
#include "master/master_core.h"

namespace kvstore {
namespace {

constexpr size_t kScanBudget = 16'384;  // entries looked at in one round
constexpr size_t kSweepBudget = 16'384;
constexpr uint64_t kForgetMs = 5'000;   // how often namespaces are looked at …
constexpr size_t kForgetAtOnce = 4096;  // … and how many go at most
constexpr uint64_t kRescanMs = 1'000;   // while a node is draining or dead
constexpr uint64_t kSilenceMs = 500;    // how often silent links are looked for

}  // namespace

void MasterCore::maintenance_loop() {
    MutexLock lock(mutex_);
    while (!stopping_) {
        wake_.wait_for(mutex_, std::chrono::milliseconds(options_.maintenance_ms));
        if (stopping_) {
            return;
        }
        lock.unlock();
        maintain(boottime_ms());
        lock.lock();
    }
}

void MasterCore::maintain(uint64_t now_ms) {
    Effects effects;
    claims_.expire(now_ms, effects.answers);
    {
        const MutexLock lock(mutex_);
        collect_ready(now_ms, effects);
        drop_tombstones(now_ms);
    }
    run(effects);
    end_silent_links(now_ms);
    lookup_waits_.expire(now_ms);
    fences_.expire(now_ms);
    turns_.expire(now_ms);
    directory_.sweep(kSweepBudget);
    directory_.watch().expire(now_ms);
    scan_for_copies(now_ms);
    run_copies(now_ms);
    forget_namespaces(now_ms);
}

// What has come while this process was stopped, or starved, may not have been read yet: then no
// link is silent before a whole time has passed again.
void MasterCore::end_silent_links(uint64_t now_ms) {
    const uint64_t limit_ms = link_silence_ms_;
    if (limit_ms == 0 || now_ms < looked_ms_ + kSilenceMs) {
        return;
    }
    if (now_ms > looked_ms_ + 2 * kSilenceMs) {
        looking_since_ms_ = now_ms;
    }
    looked_ms_ = now_ms;
    Effects effects;
    {
        const MutexLock lock(mutex_);
        for (NodeNumber slot = 0; slot < nodes_.end(); ++slot) {
            NodeRecord* record = nodes_.at(slot);
            if (record != nullptr && record->connected() &&
                std::max(record->link->heard_ms(), looking_since_ms_) + limit_ms <= now_ms) {
                lose_link(*record, "nothing has come over this link for too long");
                record->doubted = true;
                change_state(slot, *record, record->info.state, effects);
            }
        }
        collect_ready(now_ms, effects);
    }
    run(effects);
}

// Those of which nothing is left. On this thread, which alone takes an object's epoch from one
// step to the next without its namespace.
void MasterCore::forget_namespaces(uint64_t now_ms) {
    if (now_ms < forgot_ms_ + kForgetMs || directory_.rebuilding()) {
        return;
    }
    forgot_ms_ = now_ms;
    std::vector<NamespaceTable::Idle> idle = directory_.namespaces().idle(kForgetAtOnce);
    if (idle.empty()) {
        return;
    }
    std::unordered_set<uint32_t> used;
    claims_.add_refs(used);
    planner_.add_refs(used);
    std::erase_if(idle, [&](const NamespaceTable::Idle& one) { return used.contains(one.ref); });
    // The mutex is held so that no flush or remove looks between the two.
    const MutexLock lock(mutex_);
    const std::vector<NamespaceTable::Idle> gone = directory_.namespaces().forget(idle);
    for (NodeNumber slot = 0; slot < nodes_.end(); ++slot) {
        if (NodeRecord* record = nodes_.at(slot)) {
            for (const NamespaceTable::Idle& ns : gone) {
                record->forget(ns);
            }
        }
    }
}

void MasterCore::drop_tombstones(uint64_t now_ms) {
    for (; !retired_.empty() && retired_.front().first <= now_ms; retired_.pop_front()) {
        const Op& op = retired_.front().second;
        const NamespacePtr ns = directory_.namespaces().find(op.tenant, op.ns);
        const DirectoryEpoch* current = ns == nullptr ? nullptr : ns->current.load();
        if (current != nullptr && current->epoch == op.epoch) {  // else the flush's sweep drops it
            directory_.drop_tombstone(*current, op.key, op.version);
        }
    }
}

std::vector<CopyNode> MasterCore::copy_nodes(uint64_t now_ms, bool* all_alive) const {
    const CopyPolicy policy = planner_.policy();
    const MutexLock lock(mutex_);
    std::vector<CopyNode> out(nodes_.end());
    for (NodeNumber slot = 0; slot < nodes_.end(); ++slot) {
        const NodeRecord* record = nodes_.at(slot);
        if (record == nullptr || record->removed) {
            continue;
        }
        const NodeState state = record->info.state;
        const bool alive = state == NodeState::kAlive;
        // A node that is starting, restarting, or dead for a short time will have its replicas
        // again.
        const bool coming_back =
            state == NodeState::kJoining || state == NodeState::kRestarting ||
            (state == NodeState::kDead &&
             (!policy.repair || now_ms < record->changed_ms + policy.repair_delay_ms));
        CopyNode& node = out[slot];
        node.slot = slot;
        node.connected = record->connected();
        node.counts = alive || coming_back;
        node.source = record->connected() && record->readable();
        node.target = record->connected() && alive && record->info.weight != 0 &&
                      !record->info.tcp_endpoint.empty();
        node.weight = record->info.weight;
        node.free_bytes = record->info.free_bytes;
        node.id = record->info.node_id;
        node.host = record->info.host;
        node.endpoint = record->info.tcp_endpoint;
        *all_alive = *all_alive && alive;
    }
    return out;
}

void MasterCore::run_copies(uint64_t now_ms) {
    if (planner_.idle() || directory_.rebuilding()) {
        return;
    }
    bool all_alive = true;
    const std::vector<CopyPlanner::Dispatch> orders =
        planner_.plan(now_ms, copy_nodes(now_ms, &all_alive));
    for (const CopyPlanner::Dispatch& dispatch : orders) {
        std::shared_ptr<NodeLink> link;
        {
            const MutexLock lock(mutex_);
            const NodeRecord* record = nodes_.at(dispatch.source);
            link = record == nullptr ? nullptr : record->link;
            NodeRecord* target = nodes_.find(dispatch.order.target_node);
            const LinkNamespace& in = dispatch.order.ns;
            const NamespacePtr ns = directory_.namespaces().find(in.tenant, in.ns);
            if (link != nullptr && target != nullptr && ns != nullptr) {
                target->served.insert(ns->uid);
            }
        }
        if (link != nullptr) {
            link->send_copy(dispatch.order);
        } else {
            planner_.done(dispatch.order.copy_id, Code::kUnavailable, now_ms);
        }
    }
}

void MasterCore::scan_for_copies(uint64_t now_ms) {
    if (directory_.rebuilding() || planner_.size() > CopyPlanner::kMaxTasks / 2) {
        return;
    }
    const uint64_t requests = scan_requests_.load();
    bool all_alive = true;
    std::vector<CopyNode> nodes;
    if (scan_cursor_ == 0) {
        const bool asked = requests != scanned_requests_;
        if (!asked && now_ms < scanned_ms_ + kRescanMs) {
            return;
        }
        nodes = copy_nodes(now_ms, &all_alive);
        if (!asked && all_alive) {
            scanned_ms_ = now_ms;
            return;
        }
        scan_target_ = requests;
    } else {
        nodes = copy_nodes(now_ms, &all_alive);
    }
    std::vector<std::pair<uint32_t, std::string>> missing;
    scan_cursor_ = directory_.scan(scan_cursor_, kScanBudget, [&](const ObjectEntry& entry) {
        size_t have = 0;
        bool source = false;
        for (size_t i = 0; i < entry.replica_count(); ++i) {
            const NodeNumber slot = entry.replicas[i].node();
            if (slot < nodes.size() && nodes[slot].slot == slot) {
                have += nodes[slot].counts ? 1 : 0;
                source = source || nodes[slot].source;
            }
        }
        if (source && have < entry.replicas_wanted) {
            missing.emplace_back(entry.ns, entry.key());
        }
    });
    for (const auto& [ref, key] : missing) {
        planner_.want(*directory_.namespaces().at(ref), key);
    }
    if (scan_cursor_ == 0) {
        scanned_requests_ = scan_target_;
        scanned_ms_ = now_ms;
    }
}

std::vector<bool> MasterCore::living() const {
    const MutexLock lock(mutex_);
    std::vector<bool> out(limits::kMaxNodes);
    for (NodeNumber slot = 0; slot < nodes_.end(); ++slot) {
        const NodeRecord* record = nodes_.at(slot);
        out[slot] =
            record != nullptr && !record->removed && record->info.state == NodeState::kAlive;
    }
    return out;
}

MasterCore::Left MasterCore::count_objects(
    const std::function<bool(const ObjectEntry&)>& counts) const {
    const uint64_t now_ms = boottime_ms();
    Left total;
    uint64_t cursor = 0;
    do {
        cursor = directory_.scan(cursor, kScanBudget, [&](const ObjectEntry& entry) {
            const bool expired = entry.expires_at_ms != 0 && entry.expires_at_ms <= now_ms;
            if (!expired && directory_.namespaces().at(entry.ns)->is_current() && counts(entry)) {
                ++total.objects;
                total.bytes += entry.size;
            }
        });
    } while (cursor != 0);
    return total;
}

MasterCore::Left MasterCore::drain_left(const std::string& node_id) const {
    const std::vector<bool> alive = living();
    NodeNumber slot = kNoNode;
    {
        const MutexLock lock(mutex_);
        slot = nodes_.slot_of(node_id);
    }
    if (slot == kNoNode) {
        return {};
    }
    return count_objects([&](const ObjectEntry& entry) {
        if (entry.find_replica(slot) < 0) {
            return false;
        }
        return std::none_of(entry.replicas.begin(), entry.replicas.end(), [&](Replica replica) {
            return !replica.empty() && replica.node() != slot && alive[replica.node()];
        });
    });
}

uint64_t MasterCore::under_replicated() const {
    const std::vector<bool> alive = living();
    const Left found = count_objects([&](const ObjectEntry& entry) {
        size_t have = 0;
        size_t readable = 0;
        for (size_t i = 0; i < entry.replica_count(); ++i) {
            have += alive[entry.replicas[i].node()] ? 1 : 0;
            readable += directory_.readable(entry.replicas[i].node()) ? 1 : 0;
        }
        return readable != 0 && have < entry.replicas_wanted;
    });
    return found.objects;
}

}  // namespace kvstore
