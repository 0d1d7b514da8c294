// Counting by principal; a holder's end gives its one back.
#include "master/shares.h"

#include <algorithm>
#include <utility>

namespace kvstore {

Shares::Shares(std::string what, size_t most) {
    state_->what = std::move(what);
    state_->most = most;
}

Result<Shares::Held> Shares::take(std::string_view principal) {
    std::string name(principal);
    const MutexLock lock(state_->mutex);
    if (state_->total >= state_->most) {
        return Status(Code::kOverloaded, "too many " + state_->what + " wait already");
    }
    const auto share =
        static_cast<size_t>(static_cast<double>(state_->most) * state_->principal_share);
    size_t& held = state_->held[name];
    if (!name.empty() && held >= std::max<size_t>(share, 1)) {
        return Status(Code::kOverloaded, "as many " + state_->what + " of principal " + name +
                                             " wait already as principal_share allows");
    }
    ++held;
    ++state_->total;
    // Any pointer will do: its end is what counts.
    return Held(state_.get(), [state = state_, name = std::move(name)](const void*) {
        const MutexLock released(state->mutex);
        --state->total;
        const auto at = state->held.find(name);
        if (--at->second == 0) {
            state->held.erase(at);
        }
    });
}

}  // namespace kvstore
