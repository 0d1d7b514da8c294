// Time as the store uses it: CLOCK_BOOTTIME (it counts suspension; expiry must), and deadlines.
#pragma once

#include <cstdint>

namespace kvstore {

uint64_t boottime_ms();
uint64_t boottime_us();
uint64_t monotonic_ns();  // for latencies
uint64_t wall_ms();       // of the calendar; it may jump
uint64_t wall_us();

// A point in time by which a call has to return.
class Deadline {
  public:
    static Deadline after_ms(uint64_t ms) { return Deadline(boottime_us() + ms * 1000); }
    static Deadline never() { return Deadline(UINT64_MAX); }
    bool expired() const { return at_us_ != UINT64_MAX && boottime_us() >= at_us_; }
    // Milliseconds left, rounded up; 0 when expired; capped so that it fits poll(2).
    int left_ms() const;

  private:
    explicit Deadline(uint64_t at_us) : at_us_(at_us) {}
    uint64_t at_us_;
};

}  // namespace kvstore
