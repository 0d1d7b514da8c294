// How far a node's link to its master is.
#pragma once

#include <cstdint>

namespace kvstore {

enum class LinkState : uint8_t {
    kDown = 0,     // no connection: puts are refused, reads go on
    kSyncing = 1,  // connected: missed operations are applied, then everything is announced
    kUp = 2,       // puts are served
};

inline const char* link_state_name(LinkState state) {
    switch (state) {
        case LinkState::kDown:
            return "down";
        case LinkState::kSyncing:
            return "syncing";
        case LinkState::kUp:
            return "up";
    }
    return "unknown";
}

}  // namespace kvstore
