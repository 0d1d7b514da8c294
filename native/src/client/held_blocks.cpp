// Hazards for the first blocks of a call, holds by socket for the others.
#include "client/held_blocks.h"

#include <algorithm>

namespace kvstore {

void HeldBlocks::add(size_t row, const IndexReader::Found& found) {
    ClientSlot& slot = node_->slot();
    if (slot.hazards_in_use() < kMaxHazards) {
        ClientSlot::Handle handle = 0;
        switch (hold_object(node_->index(), slot, found, &handle)) {
            case HoldResult::kHeld:
                blocks_.push_back({found, handle, row});
                return;
            case HoldResult::kStale:
                return;
            case HoldResult::kFull:
                break;
        }
    }
    rest_.push_back({found, {}, row});
}

void HeldBlocks::hold_rest(Deadline deadline) {
    for (size_t first = 0; first < rest_.size(); first += limits::kMaxBatchKeys) {
        const std::span<const Block> part =
            std::span(rest_).subspan(first, std::min(limits::kMaxBatchKeys, rest_.size() - first));
        std::vector<Generation> generations;
        for (const Block& block : part) {
            generations.push_back(block.found.gen);
        }
        std::vector<bool> held;
        if (!node_->hold_all(generations, &held, deadline).ok()) {
            break;  // the caller reads them in another way
        }
        for (size_t row = 0; row < part.size(); ++row) {
            if (!held[row]) {
                continue;
            }
            // The node's answer is about the generation: the entry is looked at once more.
            if (node_->index().well_formed(part[row].found) && unchanged(part[row])) {
                blocks_.push_back(part[row]);
            } else {
                node_->unhold(part[row].found.gen);
            }
        }
    }
    rest_.clear();
}

bool HeldBlocks::unchanged(const Block& block) const {
    return node_->index().still_valid(block.found.ref, block.found.gen) && !node_->torn();
}

HeldBlocks::~HeldBlocks() {
    if (fork_guard_.in_child()) {
        return;  // the holds are the parent's
    }
    std::vector<Generation> by_socket;
    for (const Block& block : blocks_) {
        if (block.hazard) {
            node_->slot().clear_hazard(*block.hazard);
        } else {
            by_socket.push_back(block.found.gen);
        }
    }
    for (size_t first = 0; first < by_socket.size(); first += limits::kMaxBatchKeys) {
        node_->unhold_all(std::span(by_socket).subspan(
            first, std::min(limits::kMaxBatchKeys, by_socket.size() - first)));
    }
}

}  // namespace kvstore
