// CopyPlanner with a directory and a table of nodes: the life of an order, and what may lie where.
#include "master/copy_planner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

namespace kvstore {
namespace {

constexpr uint64_t kTimeoutMs = 30'000;  // CopyPolicy's default
constexpr uint64_t kStartMs = 100'000;

class CopyPlannerTest : public testing::Test {
  protected:
    CopyPlannerTest() {
        for (NodeNumber slot = 0; slot < 4; ++slot) {
            directory_.set_readable(slot, true);
            const std::string id = "node" + std::to_string(slot);
            nodes_.push_back({.slot = slot,
                              .source = true,
                              .target = true,
                              .counts = true,
                              .connected = true,
                              .weight = 1,
                              .id = id,
                              .host = id,
                              .endpoint = "tcp:" + id});
        }
    }

    const DirectoryEpoch& epoch() const { return *ns_.current.load(); }
    void record(std::string_view key, NodeNumber node, uint8_t wanted = 2, uint64_t size = 100) {
        const AnnounceOutcome outcome = directory_.announce(
            epoch(), node,
            {.key = key, .version = version_, .size = size, .replicas_wanted = wanted});
        ASSERT_EQ(outcome.code, Code::kOk);
    }
    // The one order that is due now, if there is one.
    std::optional<CopyPlanner::Dispatch> plan_one(uint64_t now_ms) {
        std::vector<CopyPlanner::Dispatch> orders = planner_.plan(now_ms, nodes_);
        EXPECT_LE(orders.size(), 1u);
        return orders.empty() ? std::nullopt : std::optional(std::move(orders[0]));
    }
    // Records an object on node 0 that wants two copies, and orders the second.
    CopyPlanner::Dispatch order(std::string_view key, uint64_t now_ms = kStartMs) {
        record(key, 0);
        EXPECT_TRUE(planner_.want(epoch(), key));
        std::optional<CopyPlanner::Dispatch> given = plan_one(now_ms);
        EXPECT_TRUE(given.has_value());
        return given.value_or(CopyPlanner::Dispatch{});
    }
    NodeNumber target_of(const CopyPlanner::Dispatch& given) const {
        return static_cast<NodeNumber>(given.order.target_node.back() - '0');
    }
    std::vector<NodeNumber> targets(std::string_view key) const {
        return planner_.targets(epoch(), key);
    }

    Directory directory_{HashSecret{1, 2, 3}, 3};
    Namespace& ns_ = **directory_.namespaces().open("tenant", "space");
    Version version_ = directory_.next_version();
    CopyPlanner planner_{directory_, 7};
    std::vector<CopyNode> nodes_;
};

TEST_F(CopyPlannerTest, NodesWithRoomAreFilledBeforeOthersEvict) {
    // Node 1 has room for eight objects more; the others would evict, whatever their weight.
    nodes_[1].free_bytes = 900;
    for (const size_t slot : {2, 3}) {
        nodes_[slot].weight = 100;
        nodes_[slot].free_bytes = 50;
    }
    std::vector<int> received(4);
    for (int i = 0; i < 12; ++i) {
        ++received[target_of(order("k" + std::to_string(i)))];
        if (i == 7) {
            EXPECT_EQ(received[1], 8);
        }
    }
    EXPECT_GT(received[2] + received[3], 0);  // its room is taken: now they are as good
    // It has told meanwhile that it has more: what is in flight counts still.
    nodes_[1].free_bytes = 2000;
    EXPECT_EQ(target_of(order("last", kStartMs)), 1);
    EXPECT_EQ(received[0], 0);
}

TEST_F(CopyPlannerTest, AnOrderNamesTheObjectItsSourceAndAnotherNode) {
    const CopyPlanner::Dispatch given = order("k");
    EXPECT_EQ(given.source, 0);
    EXPECT_EQ(given.order.ns.tenant, "tenant");
    EXPECT_EQ(given.order.ns.ns, "space");
    EXPECT_EQ(given.order.ns.epoch, epoch().epoch);
    EXPECT_EQ(given.order.key, "k");
    EXPECT_EQ(given.order.version, version_);
    EXPECT_NE(target_of(given), 0);
    EXPECT_EQ(given.order.target_endpoint, "tcp:" + given.order.target_node);
    EXPECT_EQ(planner_.stats().in_flight, 1u);
    EXPECT_EQ(targets("k"), std::vector{target_of(given)});
    EXPECT_TRUE(planner_.may_hold(target_of(given)));
    EXPECT_FALSE(planner_.may_hold(0));
}

TEST_F(CopyPlannerTest, MoreReplicasForNowAreMadeWhereThereAreNodesForThem) {
    record("k", 0, 1);
    EXPECT_TRUE(planner_.want(epoch(), "k", 3));
    EXPECT_EQ(planner_.plan(kStartMs, nodes_).size(), 2u);
    record("l", 0, 1);
    EXPECT_TRUE(planner_.want(epoch(), "l", 8));
    EXPECT_EQ(planner_.plan(kStartMs, nodes_).size(), 3u);  // on every other node
    EXPECT_EQ(planner_.size(), 2u);
    // Nobody waits for what no node is there for, and it does not count as failed.
    nodes_.resize(1);
    record("m", 0, 1);
    EXPECT_TRUE(planner_.want(epoch(), "m", 2));
    EXPECT_TRUE(planner_.plan(kStartMs, nodes_).empty());
    EXPECT_EQ(planner_.size(), 2u);
    EXPECT_EQ(planner_.stats().given_up, 0u);
}

TEST_F(CopyPlannerTest, AnAnnouncedCopyEndsItsOrder) {
    const CopyPlanner::Dispatch given = order("k");
    planner_.done(given.order.copy_id, Code::kOk, kStartMs);
    EXPECT_EQ(planner_.stats().in_flight, 1u) << "done, but not announced yet";
    record("k", target_of(given));
    planner_.landed(epoch(), "k", target_of(given));
    EXPECT_EQ(planner_.stats().done, 1u);
    EXPECT_EQ(plan_one(kStartMs), std::nullopt);
    EXPECT_TRUE(planner_.idle());
    EXPECT_TRUE(targets("k").empty());
}

TEST_F(CopyPlannerTest, ACopyThatLandsBeforeItsAnswerEndsTheOrderToo) {
    const CopyPlanner::Dispatch given = order("k");
    record("k", target_of(given));
    planner_.landed(epoch(), "k", target_of(given));
    planner_.done(given.order.copy_id, Code::kOk, kStartMs);
    EXPECT_EQ(plan_one(kStartMs), std::nullopt);
    EXPECT_TRUE(planner_.idle());
    EXPECT_EQ(planner_.stats().done, 1u);
}

TEST_F(CopyPlannerTest, ADoneCopyThatIsNeverAnnouncedIsOrderedAgain) {
    const CopyPlanner::Dispatch given = order("k");
    planner_.done(given.order.copy_id, Code::kOk, kStartMs);
    EXPECT_EQ(plan_one(kStartMs + 1'999), std::nullopt);
    EXPECT_EQ(plan_one(kStartMs + 2'000), std::nullopt) << "it fails now, and is retried later";
    EXPECT_EQ(planner_.stats().failed, 1u);
    EXPECT_TRUE(plan_one(kStartMs + 2'100).has_value());
}

TEST_F(CopyPlannerTest, AFailedOrderIsRetriedElsewhereLaterEachTime) {
    CopyPlanner::Dispatch given = order("k");
    uint64_t now_ms = kStartMs;
    for (uint64_t wait_ms = 100; wait_ms <= 6'400; wait_ms *= 2) {
        const NodeNumber before = target_of(given);
        planner_.done(given.order.copy_id, Code::kNoSpace, now_ms);
        EXPECT_EQ(plan_one(now_ms + wait_ms - 1), std::nullopt) << wait_ms;
        now_ms += wait_ms;
        const auto again = plan_one(now_ms);
        ASSERT_TRUE(again.has_value()) << wait_ms;
        EXPECT_NE(target_of(*again), before);
        given = *again;
    }
    EXPECT_EQ(planner_.stats().failed, 7u);
    planner_.done(given.order.copy_id, Code::kNoSpace, now_ms);
    EXPECT_EQ(planner_.stats().given_up, 1u) << "after max_attempts";
    EXPECT_TRUE(planner_.idle()) << "a full target has refused: nothing can lie there";
}

TEST_F(CopyPlannerTest, ASilentOrderFailsAtItsTimeAndItsTargetMayHoldTheCopy) {
    const CopyPlanner::Dispatch given = order("k");
    EXPECT_EQ(plan_one(kStartMs + kTimeoutMs - 1), std::nullopt);
    EXPECT_EQ(planner_.stats().failed, 0u);
    EXPECT_EQ(plan_one(kStartMs + kTimeoutMs), std::nullopt);
    EXPECT_EQ(planner_.stats().failed, 1u);
    EXPECT_EQ(targets("k"), std::vector{target_of(given)});
    EXPECT_TRUE(planner_.may_hold(target_of(given)));
}

TEST_F(CopyPlannerTest, AnOrderWhoseSourceOrTargetIsLostFailsAtOnce) {
    const CopyPlanner::Dispatch given = order("k");
    nodes_[target_of(given)].connected = false;
    nodes_[target_of(given)].target = false;
    EXPECT_EQ(plan_one(kStartMs + 1), std::nullopt);
    EXPECT_EQ(planner_.stats().failed, 1u);
    const auto again = plan_one(kStartMs + 101);
    ASSERT_TRUE(again.has_value());
    EXPECT_NE(target_of(*again), target_of(given));
    nodes_[0].source = false;
    EXPECT_EQ(plan_one(kStartMs + 102), std::nullopt);
    EXPECT_EQ(planner_.stats().failed, 2u);
}

TEST_F(CopyPlannerTest, AnUnheardCopyIsInDoubtUntilItsTimeWhileTheTargetIsConnected) {
    const CopyPlanner::Dispatch given = order("k");
    const NodeNumber target = target_of(given);
    nodes_[0].source = false;  // nothing is ordered again
    planner_.done(given.order.copy_id, Code::kDeadlineExceeded, kStartMs);
    EXPECT_EQ(targets("k"), std::vector{target});
    const uint64_t until_ms = kStartMs + kTimeoutMs + 10'000;
    planner_.plan(until_ms - 1'000, nodes_);
    EXPECT_EQ(targets("k"), std::vector{target});
    nodes_[target].connected = false;
    planner_.plan(until_ms + 1'000, nodes_);
    EXPECT_EQ(targets("k"), std::vector{target}) << "a node that is not connected cannot announce";
    nodes_[target].connected = true;
    planner_.plan(until_ms + 2'000, nodes_);
    EXPECT_TRUE(targets("k").empty());
    EXPECT_TRUE(planner_.idle());
}

TEST_F(CopyPlannerTest, ADoubtEndsWithTheAnnouncementOrTheNode) {
    CopyPlanner::Dispatch given = order("announced");
    nodes_[0].source = false;
    planner_.done(given.order.copy_id, Code::kDeadlineExceeded, kStartMs);
    planner_.landed(epoch(), "announced", target_of(given));
    EXPECT_TRUE(targets("announced").empty());
    planner_.plan(kStartMs + 1'000, nodes_);
    nodes_[0].source = true;
    given = order("removed", kStartMs + 2'000);
    nodes_[0].source = false;
    planner_.done(given.order.copy_id, Code::kDeadlineExceeded, kStartMs + 2'000);
    nodes_[target_of(given)] = CopyNode{};
    planner_.plan(kStartMs + 4'000, nodes_);
    EXPECT_TRUE(targets("removed").empty());
    EXPECT_TRUE(planner_.idle());
}

TEST_F(CopyPlannerTest, ADoubtIsNeitherATaskNorInFlight) {
    CopyPolicy policy;
    policy.max_in_flight = 1;
    planner_.set_policy(policy);
    const CopyPlanner::Dispatch given = order("k");
    planner_.done(given.order.copy_id, Code::kDeadlineExceeded, kStartMs);
    nodes_[0].source = false;
    EXPECT_EQ(plan_one(kStartMs + 100), std::nullopt) << "nobody can send it: the task is dropped";
    EXPECT_EQ(planner_.size(), 0u);
    EXPECT_EQ(planner_.stats().queued, 0u);
    EXPECT_EQ(planner_.stats().in_flight, 0u);
    EXPECT_FALSE(planner_.idle());
    nodes_[0].source = true;
    const CopyPlanner::Dispatch again = order("k", kStartMs + 200);
    EXPECT_EQ(planner_.stats().in_flight, 1u) << "the doubt takes no place";
    planner_.done(again.order.copy_id, Code::kNoSpace, kStartMs + 200);
    EXPECT_TRUE(plan_one(kStartMs + 300).has_value()) << "a new task counts its attempts afresh";
}

TEST_F(CopyPlannerTest, OneAnnouncementEndsTheOrderAndTheDoubtOfItsNode) {
    nodes_[2].target = nodes_[3].target = false;
    const CopyPlanner::Dispatch given = order("k");
    planner_.done(given.order.copy_id, Code::kDeadlineExceeded, kStartMs);
    const auto again = plan_one(kStartMs + 100);
    ASSERT_TRUE(again.has_value()) << "a doubt does not keep its target from an order";
    ASSERT_EQ(target_of(*again), target_of(given));
    record("k", target_of(given));
    planner_.landed(epoch(), "k", target_of(given));
    EXPECT_TRUE(targets("k").empty());
    EXPECT_EQ(planner_.stats().done, 1u);
    EXPECT_EQ(plan_one(kStartMs + 100), std::nullopt);
    EXPECT_TRUE(planner_.idle());
}

TEST_F(CopyPlannerTest, OrdersKeepToTheRates) {
    CopyPolicy policy;
    policy.copies_per_s = 10;
    planner_.set_policy(policy);
    for (int i = 0; i < 30; ++i) {
        record("k" + std::to_string(i), 0);
        planner_.want(epoch(), "k" + std::to_string(i));
    }
    EXPECT_EQ(planner_.plan(kStartMs, nodes_).size(), 10u) << "a second's worth";
    EXPECT_EQ(planner_.plan(kStartMs, nodes_).size(), 0u);
    EXPECT_EQ(planner_.plan(kStartMs + 500, nodes_).size(), 5u);
    EXPECT_EQ(planner_.plan(kStartMs + 10'000, nodes_).size(), 10u);
}

TEST_F(CopyPlannerTest, BytesAndOrdersInFlightAreLimited) {
    CopyPolicy policy;
    policy.bytes_per_s = 250;
    policy.max_in_flight = 4;
    planner_.set_policy(policy);
    for (int i = 0; i < 10; ++i) {
        record("k" + std::to_string(i), 0);
        planner_.want(epoch(), "k" + std::to_string(i));
    }
    EXPECT_EQ(planner_.plan(kStartMs, nodes_).size(), 3u) << "until the bytes are used up";
    EXPECT_EQ(planner_.plan(kStartMs + 1'000, nodes_).size(), 1u) << "four are in flight";
}

TEST_F(CopyPlannerTest, OneCopyPerHostWhereHostsAllow) {
    nodes_[1].host = nodes_[2].host = nodes_[0].host;
    EXPECT_EQ(target_of(order("k")), 3);
}

TEST_F(CopyPlannerTest, ADrainedNodeIsASourceButNotACopyThatCounts) {
    nodes_[0].counts = false;
    nodes_[0].target = false;
    record("k", 0, 1);
    planner_.want(epoch(), "k");
    const auto given = plan_one(kStartMs);
    ASSERT_TRUE(given.has_value());
    EXPECT_EQ(given->source, 0);
    EXPECT_NE(target_of(*given), 0);
}

TEST_F(CopyPlannerTest, NothingIsOrderedForObjectsThatAreGoneCompleteOrUnreadable) {
    EXPECT_TRUE(planner_.want(epoch(), "absent"));
    record("complete", 0, 1);
    EXPECT_TRUE(planner_.want(epoch(), "complete"));
    record("unreadable", 3);
    nodes_[3].source = false;
    EXPECT_TRUE(planner_.want(epoch(), "unreadable"));
    EXPECT_TRUE(planner_.plan(kStartMs, nodes_).empty());
    EXPECT_TRUE(planner_.idle());
}

}  // namespace
}  // namespace kvstore
