// Who gets one of a server's connections: half-open ones, those before their Welcome, are bounded
// by the address they come from, sessions by their principal.
//
// When there are as many half-open connections as may be, the oldest one of the address with the
// most gives way to a newcomer. Sessions of clients leave a reserve for nodes and operators. Asked
// once for every connection and every session, never for a frame.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <string>
#include <string_view>
#include <unordered_map>

#include "base/mutex.h"
#include "base/status.h"
#include "base/types.h"

namespace kvstore {

// Thread-safe.
class Admission {
  public:
    struct Limits {
        size_t max_connections = 0;
        size_t max_half_open = 0;  // of them
        size_t reserved = 0;       // of them, for nodes and operators; at most an eighth
    };
    // Called without any lock held, on whatever thread asked for its place.
    using Evict = std::function<void()>;

    Admission(const Limits& limits, double principal_share);

    // A connection from `host` is there, half-open. Another one may have been evicted for it.
    void begin(uint64_t id, std::string host, Evict evict) KV_EXCLUDES(mutex_);
    // Evicts the oldest half-open one of the host with the most. False when there is none.
    bool evict_oldest() KV_EXCLUDES(mutex_);
    // The half-open one becomes a session; `principal` is empty without authentication. Otherwise
    // kOverloaded, and it stays half-open.
    Status open(uint64_t id, Role role, std::string_view principal) KV_EXCLUDES(mutex_);
    // It is closed. What was never begun (or was evicted) is ignored.
    void end(uint64_t id) KV_EXCLUDES(mutex_);

    // The largest share of the clients' sessions that one principal may hold.
    void set_principal_share(double share) { principal_share_ = share; }
    size_t half_open() const KV_EXCLUDES(mutex_);
    bool full() const { return half_open() >= limits_.max_half_open; }  // the next one evicts
    // That may be caused in a tick's time of a listener; who comes after waits in its queue. So
    // each has a tick's time to say hello, and a flood takes only so much from the sessions.
    size_t most_evictions() const { return std::max<size_t>(limits_.max_half_open / 4 * 3, 1); }

  private:
    struct HalfOpen {
        uint64_t id = 0;
        Evict evict;
    };
    using Queue = std::list<HalfOpen>;  // the oldest first
    struct Session {
        bool is_client = false;
        std::string principal;
    };
    struct Place {
        std::string host;
        Queue::iterator at;
    };

    Evict take_oldest() KV_REQUIRES(mutex_);
    void forget_half_open(uint64_t id) KV_REQUIRES(mutex_);

    const Limits limits_;
    std::atomic<double> principal_share_;
    mutable Mutex mutex_;
    std::unordered_map<std::string, Queue> hosts_ KV_GUARDED_BY(mutex_);  // none is empty
    std::unordered_map<uint64_t, Place> places_ KV_GUARDED_BY(mutex_);    // of the half-open
    std::unordered_map<uint64_t, Session> sessions_ KV_GUARDED_BY(mutex_);
    std::unordered_map<std::string, size_t> by_principal_ KV_GUARDED_BY(mutex_);
    size_t clients_ KV_GUARDED_BY(mutex_) = 0;  // sessions
};

}  // namespace kvstore
