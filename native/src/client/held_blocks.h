// Blocks of one node of this host whose bytes do not change while this lives.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/fork_guard.h"
#include "client/local_node.h"

namespace kvstore {

class HeldBlocks {
  public:
    struct Block {
        IndexReader::Found found;
        std::optional<ClientSlot::Handle> hazard;  // else held by socket
        size_t row = 0;                            // the caller's
    };

    explicit HeldBlocks(std::shared_ptr<LocalNode> node) : node_(std::move(node)) {}
    ~HeldBlocks();
    HeldBlocks(const HeldBlocks&) = delete;
    HeldBlocks& operator=(const HeldBlocks&) = delete;

    // Holds it by hazard if the slot has room, else with hold_rest(). A stale one is left out.
    void add(size_t row, const IndexReader::Found& found);
    // Asks the node, with one message for all, to hold what the slot had no room for.
    void hold_rest(Deadline deadline);

    const std::vector<Block>& blocks() const { return blocks_; }
    LocalNode& node() const { return *node_; }
    // Whether the object has stood still until now, and its memory is whole.
    bool unchanged(const Block& block) const;

  private:
    // Leaves most of a slot's hazards to the process's views.
    static constexpr uint32_t kMaxHazards = kSlotHazards / 2;

    const std::shared_ptr<LocalNode> node_;
    ForkGuard fork_guard_;
    std::vector<Block> blocks_;
    std::vector<Block> rest_;
};

}  // namespace kvstore
