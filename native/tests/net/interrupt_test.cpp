// Waits that are told to end: by whom they ask, when they ask, and what others hear of it.
#include "base/interrupt.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <csignal>
#include <thread>

#include "net/socket.h"

namespace kvstore {
namespace {

constexpr uint64_t kLongMs = 60'000;
constexpr uint64_t kSoonMs = 10'000;

// Says yes from the n-th time on.
class Asked final : public Interruptible {
  public:
    explicit Asked(int yes_from) : yes_from_(yes_from) {}
    int times = 0;
    bool was_locked = false;

  private:
    bool asked(bool is_locked) override {
        was_locked = is_locked;
        return ++times >= yes_from_;
    }
    const int yes_from_;
};

class InterruptTest : public testing::Test {
  protected:
    void SetUp() override {
        int pair[2];
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
        one_ = Fd(pair[0]);
        two_ = Fd(pair[1]);
    }
    Status receive(uint64_t deadline_ms) {
        std::array<uint8_t, 4> bytes;
        return recv_all(one_.get(), std::span<uint8_t>(bytes), Deadline::after_ms(deadline_ms));
    }
    Fd one_;
    Fd two_;
};

TEST_F(InterruptTest, AWaitAsksAndEnds) {
    Asked call(2);
    const Deadline soon = Deadline::after_ms(kSoonMs);
    EXPECT_EQ(receive(kLongMs).code(), Code::kDeadlineExceeded);
    EXPECT_FALSE(soon.expired());
    EXPECT_EQ(call.times, 2);
    EXPECT_TRUE(is_interrupted());
    // From then on none of the call's waits waits, and nobody is asked again.
    EXPECT_EQ(receive(kLongMs).code(), Code::kDeadlineExceeded);
    EXPECT_FALSE(soon.expired());
    EXPECT_EQ(call.times, 2);
}

TEST_F(InterruptTest, WhatIsThereIsTaken) {
    Asked call(1);
    ASSERT_EQ(send(two_.get(), "four", 4, 0), 4);
    EXPECT_TRUE(check_interrupt());
    EXPECT_TRUE(receive(kLongMs).ok());
}

TEST_F(InterruptTest, TheDeadlineStands) {
    Asked call(1000);
    EXPECT_EQ(receive(250).code(), Code::kDeadlineExceeded);
    EXPECT_FALSE(is_interrupted());
    EXPECT_GE(call.times, 1);
}

TEST_F(InterruptTest, OnlyACallThatMayBeInterruptedAsks) {
    EXPECT_EQ(wait_slice_ms(5000), 5000);
    Asked call(1);
    {
        const Uninterrupted waits;
        EXPECT_EQ(receive(50).code(), Code::kDeadlineExceeded);
        EXPECT_EQ(call.times, 0);
    }
    EXPECT_LT(wait_slice_ms(5000), 5000);
    EXPECT_LT(wait_slice_ms(1), 2);
    call.end();
    EXPECT_EQ(wait_slice_ms(5000), 5000);
    EXPECT_FALSE(check_interrupt());
}

TEST_F(InterruptTest, ItHearsOfLocks) {
    Asked call(1000);
    (void)check_interrupt();
    EXPECT_FALSE(call.was_locked);
    const WaitsLocked waits;
    (void)check_interrupt();
    EXPECT_TRUE(call.was_locked);
}

TEST_F(InterruptTest, AnotherThreadDoesNotHear) {
    Asked call(1);
    EXPECT_TRUE(check_interrupt());
    std::thread([] { EXPECT_FALSE(check_interrupt()); }).join();
}

}  // namespace
}  // namespace kvstore
