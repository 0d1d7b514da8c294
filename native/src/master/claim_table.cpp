// Claims by key, each with its queue of waiters, and by link, to find them when it speaks or is
// lost.
#include "master/claim_table.h"

#include <algorithm>

#include "base/mutation.h"

namespace kvstore {
namespace {

// Where a replica is recorded that cannot be read, its node may show it to clients of its host: an
// announcement of another version waits for that node.
bool is_first(bool upsert, const ObjectPlace& found) {
    return !upsert && found.code != Code::kOk && found.reason != MissReason::kNodeDown &&
           found.reason != MissReason::kExpired;
}

}  // namespace

void ClaimTable::claim(const DirectoryEpoch& ns, std::span<const ClaimRequest> requests,
                       uint64_t deadline_ms, std::vector<ClaimAnswer>& out) {
    const MutexLock lock(mutex_);
    for (const ClaimRequest& request : requests) {
        claim_one(ns, request, deadline_ms, out);
    }
}

void ClaimTable::claim_one(const DirectoryEpoch& ns, const ClaimRequest& request,
                           uint64_t deadline_ms, std::vector<ClaimAnswer>& out) {
    const Waiter waiter{request.link, request.node, request.claim_id, deadline_ms, request.upsert};
    const auto refuse = [&](Code code, Version version = 0) {
        out.push_back({request.link, request.claim_id, code, version});
    };
    if (!ns.is_current()) {
        return refuse(Code::kRemoved);
    }
    const auto link = links_.find(request.link);
    if (link != links_.end() && link->second.contains(request.claim_id)) {
        return refuse(Code::kInvalidArgument);
    }
    // An announcement records the object first and settles its claim second: a key without claim
    // and without object was published by nobody.
    const NsKey name(ns.ref, request.key);
    auto at = entries_.find(name.view());
    if (at == entries_.end()) {
        const ObjectPlace found = directory_.lookup_one(ns, request.key);
        if (found.code == Code::kOk && !request.upsert) {
            ++stats_.total_exists;
            return refuse(Code::kAlreadyExists, found.version);
        }
        at = entries_.emplace(name.view(), Entry{.ns = &ns, .holder = {}, .waiters = {}}).first;
        if (!directory_.rebuilding()) {
            return grant(at, waiter, is_first(request.upsert, found), out);
        }
    }
    if (waiting_ >= kMaxWaiting) {
        return refuse(Code::kOverloaded);
    }
    wait(at, waiter);
}

void ClaimTable::wait(Entries::iterator at, const Waiter& waiter) {
    at->second.waiters.push_back(waiter);
    links_[waiter.link][waiter.claim_id] = &at->first;
    timeouts_.push({waiter.deadline_ms, waiter.link, waiter.claim_id});
    ++waiting_;
}

void ClaimTable::end_wait(const Waiter& waiter, Code code, Version version,
                          std::vector<ClaimAnswer>& out) {
    --waiting_;
    forget(waiter.link, waiter.claim_id);
    stats_.total_exists += code == Code::kAlreadyExists ? 1 : 0;
    out.push_back({waiter.link, waiter.claim_id, code, version});
}

void ClaimTable::set_first(Entry& entry, bool first) {
    unannounced_.fetch_add(uint64_t{first} - uint64_t{entry.first}, std::memory_order_release);
    entry.first = first;
}

ClaimTable::Entries::iterator ClaimTable::erase(Entries::iterator at) {
    set_first(at->second, false);
    return entries_.erase(at);
}

void ClaimTable::grant(Entries::iterator at, const Waiter& to, bool first,
                       std::vector<ClaimAnswer>& out) {
    Entry& entry = at->second;
    set_first(entry, first);
    entry.holder = to;
    entry.version = directory_.next_version();
    entry.limbo = false;
    links_[to.link][to.claim_id] = &at->first;
    ++stats_.total_granted;
    out.push_back({to.link, to.claim_id, Code::kOk, entry.version, first});
}

void ClaimTable::forget(LinkId link, uint64_t claim_id) {
    const auto at = links_.find(link);
    if (at != links_.end()) {
        at->second.erase(claim_id);
        if (at->second.empty()) {
            links_.erase(at);
        }
    }
}

ClaimTable::Entries::iterator ClaimTable::entry_of(LinkId link, uint64_t claim_id) {
    const auto claims = links_.find(link);
    if (claims == links_.end()) {
        return entries_.end();
    }
    const auto claim = claims->second.find(claim_id);
    return claim == claims->second.end() ? entries_.end() : entries_.find(*claim->second);
}

void ClaimTable::published(Entries::iterator at, Version version, std::vector<ClaimAnswer>& out) {
    Entry& entry = at->second;
    const std::vector<Waiter> waiters = std::move(entry.waiters);
    entry.waiters.clear();
    bool granted = false;
    for (const Waiter& waiter : waiters) {
        if (!waiter.upsert) {
            end_wait(waiter, Code::kAlreadyExists, version, out);
        } else if (granted || directory_.rebuilding()) {
            entry.waiters.push_back(waiter);
        } else {
            --waiting_;
            grant(at, waiter, false, out);
            granted = true;
        }
    }
    if (entry.waiters.empty() && !granted) {
        erase(at);
    } else if (!granted) {
        set_first(entry, false);
        entry.version = 0;  // parked until the rebuild has finished
    }
}

void ClaimTable::pass_on(Entries::iterator at, std::vector<ClaimAnswer>& out) {
    Entry& entry = at->second;
    if (entry.version != 0 && !entry.limbo) {
        forget(entry.holder.link, entry.holder.claim_id);
    }
    set_first(entry, false);
    entry.version = 0;
    entry.limbo = false;
    if (directory_.rebuilding() && !entry.waiters.empty()) {
        return;
    }
    const std::string_view key = NsKey::key_of(at->first);
    while (!entry.waiters.empty()) {
        const Waiter first = entry.waiters.front();
        entry.waiters.erase(entry.waiters.begin());
        const ObjectPlace found = directory_.lookup_one(*entry.ns, key);
        if (found.code == Code::kOk && !first.upsert) {
            end_wait(first, Code::kAlreadyExists, found.version, out);
            continue;
        }
        --waiting_;
        ++stats_.total_inherited;
        return grant(at, first, is_first(first.upsert, found), out);
    }
    erase(at);
}

bool ClaimTable::settle(const DirectoryEpoch& ns, std::string_view key, Version version,
                        bool was_published, std::vector<ClaimAnswer>& out) {
    const MutexLock lock(mutex_);
    settled_.fetch_add(1, std::memory_order_release);
    const auto at = entries_.find(NsKey(ns.ref, key).view());
    if (at == entries_.end()) {
        return false;
    }
    Entry& entry = at->second;
    if (entry.version == 0 && was_published) {
        published(at, version, out);  // parked: an object of before the restart
        return false;
    }
    if (entry.version != version || version == 0) {
        return false;
    }
    if (!was_published) {
        pass_on(at, out);
        return false;
    }
    const bool was_upsert = entry.holder.upsert;
    if (!entry.limbo) {
        forget(entry.holder.link, entry.holder.claim_id);
    }
    entry.limbo = false;
    published(at, version, out);
    return was_upsert;
}

bool ClaimTable::drop_waiter(Entries::iterator at, LinkId link, uint64_t claim_id) {
    std::vector<Waiter>& waiters = at->second.waiters;
    const auto waiter = std::find_if(waiters.begin(), waiters.end(), [&](const Waiter& one) {
        return one.link == link && one.claim_id == claim_id;
    });
    if (waiter == waiters.end()) {
        return false;
    }
    waiters.erase(waiter);
    --waiting_;
    return true;
}

void ClaimTable::abandon(LinkId link, std::span<const uint64_t> claim_ids,
                         std::vector<ClaimAnswer>& out) {
    const MutexLock lock(mutex_);
    for (const uint64_t claim_id : claim_ids) {
        const auto at = entry_of(link, claim_id);
        if (at == entries_.end()) {
            continue;
        }
        if (!drop_waiter(at, link, claim_id)) {
            pass_on(at, out);
            continue;
        }
        forget(link, claim_id);
        if (at->second.version == 0 && at->second.waiters.empty()) {
            erase(at);
        }
    }
}

NodeNumber ClaimTable::removed(const DirectoryEpoch& ns, std::string_view key, Version tombstone,
                               std::vector<ClaimAnswer>& out) {
    const MutexLock lock(mutex_);
    const auto at = entries_.find(NsKey(ns.ref, key).view());
    if (at == entries_.end() || at->second.version == 0 || at->second.version > tombstone) {
        return kNoNode;
    }
    const NodeNumber node = at->second.holder.node;
    pass_on(at, out);
    return node;
}

std::vector<LinkId> ClaimTable::unannounced(const DirectoryEpoch& ns,
                                            std::span<const std::string_view> keys) const {
    std::vector<LinkId> links;
    const auto add = [&](const Entry& entry) {
        if (entry.first && !entry.limbo && entry.ns == &ns &&
            std::ranges::find(links, entry.holder.link) == links.end()) {
            links.push_back(entry.holder.link);
        }
    };
    const MutexLock lock(mutex_);
    for (const std::string_view key : keys) {
        const auto at = entries_.find(NsKey(ns.ref, key).view());
        if (at != entries_.end()) {
            add(at->second);
        }
    }
    if (keys.empty()) {
        for (const auto& [name, entry] : entries_) {
            add(entry);
        }
    }
    return links;
}

std::optional<NodeNumber> ClaimTable::claimed_by(const DirectoryEpoch& ns,
                                                 std::string_view key) const {
    const MutexLock lock(mutex_);
    const auto at = entries_.find(NsKey(ns.ref, key).view());
    if (at == entries_.end()) {
        return std::nullopt;
    }
    return at->second.version == 0 ? kNoNode : at->second.holder.node;
}

void ClaimTable::add_refs(std::unordered_set<uint32_t>& refs) const {
    const MutexLock lock(mutex_);
    for (const auto& [name, entry] : entries_) {
        refs.insert(entry.ns->ref);
    }
}

bool ClaimTable::has_limbo(NodeNumber node) const {
    const MutexLock lock(mutex_);
    return limbo_.contains(node);
}

void ClaimTable::flushed(const DirectoryEpoch& old_epoch, std::vector<ClaimAnswer>& out) {
    const MutexLock lock(mutex_);
    for (auto at = entries_.begin(); at != entries_.end();) {
        Entry& entry = at->second;
        if (entry.ns != &old_epoch) {
            ++at;
            continue;
        }
        for (const Waiter& waiter : entry.waiters) {
            end_wait(waiter, Code::kRemoved, 0, out);
        }
        if (entry.version != 0 && !entry.limbo) {
            forget(entry.holder.link, entry.holder.claim_id);
        }
        at = erase(at);
    }
}

void ClaimTable::link_lost(LinkId link) {
    const MutexLock lock(mutex_);
    const auto claims = links_.find(link);
    if (claims == links_.end()) {
        return;
    }
    for (const auto& [claim_id, key] : claims->second) {
        const auto at = entries_.find(*key);
        if (!drop_waiter(at, link, claim_id)) {
            if (!KV_GUARD("limbo", true) && at->second.waiters.empty()) {
                erase(at);  // as if the link's loss were its node's death
                continue;
            }
            at->second.limbo = true;
            limbo_[at->second.holder.node].push_back(at->first);
        } else if (at->second.version == 0 && at->second.waiters.empty()) {
            erase(at);
        }
    }
    links_.erase(claims);
}

void ClaimTable::end_limbo(NodeNumber node, std::vector<ClaimAnswer>& out) {
    const MutexLock lock(mutex_);
    const auto keys = limbo_.find(node);
    if (keys == limbo_.end()) {
        return;
    }
    for (const std::string& key : keys->second) {
        const auto at = entries_.find(key);
        if (at != entries_.end() && at->second.limbo && at->second.holder.node == node) {
            pass_on(at, out);
        }
    }
    limbo_.erase(keys);
}

void ClaimTable::finish_rebuild(std::vector<ClaimAnswer>& out) {
    const MutexLock lock(mutex_);
    std::vector<Entries::iterator> parked;
    for (auto at = entries_.begin(); at != entries_.end(); ++at) {
        if (at->second.version == 0) {
            parked.push_back(at);
        }
    }
    for (const auto at : parked) {
        pass_on(at, out);
    }
}

void ClaimTable::expire(uint64_t now_ms, std::vector<ClaimAnswer>& out) {
    const MutexLock lock(mutex_);
    while (!timeouts_.empty() && timeouts_.top().deadline_ms <= now_ms) {
        const Timeout due = timeouts_.top();
        timeouts_.pop();
        const auto at = entry_of(due.link, due.claim_id);
        if (at == entries_.end() || !drop_waiter(at, due.link, due.claim_id)) {
            continue;  // answered before, or granted
        }
        forget(due.link, due.claim_id);
        const bool parked = at->second.version == 0;
        ++stats_.total_expired;
        out.push_back(
            {due.link, due.claim_id, parked ? Code::kRebuilding : Code::kDeadlineExceeded, 0});
        if (parked && at->second.waiters.empty()) {
            erase(at);
        }
    }
}

ClaimTable::Stats ClaimTable::stats() const {
    const MutexLock lock(mutex_);
    Stats stats = stats_;
    stats.waiting = waiting_;
    for (const auto& [key, entry] : entries_) {
        stats.granted += entry.version != 0 ? 1 : 0;
        stats.limbo += entry.limbo ? 1 : 0;
        stats.parked += entry.version == 0 ? 1 : 0;
    }
    return stats;
}

}  // namespace kvstore
