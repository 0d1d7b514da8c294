// Clocks that go forward, and deadlines.
#include "base/clock.h"

#include <gtest/gtest.h>

#include <climits>

namespace kvstore {
namespace {

TEST(Clock, UnitsAgreeAndNothingGoesBack) {
    const uint64_t before_ms = boottime_ms();
    const uint64_t us = boottime_us();
    const uint64_t after_ms = boottime_ms();
    EXPECT_GT(before_ms, 0u);
    EXPECT_LE(before_ms, us / 1000);
    EXPECT_LE(us / 1000, after_ms);
    const uint64_t ns = monotonic_ns();
    EXPECT_LE(ns, monotonic_ns());
}

TEST(Deadline, LeavesTheTimeItWasGiven) {
    const Deadline soon = Deadline::after_ms(60'000);
    EXPECT_FALSE(soon.expired());
    EXPECT_GT(soon.left_ms(), 50'000);
    EXPECT_LE(soon.left_ms(), 60'000);
}

TEST(Deadline, PassesAndNeverGoesNegative) {
    const Deadline now = Deadline::after_ms(0);
    EXPECT_TRUE(now.expired());
    EXPECT_EQ(now.left_ms(), 0);
    const Deadline one = Deadline::after_ms(1);
    while (!one.expired()) {
        EXPECT_LE(one.left_ms(), 1);
    }
    EXPECT_EQ(one.left_ms(), 0);
}

TEST(Deadline, NeverFitsPoll) {
    EXPECT_FALSE(Deadline::never().expired());
    EXPECT_EQ(Deadline::never().left_ms(), INT_MAX);
    EXPECT_EQ(Deadline::after_ms(1ull << 40).left_ms(), INT_MAX);
}

}  // namespace
}  // namespace kvstore
