// Leasing a list of objects whose replicas lie at many nodes.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "base/clock.h"
#include "client/peer_node.h"

namespace kvstore {

// Round by round: every row that is not leased yet asks its next replica, one question a node. A
// node leases a prefix of what it is asked for, so the row behind that prefix moves on to its next
// replica, and the rows after it ask the same node again.
class LeaseRounds {
  public:
    // The nth node that may lease the row; null when it has no more.
    using Replica = std::function<std::shared_ptr<PeerNode>(size_t row, size_t nth)>;
    // Asks a node to lease these rows, at most kMaxBatchKeys: how many it leased, from the first.
    using Ask = std::function<size_t(const std::shared_ptr<PeerNode>&, std::span<const size_t>)>;

    LeaseRounds(size_t length, Replica replica, Ask ask);
    void run(Deadline deadline);
    // Rows before the first that nobody leased.
    size_t leased_prefix() const;

  private:
    using Questions = std::map<std::shared_ptr<PeerNode>, std::vector<size_t>>;
    Questions next_questions();
    void ask_node(const std::shared_ptr<PeerNode>& node, std::span<const size_t> rows);

    const Replica replica_;
    const Ask ask_;
    size_t limit_;  // nothing behind a row that nobody can lease counts
    std::vector<char> leased_;
    std::vector<size_t> next_replica_;
};

}  // namespace kvstore
