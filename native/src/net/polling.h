// Waiting that asks again and again before it sleeps, as long as that pays. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/clock.h"

namespace kvstore {

// To sleep and be woken takes longer than many an answer. So for up to `most_us` the caller keeps
// its processor; the time is halved whenever nothing came within `most_us`, down to none, and
// doubled when it did. An idle caller sleeps.
class Polling {
  public:
    explicit Polling(uint32_t most_us = 0) : most_us_(most_us), us_(most_us) {}

    // `ask(timeout_ms)` waits as poll(2) does: 0 says that nothing came.
    template <class Ask>
    int wait(int timeout_ms, const Ask& ask) {
        if (most_us_ == 0 || timeout_ms == 0) {
            return ask(timeout_ms);
        }
        const uint64_t begun_us = boottime_us();
        int found = 0;
        while (found == 0 && boottime_us() - begun_us < us_) {
            found = ask(0);
        }
        if (found == 0) {
            found = ask(timeout_ms);
        }
        const bool soon = found > 0 && boottime_us() - begun_us <= most_us_;
        us_ = soon ? std::min(most_us_, 2 * us_ + 1) : us_ / 2;
        return found;
    }
    uint32_t us() const { return us_; }  // of the next wait

  private:
    uint32_t most_us_;
    uint32_t us_;
};

}  // namespace kvstore
