// Whose the client slots of a node are: the processes behind them, and what they have counted.
#pragma once

#include <sys/types.h>

#include <array>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/client_counters.h"
#include "base/mutex.h"
#include "index/client_slots.h"

namespace kvstore {

// What the clients of one tenant counted in their slots, the dead ones included.
struct TenantCounters {
    std::string tenant;
    uint64_t live_slots = 0;
    std::array<uint64_t, kSharedCounterCount> values{};
};

// Thread-safe.
class ServedSlots {
  public:
    explicit ServedSlots(ClientSlots& slots);

    // A slot to offer to a session of process `pid`, or -1: then that client uses sockets. `*fd` is
    // its file, good for as long as the session keeps the offer.
    int offer(pid_t pid, int* fd);
    // The session to which `slot` was offered will not use it. One that another session of the
    // process has confirmed stays.
    void give_back(int slot);
    // Whether process `pid` has confirmed `slot` with this very file and holds it still.
    bool is_held(uint32_t slot, const FileKey& file, pid_t pid) const;
    // The client says that it has locked `slot`: one that was offered to a session of its process,
    // this one or another.
    Code confirm(uint32_t slot, pid_t pid, const std::string& tenant);
    // Notes what the slots have counted, before the dead ones are cleared, and which are lost.
    void tick();
    // Clients that have spoiled their slot files since the last call: a phrase each, for the log.
    std::vector<std::string> take_lost();
    uint64_t live() const;
    // The processes that have the memory mapped: a phrase for a log.
    std::string holders() const;
    std::vector<TenantCounters> counters() const;

  private:
    using Values = std::array<uint64_t, kSharedCounterCount>;
    struct Tenant {
        pid_t pid = 0;
        std::string tenant;
        Values seen{};
    };
    struct Offer {
        pid_t pid = 0;
        bool is_over = false;  // given back while its client had it locked
    };
    static void add(Values& to, const Values& more);
    static std::string holder(const Tenant& tenant);

    ClientSlots& slots_;
    mutable Mutex mutex_;
    std::unordered_map<uint32_t, Offer> offered_ KV_GUARDED_BY(mutex_);
    std::unordered_map<uint32_t, Tenant> live_ KV_GUARDED_BY(mutex_);
    std::map<std::string, Values> retired_ KV_GUARDED_BY(mutex_);
    std::vector<std::string> lost_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
