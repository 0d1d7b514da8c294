// Reads KVSTORE_FAULT_POINT, counts passages, and raises SIGKILL.
#include "base/fault_point.h"

#include <signal.h>

#include <cstdint>
#include <cstdlib>
#include <string>

namespace kvstore {
namespace {

struct Asked {
    std::string name;
    std::atomic<int64_t> left{1};

    Asked() {
        const char* text = std::getenv("KVSTORE_FAULT_POINT");
        if (text == nullptr || *text == '\0') {
            return;
        }
        name = text;
        if (const size_t colon = name.find(':'); colon != std::string::npos) {
            left.store(std::strtoll(name.c_str() + colon + 1, nullptr, 10));
            name.resize(colon);
        }
        fault::armed.store(true);
    }
};

Asked& asked() {
    static Asked instance;
    return instance;
}

}  // namespace

namespace fault {

constinit std::atomic<bool> armed{false};

void pass(std::string_view name) {
    Asked& which = asked();
    if (name == which.name && which.left.fetch_sub(1) == 1) {
        raise(SIGKILL);
    }
}

}  // namespace fault

namespace {

// Before any thread of ours runs.
[[maybe_unused]] const bool read_at_load = (asked(), true);

}  // namespace
}  // namespace kvstore
