// What was done over the block protocol that an audit log tells of: removes, flushes, lists and
// changes of pins, with who and what became of it. Kept until somebody takes them.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"

namespace kvstore {

struct Deed {
    std::string_view call;  // of static storage
    std::string principal;  // empty: not authenticated
    std::string address;
    std::string client_name;
    std::string tenant;
    std::string ns;
    uint64_t keys = 0;   // that the request names
    std::string prefix;  // of those that it asks for
    Code code = Code::kOk;
};

// Thread-safe.
class Deeds {
  public:
    static constexpr size_t kMostKept = 4096;

    // Whether anybody wants them; else they cost nothing.
    void set_wanted(bool wanted) { wanted_.store(wanted, std::memory_order_relaxed); }
    bool wanted() const { return wanted_.load(std::memory_order_relaxed); }
    void add(Deed deed) KV_EXCLUDES(mutex_) {
        if (!wanted()) {
            return;
        }
        const MutexLock lock(mutex_);
        if (kept_.size() >= kMostKept) {
            ++lost_;
            return;
        }
        kept_.push_back(std::move(deed));
    }
    // All since the last call, and how many more there was no room for.
    std::pair<std::vector<Deed>, uint64_t> take() KV_EXCLUDES(mutex_) {
        const MutexLock lock(mutex_);
        return {std::exchange(kept_, {}), std::exchange(lost_, 0)};
    }

  private:
    std::atomic<bool> wanted_{false};
    Mutex mutex_;
    std::vector<Deed> kept_ KV_GUARDED_BY(mutex_);
    uint64_t lost_ KV_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvstore
