// Parking, waking and ending waits.
//
// No wake is lost: a wait is counted and parked before its key is looked at again, and an
// announcement is recorded before it asks who waits. Both go through the lock of the key's shard,
// so one of them sees the other; recheck() and parking both take the mutex, to the same end.
#include "master/lookup_waits.h"

#include <algorithm>

#include "base/mutex.h"
#include "directory/shard_hash.h"

namespace kvstore {

uint64_t LookupWaits::hash(const Namespace& ns, std::string_view key) const {
    // A wait holds its namespace. Not the epoch's id: a wait outlasts a flush.
    return ShardHash(secret_)(reinterpret_cast<uintptr_t>(&ns), key).check;
}

bool LookupWaits::present(const Wait& wait, size_t row) const {
    const DirectoryEpoch& epoch = *wait.request.ns->current.load(std::memory_order_acquire);
    return directory_.lookup_one(epoch, wait.request.keys[row]).code == Code::kOk;
}

// Goes on behind the key it waited for, and looks at every key again before it says "none": what
// came early may have been removed.
std::optional<size_t> LookupWaits::next_missing(Wait& wait) const {
    const size_t count = wait.request.keys.size();
    for (size_t step = 0; step < count; ++step) {
        const size_t row = (wait.row + step) % count;
        if (!present(wait, row)) {
            wait.row = row;
            return row;
        }
    }
    return std::nullopt;
}

Status LookupWaits::check_room(const Request& request) const {
    const size_t bytes = request.body.size();
    const auto owner = owners_.find(request.owner);
    if (waits_.size() >= limits::kMaxWaitingLookups ||
        bytes_ + bytes > limits::kMaxWaitingLookupBytes ||
        (owner != owners_.end() && owner->second >= limits::kMaxWaitingLookupsPerConnection)) {
        return {Code::kOverloaded, "too many lookups wait already"};
    }
    const auto held = principals_.find(request.principal);
    if (request.principal.empty() || held == principals_.end()) {
        return {};
    }
    const auto share = [this](size_t most) {
        return std::max<size_t>(static_cast<size_t>(static_cast<double>(most) * principal_share_),
                                1);
    };
    if (held->second.waits >= share(limits::kMaxWaitingLookups) ||
        held->second.bytes + bytes > share(limits::kMaxWaitingLookupBytes)) {
        return {Code::kOverloaded, "as many lookups of principal " + request.principal +
                                       " wait already as principal_share allows"};
    }
    return {};
}

Status LookupWaits::park(Request request) {
    const auto wait = std::make_shared<Wait>(Wait{.request = std::move(request)});
    bool closed = false;
    {
        const MutexLock lock(mutex_);
        closed = closed_;
        if (!closed) {
            if (Status room = check_room(wait->request); !room.ok()) {
                return room;
            }
            const size_t bytes = wait->request.body.size();
            Held& held = principals_[wait->request.principal];
            ++held.waits;
            held.bytes += bytes;
            ++owners_[wait->request.owner];
            bytes_ += bytes;
            wait->id = ++next_id_;
            waits_.emplace(wait->place(), Waiting{.wait = wait});
            count_.store(waits_.size(), std::memory_order_relaxed);
        }
    }
    if (closed) {
        wait->request.done(wait->request.keys);
    } else {
        settle(wait);
    }
    return {};
}

void LookupWaits::settle(const WaitPtr& wait) {
    while (const std::optional<size_t> row = next_missing(*wait)) {
        if (!wait_for(wait, *row)) {
            return;
        }
        // Announced between the look and the wait, it would wake nobody.
        if (!present(*wait, *row) || !take_back(*wait)) {
            return;
        }
    }
    {
        const MutexLock lock(mutex_);
        const auto at = waits_.find(wait->place());
        if (at == waits_.end()) {
            return;
        }
        end(at);
    }
    wait->request.done(wait->request.keys);
}

bool LookupWaits::wait_for(const WaitPtr& wait, size_t row) {
    const uint64_t key = hash(*wait->request.ns, wait->request.keys[row]);
    const MutexLock lock(mutex_);
    const auto at = waits_.find(wait->place());
    if (at == waits_.end()) {
        return false;
    }
    at->second.parked = missing_.emplace(key, wait->place());
    return true;
}

bool LookupWaits::take_back(const Wait& wait) {
    const MutexLock lock(mutex_);
    const auto at = waits_.find(wait.place());
    if (at == waits_.end() || !at->second.parked) {
        return false;
    }
    unpark(*at->second.parked);
    return true;
}

LookupWaits::Missing::iterator LookupWaits::unpark(Missing::iterator at) {
    waits_.find(at->second)->second.parked.reset();
    return missing_.erase(at);
}

void LookupWaits::wake(std::pair<Missing::iterator, Missing::iterator> range,
                       std::vector<WaitPtr>* woken) {
    for (auto at = range.first; at != range.second; at = unpark(at)) {
        woken->push_back(waits_.find(at->second)->second.wait);
    }
}

LookupWaits::WaitPtr LookupWaits::end(Waits::iterator at) {
    WaitPtr wait = std::move(at->second.wait);
    if (at->second.parked) {
        unpark(*at->second.parked);
    }
    const auto owner = owners_.find(wait->request.owner);
    if (--owner->second == 0) {
        owners_.erase(owner);
    }
    const auto held = principals_.find(wait->request.principal);
    held->second.bytes -= wait->request.body.size();
    if (--held->second.waits == 0) {
        principals_.erase(held);
    }
    bytes_ -= wait->request.body.size();
    waits_.erase(at);
    count_.store(waits_.size(), std::memory_order_relaxed);
    return wait;
}

void LookupWaits::announced(const Namespace& ns, const KeyList& keys) {
    if (size() == 0) {
        return;
    }
    std::vector<WaitPtr> woken;
    {
        const MutexLock lock(mutex_);
        for (const std::string_view key : keys) {
            wake(missing_.equal_range(hash(ns, key)), &woken);
        }
    }
    for (const WaitPtr& wait : woken) {
        settle(wait);
    }
}

void LookupWaits::recheck() {
    std::vector<WaitPtr> woken;
    {
        const MutexLock lock(mutex_);
        wake({missing_.begin(), missing_.end()}, &woken);
    }
    for (const WaitPtr& wait : woken) {
        settle(wait);
    }
}

void LookupWaits::expire(uint64_t now_ms) {
    if (size() == 0) {
        return;
    }
    std::vector<WaitPtr> ended;
    {
        const MutexLock lock(mutex_);
        while (!waits_.empty() && waits_.begin()->first.first <= now_ms) {
            ended.push_back(end(waits_.begin()));
        }
    }
    for (const WaitPtr& wait : ended) {
        wait->request.done(wait->request.keys);
    }
}

void LookupWaits::drop(uint64_t owner) {
    if (size() == 0) {
        return;
    }
    std::vector<WaitPtr> dropped;  // freed outside the mutex
    const MutexLock lock(mutex_);
    if (!owners_.contains(owner)) {
        return;
    }
    for (auto next = waits_.begin(); next != waits_.end();) {
        const auto at = next++;
        if (at->second.wait->request.owner == owner) {
            dropped.push_back(end(at));
        }
    }
}

void LookupWaits::end_all() {
    {
        const MutexLock lock(mutex_);
        closed_ = true;
    }
    expire(UINT64_MAX);
}

}  // namespace kvstore
