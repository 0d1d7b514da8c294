// Waiting in tests: for a condition, with a deadline; never a fixed sleep.
#pragma once

#include <chrono>
#include <functional>
#include <thread>

#include "base/clock.h"

namespace kvstore::testing {

// Long enough for a starved machine; what must be quick is measured where it must.
inline Deadline soon() { return Deadline::after_ms(30'000); }

inline bool eventually(const std::function<bool()>& condition) {
    const Deadline deadline = soon();
    while (!condition()) {
        if (deadline.expired()) {
            return false;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
}

}  // namespace kvstore::testing
