// Places where a test ends this process: KVSTORE_FAULT_POINT="name" in the environment is SIGKILL
// when the place of this name is passed, "name:N" when it is passed for the Nth time.
//
// The environment is read once, when the library is loaded. Without the variable a passage costs
// one relaxed load of a flag that nobody writes.
#pragma once

#include <atomic>
#include <string_view>

namespace kvstore {

namespace fault {

extern std::atomic<bool> armed;

// Does not return when it is the passage that was asked for.
void pass(std::string_view name);

}  // namespace fault

inline void fault_point(std::string_view name) {
    if (fault::armed.load(std::memory_order_relaxed)) [[unlikely]] {
        fault::pass(name);
    }
}

}  // namespace kvstore
