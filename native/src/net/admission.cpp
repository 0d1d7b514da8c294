// Counting half-open connections by host and sessions by principal.
#include "net/admission.h"

#include <algorithm>
#include <utility>

namespace kvstore {

Admission::Admission(const Limits& limits, double principal_share)
    : limits_(limits), principal_share_(principal_share) {}

void Admission::begin(uint64_t id, std::string host, Evict evict) {
    Evict evicted;
    {
        const MutexLock lock(mutex_);
        if (places_.size() >= limits_.max_half_open) {
            evicted = take_oldest();
        }
        Queue& queue = hosts_[host];
        queue.push_back({id, std::move(evict)});
        places_[id] = {std::move(host), std::prev(queue.end())};
    }
    if (evicted) {
        evicted();
    }
}

bool Admission::evict_oldest() {
    Evict evicted;
    {
        const MutexLock lock(mutex_);
        evicted = take_oldest();
    }
    if (evicted) {
        evicted();
    }
    return static_cast<bool>(evicted);
}

// Looks at every host, of which there are at most max_half_open, and only when a place is missing.
Admission::Evict Admission::take_oldest() {
    if (hosts_.empty()) {
        return {};
    }
    const auto before = [](const auto& a, const auto& b) {
        return a.second.size() != b.second.size()
                   ? a.second.size() < b.second.size()
                   : a.second.front().id > b.second.front().id;  // ids grow with time
    };
    const auto most = std::ranges::max_element(hosts_, before);
    Evict evict = std::move(most->second.front().evict);
    forget_half_open(most->second.front().id);
    return evict;
}

void Admission::forget_half_open(uint64_t id) {
    const auto place = places_.find(id);
    if (place == places_.end()) {
        return;
    }
    const auto host = hosts_.find(place->second.host);
    host->second.erase(place->second.at);
    if (host->second.empty()) {
        hosts_.erase(host);
    }
    places_.erase(place);
}

Status Admission::open(uint64_t id, Role role, std::string_view principal) {
    const bool is_client = role == Role::kClient;
    const size_t most = limits_.max_connections - limits_.max_half_open;
    const size_t most_clients = most - std::min(limits_.reserved, most / 8);
    const auto share = static_cast<size_t>(static_cast<double>(most_clients) * principal_share_);
    const MutexLock lock(mutex_);
    if (!places_.contains(id)) {
        return {Code::kOverloaded, "a newer connection took this one's place"};
    }
    if (sessions_.size() >= most || (is_client && clients_ >= most_clients)) {
        return {Code::kOverloaded, "too many sessions"};
    }
    // A node's principal may stand for all nodes of a cluster, and is trusted with more than this.
    const bool is_shared = !principal.empty() && role != Role::kNode;
    Session session{is_client, std::string(is_shared ? principal : "")};
    if (is_shared) {
        size_t& held = by_principal_[session.principal];
        if (held >= std::max<size_t>(share, 1)) {
            return {Code::kOverloaded, "principal " + session.principal + " has " +
                                           std::to_string(held) +
                                           " sessions here, as many as principal_share allows"};
        }
        ++held;
    }
    clients_ += is_client ? 1 : 0;
    forget_half_open(id);
    sessions_.emplace(id, std::move(session));
    return {};
}

void Admission::end(uint64_t id) {
    const MutexLock lock(mutex_);
    forget_half_open(id);
    const auto session = sessions_.find(id);
    if (session == sessions_.end()) {
        return;
    }
    clients_ -= session->second.is_client ? 1 : 0;
    if (const auto held = by_principal_.find(session->second.principal);
        held != by_principal_.end() && --held->second == 0) {
        by_principal_.erase(held);
    }
    sessions_.erase(session);
}

size_t Admission::half_open() const {
    const MutexLock lock(mutex_);
    return places_.size();
}

}  // namespace kvstore
