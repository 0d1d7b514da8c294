// Readings of the kernel's clocks.
#include "base/clock.h"

#include <time.h>

#include <algorithm>
#include <climits>

namespace kvstore {
namespace {

uint64_t read_ns(clockid_t clock) {
    timespec now{};
    clock_gettime(clock, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace

uint64_t boottime_ms() { return read_ns(CLOCK_BOOTTIME) / 1'000'000; }
uint64_t boottime_us() { return read_ns(CLOCK_BOOTTIME) / 1'000; }
uint64_t monotonic_ns() { return read_ns(CLOCK_MONOTONIC); }
uint64_t wall_ms() { return read_ns(CLOCK_REALTIME) / 1'000'000; }
uint64_t wall_us() { return read_ns(CLOCK_REALTIME) / 1'000; }

int Deadline::left_ms() const {
    if (at_us_ == UINT64_MAX) {
        return INT_MAX;
    }
    const uint64_t now_us = boottime_us();
    if (now_us >= at_us_) {
        return 0;
    }
    // Rounded up: a poll(2) that wakes a fraction of a millisecond early would spin.
    const uint64_t left = (at_us_ - now_us - 1) / 1000 + 1;
    return static_cast<int>(std::min<uint64_t>(left, INT_MAX));
}

}  // namespace kvstore
