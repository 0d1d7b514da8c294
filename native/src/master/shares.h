// How many of something each principal holds, of as many as there may be at once.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

#include "base/mutex.h"
#include "base/status.h"

namespace kvstore {

// Thread-safe.
class Shares {
  public:
    // Held as long as the pointer is.
    using Held = std::shared_ptr<const void>;

    // `what`: in the plural, for the refusals.
    Shares(std::string what, size_t most);
    // The largest share that one principal may hold.
    void set_principal_share(double share) { state_->principal_share = share; }
    // kOverloaded, with the limit's name. The principal is empty without authentication.
    Result<Held> take(std::string_view principal);

  private:
    struct State {
        std::string what;
        size_t most = 0;
        std::atomic<double> principal_share{1};
        Mutex mutex;
        size_t total KV_GUARDED_BY(mutex) = 0;
        std::unordered_map<std::string, size_t> held KV_GUARDED_BY(mutex);
    };
    const std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace kvstore
