// Nodes by slot and by id. A removed node keeps its slot until its replicas are swept.
#include "master/node_table.h"

#include <algorithm>

namespace kvstore {

NodeRecord* NodeTable::find(std::string_view node_id) { return at(slot_of(node_id)); }

NodeRecord* NodeTable::at(NodeNumber slot) {
    return slot < slots_.size() ? slots_[slot].get() : nullptr;
}

const NodeRecord* NodeTable::at(NodeNumber slot) const {
    return slot < slots_.size() ? slots_[slot].get() : nullptr;
}

NodeNumber NodeTable::slot_of(std::string_view node_id) const {
    const auto at = by_id_.find(std::string(node_id));
    return at == by_id_.end() ? kNoNode : at->second;
}

Result<NodeNumber> NodeTable::add(const std::string& node_id) {
    const NodeNumber known = slot_of(node_id);
    if (known != kNoNode) {
        return known;
    }
    size_t slot = 0;
    while (slot < slots_.size() && slots_[slot] != nullptr) {
        ++slot;
    }
    if (slot >= kMaxNodeSlots) {
        return Status(Code::kTooLarge, "the node table is full");
    }
    slots_.resize(std::max(slots_.size(), slot + 1));
    slots_[slot] = std::make_unique<NodeRecord>();
    slots_[slot]->info.node_id = node_id;
    by_id_[node_id] = static_cast<NodeNumber>(slot);
    return static_cast<NodeNumber>(slot);
}

void NodeTable::remove(NodeNumber slot) {
    by_id_.erase(slots_[slot]->info.node_id);
    slots_[slot]->removed = true;
}

void NodeTable::release(NodeNumber slot) { slots_[slot].reset(); }

uint64_t NodeTable::min_applied_seq(uint64_t otherwise) const {
    uint64_t lowest = otherwise;
    for (const auto& record : slots_) {
        if (record != nullptr && !record->removed) {
            lowest = std::min(lowest, record->applied_seq);
        }
    }
    return lowest;
}

}  // namespace kvstore
