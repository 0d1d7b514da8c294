// What clients ask of the master: fences, remove, pins, flush and locate. Removes, pins and flushes
// log an operation for each row, and are answered when the disk and every holder have it.
#include <algorithm>

#include "base/clock.h"
#include "base/mutation.h"
#include "base/mutex.h"
#include "master/master_core.h"

namespace kvstore {
namespace {

constexpr uint32_t kDefaultTimeoutMs = 5'000;
constexpr size_t kLocateBatch = 128;

uint32_t bounded_timeout(uint32_t timeout_ms) {
    return timeout_ms == 0 ? kDefaultTimeoutMs : std::min(timeout_ms, limits::kMaxTimeoutMs);
}

// Of one operation for each of the keys.
uint64_t records_bytes(const Namespace& ns, const std::vector<std::string_view>& keys) {
    uint64_t bytes = 0;
    for (const std::string_view key : keys) {
        bytes += OpsLog::record_bytes(ns.tenant, ns.name, key);
    }
    return bytes;
}

}  // namespace

std::vector<LinkId> MasterCore::unannounced(const Namespace& ns,
                                            std::span<const std::string_view> keys) const {
    return claims_.unannounced(*ns.current.load(std::memory_order_acquire), keys);
}

bool MasterCore::fence(std::span<const LinkId> links, size_t request_bytes,
                       AnnounceFences::Then then) {
    return fences_.wait(links, request_bytes, boottime_ms(), std::move(then),
                        [this](LinkId id, uint64_t token) {
                            if (const std::shared_ptr<LinkRecord> link = find_link(id)) {
                                link->to->send_ping(token);
                            } else {
                                fences_.passed(id, token);  // lost meanwhile
                            }
                        });
}

std::vector<NodeNumber> MasterCore::unheard() const {
    const MutexLock lock(mutex_);
    std::vector<NodeNumber> out;
    for (NodeNumber slot = 0; slot < nodes_.end(); ++slot) {
        const NodeRecord* record = nodes_.at(slot);
        if (record != nullptr && !record->removed && record->unheard && !record->synced) {
            out.push_back(slot);
        }
    }
    return out;
}

std::vector<std::string> MasterCore::names(const std::vector<NodeNumber>& slots) const {
    const MutexLock lock(mutex_);
    std::vector<std::string> out;
    for (const NodeNumber slot : slots) {
        if (const NodeRecord* record = nodes_.at(slot)) {
            out.push_back(record->info.node_id);
        }
    }
    return out;
}

void MasterCore::add_behind(const Namespace& ns, std::string_view key, AckRow& row) const {
    const uint64_t seq = log_.last_ending(ns.tenant, ns.name, key);
    for (NodeNumber slot = 0; seq != 0 && slot < nodes_.end(); ++slot) {
        const NodeRecord* record = nodes_.at(slot);
        if (record != nullptr && !record->removed && record->may_hold(ns) &&
            KV_GUARD("earlier-endings", record->applied_seq < seq)) {
            row.holders.push_back(slot);
            row.seq = seq;
        }
    }
}

void MasterCore::submit(std::vector<Pending> rows, uint32_t timeout_ms, RemoveDone done) {
    Effects effects;
    {
        const MutexLock lock(mutex_);
        std::vector<AckRow> waiting;
        for (Pending& pending : rows) {
            if (pending.op.has_value()) {
                const Op& op = *pending.op;
                journal_room_.add(OpsLog::record_bytes(op.tenant, op.ns, op.key));
                pending.row.seq = log_.append(std::move(*pending.op));
            }
            waiting.push_back(std::move(pending.row));
        }
        // In one critical section with the numbers: no acknowledgement can come before the wait.
        const uint64_t now_ms = boottime_ms();
        waits_.add(std::move(waiting), now_ms + bounded_timeout(timeout_ms),
                   [this, done = std::move(done)](std::vector<Code> codes,
                                                  const std::vector<NodeNumber>& unreached) {
                       if (done) {
                           done(std::move(codes), names(unreached));
                       }
                   });
        if (options_.journal_auto_ack) {
            make_durable(log_.last_seq());
        }
        if (stopping_) {
            collect_all(effects);
        } else {
            collect_ready(now_ms, effects);
        }
    }
    journal_ready_.notify_one();
    run(effects);
}

Result<NamespacePtr> MasterCore::space_to_change(std::string_view tenant, std::string_view ns) {
    NamespacePtr space = directory_.namespaces().find(tenant, ns);
    if (space == nullptr && (directory_.rebuilding() || !unheard().empty())) {
        return directory_.namespaces().open_for(tenant, ns);
    }
    return space;
}

void MasterCore::remove(Namespace& ns, const std::vector<std::string_view>& keys,
                        uint32_t timeout_ms, RemoveDone done) {
    const uint64_t room = records_bytes(ns, keys);
    if (!journal_room_.admit(room)) {
        done(std::vector<Code>(keys.size(), journal_room_.refusal()), {});
        return;
    }
    removes_.fetch_add(keys.size());
    const DirectoryEpoch& epoch = *ns.current.load(std::memory_order_acquire);
    // Who has not announced everything yet may hold any key.
    const std::vector<NodeNumber> silent = unheard();
    Effects effects;
    std::vector<Pending> rows(keys.size());
    for (size_t i = 0; i < keys.size(); ++i) {
        std::vector<NodeNumber> targets = planner_.targets(epoch, keys[i]);
        // Before the directory is asked: the announcement that settles it may come in between, and
        // is refused then, but the node has published it.
        const std::optional<NodeNumber> claimed = claims_.claimed_by(epoch, keys[i]);
        const bool force =
            !silent.empty() || !targets.empty() || directory_.rebuilding() || claimed.has_value();
        RemoveOutcome outcome = directory_.remove(epoch, keys[i], force);
        AckRow& row = rows[i].row;
        {
            const MutexLock lock(mutex_);
            add_behind(ns, keys[i], row);
        }
        if (outcome.tombstone == 0) {
            row.code = Code::kNotFound;
            continue;
        }
        for (const NodeNumber slot : outcome.holders) {
            row.add_holder(slot);
        }
        row.add_holder(claimed.value_or(kNoNode));
        row.add_holder(claims_.removed(epoch, keys[i], outcome.tombstone, effects.answers));
        for (const std::vector<NodeNumber>* more : {&std::as_const(targets), &silent}) {
            for (const NodeNumber slot : *more) {
                row.add_holder(slot);
            }
        }
        rows[i].op = Op{.kind = OpKind::kRemove,
                        .epoch = epoch.epoch,
                        .version = outcome.tombstone,
                        .tenant = ns.tenant,
                        .ns = ns.name,
                        .key = std::string(keys[i])};
    }
    run(effects);
    submit(std::move(rows), timeout_ms, std::move(done));
    journal_room_.give_back(room);
}

void MasterCore::set_pins(Namespace& ns, const std::vector<std::string_view>& keys,
                          const std::vector<Pin>& levels, uint32_t timeout_ms, RemoveDone done) {
    KV_ASSERT(levels.size() == keys.size());
    const uint64_t room = records_bytes(ns, keys);
    if (!journal_room_.admit(room)) {
        done(std::vector<Code>(keys.size(), journal_room_.refusal()), {});
        return;
    }
    const DirectoryEpoch& epoch = *ns.current.load(std::memory_order_acquire);
    std::vector<Pending> rows(keys.size());
    for (size_t i = 0; i < keys.size(); ++i) {
        AckRow& row = rows[i].row;
        const Version version = directory_.set_pin(epoch, keys[i], levels[i], row.holders);
        if (version == 0) {
            row.code = directory_.rebuilding() ? Code::kRebuilding : Code::kNotFound;
            continue;
        }
        rows[i].op = Op{.kind = OpKind::kPin,
                        .epoch = epoch.epoch,
                        .version = version,
                        .arg = static_cast<uint64_t>(levels[i]),
                        .tenant = ns.tenant,
                        .ns = ns.name,
                        .key = std::string(keys[i])};
    }
    submit(std::move(rows), timeout_ms, std::move(done));
    journal_room_.give_back(room);
}

void MasterCore::flush(Namespace& ns, uint32_t timeout_ms, FlushDone done) {
    const uint64_t room = OpsLog::record_bytes(ns.tenant, ns.name, {});
    if (!journal_room_.admit(room)) {
        done(journal_room_.refusal(), {}, ns.current.load(std::memory_order_acquire)->epoch);
        return;
    }
    flushes_.fetch_add(1);
    std::vector<Pending> rows(1);
    uint32_t next_epoch = 0;
    Effects effects;
    {
        // Two flushes of one namespace must not log the same epoch.
        const MutexLock lock(flush_mutex_);
        const DirectoryEpoch* ended = ns.current.load(std::memory_order_acquire);
        const DirectoryEpoch* next = directory_.flush(ns);
        next_epoch = next->epoch;
        claims_.flushed(*ended, effects.answers);
        rows[0].op = Op{.kind = OpKind::kFlush,
                        .epoch = ended->epoch,
                        .version = directory_.next_version(),
                        .arg = next_epoch,
                        .tenant = ns.tenant,
                        .ns = ns.name,
                        .key = {}};
    }
    {
        const MutexLock lock(mutex_);
        for (NodeNumber slot = 0; slot < nodes_.end(); ++slot) {
            const NodeRecord* record = nodes_.at(slot);
            // One that never claimed or announced anything in this namespace holds nothing that
            // the flush could end.
            if (record != nullptr && !record->removed &&
                (record->may_hold(ns) || planner_.may_hold(slot) || claims_.has_limbo(slot))) {
                rows[0].row.holders.push_back(slot);
            }
        }
    }
    run(effects);
    submit(std::move(rows), timeout_ms,
           [done = std::move(done), next_epoch](const std::vector<Code>& codes,
                                                std::vector<std::string> unreached) {
               done(codes[0], std::move(unreached), next_epoch);
           });
    journal_room_.give_back(room);
}

std::pair<std::vector<std::pair<std::string, uint32_t>>, uint32_t> MasterCore::locate(
    const Namespace& ns, const std::vector<std::string_view>& keys) {
    std::vector<uint32_t> lengths(limits::kMaxNodes);
    std::vector<ObjectPlace> found(kLocateBatch);
    uint32_t anywhere = 0;
    for (size_t begin = 0; begin < keys.size() && anywhere == begin; begin += kLocateBatch) {
        const size_t count = std::min(kLocateBatch, keys.size() - begin);
        directory_.lookup(ns, std::span(keys).subspan(begin, count), found);
        for (size_t i = 0; i < count && found[i].code == Code::kOk; ++i, ++anywhere) {
            for (size_t r = 0; r < found[i].replica_count; ++r) {
                uint32_t& length = lengths[found[i].nodes[r]];
                length += length == anywhere ? 1 : 0;
            }
        }
    }
    std::vector<std::pair<std::string, uint32_t>> prefixes;
    {
        const MutexLock lock(mutex_);
        for (NodeNumber slot = 0; slot < nodes_.end(); ++slot) {
            const NodeRecord* record = nodes_.at(slot);
            if (record != nullptr && lengths[slot] != 0) {
                prefixes.emplace_back(record->info.node_id, lengths[slot]);
            }
        }
    }
    std::stable_sort(prefixes.begin(), prefixes.end(),
                     [](const auto& a, const auto& b) { return a.second > b.second; });
    return {std::move(prefixes), anywhere};
}

}  // namespace kvstore
