// Grouping rows by node, and taking what each node leased.
#include "client/lease_rounds.h"

#include <algorithm>
#include <utility>

#include "base/interrupt.h"

namespace kvstore {

LeaseRounds::LeaseRounds(size_t length, Replica replica, Ask ask)
    : replica_(std::move(replica)),
      ask_(std::move(ask)),
      limit_(length),
      leased_(length, 0),
      next_replica_(length, 0) {}

void LeaseRounds::run(Deadline deadline) {
    for (size_t round = 0;
         round <= limits::kMaxReplicas && !deadline.expired() && !check_interrupt(); ++round) {
        const Questions questions = next_questions();
        if (questions.empty()) {
            return;
        }
        for (const auto& [node, rows] : questions) {
            ask_node(node, rows);
        }
    }
}

LeaseRounds::Questions LeaseRounds::next_questions() {
    Questions questions;
    for (size_t row = 0; row < limit_; ++row) {
        if (leased_[row] != 0) {
            continue;
        }
        std::shared_ptr<PeerNode> node = replica_(row, next_replica_[row]);
        if (node == nullptr) {
            limit_ = row;
            break;
        }
        questions[std::move(node)].push_back(row);
    }
    return questions;
}

void LeaseRounds::ask_node(const std::shared_ptr<PeerNode>& node, std::span<const size_t> rows) {
    while (!rows.empty()) {
        const std::span<const size_t> part =
            rows.first(std::min(limits::kMaxBatchKeys, rows.size()));
        const size_t granted = ask_(node, part);
        for (const size_t row : part.first(granted)) {
            leased_[row] = 1;
        }
        if (granted < part.size()) {
            ++next_replica_[part[granted]];
            return;
        }
        rows = rows.subspan(granted);
    }
}

size_t LeaseRounds::leased_prefix() const {
    return static_cast<size_t>(std::ranges::find(leased_, 0) - leased_.begin());
}

}  // namespace kvstore
