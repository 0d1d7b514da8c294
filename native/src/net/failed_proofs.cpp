// Counting wrong proofs, and the pauses that follow them.
#include "net/failed_proofs.h"

#include <algorithm>

namespace kvstore {

uint64_t FailedProofs::refuse_ms(std::string_view principal, std::string_view network,
                                 uint64_t now_ms) {
    if (!any()) {
        return 0;
    }
    const MutexLock lock(mutex_);
    const auto found = networks_.find(std::string(network));
    if (found == networks_.end()) {
        return 0;
    }
    const auto entry = found->second.find(std::string(principal));
    if (entry == found->second.end() || entry->second.until_ms <= now_ms) {
        return 0;
    }
    ++refused_;
    return entry->second.until_ms - now_ms;
}

uint64_t FailedProofs::failed(std::string_view principal, std::string_view network,
                              uint64_t now_ms) {
    ++failures_;
    const MutexLock lock(mutex_);
    const std::string where(network);
    const std::string who(principal);
    const auto known = networks_.find(where);
    if (known == networks_.end() || !known->second.contains(who)) {
        if (tracked_ >= kMostTracked) {
            make_room();
        }
        ++tracked_;
    }
    Entry& entry = networks_[where][who];
    if (entry.failures != 0 && now_ms - entry.last_ms > kForgottenMs) {
        entry = {};
    }
    ++entry.failures;
    entry.last_ms = now_ms;
    if (entry.failures <= kFree) {
        return 0;
    }
    const uint32_t doublings = std::min<uint32_t>(entry.failures - kFree - 1, 16);
    const uint64_t pause_ms = std::min(kFirstPauseMs << doublings, kLongestPauseMs);
    entry.until_ms = now_ms + pause_ms;
    ++pauses_;
    return pause_ms;
}

void FailedProofs::passed(std::string_view principal, std::string_view network) {
    if (!any()) {
        return;
    }
    const MutexLock lock(mutex_);
    drop(std::string(network), std::string(principal));
}

void FailedProofs::clear() {
    const MutexLock lock(mutex_);
    networks_.clear();
    tracked_ = 0;
}

FailedProofs::Stats FailedProofs::stats() const { return {failures_, pauses_, refused_, tracked_}; }

void FailedProofs::drop(const std::string& network, const std::string& principal) {
    const auto found = networks_.find(network);
    if (found == networks_.end() || found->second.erase(principal) == 0) {
        return;
    }
    --tracked_;
    if (found->second.empty()) {
        networks_.erase(found);
    }
}

// Looks at every network, and at every principal of one: at most kMostTracked of either.
void FailedProofs::make_room() {
    const auto most = std::ranges::max_element(
        networks_, {}, [](const auto& network) { return network.second.size(); });
    const auto oldest = std::ranges::min_element(
        most->second, {}, [](const auto& entry) { return entry.second.last_ms; });
    drop(std::string(most->first), std::string(oldest->first));
}

}  // namespace kvstore
