// What was done over the block protocol that an audit log tells of: flushes, with who and what
// became of it. Kept until somebody takes them.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"

namespace kvstore {

struct Deed {
    std::string principal;  // empty: not authenticated
    std::string address;
    std::string client_name;
    std::string tenant;
    std::string ns;
    Code code = Code::kOk;
};

// Thread-safe.
class Deeds {
  public:
    static constexpr size_t kMostKept = 4096;

    void add(Deed deed) KV_EXCLUDES(mutex_) {
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
    Mutex mutex_;
    std::vector<Deed> kept_ KV_GUARDED_BY(mutex_);
    uint64_t lost_ KV_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvstore
