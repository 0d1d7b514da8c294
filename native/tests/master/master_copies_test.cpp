// MasterCore's copies: replicas, orders that fail, drain and repair.
#include <gtest/gtest.h>

#include <set>

#include "tests/master/master_core_fixture.h"

namespace kvstore {
namespace {

class MasterCopiesTest : public MasterCoreTest {};

TEST_F(MasterCopiesTest, ReplicasGoToOtherHosts) {
    Node a = add_node("a", 1, "host1");
    Node b = add_node("b", 1, "host1");
    Node c = add_node("c", 1, "host2");
    uint64_t now_ms = boottime_ms();
    for (int i = 0; i < 20; ++i) {
        put(a, "two" + std::to_string(i), 2);
    }
    EXPECT_EQ(copy({&a, &b, &c}, now_ms), 20u);
    for (int i = 0; i < 20; ++i) {
        const ObjectPlace place = find("two" + std::to_string(i));
        ASSERT_EQ(place.replica_count, 2);
        EXPECT_EQ(place.nodes[1], 2);
    }
    put(a, "three", 3);
    EXPECT_EQ(copy({&a, &b, &c}, now_ms), 2u);
    EXPECT_EQ(find("three").replica_count, 3);
    EXPECT_EQ(core_->under_replicated(), 0u);
    put(a, "nine", 8);
    copy({&a, &b, &c}, now_ms);
    EXPECT_EQ(find("nine").replica_count, 3) << "as many as there are nodes";
    EXPECT_EQ(core_->stats().copies.in_flight, 0u);
}

TEST_F(MasterCopiesTest, AFailedCopyIsTriedElsewhere) {
    Node a = add_node("a");
    Node b = add_node("b");
    Node c = add_node("c");
    uint64_t now_ms = boottime_ms();
    put(a, "k", 2);
    core_->maintain(now_ms += 100);
    ASSERT_EQ(a.to->copies.size(), 1u);
    const CopyOrder first = a.to->copies.front();
    a.to->copies.pop_front();
    Answer answer;
    core_->copy_done(a.link, first.copy_id, Code::kNoSpace);
    core_->maintain(now_ms += 1000);
    ASSERT_EQ(a.to->copies.size(), 1u);
    EXPECT_NE(a.to->copies.front().target_node, first.target_node);
    // Silence counts as failure too.
    a.to->copies.clear();
    core_->maintain(now_ms += 31'000);
    core_->maintain(now_ms += 1'000);
    EXPECT_EQ(a.to->copies.size(), 1u);
    // The target of an order in flight is a holder.
    core_->remove(*ns_, {"k"}, 60'000, answer.done());
    ack(a);
    EXPECT_EQ(answer.calls, 0);
    ack(b);
    ack(c);
    EXPECT_EQ(answer.codes, std::vector<Code>{Code::kOk});
}

// It may have arrived there, with its announcement lost.
TEST_F(MasterCopiesTest, ACopyThatFailedOnTheWayIsRemovedWithTheRest) {
    for (const Code failure : {Code::kClosed, Code::kNoSpace}) {
        restart(options());
        Node a = add_node("a");
        Node b = add_node("b");
        put(a, "k", 2);
        core_->maintain(boottime_ms());
        ASSERT_EQ(a.to->copies.size(), 1u);
        core_->close_link(b.link);
        core_->copy_done(a.link, a.to->copies.front().copy_id, failure);
        Answer answer;
        core_->remove(*ns_, {"k"}, 1000, answer.done());
        ack(a);
        const bool perhaps = failure == Code::kClosed;
        EXPECT_EQ(answer.codes, std::vector<Code>{perhaps ? Code::kPartial : Code::kOk});
        EXPECT_EQ(answer.unreached.size(), perhaps ? 1u : 0u);
        Code flushed = Code::kInternal;
        core_->flush(*ns_, 1000,
                     [&](Code code, const std::vector<std::string>&, uint32_t) { flushed = code; });
        ack(a);
        EXPECT_EQ(flushed, Code::kPartial);
    }
}

// It has landed, and the newer version is gone before its announcement comes.
TEST_F(MasterCopiesTest, ACopyThatANewerVersionHasOvertakenIsRefused) {
    Node a = add_node("a");
    Node b = add_node("b");
    const Version old = put(a, "k", 2);
    core_->maintain(boottime_ms());
    ASSERT_EQ(a.to->copies.size(), 1u);
    const Version newer = core_->directory().next_version();
    EXPECT_EQ(announce(a, AnnouncePhase::kIncremental, {{"k", newer}}), std::vector<int32_t>{0});
    withdraw(a, "k", newer);
    EXPECT_EQ(announce(b, AnnouncePhase::kIncremental, {{"k", old}}),
              std::vector<int32_t>{static_cast<int32_t>(Code::kRemoved)});
    EXPECT_EQ(find("k").code, Code::kNotFound);
}

TEST_F(MasterCopiesTest, DrainMovesEverythingAway) {
    Node a = add_node("a");
    Node b = add_node("b");
    uint64_t now_ms = boottime_ms();
    for (int i = 0; i < 50; ++i) {
        put(a, "k" + std::to_string(i));
    }
    EXPECT_TRUE(core_->set_node("a", NodeState::kDraining, 0, 0, 0).ok());
    EXPECT_EQ(core_->drain_left("a").objects, 50u);
    EXPECT_EQ(core_->drain_left("a").bytes, 50 * find("k0").size);
    copy({&a, &b}, now_ms);
    EXPECT_EQ(core_->drain_left("a").objects, 0u);
    EXPECT_TRUE(core_->remove_node("a").ok());
    EXPECT_EQ(find("k7").replica_count, 1);
    EXPECT_EQ(find("k7").code, Code::kOk);
}

TEST_F(MasterCopiesTest, ADeathIsRepairedAfterItsDelayAnEvictionIsNot) {
    Node a = add_node("a");
    Node b = add_node("b");
    Node c = add_node("c");
    core_->set_copy_policy({.repair_delay_ms = 5000});
    uint64_t now_ms = boottime_ms();
    const Version evicted = put(a, "evicted", 2);
    put(a, "kept", 2);
    EXPECT_EQ(copy({&a, &b, &c}, now_ms), 2u);
    const ObjectPlace place = find("evicted");
    Node& other = place.nodes[1] == 1 ? b : c;
    withdraw(other, "evicted", evicted);
    Node& dead = find("kept").nodes[1] == 1 ? b : c;
    Node& alive = &dead == &b ? c : b;
    EXPECT_TRUE(core_->set_node(dead.id, NodeState::kDead, 0, 0, 0).ok());
    EXPECT_EQ(core_->under_replicated(), 1u);
    EXPECT_EQ(copy({&a, &alive}, now_ms), 0u) << "it may come back";
    now_ms += 6000;
    EXPECT_EQ(copy({&a, &alive}, now_ms), 1u);
    EXPECT_EQ(find("kept").replica_count, 2);
    EXPECT_EQ(find("evicted").replica_count, 1);
}

}  // namespace
}  // namespace kvstore
