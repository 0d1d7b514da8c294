// What a read from other nodes does next with one object. Pure: RemoteReads carries it out.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/limits.h"
#include "base/status.h"
#include "client/placement_cache.h"

namespace kvstore {

// One object and what is left of its replicas.
struct ReadJob {
    size_t item = 0;
    Placement placement;
    uint32_t tried = 0;  // bit per replica: refused, or its node is down
    int trying = -1;     // replica of this round
    bool done = false;
    bool by_socket = false;   // UCX did not bring it
    bool remembered = false;  // its placement comes from an earlier lookup
    bool repeated = false;    // the lookup says again what was refused before
    bool newer = false;       // then a newer version, not announced yet, is right too
    // Not kNone: the master could not be asked, so an absence at its replicas proves nothing.
    MissReason unasked = MissReason::kNone;
    MissReason last = MissReason::kNodeDown;

    int replicas_left() const;
};

// How near each replica is; the highest is read first. 0: its node is down.
using ReplicaScores = std::array<int, limits::kMaxReplicas>;
// What is asked of each replica's node now, in bytes.
using ReplicaLoads = std::array<uint64_t, limits::kMaxReplicas>;

// Raises a score by one, where several are the highest: of two of those, drawn by a random number,
// that of the node which is asked for less.
void break_tie(const ReadJob& job, const ReplicaLoads& loads, uint64_t random,
               ReplicaScores* scores);

struct NextStep {
    enum Kind : uint8_t {
        kTry,       // read `replica`
        kAskAgain,  // look the object up again
        kMiss,      // for `reason`
    };
    Kind kind = kMiss;
    int replica = -1;
    bool newer = false;  // kTry: ask for whatever version is newest there
    MissReason reason = MissReason::kNone;
    friend bool operator==(const NextStep&, const NextStep&) = default;
};

// The nearest replica that was not tried. When none is left:
//
//   placement remembered                              ask again: it may be outdated
//   last replica had another version, the master was
//     asked, and has not repeated itself              ask again: it may know the newer one
//   the same, but the master repeated itself          every replica once more, any newer version:
//                                                     its announcement is still on the way
//   else                                              a miss, for what the last replica said; for
//                                                     `unasked` where that proves nothing
//
// An expired deadline leaves no replica to try.
NextStep next_step(const ReadJob& job, const ReplicaScores& scores, bool expired);

}  // namespace kvstore
