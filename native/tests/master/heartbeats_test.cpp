// Heartbeats between the links and the control plane: who waits, and when a batch is due.
#include "master/heartbeats.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"

namespace kvstore {
namespace {

constexpr uint32_t kWaitMs = 30'000;
constexpr uint64_t kGapMs = 50;

NodeHeartbeat heartbeat(LinkId link, uint64_t request_id, std::string request = "request") {
    return {.link = link,
            .request_id = request_id,
            .node_id = "node",
            .session_id = 7,
            .request = std::move(request)};
}

std::vector<uint64_t> ids(const std::vector<NodeHeartbeat>& taken) {
    std::vector<uint64_t> out;
    for (const NodeHeartbeat& one : taken) {
        out.push_back(one.request_id);
    }
    return out;
}

TEST(HeartbeatsTest, ANewerOneTakesThePlaceOfOneThatWaits) {
    Heartbeats heartbeats;
    EXPECT_EQ(heartbeats.add(heartbeat(1, 10)), std::nullopt);
    EXPECT_EQ(heartbeats.add(heartbeat(2, 20)), std::nullopt);
    EXPECT_EQ(heartbeats.add(heartbeat(1, 11)), 10u);
    EXPECT_EQ(ids(heartbeats.take(kWaitMs, 0)), (std::vector<uint64_t>{11, 20}));
    EXPECT_EQ(heartbeats.add(heartbeat(1, 12)), std::nullopt) << "the one before was taken";
}

TEST(HeartbeatsTest, TheBytesThatWaitAreBounded) {
    Heartbeats heartbeats;
    const std::string most(limits::kMaxHeartbeatBytes, 'x');
    const size_t fit = limits::kMaxWaitingHeartbeatBytes / limits::kMaxHeartbeatBytes;
    for (LinkId link = 1; link <= fit; ++link) {
        ASSERT_EQ(heartbeats.add(heartbeat(link, link, most)), std::nullopt);
    }
    EXPECT_EQ(heartbeats.add(heartbeat(fit + 1, 99)), 99u);
    EXPECT_EQ(heartbeats.add(heartbeat(1, 100, most)), 1u) << "it has given up its own place";
    heartbeats.lost(2);
    EXPECT_EQ(heartbeats.add(heartbeat(fit + 1, 101)), std::nullopt);
    EXPECT_EQ(heartbeats.add(heartbeat(fit + 1, 103, most)), 101u);
    EXPECT_EQ(heartbeats.add(heartbeat(fit + 2, 104)), 104u);
    EXPECT_EQ(heartbeats.take(kWaitMs, 0).size(), fit);
    EXPECT_EQ(heartbeats.add(heartbeat(2, 102, most)), std::nullopt) << "taken bytes are free";
}

TEST(HeartbeatsTest, TheFirstComesAtOnceAndTheOthersTogether) {
    Heartbeats heartbeats;
    const uint64_t start_ms = boottime_ms();
    heartbeats.add(heartbeat(1, 10));
    EXPECT_EQ(heartbeats.take(kWaitMs, kGapMs).size(), 1u);
    heartbeats.add(heartbeat(2, 20));
    heartbeats.add(heartbeat(3, 30));
    EXPECT_EQ(heartbeats.take(kWaitMs, kGapMs).size(), 2u);
    EXPECT_GE(boottime_ms(), start_ms + kGapMs);
    EXPECT_TRUE(heartbeats.take(1, kGapMs).empty());
}

TEST(HeartbeatsTest, FewNodesDoNotWait) {
    EXPECT_EQ(Heartbeats::gap_ms(1), 2u);
    EXPECT_EQ(Heartbeats::gap_ms(1000), Heartbeats::kMostGapMs);
}

TEST(HeartbeatsTest, ABatchIsNotTooLarge) {
    Heartbeats heartbeats;
    for (LinkId link = 1; link <= Heartbeats::kMostTaken + 3; ++link) {
        heartbeats.add(heartbeat(link, link));
    }
    EXPECT_EQ(heartbeats.take(kWaitMs, 0).size(), Heartbeats::kMostTaken);
    EXPECT_EQ(ids(heartbeats.take(kWaitMs, 0)).front(), Heartbeats::kMostTaken + 1);
}

TEST(HeartbeatsTest, AStopWakesWhoWaits) {
    Heartbeats heartbeats;
    std::thread taker([&] { EXPECT_TRUE(heartbeats.take(UINT32_MAX, 0).empty()); });
    heartbeats.stop();
    taker.join();
    heartbeats.add(heartbeat(1, 10));
    EXPECT_TRUE(heartbeats.take(kWaitMs, 0).empty());
}

}  // namespace
}  // namespace kvstore
