// Lookups that wait until every key of their list can be read somewhere: a decode engine that waits
// for its prefill engine.
//
// A wait is indexed by one key that is still missing. The announcement of that key moves it on to
// the next missing one, so that an announcement costs what it completes, and one relaxed load while
// nobody waits. A key becomes readable by an announcement (a full one included) or with its node:
// announced() and recheck() follow these. Thread-safe; the directory is asked, and waits are
// answered, without the mutex held.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "directory/directory.h"
#include "wire/fields.h"

namespace kvstore {

class LookupWaits {
  public:
    // Called once, from any thread, without locks held; not at all for a wait that was dropped.
    using Done = std::function<void(const KeyList& keys)>;
    struct Request {
        uint64_t owner = 0;       // the connection: its waits end with it
        std::string principal{};  // of the connection; empty: not authenticated
        std::shared_ptr<const Namespace> ns{};
        std::vector<uint8_t> body{};  // what `keys` view
        KeyList keys{};
        uint64_t deadline_ms = 0;
        Done done{};
    };

    // The largest share of the waits, and of their bytes, that one principal may have.
    void set_principal_share(double share) { principal_share_ = share; }

    LookupWaits(const Directory& directory, const HashSecret& secret)
        : directory_(directory), secret_(secret) {}

    // Answers at once when the list is complete; kOverloaded, unanswered, above a limit
    // (limits.h).
    Status park(Request request);
    // After the directory has recorded them.
    void announced(const Namespace& ns, const KeyList& keys);
    // A node became readable: looks at every wait.
    void recheck();
    void expire(uint64_t now_ms);  // answers those whose time has passed
    void drop(uint64_t owner);     // without an answer: nobody is there to read it
    void end_all();                // answers every wait, and from here on each at once
    uint64_t size() const { return count_.load(std::memory_order_relaxed); }

  private:
    using Place = std::pair<uint64_t, uint64_t>;  // of a wait in `waits_`: its deadline and id
    // What whoever settles it works on; what else is known of it stands in `waits_`.
    struct Wait {
        Request request;
        uint64_t id = 0;
        size_t row = 0;  // looked at last; belongs to whoever settles the wait

        Place place() const { return {request.deadline_ms, id}; }
    };
    using WaitPtr = std::shared_ptr<Wait>;
    using Missing = std::multimap<uint64_t, Place>;  // by hash of the key that each waits for
    struct Waiting {
        WaitPtr wait;
        std::optional<Missing::iterator> parked{};
    };
    using Waits = std::map<Place, Waiting>;
    struct Held {
        size_t waits = 0;
        size_t bytes = 0;
    };

    Status check_room(const Request& request) const KV_REQUIRES(mutex_);

    uint64_t hash(const Namespace& ns, std::string_view key) const;
    bool present(const Wait& wait, size_t row) const;
    std::optional<size_t> next_missing(Wait& wait) const;
    // One thread at a time settles a wait: who added it, or who took it out of `missing_`.
    void settle(const WaitPtr& wait);
    bool wait_for(const WaitPtr& wait, size_t row);  // false: it ended meanwhile
    bool take_back(const Wait& wait);                // false: somebody else settles it, or it ended
    Missing::iterator unpark(Missing::iterator at) KV_REQUIRES(mutex_);
    // Unparks all that wait for a key of this range; the caller settles them.
    void wake(std::pair<Missing::iterator, Missing::iterator> range, std::vector<WaitPtr>* woken)
        KV_REQUIRES(mutex_);
    WaitPtr end(Waits::iterator at) KV_REQUIRES(mutex_);

    const Directory& directory_;
    const HashSecret secret_;
    std::atomic<double> principal_share_{1};
    std::atomic<uint64_t> count_{0};  // of waits_
    Mutex mutex_;
    bool closed_ KV_GUARDED_BY(mutex_) = false;
    uint64_t next_id_ KV_GUARDED_BY(mutex_) = 0;
    size_t bytes_ KV_GUARDED_BY(mutex_) = 0;
    Waits waits_ KV_GUARDED_BY(mutex_);  // a wait that is not here has ended
    std::unordered_map<uint64_t, uint32_t> owners_ KV_GUARDED_BY(mutex_);  // how many each has
    std::unordered_map<std::string, Held> principals_ KV_GUARDED_BY(mutex_);
    Missing missing_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
