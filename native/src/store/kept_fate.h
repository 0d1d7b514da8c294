// What becomes of each block of a node's earlier life: decided here, executed by store_attach.cpp.
#pragma once

#include <cstdint>

#include "base/mutation.h"
#include "index/protocol_steps.h"

namespace kvstore {

enum class Fate : uint8_t {
    kCarry,       // its object stands in the new index
    kQuarantine,  // a living client may still write into it: not reused until the writer is done
    kDefer,       // a living client may still read it: not reused until nobody does
    kDrop,        // nobody can use it: its memory is free
};

// What is known of a block once the old index is retired, so that nobody begins to read it.
struct KeptFacts {
    bool is_placed = false;        // nothing else claims its memory or its generation
    bool is_carried = false;       // a valid object, inserted into the new index
    bool writer_lives = false;     // it was being written, and the writer's lock is still held
    bool is_held = false;          // a living client holds it by socket
    bool hazard_names_it = false;  // a living client's slot names its generation or its place
};

inline Fate fate_of(const KeptFacts& facts) {
    if (!facts.is_placed) {
        return Fate::kDrop;
    }
    if (facts.is_carried) {
        return Fate::kCarry;
    }
    const bool is_written =
        !steps::may_reuse_old_reservation(steps::RealMemory{}, facts.writer_lives);
    if (KV_GUARD("attach-reservations", is_written)) {
        return Fate::kQuarantine;
    }
    const bool is_read = facts.is_held || KV_GUARD("attach-hazards", facts.hazard_names_it);
    return is_read ? Fate::kDefer : Fate::kDrop;
}

}  // namespace kvstore
