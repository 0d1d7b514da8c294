// How long a wait polls: as long as answers come soon, and not at all while they do not.
#include "net/polling.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <vector>

namespace kvstore {
namespace {

constexpr uint32_t kLongUs = 10'000'000;  // every answer of these tests is sooner
constexpr uint32_t kShortUs = 64;

// What was asked with which time-out, until the answer that is `found` in the end.
struct Asked {
    std::vector<int> timeouts;
    int found_after = 1;
    std::chrono::milliseconds slept{0};

    int operator()(int timeout_ms) {
        timeouts.push_back(timeout_ms);
        if (timeout_ms != 0) {
            std::this_thread::sleep_for(slept);
            return 1;
        }
        return timeouts.size() >= static_cast<size_t>(found_after) ? 1 : 0;
    }
};

int wait(Polling& polling, Asked& asked) {
    return polling.wait(50, [&](int timeout_ms) { return asked(timeout_ms); });
}

TEST(PollingTest, WithoutATimeItSleepsAtOnce) {
    Polling polling;
    Asked asked;
    EXPECT_EQ(wait(polling, asked), 1);
    EXPECT_EQ(asked.timeouts, std::vector<int>{50});
}

TEST(PollingTest, WhatComesSoonIsPolledFor) {
    Polling polling(kLongUs);
    Asked asked;
    asked.found_after = 4;
    EXPECT_EQ(wait(polling, asked), 1);
    EXPECT_EQ(asked.timeouts, std::vector<int>(4, 0));
    EXPECT_EQ(polling.us(), kLongUs);
}

TEST(PollingTest, WhoeverWaitsInVainSoonSleepsAtOnceAndPollsAgainWhenItPays) {
    Polling polling(kShortUs);
    for (uint32_t left = kShortUs; left != 0; left /= 2) {
        EXPECT_EQ(polling.us(), left);
        Asked late{.timeouts = {}, .found_after = 1 << 30, .slept = std::chrono::milliseconds(2)};
        EXPECT_EQ(wait(polling, late), 1);
        EXPECT_EQ(late.timeouts.back(), 50);
    }
    EXPECT_EQ(polling.us(), 0u);
    Asked asked;
    EXPECT_EQ(wait(polling, asked), 1);
    EXPECT_EQ(asked.timeouts, std::vector<int>{50}) << "it does not even look first";

    Polling waking(kLongUs);
    for (uint32_t left = kLongUs; left != 0; left /= 2) {
        (void)waking.wait(50, [](int) { return -1; });  // an error is no reason to poll
    }
    EXPECT_EQ(waking.us(), 0u);
    Asked soon;
    EXPECT_EQ(wait(waking, soon), 1);
    EXPECT_EQ(waking.us(), 1u);
}

TEST(PollingTest, ACallerThatMayNotWaitDoesNot) {
    Polling polling(kLongUs);
    int calls = 0;
    EXPECT_EQ(polling.wait(0, [&](int) { return ++calls, 0; }), 0);
    EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace kvstore
