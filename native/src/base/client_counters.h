// What a client counts. The numbers are positions in a slot's counters (shared_layout.h), so that
// the node can export its clients' counters; a number is never reused.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "base/status.h"

namespace kvstore {

enum class ClientCounter : uint8_t {
    kKeysRead = 0,     // 1 to 11: misses by reason, see miss_counter()
    kHitsShm = 12,     // keys read from a mapped segment
    kHitsSocket = 13,  // keys read through a socket
    kBytesReadShm = 14,
    kBytesReadSocket = 15,
    kPutsOk = 16,
    kPutsExisting = 17,
    kPutsFailed = 18,
    kBytesPutShm = 19,
    kBytesPutSocket = 20,
    kWrongChecksums = 21,  // copies that were refused because their bytes were not those put
    kRetries = 22,         // reads that went on to another replica, writes that were tried again
    kLookups = 23,         // requests sent to the master
    kMasterFailures = 24,
    kViews = 25,
    kLeases = 26,
    kMissLater = 27,  // and 28: misses for the reasons that were added later
    kHitsUcx = 29,    // keys read by one-sided reads
    kBytesReadUcx = 30,
    kBytesPutUcx = 31,
    // From here on the store alone counts: slots have no more room.
    kKeysSought = 32,  // asked for without being read: prefixes, sizes
    kKeysPresent = 33,
};
inline constexpr int kClientCounterCount = 34;
inline constexpr int kSharedCounterCount = 32;  // those in a slot

// A slot has no room for another reason: a node that restarts counts as one that is down.
constexpr ClientCounter miss_counter(MissReason reason) {
    if (reason == MissReason::kRestarting) {
        reason = MissReason::kNodeDown;
    }
    constexpr int kFirstReasons = static_cast<int>(ClientCounter::kHitsShm);
    const int number = static_cast<int>(reason);
    return static_cast<ClientCounter>(number < kFirstReasons
                                          ? number
                                          : number - kFirstReasons +
                                                static_cast<int>(ClientCounter::kMissLater));
}
static_assert(static_cast<int>(miss_counter(MissReason::kBufferTooSmall)) ==
              static_cast<int>(ClientCounter::kHitsUcx) - 1);

// "keys_read", "misses_absent", "hits_shm", …; empty behind the end.
std::string_view client_counter_name(int counter);

}  // namespace kvstore
