// Fails fast for a short while after failures, so that an unreachable peer costs one call its time
// and the others nothing.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "base/clock.h"
#include "base/interrupt.h"

namespace kvstore {

// Thread-safe. Closed: everybody may try. After a failure it is open for a pause that doubles with
// each further failure; after it one caller at a time may probe.
class Breaker {
  public:
    explicit Breaker(uint64_t first_pause_ms = 100, uint64_t max_pause_ms = 2000)
        : first_pause_ms_(first_pause_ms), max_pause_ms_(max_pause_ms) {}

    // Whether to try now. A probe that never reports back only delays the next one by a pause.
    bool allow() {
        uint64_t until = open_until_ms_.load(std::memory_order_relaxed);
        if (until == 0) {
            return true;
        }
        const uint64_t now = boottime_ms();
        return now >= until && open_until_ms_.compare_exchange_strong(until, now + pause_ms(),
                                                                      std::memory_order_relaxed);
    }
    // Whether allow() would say yes, without taking the probe.
    bool ready() const {
        const uint64_t until = open_until_ms_.load(std::memory_order_relaxed);
        return until == 0 || boottime_ms() >= until;
    }
    bool is_open() const { return open_until_ms_.load(std::memory_order_relaxed) != 0; }
    void success() {
        if (is_open()) {
            failures_.store(0, std::memory_order_relaxed);
            open_until_ms_.store(0, std::memory_order_relaxed);
        }
    }
    void failure() {
        if (is_interrupted()) {
            return;  // it was not given its time
        }
        failures_.fetch_add(1, std::memory_order_relaxed);
        open_until_ms_.store(boottime_ms() + pause_ms(), std::memory_order_relaxed);
    }

  private:
    uint64_t pause_ms() const {
        const uint32_t failures = failures_.load(std::memory_order_relaxed);
        const uint32_t doublings = std::min(failures > 0 ? failures - 1 : 0, 16u);
        return std::min(first_pause_ms_ << doublings, max_pause_ms_);
    }

    const uint64_t first_pause_ms_;
    const uint64_t max_pause_ms_;
    std::atomic<uint64_t> open_until_ms_{0};
    std::atomic<uint32_t> failures_{0};
};

}  // namespace kvstore
