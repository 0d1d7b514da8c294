// The nodes as the master knows them: registration, state, link, progress in the operations log.
// Not thread-safe: the master's mutex guards it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/locality.h"
#include "base/status.h"
#include "directory/namespace_table.h"
#include "directory/object_table.h"
#include "master/node_link.h"

namespace kvstore {

struct NodeInfo {
    std::string node_id{};
    uint64_t session_id = 0;
    uint32_t node_epoch = 0;
    std::string tcp_endpoint{};
    std::string unix_endpoint{};
    std::string host{};
    Locality locality{};
    uint32_t weight = 0;  // for the choice of copy targets; 0: none
    uint64_t free_bytes = 0;
    uint64_t capacity_bytes = 0;
    NodeState state = NodeState::kJoining;
    bool fresh =
        false;  // a new node with new memory: it holds nothing that it was not granted here
};

struct NodeRecord {
    static constexpr size_t kMaxForgotten = 4096;
    NodeInfo info;
    LinkId link_id = 0;  // 0: not connected
    std::shared_ptr<NodeLink> link;
    uint32_t linked_epoch = 0;  // the life of the node that was linked last
    bool synced = false;        // has announced everything since this master started
    uint64_t applied_seq = 0;   // operations it has acknowledged
    uint64_t sent_seq = 0;
    bool unheard = true;  // until it has announced everything it may hold what nobody knows of
    std::unordered_set<uint64_t> served;  // Namespace::uid of where it has claimed or announced
    bool announced = false;               // everything, over the present link
    // Namespace::id of those that were forgotten while it had not: it may hold what was recorded
    // nowhere else. Beyond kMaxForgotten: of any.
    std::unordered_set<NamespaceId> forgotten;
    Version floor = 0;        // versions that it may announce only when they are recorded
    uint64_t changed_ms = 0;  // when its state last changed
    bool removed = false;     // being swept; the slot is not reused before that is done
    // Its link broke, and neither a new one nor a heartbeat has come since. What it holds is a miss
    // meanwhile: a killed node is noticed before its heartbeats are missed.
    bool doubted = false;

    bool may_hold(const Namespace& ns) const {
        return (unheard && !synced) || served.contains(ns.uid) || forgotten.contains(ns.id) ||
               forgotten.size() >= kMaxForgotten;
    }
    void forget(const NamespaceTable::Idle& ns) {
        const bool served_it = served.erase(ns.uid) != 0;
        if (served_it && !(connected() && announced) && forgotten.size() < kMaxForgotten) {
            forgotten.insert(ns.id);
        }
    }
    bool connected() const { return link != nullptr; }
    bool readable() const {
        // One that joins takes writes, and they are Ok, once it has announced everything: before
        // the policy has seen that.
        const bool joined = info.state == NodeState::kJoining && synced && connected();
        return !removed && !doubted &&
               (info.state == NodeState::kAlive || info.state == NodeState::kDraining || joined);
    }
};

class NodeTable {
  public:
    NodeRecord* find(std::string_view node_id);
    NodeRecord* at(NodeNumber slot);  // nullptr for a free slot
    const NodeRecord* at(NodeNumber slot) const;
    NodeNumber slot_of(std::string_view node_id) const;  // kNoNode when unknown
    // Finds or creates; kTooLarge when the table is full.
    Result<NodeNumber> add(const std::string& node_id);
    void remove(NodeNumber slot);   // unknown from here on, the slot still taken
    void release(NodeNumber slot);  // its replicas are swept
    NodeNumber end() const { return static_cast<NodeNumber>(slots_.size()); }
    uint64_t min_applied_seq(uint64_t otherwise) const;

  private:
    std::vector<std::unique_ptr<NodeRecord>> slots_;
    std::unordered_map<std::string, NodeNumber> by_id_;
};

}  // namespace kvstore
