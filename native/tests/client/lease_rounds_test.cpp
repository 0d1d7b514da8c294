// Leasing over several nodes: who is asked for what, in which round, and how long the prefix gets.
#include "client/lease_rounds.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>
#include <string>

namespace kvstore {
namespace {

// Nodes that lease what `leases` names, as a prefix of each question.
struct Cluster {
    struct Question {
        size_t node;
        std::vector<size_t> rows;
        friend bool operator==(const Question&, const Question&) = default;
    };

    explicit Cluster(size_t count) {
        for (size_t i = 0; i < count; ++i) {
            PeerInfo info;
            info.id = std::to_string(i);
            nodes.push_back(std::make_shared<PeerNode>(info, HelloParams{}, Transport::kTcp));
            leases.emplace_back();
        }
    }
    size_t number(const std::shared_ptr<PeerNode>& node) const {
        return static_cast<size_t>(std::find(nodes.begin(), nodes.end(), node) - nodes.begin());
    }
    size_t lease(const std::vector<std::vector<size_t>>& replicas,
                 Deadline deadline = Deadline::never()) {
        LeaseRounds rounds(
            replicas.size(),
            [&](size_t row, size_t nth) {
                return nth < replicas[row].size() ? nodes[replicas[row][nth]] : nullptr;
            },
            [&](const std::shared_ptr<PeerNode>& node, std::span<const size_t> rows) {
                const size_t which = number(node);
                asked.push_back({which, {rows.begin(), rows.end()}});
                size_t granted = 0;
                while (granted < rows.size() && leases[which].contains(rows[granted])) {
                    ++granted;
                }
                return granted;
            });
        rounds.run(deadline);
        return rounds.leased_prefix();
    }
    std::vector<Question> asked_of(size_t node) const {
        std::vector<Question> out;
        std::copy_if(asked.begin(), asked.end(), std::back_inserter(out),
                     [node](const Question& question) { return question.node == node; });
        return out;
    }

    std::vector<std::shared_ptr<PeerNode>> nodes;
    std::vector<std::set<size_t>> leases;  // rows, of each node
    std::vector<Question> asked;
};

TEST(LeaseRounds, AsksEachNodeOnceWhenAllIsThere) {
    Cluster cluster(2);
    cluster.leases = {{0, 2}, {1, 3}};
    EXPECT_EQ(cluster.lease({{0}, {1}, {0}, {1}}), 4u);
    EXPECT_EQ(cluster.asked_of(0), (std::vector<Cluster::Question>{{0, {0, 2}}}));
    EXPECT_EQ(cluster.asked_of(1), (std::vector<Cluster::Question>{{1, {1, 3}}}));
}

TEST(LeaseRounds, NothingIsAskedForAnEmptyList) {
    Cluster cluster(1);
    EXPECT_EQ(cluster.lease({}), 0u);
    EXPECT_TRUE(cluster.asked.empty());
}

TEST(LeaseRounds, ARefusedRowMovesOnAndTheRowsBehindItAskAgain) {
    Cluster cluster(2);
    cluster.leases = {{0, 2}, {1}};
    EXPECT_EQ(cluster.lease({{0, 1}, {0, 1}, {0, 1}}), 3u);
    EXPECT_EQ(cluster.asked_of(0), (std::vector<Cluster::Question>{{0, {0, 1, 2}}, {0, {2}}}));
    EXPECT_EQ(cluster.asked_of(1), (std::vector<Cluster::Question>{{1, {1}}}));
}

TEST(LeaseRounds, NothingBehindARowThatNobodyLeasesIsAskedForAgain) {
    Cluster cluster(2);
    cluster.leases = {{0, 2, 3}, {}};
    EXPECT_EQ(cluster.lease({{0}, {0, 1}, {0}, {0}}), 1u);
    // Rows 2 and 3 go along while row 1 still has a replica, and not after it has none.
    EXPECT_EQ(cluster.asked_of(0),
              (std::vector<Cluster::Question>{{0, {0, 1, 2, 3}}, {0, {2, 3}}}));
    EXPECT_EQ(cluster.asked_of(1), (std::vector<Cluster::Question>{{1, {1}}}));
}

TEST(LeaseRounds, ARowWithoutReplicasCutsTheList) {
    Cluster cluster(1);
    cluster.leases = {{0, 1, 2}};
    EXPECT_EQ(cluster.lease({{0}, {}, {0}}), 1u);
    EXPECT_EQ(cluster.asked, (std::vector<Cluster::Question>{{0, {0}}}));
}

TEST(LeaseRounds, AQuestionHasAtMostOneMessageOfRows) {
    Cluster cluster(1);
    const size_t count = limits::kMaxBatchKeys + 3;
    for (size_t row = 0; row < count; ++row) {
        cluster.leases[0].insert(row);
    }
    EXPECT_EQ(cluster.lease(std::vector<std::vector<size_t>>(count, {0})), count);
    ASSERT_EQ(cluster.asked.size(), 2u);
    EXPECT_EQ(cluster.asked[0].rows.size(), limits::kMaxBatchKeys);
    EXPECT_EQ(cluster.asked[1].rows.front(), limits::kMaxBatchKeys);
}

TEST(LeaseRounds, AnExpiredDeadlineAsksNobody) {
    Cluster cluster(1);
    cluster.leases = {{0}};
    EXPECT_EQ(cluster.lease({{0}}, Deadline::after_ms(0)), 0u);
    EXPECT_TRUE(cluster.asked.empty());
}

// The number of rounds is bounded: one more than an object has replicas.
TEST(LeaseRounds, NodesThatRefuseEverythingEndIt) {
    Cluster cluster(1);
    EXPECT_EQ(cluster.lease(std::vector<std::vector<size_t>>(64, {0, 0, 0, 0, 0, 0, 0, 0})), 0u);
    EXPECT_LE(cluster.asked.size(), limits::kMaxReplicas + 1);
}

}  // namespace
}  // namespace kvstore
