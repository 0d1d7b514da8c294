// The steps of a put, and what undoes them.
#include "node/put_flow.h"

#include <algorithm>
#include <tuple>

#include "base/clock.h"
#include "base/fault_point.h"
#include "base/mutation.h"

namespace kvstore {
namespace {

constexpr uint64_t kRetryMs = 50;              // a write that is being published right now
constexpr uint64_t kReservationGraceMs = 100;  // the store is the first to say that time is over

// A claim's wait ran out at the master: the object is not there and nobody knows when it will be.
Code refusal_of(Code code) { return code == Code::kDeadlineExceeded ? Code::kUnavailable : code; }

bool may_end(const Owner& by, const Owner& owner) {
    return by.slot == owner.slot && (owner.slot >= 0 || by.session == owner.session);
}

}  // namespace

void PutReply::finish(size_t row, Code code) {
    status_[row] = static_cast<int32_t>(code);
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        send();
    }
}

void PutReply::send_if_empty() {
    if (status_.empty()) {
        send();
    }
}

void PutReply::send() {
    StatusReply message;
    message.status = status_;
    to_->send_message(message, request_id_);
}

PutFlow::PutFlow(const Options& options, BlockStore& store, NvmeTier* tier, MasterLink& link,
                 NodeMetrics& metrics, ReplicaWishes& wishes)
    : options_(options),
      reservation_ms_(options.reservation_ms),
      store_(store),
      tier_(tier),
      link_(link),
      metrics_(metrics),
      wishes_(wishes) {}

uint32_t PutFlow::wait_ms(uint32_t timeout_ms) const {
    return timeout_ms == 0 ? options_.max_wait_ms : std::min(timeout_ms, options_.max_wait_ms);
}

// ---- begin -----------------------------------------------------------------------------------

// An object that is readable here but not acknowledged yet does not count as existing: the claim
// waits at the master for its outcome.
bool PutFlow::is_being_published(const Hash128& hash) const {
    const MutexLock lock(mutex_);
    return publishing_.contains(hash);
}

BlockStore::ReserveItem PutFlow::reserve_item(const NamespaceRef& ns, const Row& row) const {
    BlockStore::ReserveItem item;
    item.key = row.key;
    item.hash = key_hash(options_.hash_secret, ns->id, row.key);
    item.size_bytes = row.size_bytes;
    item.ttl_ms = row.ttl_ms;
    item.pin = row.pin;
    item.parent = row.parent;
    item.spare = row.spare;
    return item;
}

void PutFlow::add_entry(const Owner& owner, const NamespaceRef& ns, const Row& row,
                        const Begun& begun, const Hash128& hash, Entry entry) {
    entry.owner = owner;
    entry.ns = ns;
    entry.key = row.key;
    entry.hash = hash;
    entry.size_bytes = row.size_bytes;
    entry.pin = row.pin;
    entry.replicas = std::max<uint8_t>(row.replicas, 1);
    entry.ttl_ms = row.ttl_ms;
    entry.deadline_ms = boottime_ms() + reservation_ms_.load() + kReservationGraceMs;
    entry.started_us = boottime_us();
    const MutexLock lock(mutex_);
    timeouts_.emplace(entry.deadline_ms, begun.generation);
    entries_.emplace(begun.generation, std::move(entry));
}

std::vector<PutFlow::Begun> PutFlow::begin(const Owner& owner, const NamespaceRef& ns,
                                           std::span<const Row> rows, uint32_t timeout_ms) {
    std::vector<Begun> begun(rows.size());
    const uint64_t link = link_.up();
    if (link == 0) {
        return begun;
    }
    std::vector<BlockStore::ReserveItem> items;
    items.reserve(rows.size());
    for (const Row& row : rows) {
        items.push_back(reserve_item(ns, row));
        items.back().force = row.upsert || is_being_published(items.back().hash);
    }
    const std::vector<BlockStore::Reserved> reserved = store_.reserve_all(owner, ns, items);
    fault_point("reserve");
    for (size_t i = 0; i < rows.size(); ++i) {
        begun[i] = {reserved[i].code, reserved[i].generation, reserved[i].offset, reserved[i].data};
        if (begun[i].code == Code::kOk) {
            Entry entry;
            entry.link = link;
            add_entry(owner, ns, rows[i], begun[i], items[i].hash, std::move(entry));
        } else if (begun[i].code == Code::kAlreadyExists) {
            metrics_.puts_exist.add();
        } else {
            metrics_.puts_failed.add();
        }
    }
    if (!send_claims(link, ns, rows, wait_ms(timeout_ms), begun)) {
        for (Begun& one : begun) {
            if (one.code == Code::kOk) {
                abort(owner, one.generation);
                one = Begun{};
                metrics_.puts_failed.add();
            }
        }
    }
    return begun;
}

bool PutFlow::send_claims(uint64_t link, const NamespaceRef& ns, std::span<const Row> rows,
                          uint32_t timeout_ms, std::span<Begun> begun) {
    std::vector<ClaimItem> claims;
    for (size_t i = 0; i < rows.size(); ++i) {
        if (begun[i].code == Code::kOk) {
            claims.push_back({begun[i].generation, rows[i].key, rows[i].size_bytes, rows[i].pin,
                              std::max<uint8_t>(rows[i].replicas, 1), rows[i].upsert});
        }
    }
    const bool sent = claims.empty() || link_.claim(link, link_namespace(*ns), claims, timeout_ms);
    fault_point("claim_sent");
    return sent;
}

PutFlow::Begun PutFlow::begin_copy(const Owner& owner, const NamespaceRef& ns, const Row& row,
                                   Version version) {
    const uint64_t link = link_.up();
    if (link == 0 || version == 0) {
        return {version == 0 ? Code::kInvalidArgument : Code::kUnavailable, 0, 0, nullptr};
    }
    BlockStore::ReserveItem item = reserve_item(ns, row);
    if (store_.contains(ns, {row.key, item.hash, version})) {
        return {Code::kAlreadyExists, 0, 0, nullptr};
    }
    item.force = true;
    const BlockStore::Reserved reserved = store_.reserve(owner, ns, item);
    const Begun begun{reserved.code, reserved.generation, reserved.offset, reserved.data};
    if (begun.code == Code::kOk) {
        Entry entry;
        entry.link = link;
        entry.is_copy = true;
        entry.claim = Claim::kGranted;
        entry.version = version;
        add_entry(owner, ns, row, begun, item.hash, std::move(entry));
    }
    return begun;
}

// ---- commit, publish, announce ---------------------------------------------------------------

void PutFlow::set_ready(Generation generation, Entry& entry, std::vector<Ready>* ready) {
    entry.step = Step::kPublishing;
    ++publishing_[entry.hash];
    ready->push_back({generation, entry.owner, entry.data_crc, entry.version});
}

std::pair<Generation, PutFlow::Entry> PutFlow::take(Entries::iterator at) {
    if (at->second.step != Step::kOpen) {
        const auto count = publishing_.find(at->second.hash);
        if (--count->second == 0) {
            publishing_.erase(count);
        }
    }
    std::pair<Generation, Entry> taken(at->first, std::move(at->second));
    entries_.erase(at);
    return taken;
}

void PutFlow::commit(const Owner& owner, std::span<const Committed> rows, uint32_t timeout_ms,
                     const std::shared_ptr<PutReply>& reply) {
    std::vector<Ready> ready;
    std::vector<std::pair<Committed, Code>> over;
    Ended refused;
    {
        const MutexLock lock(mutex_);
        const uint64_t deadline_ms = boottime_ms() + wait_ms(timeout_ms);
        for (const Committed& row : rows) {
            const auto at = entries_.find(row.generation);
            if (at == entries_.end() || !may_end(owner, at->second.owner)) {
                over.emplace_back(row, Code::kExpired);
                continue;
            }
            Entry& entry = at->second;
            if (entry.committed) {
                over.emplace_back(row, Code::kInvalidArgument);
                continue;
            }
            entry.committed = true;
            entry.data_crc = row.data_crc;
            entry.reply = reply;
            entry.row = row.row;
            entry.deadline_ms = deadline_ms;
            if (entry.claim == Claim::kRefused) {
                refused.push_back(take(at));
                continue;
            }
            timeouts_.emplace(deadline_ms, row.generation);
            if (entry.claim == Claim::kGranted) {
                set_ready(row.generation, entry, &ready);
            }
        }
    }
    for (const auto& [row, code] : over) {
        if (code == Code::kExpired) {
            // To commit is to have stopped copying: the quarantined block is free again.
            static_cast<void>(store_.abort(owner, row.generation));
        }
        metrics_.puts_failed.add();
        reply->finish(row.row, code);
    }
    free_blocks(refused, Code::kOk);
    publish(ready);
}

void PutFlow::on_claims(uint64_t link, std::span<const ClaimAnswer> results) {
    std::vector<Ready> ready;
    std::vector<uint64_t> unused;
    Ended refused;
    {
        const MutexLock lock(mutex_);
        const uint64_t now = boottime_us();
        for (const ClaimAnswer& result : results) {
            const auto at = entries_.find(result.claim_id);
            if (at == entries_.end() || at->second.link != link ||
                at->second.claim != Claim::kPending) {
                if (result.code == Code::kOk) {
                    unused.push_back(result.claim_id);
                }
                continue;
            }
            Entry& entry = at->second;
            metrics_.claim_us.record(now - entry.started_us);
            const bool is_refused = KV_GUARD("claim", result.code != Code::kOk);
            if (!is_refused && result.version != 0) {
                fault_point("claim_granted");
                entry.claim = Claim::kGranted;
                entry.version = result.version;
                if (entry.committed) {
                    set_ready(result.claim_id, entry, &ready);
                }
                continue;
            }
            entry.claim = Claim::kRefused;
            entry.refusal =
                result.code == Code::kOk ? Code::kProtocolError : refusal_of(result.code);
            if (entry.committed) {
                refused.push_back(take(at));
            }
        }
    }
    if (!unused.empty()) {
        link_.abandon(link, unused);
    }
    free_blocks(refused, Code::kOk);
    publish(ready);
}

void PutFlow::publish(std::span<const Ready> ready) {
    // One call of the store for each run of one owner, so that a chain is published in order.
    for (size_t first = 0; first < ready.size();) {
        const Owner& owner = ready[first].owner;
        std::vector<BlockStore::PublishItem> items;
        size_t end = first;
        while (end < ready.size() && ready[end].owner.session == owner.session &&
               ready[end].owner.slot == owner.slot) {
            items.push_back({ready[end].generation, ready[end].data_crc, ready[end].version});
            ++end;
        }
        // The holds live until the announces are queued: no withdraw can be queued before them.
        fault_point("commit");
        const std::vector<BlockStore::Published> results = store_.publish(owner, items);
        fault_point("published");
        announce(ready.subspan(first, end - first), results);
        first = end;
    }
}

void PutFlow::announce(std::span<const Ready> ready,
                       std::span<const BlockStore::Published> results) {
    struct Group {
        uint64_t link;
        NamespaceRef ns;
        std::vector<AnnounceItem> items;
    };
    std::vector<Group> groups;
    std::vector<std::pair<Ended, Code>> refused;
    Ended lost;
    std::vector<std::tuple<NamespaceRef, Hash128, Version>> newer;  // than what NVMe may have
    {
        const MutexLock lock(mutex_);
        const uint64_t now = boottime_us();
        for (size_t i = 0; i < ready.size(); ++i) {
            const auto at = entries_.find(ready[i].generation);
            KV_ASSERT(at != entries_.end());  // nobody takes out what is being published
            Entry& entry = at->second;
            if (results[i].code != Code::kOk) {
                refused.emplace_back().first.push_back(take(at));
                refused.back().second = results[i].code;
                continue;
            }
            if (tier_ != nullptr) {
                newer.emplace_back(entry.ns, entry.hash, entry.version);
            }
            wishes_.note(entry.version, entry.replicas);
            entry.step = Step::kAnnouncing;
            entry.announced_us = now;
            if (groups.empty() || groups.back().link != entry.link ||
                groups.back().ns != entry.ns) {
                groups.push_back({entry.link, entry.ns, {}});
            }
            groups.back().items.push_back({ready[i].generation, entry.key, entry.version,
                                           entry.size_bytes, entry.pin, entry.replicas,
                                           entry.ttl_ms});
        }
    }
    for (const auto& [ns, hash, version] : newer) {
        tier_->supersede(ns, hash, version);
    }
    for (const auto& [ended, code] : refused) {
        free_blocks(ended, code == Code::kInvalidArgument ? Code::kExpired : code);
    }
    for (Group& group : groups) {
        std::vector<Generation> generations;
        for (const AnnounceItem& item : group.items) {
            generations.push_back(item.ticket);
        }
        if (link_.announce(group.link, link_namespace(*group.ns), std::move(group.items))) {
            continue;
        }
        const MutexLock lock(mutex_);
        for (const Generation generation : generations) {
            if (const auto at = entries_.find(generation); at != entries_.end()) {
                lost.push_back(take(at));
            }
        }
    }
    take_back(lost, Code::kUnavailable);
}

void PutFlow::on_announced(std::span<const AnnounceResult> results) {
    fault_point("announced");
    std::vector<std::pair<Ended, Code>> ended;
    {
        const MutexLock lock(mutex_);
        for (const AnnounceResult& result : results) {
            const auto at = entries_.find(result.item->ticket);
            if (at != entries_.end() && at->second.step == Step::kAnnouncing) {
                ended.emplace_back().first.push_back(take(at));
                ended.back().second = result.code;
            }
        }
    }
    const uint64_t now = boottime_us();
    for (const auto& [one, code] : ended) {
        const Entry& entry = one.front().second;
        metrics_.announce_us.record(now - entry.announced_us);
        if (code != Code::kOk) {
            take_back(one, code);
        } else {
            finish(entry, Code::kOk);
        }
    }
}

// ---- ends ------------------------------------------------------------------------------------

void PutFlow::finish(const Entry& entry, Code code) {
    if (entry.is_copy) {
        metrics_.copies_in.add(code == Code::kOk ? 1 : 0);
        metrics_.copy_bytes_in.add(code == Code::kOk ? entry.size_bytes : 0);
    } else if (code == Code::kOk) {
        metrics_.puts_ok.add();
        metrics_.put_us.record(boottime_us() - entry.started_us);
        (entry.owner.slot >= 0 ? metrics_.put_bytes_shm : metrics_.put_bytes_socket)
            .add(entry.size_bytes);
    } else {
        (code == Code::kAlreadyExists ? metrics_.puts_exist : metrics_.puts_failed).add();
    }
    if (entry.reply != nullptr) {
        entry.reply->finish(entry.row, code);
    }
}

// The writer has committed, so its copies have stopped. kOk: what the claim was refused with.
void PutFlow::free_blocks(const Ended& ended, Code code) {
    for (const auto& [generation, entry] : ended) {
        // Unknown where the store has freed it while refusing to publish.
        static_cast<void>(store_.abort(entry.owner, generation));
    }
    if (code != Code::kOk) {
        abandon(ended);
    }
    for (const auto& [generation, entry] : ended) {
        finish(entry, code == Code::kOk ? entry.refusal : code);
    }
}

void PutFlow::take_back(const Ended& ended, Code code) {
    for (const auto& [generation, entry] : ended) {
        if (store_.unpublish(generation) == Code::kOk) {
            // The master may have heard of it; on a lost link this says nothing.
            link_.withdraw(link_namespace(*entry.ns),
                           {{entry.key, entry.version, MissReason::kAbsent}});
        }
        wishes_.forget(entry.version);
    }
    abandon(ended);
    for (const auto& [generation, entry] : ended) {
        finish(entry, code);
    }
}

void PutFlow::abandon(const Ended& ended) {
    std::vector<uint64_t> ids;
    for (size_t i = 0; i < ended.size(); ++i) {
        ids.push_back(ended[i].first);
        if (i + 1 == ended.size() || ended[i + 1].second.link != ended[i].second.link) {
            link_.abandon(ended[i].second.link, ids);
            ids.clear();
        }
    }
}

Code PutFlow::abort(const Owner& owner, Generation generation) {
    Ended ended;
    {
        const MutexLock lock(mutex_);
        const auto at = entries_.find(generation);
        if (at != entries_.end()) {
            if (!may_end(owner, at->second.owner) || at->second.step != Step::kOpen) {
                return Code::kInvalidArgument;
            }
            ended.push_back(take(at));
        }
    }
    const Code code = store_.abort(owner, generation);
    abandon(ended);
    for (const auto& [taken, entry] : ended) {
        if (entry.committed) {
            finish(entry, Code::kUnavailable);
        }
    }
    return code;
}

void PutFlow::on_link_down(uint64_t link) {
    Ended committed;
    Ended published;
    {
        const MutexLock lock(mutex_);
        for (auto at = entries_.begin(); at != entries_.end();) {
            const auto here = at++;
            Entry& entry = here->second;
            if (entry.link != link) {
                continue;
            }
            if (entry.step == Step::kAnnouncing) {
                published.push_back(take(here));
            } else if (entry.step == Step::kPublishing) {
                continue;  // its announce will find the link gone
            } else if (entry.committed) {
                committed.push_back(take(here));
            } else {
                entry.claim = Claim::kRefused;
                entry.refusal = Code::kUnavailable;
            }
        }
    }
    if (KV_GUARD("take-back", true)) {
        take_back(published, Code::kUnavailable);
    }
    free_blocks(committed, Code::kUnavailable);
}

void PutFlow::on_session_closed(uint64_t session) {
    Ended writing;
    Ended committed;
    {
        const MutexLock lock(mutex_);
        for (auto at = entries_.begin(); at != entries_.end();) {
            const auto here = at++;
            const Entry& entry = here->second;
            if (entry.owner.session == session && entry.step == Step::kOpen) {
                (entry.committed ? committed : writing).push_back(take(here));
            }
        }
    }
    abandon(writing);
    free_blocks(committed, Code::kClosed);
}

void PutFlow::tick() {
    Ended writing;
    Ended committed;
    Ended published;
    {
        const MutexLock lock(mutex_);
        const uint64_t now = boottime_ms();
        while (!timeouts_.empty() && timeouts_.top().first <= now) {
            const Generation generation = timeouts_.top().second;
            timeouts_.pop();
            const auto at = entries_.find(generation);
            if (at == entries_.end() || at->second.deadline_ms > now) {
                continue;  // a later timeout of it is queued
            }
            Entry& entry = at->second;
            if (entry.step == Step::kAnnouncing) {
                published.push_back(take(at));
            } else if (entry.step == Step::kPublishing) {
                entry.deadline_ms = now + kRetryMs;
                timeouts_.emplace(entry.deadline_ms, generation);
            } else {
                (entry.committed ? committed : writing).push_back(take(at));
            }
        }
    }
    abandon(writing);
    free_blocks(committed, Code::kUnavailable);
    take_back(published, Code::kUnavailable);
}

size_t PutFlow::under_way() const {
    const MutexLock lock(mutex_);
    return entries_.size();
}

}  // namespace kvstore
