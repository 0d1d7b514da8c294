// Who has failed to prove a secret, and how long he has to wait before he may try again.
//
// Counted by principal and network (of a host; of IPv6 a /64; of a Unix socket the user), so that a
// guesser shuts out nobody at another address. At his own he does, for a pause: its attempts are
// refused unseen, the right secret too, or the pause would not slow him down. Bounded: whoever
// comes with many names displaces the oldest of his own network.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

#include "base/mutex.h"

namespace kvstore {

// Thread-safe. Times are those of one clock, in milliseconds.
class FailedProofs {
  public:
    static constexpr size_t kMostTracked = 4096;
    static constexpr uint32_t kFree = 5;  // failures in a row without a pause
    static constexpr uint64_t kFirstPauseMs = 1000;
    static constexpr uint64_t kLongestPauseMs = 32'000;
    static constexpr uint64_t kForgottenMs = 600'000;  // after the last failure

    // How long the principal's attempts are refused yet; 0: it may try. Counts what it refuses.
    uint64_t refuse_ms(std::string_view principal, std::string_view network, uint64_t now_ms)
        KV_EXCLUDES(mutex_);
    // A proof was wrong. How long the pause is that begins now; 0: none yet.
    uint64_t failed(std::string_view principal, std::string_view network, uint64_t now_ms)
        KV_EXCLUDES(mutex_);
    // A proof was right: earlier failures are forgotten.
    void passed(std::string_view principal, std::string_view network) KV_EXCLUDES(mutex_);
    // All are: there are other secrets now.
    void clear() KV_EXCLUDES(mutex_);

    struct Stats {
        uint64_t failures = 0;  // wrong proofs
        uint64_t pauses = 0;    // begun
        uint64_t refused = 0;   // during a pause
        uint64_t tracked = 0;   // principals by network, now
    };
    Stats stats() const;
    bool any() const { return tracked_.load(std::memory_order_relaxed) != 0; }

  private:
    struct Entry {
        uint32_t failures = 0;
        uint64_t last_ms = 0;
        uint64_t until_ms = 0;  // of the pause
    };
    using Network = std::unordered_map<std::string, Entry>;  // by principal; never empty

    void make_room() KV_REQUIRES(mutex_);
    void drop(const std::string& network, const std::string& principal) KV_REQUIRES(mutex_);

    mutable Mutex mutex_;
    std::unordered_map<std::string, Network> networks_ KV_GUARDED_BY(mutex_);
    std::atomic<size_t> tracked_{0};
    std::atomic<uint64_t> failures_{0};
    std::atomic<uint64_t> pauses_{0};
    std::atomic<uint64_t> refused_{0};
};

}  // namespace kvstore
