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
constexpr uint64_t kReservationGraceMs = 100;  // the store is the first to say that it expired

// A claim's wait ran out at the master: the object is not there and nobody knows when it will be.
Code refusal_of(Code code) { return code == Code::kDeadlineExceeded ? Code::kUnavailable : code; }

bool is_writer(const Owner& by, const Owner& owner) {
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
    message.spare_generation = spare_.generation;
    message.spare_offset = spare_.offset;
    message.spare_ms = spare_.valid_ms;
    if (!to_->send_message(message, request_id_) && spare_.flow != nullptr) {
        // It never heard of the block, so it writes nothing into it.
        static_cast<void>(spare_.flow->abort(spare_.owner, spare_.generation));
    }
    if (span_ != nullptr) {
        span_->end(static_cast<uint64_t>(std::ranges::count(status_, 0)), 0);
    }
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
            store_.sampler().put(items[i].hash, items[i].size_bytes);
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
    const bool sent = claims.empty() || link_.claim(link, *ns, claims, timeout_ms);
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
    item.is_copy = true;
    const BlockStore::Reserved reserved = store_.reserve(owner, ns, item);
    const Begun begun{reserved.code, reserved.generation, reserved.offset, reserved.data};
    if (begun.code == Code::kOk) {
        Entry entry;
        entry.link = link;
        entry.is_copy = true;
        entry.stage = PutStage::kGranted;
        entry.version = version;
        add_entry(owner, ns, row, begun, item.hash, std::move(entry));
    }
    return begun;
}

// ---- commit, publish, announce ---------------------------------------------------------------

void PutFlow::advance(Entries::iterator at, PutEvent event, std::vector<Ready>* ready,
                      std::vector<Ending>* endings) {
    Entry& entry = at->second;
    const PutStage next = next_stage(entry.stage, event);
    if (next == PutStage::kEnded) {
        endings->push_back(take(at, entry.refusal));
        return;
    }
    if (next == PutStage::kPublishing && entry.stage != next) {
        ++publishing_[entry.hash];
        ready->push_back({at->first, entry.owner, entry.data_crc, entry.version});
    }
    entry.stage = next;
}

PutFlow::Ending PutFlow::take(Entries::iterator at, Code reason) {
    if (at->second.stage >= PutStage::kPublishing) {
        const auto count = publishing_.find(at->second.hash);
        if (--count->second == 0) {
            publishing_.erase(count);
        }
    }
    Ending taken{at->first, std::move(at->second), reason};
    entries_.erase(at);
    return taken;
}

void PutFlow::commit(const Owner& owner, std::span<const Committed> rows, uint32_t timeout_ms,
                     const std::shared_ptr<PutReply>& reply) {
    std::vector<Ready> ready;
    std::vector<std::pair<Committed, Code>> wrong;
    std::vector<Ending> endings;
    {
        const MutexLock lock(mutex_);
        const uint64_t deadline_ms = boottime_ms() + wait_ms(timeout_ms);
        for (const Committed& row : rows) {
            const auto at = entries_.find(row.generation);
            if (at == entries_.end() || !is_writer(owner, at->second.owner) ||
                at->second.stage == PutStage::kAnswered) {
                wrong.emplace_back(row, Code::kExpired);
                continue;
            }
            Entry& entry = at->second;
            if (entry.reply != nullptr) {
                wrong.emplace_back(row, Code::kInvalidArgument);
                continue;
            }
            entry.data_crc = row.data_crc;
            entry.reply = reply;
            entry.row = row.row;
            entry.deadline_ms = deadline_ms;
            timeouts_.emplace(deadline_ms, row.generation);
            advance(at, PutEvent::kCommitted, &ready, &endings);
        }
    }
    for (const auto& [row, code] : wrong) {
        // A spare that was refused for its key, which the writer knows by now: no further failure.
        if (code != Code::kExpired || !store_.give_back_spare(owner, row.generation)) {
            metrics_.puts_failed.add();
        }
        if (code == Code::kExpired) {
            // To commit is to have stopped copying: the quarantined block is free again.
            static_cast<void>(store_.abort(owner, row.generation));
        }
        reply->finish(row.row, code);
    }
    end(endings);
    publish(ready);
}

void PutFlow::on_claims(uint64_t link, std::span<const ClaimAnswer> results) {
    std::vector<Ready> ready;
    std::vector<uint64_t> unused;
    std::vector<Ending> endings;
    {
        const MutexLock lock(mutex_);
        const uint64_t now = boottime_us();
        for (const ClaimAnswer& result : results) {
            const auto at = entries_.find(result.claim_id);
            if (at == entries_.end() || at->second.link != link ||
                (at->second.stage != PutStage::kClaiming &&
                 at->second.stage != PutStage::kFilled)) {
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
                entry.version = result.version;
                entry.is_first = result.first;
                advance(at, PutEvent::kGranted, &ready, &endings);
                continue;
            }
            entry.refusal =
                result.code == Code::kOk ? Code::kProtocolError : refusal_of(result.code);
            advance(at, PutEvent::kRefused, &ready, &endings);
        }
    }
    if (!unused.empty()) {
        link_.abandon(link, unused);
    }
    end(endings);
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
    std::vector<Ending> refused;
    std::vector<Ending> lost;
    std::vector<std::tuple<NamespaceRef, Hash128, Version>> newer;  // than what NVMe may have
    {
        const MutexLock lock(mutex_);
        const uint64_t now = boottime_us();
        for (size_t i = 0; i < ready.size(); ++i) {
            const auto at = entries_.find(ready[i].generation);
            KV_ASSERT(at != entries_.end());  // nobody takes out what is being published
            Entry& entry = at->second;
            if (results[i].code != Code::kOk) {
                const bool unknown = results[i].code == Code::kInvalidArgument;
                refused.push_back(take(at, unknown ? Code::kExpired : results[i].code));
                continue;
            }
            if (tier_ != nullptr) {
                newer.emplace_back(entry.ns, entry.hash, entry.version);
            }
            wishes_.note(entry.version, entry.replicas);
            entry.stage = next_stage(entry.stage, PutEvent::kPublished);
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
    end(refused);
    for (Group& group : groups) {
        std::vector<Generation> generations;
        for (const AnnounceItem& item : group.items) {
            generations.push_back(item.ticket);
        }
        const auto announced = link_.announce(group.link, group.ns, std::move(group.items));
        if (announced == MasterLink::Announced::kNext) {
            answer_first(generations);
        }
        if (announced != MasterLink::Announced::kLost) {
            link_.flush(group.link);
            continue;
        }
        const MutexLock lock(mutex_);
        for (const Generation generation : generations) {
            if (const auto at = entries_.find(generation); at != entries_.end()) {
                lost.push_back(take(at, Code::kUnavailable));
            }
        }
    }
    end(lost);
}

// Who looks for the key from now on waits at the master until the announce has come. So the writer
// is answered first: what the master then does with the announce is done beside what it does.
void PutFlow::answer_first(std::span<const Generation> generations) {
    struct Answer {
        std::shared_ptr<PutReply> reply;
        size_t row;
    };
    std::vector<Answer> answers;
    {
        const MutexLock lock(mutex_);
        for (const Generation generation : generations) {
            const auto at = entries_.find(generation);
            if (at == entries_.end() || !at->second.is_first || at->second.is_copy ||
                at->second.stage != PutStage::kAnnouncing) {
                continue;
            }
            Entry& entry = at->second;
            entry.stage = next_stage(entry.stage, PutEvent::kQueued);
            count(entry, Code::kOk);
            answers.push_back({std::exchange(entry.reply, nullptr), entry.row});
        }
    }
    for (const Answer& one : answers) {
        one.reply->finish(one.row, Code::kOk);
    }
}

void PutFlow::on_announced(std::span<const AnnounceResult> results) {
    fault_point("announced");
    std::vector<Ending> endings;
    {
        const MutexLock lock(mutex_);
        for (const AnnounceResult& result : results) {
            const auto at = entries_.find(result.item->ticket);
            if (at != entries_.end() && at->second.stage >= PutStage::kAnnouncing) {
                endings.push_back(take(at, result.code));
            }
        }
    }
    const uint64_t now = boottime_us();
    for (const Ending& one : endings) {
        metrics_.announce_us.record(now - one.entry.announced_us);
    }
    end(endings);
}

// ---- ends ------------------------------------------------------------------------------------

Counter& PutFlow::put_bytes(const Owner& owner) const {
    if (owner.slot >= 0) {
        return metrics_.put_bytes_shm;
    }
    return (owner.session & kPulledSession) != 0 ? metrics_.put_bytes_ucx
                                                 : metrics_.put_bytes_socket;
}

void PutFlow::count(const Entry& entry, Code code) {
    if (entry.is_copy) {
        metrics_.copies_in.add(code == Code::kOk ? 1 : 0);
        metrics_.copy_bytes_in.add(code == Code::kOk ? entry.size_bytes : 0);
    } else if (code == Code::kOk) {
        metrics_.puts_ok.add();
        metrics_.put_us.record(boottime_us() - entry.started_us);
        put_bytes(entry.owner).add(entry.size_bytes);
    } else {
        (code == Code::kAlreadyExists ? metrics_.puts_exist : metrics_.puts_failed).add();
    }
    if (!entry.is_copy && (code == Code::kOk || code == Code::kAlreadyExists)) {
        store_.sampler().put(entry.hash, entry.size_bytes);
    }
}

void PutFlow::end(std::span<const Ending> endings) {
    for (const Ending& ending : endings) {
        if (ending.reason != Code::kOk) {
            release(ending);
        }
    }
    abandon(endings);
    for (const Ending& ending : endings) {
        if (ending.entry.reply != nullptr) {
            count(ending.entry, ending.reason);
            ending.entry.reply->finish(ending.entry.row, ending.reason);
        }
    }
}

// A writer that has not committed may still be copying: its block stays a reservation, which the
// store ends.
void PutFlow::release(const Ending& ending) {
    const Entry& entry = ending.entry;
    if (entry.stage >= PutStage::kAnnouncing) {
        if (store_.unpublish(ending.generation) == Code::kOk) {
            // The master may have heard of it; on a lost link this says nothing.
            link_.withdraw(entry.ns, {{entry.key, entry.version, MissReason::kAbsent}});
        }
        wishes_.forget(entry.version);
    } else if (entry.reply != nullptr) {
        // Unknown where the store has freed it while refusing to publish.
        static_cast<void>(store_.abort(entry.owner, ending.generation));
    }
}

// Tells the master which claims will not be used: all but those that were, or that it refused.
void PutFlow::abandon(std::span<const Ending> endings) {
    std::vector<uint64_t> ids;
    for (size_t i = 0; i < endings.size(); ++i) {
        const Ending& ending = endings[i];
        const uint64_t link = ending.entry.link;
        if (ending.reason != Code::kOk && ending.entry.refusal == Code::kOk) {
            ids.push_back(ending.generation);
        }
        if (!ids.empty() && (i + 1 == endings.size() || endings[i + 1].entry.link != link)) {
            link_.abandon(link, ids);
            ids.clear();
        }
    }
}

Code PutFlow::abort(const Owner& owner, Generation generation) {
    std::vector<Ending> endings;
    {
        const MutexLock lock(mutex_);
        const auto at = entries_.find(generation);
        if (at != entries_.end()) {
            if (!is_writer(owner, at->second.owner) || at->second.stage >= PutStage::kPublishing) {
                return Code::kInvalidArgument;  // published: to remove it takes a remove
            }
            endings.push_back(take(at, Code::kUnavailable));
        }
    }
    const Code code = store_.abort(owner, generation);
    end(endings);
    return code;
}

void PutFlow::disown(const Owner& owner, std::span<const Generation> generations) {
    std::vector<Ending> endings;
    {
        const MutexLock lock(mutex_);
        for (const Generation generation : generations) {
            const auto at = entries_.find(generation);
            if (at != entries_.end() && is_writer(owner, at->second.owner) &&
                at->second.stage < PutStage::kPublishing) {
                endings.push_back(take(at, Code::kUnavailable));
            }
        }
    }
    end(endings);
}

void PutFlow::on_link_down(uint64_t link) {
    std::vector<Ending> endings;
    {
        const MutexLock lock(mutex_);
        for (auto at = entries_.begin(); at != entries_.end();) {
            const auto here = at++;
            Entry& entry = here->second;
            if (entry.link != link || entry.stage == PutStage::kPublishing) {
                continue;
            }
            // What was answered stays: the next full announce names it.
            entry.refusal = entry.stage == PutStage::kAnswered ? Code::kOk : Code::kUnavailable;
            advance(here, PutEvent::kLinkLost, nullptr, &endings);
        }
    }
    if (!KV_GUARD("take-back", true)) {
        std::erase_if(endings, [](const Ending& ending) {
            return ending.entry.stage == PutStage::kAnnouncing;
        });
    }
    end(endings);
}

void PutFlow::on_session_closed(uint64_t session) {
    std::vector<Ending> endings;
    {
        const MutexLock lock(mutex_);
        for (auto at = entries_.begin(); at != entries_.end();) {
            const auto here = at++;
            const Entry& entry = here->second;
            if (entry.owner.session == session && entry.stage < PutStage::kPublishing) {
                endings.push_back(take(here, Code::kClosed));
            }
        }
    }
    end(endings);
}

void PutFlow::tick() {
    std::vector<Ending> endings;
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
            if (may_end(at->second.stage)) {
                endings.push_back(take(at, Code::kUnavailable));
            } else {
                at->second.deadline_ms = now + kRetryMs;
                timeouts_.emplace(at->second.deadline_ms, generation);
            }
        }
    }
    end(endings);
}

size_t PutFlow::under_way() const {
    const MutexLock lock(mutex_);
    return entries_.size();
}

}  // namespace kvstore
