// For the proof that the simulation finds what it is there for (tests/sim/mutations.py): takes one
// guard at a time out of a build made for that. In every other build a guard is its condition.
#pragma once

#ifdef KVSTORE_MUTATIONS

#include <cstdlib>
#include <string>
#include <string_view>

namespace kvstore {

// Whether the environment's KVSTORE_REMOVED_GUARDS, a list with commas, has this one.
inline bool guard_stands(std::string_view name) {
    static const std::string removed = [] {
        const char* const names = std::getenv("KVSTORE_REMOVED_GUARDS");
        return names == nullptr ? std::string() : "," + std::string(names) + ",";
    }();
    return removed.find("," + std::string(name) + ",") == std::string::npos;
}

}  // namespace kvstore

#define KV_GUARD(name, condition) (::kvstore::guard_stands(name) && (condition))
#else
#define KV_GUARD(name, condition) (condition)
#endif
