// Nodes, the journal and what clients ask; links are in node_links.cpp, time in maintenance.cpp.
#include "master/master_core.h"

#include <algorithm>

#include "base/clock.h"
#include "base/mutation.h"
#include "base/mutex.h"

namespace kvstore {
namespace {

constexpr uint32_t kDefaultTimeoutMs = 5'000;
constexpr size_t kLocateBatch = 128;
constexpr size_t kJournalBatch = 4096;
// An announcement that a node built before it applied a remove may arrive after its
// acknowledgement.
constexpr uint64_t kTombstoneGraceMs = 10'000;

uint32_t bounded_timeout(uint32_t timeout_ms) {
    return timeout_ms == 0 ? kDefaultTimeoutMs : std::min(timeout_ms, limits::kMaxTimeoutMs);
}

void add_unique(std::vector<NodeNumber>& slots, NodeNumber slot) {
    if (slot != kNoNode && std::find(slots.begin(), slots.end(), slot) == slots.end()) {
        slots.push_back(slot);
    }
}

}  // namespace

MasterCore::MasterCore(const Options& options)
    : options_(options),
      directory_(options.secret, options.epoch),
      claims_(directory_),
      planner_(directory_, options.epoch),
      lookup_waits_(directory_, options.secret),
      log_(options.trimmed_seq, options.version_floor),
      nodes_id_(pack_epoch(options.epoch, 1)) {
    directory_.set_rebuilding(options.rebuilding);
    if (options.maintenance_ms != 0) {
        maintenance_ = std::thread([this] { maintenance_loop(); });
    }
}

MasterCore::~MasterCore() { stop(); }

void MasterCore::stop() {
    Effects effects;
    {
        const MutexLock lock(mutex_);
        stopping_ = true;
        collect_all(effects);
    }
    journal_ready_.notify_all();
    wake_.notify_all();
    run(effects);
    lookup_waits_.end_all();
    if (maintenance_.joinable()) {
        maintenance_.join();
    }
}

Result<NodeNumber> MasterCore::register_node(const NodeInfo& info, bool known) {
    if (info.node_id.empty() || !is_valid_name(info.node_id)) {
        return Status(Code::kInvalidArgument, "bad node id");
    }
    Effects effects;
    MutexLock lock(mutex_);
    Result<NodeNumber> slot = nodes_.add(info.node_id);
    if (!slot.ok()) {
        return slot;
    }
    NodeRecord& record = *nodes_.at(*slot);
    if (record.info.session_id != info.session_id) {
        lose_link(record, "a newer session of this node has registered");
    }
    if (known) {
        record.applied_seq = std::max(record.applied_seq, log_.trimmed_seq());
    }
    const NodeState before = record.info.state;
    record.info = info;
    record.info.state = before;
    change_state(*slot, record, info.state, effects);
    nodes_changed();
    collect_ready(boottime_ms(), effects);
    lock.unlock();
    run(effects);
    return slot;
}

void MasterCore::run(Effects& effects) {
    deliver(effects.answers);
    for (AckWaits::Ready& one : effects.ready) {
        one.run();
    }
    if (effects.became_readable) {
        lookup_waits_.recheck();
    }
    if (effects.announced_in != nullptr) {
        lookup_waits_.announced(*effects.announced_in, *effects.announced_keys);
    }
}

void MasterCore::change_state(NodeNumber slot, NodeRecord& record, NodeState state,
                              Effects& effects) {
    const bool was_readable = directory_.readable(slot);
    if (record.info.state != state) {
        record.info.state = state;
        record.changed_ms = boottime_ms();
        scan_requests_.fetch_add(1);
        nodes_changed();
    }
    directory_.set_readable(slot, record.readable());
    if (was_readable != record.readable()) {
        directory_.watch().record(WatchKind::kNode, {}, {}, {}, 0, 0, slot);
    }
    effects.became_readable = effects.became_readable || (!was_readable && record.readable());
}

Status MasterCore::set_node(const std::string& node_id, NodeState state, uint32_t weight,
                            uint64_t free_bytes, uint64_t capacity_bytes) {
    Effects effects;
    MutexLock lock(mutex_);
    const NodeNumber slot = nodes_.slot_of(node_id);
    if (slot == kNoNode) {
        return Status(Code::kNotFound, "unknown node " + node_id);
    }
    NodeRecord& record = *nodes_.at(slot);
    record.info.weight = weight;
    record.info.free_bytes = free_bytes;
    record.info.capacity_bytes = capacity_bytes;
    change_state(slot, record, state, effects);
    if (state == NodeState::kDead) {
        lose_link(record, "this node was declared dead");
        claims_.end_limbo(slot, effects.answers);
        collect_ready(boottime_ms(), effects);
    }
    lock.unlock();
    run(effects);
    return {};
}

void MasterCore::heard(const std::string& node_id) {
    Effects effects;
    MutexLock lock(mutex_);
    const NodeNumber slot = nodes_.slot_of(node_id);
    NodeRecord* record = nodes_.at(slot);
    if (record == nullptr || !record->doubted) {
        return;
    }
    record->doubted = false;
    change_state(slot, *record, record->info.state, effects);
    lock.unlock();
    run(effects);
}

Status MasterCore::set_endpoints(const std::string& node_id, const std::string& tcp,
                                 const std::string& unix_endpoint, const std::string& host) {
    const MutexLock lock(mutex_);
    NodeRecord* record = nodes_.find(node_id);
    if (record == nullptr) {
        return Status(Code::kNotFound, "unknown node " + node_id);
    }
    NodeInfo& info = record->info;
    if (info.tcp_endpoint != tcp || info.unix_endpoint != unix_endpoint || info.host != host) {
        info.tcp_endpoint = tcp;
        info.unix_endpoint = unix_endpoint;
        info.host = host;
        nodes_changed();
    }
    return {};
}

Status MasterCore::remove_node(const std::string& node_id) {
    Effects effects;
    std::shared_ptr<LinkRecord> link;
    NodeNumber slot = kNoNode;
    {
        const MutexLock lock(mutex_);
        slot = nodes_.slot_of(node_id);
        if (slot == kNoNode) {
            return Status(Code::kNotFound, "unknown node " + node_id);
        }
        NodeRecord& record = *nodes_.at(slot);
        link = lose_link(record, "this node was removed");
        nodes_.remove(slot);
        directory_.set_readable(slot, false);
        nodes_changed();
        scan_requests_.fetch_add(1);
        claims_.end_limbo(slot, effects.answers);
        trim();
    }
    if (link != nullptr) {
        // An announcement that is under way ends first: nothing may be recorded for the slot later.
        const MutexLock work(link->work);
        link->closed = true;
    }
    directory_.drop_node(slot);
    {
        const MutexLock lock(mutex_);
        nodes_.release(slot);
        collect_ready(boottime_ms(), effects);
    }
    run(effects);
    return {};
}

std::vector<MasterCore::NodeView> MasterCore::nodes() const {
    const MutexLock lock(mutex_);
    std::vector<NodeView> out;
    for (NodeNumber slot = 0; slot < nodes_.end(); ++slot) {
        const NodeRecord* record = nodes_.at(slot);
        if (record != nullptr && !record->removed) {
            out.push_back({.slot = slot,
                           .info = record->info,
                           .connected = record->connected(),
                           .synced = record->synced,
                           .applied_seq = record->applied_seq,
                           .replicas = directory_.replicas_of(slot)});
        }
    }
    return out;
}

void MasterCore::finish_rebuild() {
    Effects effects;
    directory_.set_rebuilding(false);
    claims_.finish_rebuild(effects.answers);
    scan_requests_.fetch_add(1);
    run(effects);
}

Status MasterCore::load_ops(const std::vector<std::vector<uint8_t>>& records) {
    const MutexLock lock(mutex_);
    for (const std::vector<uint8_t>& record : records) {
        Result<Op> op = OpsLog::decode(record);
        const Status loaded = op.ok() ? log_.load(record) : op.status();
        if (!loaded.ok()) {
            return loaded;
        }
        Result<Namespace*> ns = directory_.namespaces().open(op->tenant, op->ns);
        if (!ns.ok()) {
            return ns.status();
        }
        const uint32_t epoch =
            op->kind == OpKind::kFlush ? static_cast<uint32_t>(op->arg) : op->epoch;
        const DirectoryEpoch* current = directory_.namespaces().advance(**ns, epoch);
        (*ns)->durable_epoch.store(current->epoch);
        if (op->kind == OpKind::kRemove && current->epoch == op->epoch) {
            directory_.set_tombstone(*current, op->key, op->version);
        }
    }
    return {};
}

Status MasterCore::set_namespace_epoch(const std::string& tenant, const std::string& ns,
                                       uint32_t epoch) {
    Result<Namespace*> space = directory_.namespaces().open(tenant, ns);
    if (!space.ok()) {
        return space.status();
    }
    (*space)->durable_epoch.store(directory_.namespaces().advance(**space, epoch)->epoch);
    return {};
}

std::vector<std::pair<uint64_t, std::vector<uint8_t>>> MasterCore::wait_journal(
    uint32_t timeout_ms) {
    MutexLock lock(mutex_);
    journal_ready_.wait_for(mutex_, std::chrono::milliseconds(timeout_ms),
                            [this]()
                                KV_REQUIRES(mutex_) { return stopping_ || log_.has_records(); });
    return log_.take_records(kJournalBatch);
}

void MasterCore::journal_done(uint64_t seq) {
    Effects effects;
    MutexLock lock(mutex_);
    make_durable(seq);
    collect_ready(boottime_ms(), effects);
    lock.unlock();
    run(effects);
}

void MasterCore::make_durable(uint64_t seq) {
    log_.make_durable(seq, [this](const Op& op) {
        if (op.kind == OpKind::kFlush) {
            // Flushes of one namespace may stand in the log in another order than they happened in.
            std::atomic<uint32_t>& epoch =
                directory_.namespaces().find(op.tenant, op.ns)->durable_epoch;
            epoch.store(std::max(epoch.load(), static_cast<uint32_t>(op.arg)));
        }
    });
    push_ops();
    trim();
}

std::pair<uint64_t, Version> MasterCore::journal_trimmed() const {
    const MutexLock lock(mutex_);
    return {log_.trimmed_seq(), log_.version_floor()};
}

void MasterCore::push_ops() {
    for (NodeNumber slot = 0; slot < nodes_.end(); ++slot) {
        NodeRecord* record = nodes_.at(slot);
        if (record != nullptr && record->connected()) {
            push_ops(*record);
        }
    }
}

void MasterCore::trim() {
    const uint64_t now_ms = boottime_ms();
    for (Op& op : log_.trim(nodes_.min_applied_seq(log_.durable_seq()))) {
        if (op.kind == OpKind::kRemove) {
            retired_.emplace_back(now_ms + kTombstoneGraceMs, std::move(op));
        }
    }
}

void MasterCore::collect_ready(uint64_t now_ms, Effects& effects) {
    if (waits_.size() != 0) {
        effects.ready =
            waits_.collect(log_.durable_seq(), now_ms,
                           [this](NodeNumber slot) KV_REQUIRES(mutex_) { return look(slot); });
    }
}

void MasterCore::collect_all(Effects& effects) {
    effects.ready = waits_.collect_all(
        log_.durable_seq(), [this](NodeNumber slot) KV_REQUIRES(mutex_) { return look(slot); });
}

AckNode MasterCore::look(NodeNumber slot) const {
    const NodeRecord* record = nodes_.at(slot);
    if (record == nullptr || record->removed) {
        return {.connected = false, .applied_seq = UINT64_MAX};  // nobody waits for it any more
    }
    return {.connected = record->connected(), .applied_seq = record->applied_seq};
}

std::vector<NodeNumber> MasterCore::unsynced() const {
    const MutexLock lock(mutex_);
    std::vector<NodeNumber> out;
    for (NodeNumber slot = 0; slot < nodes_.end(); ++slot) {
        const NodeRecord* record = nodes_.at(slot);
        if (record != nullptr && !record->removed && !record->synced) {
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

void MasterCore::submit(std::vector<Pending> rows, uint32_t timeout_ms, RemoveDone done) {
    Effects effects;
    {
        const MutexLock lock(mutex_);
        std::vector<AckRow> waiting;
        for (Pending& pending : rows) {
            if (pending.op.has_value()) {
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

void MasterCore::add_behind(const Namespace& ns, std::string_view key, AckRow& row) const {
    const uint64_t seq = log_.last_ending(ns.tenant, ns.name, key);
    for (NodeNumber slot = 0; seq != 0 && slot < nodes_.end(); ++slot) {
        const NodeRecord* record = nodes_.at(slot);
        if (record != nullptr && !record->removed &&
            KV_GUARD("earlier-endings", record->applied_seq < seq)) {
            row.holders.push_back(slot);
            row.seq = seq;
        }
    }
}

void MasterCore::remove(Namespace& ns, const std::vector<std::string_view>& keys,
                        uint32_t timeout_ms, RemoveDone done) {
    removes_.fetch_add(keys.size());
    const DirectoryEpoch& epoch = *ns.current.load(std::memory_order_acquire);
    // Who has not announced everything yet may hold any key.
    const std::vector<NodeNumber> silent = unsynced();
    Effects effects;
    std::vector<Pending> rows(keys.size());
    for (size_t i = 0; i < keys.size(); ++i) {
        std::vector<NodeNumber> targets = planner_.targets(epoch, keys[i]);
        const bool force = !silent.empty() || !targets.empty() || directory_.rebuilding() ||
                           claims_.has_claim(epoch, keys[i]);
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
            add_unique(row.holders, slot);
        }
        add_unique(row.holders,
                   claims_.removed(epoch, keys[i], outcome.tombstone, effects.answers));
        for (const std::vector<NodeNumber>* more : {&std::as_const(targets), &silent}) {
            for (const NodeNumber slot : *more) {
                add_unique(row.holders, slot);
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
}

void MasterCore::set_pins(Namespace& ns, const std::vector<std::string_view>& keys,
                          const std::vector<Pin>& levels, uint32_t timeout_ms, RemoveDone done) {
    KV_ASSERT(levels.size() == keys.size());
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
}

void MasterCore::flush(Namespace& ns, uint32_t timeout_ms, FlushDone done) {
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
            // One that is away and has nothing recorded holds nothing that a flush could end,
            // unless an operation that took it from the directory has still to be applied there, or
            // it has not said yet what it has published.
            if (record != nullptr && !record->removed &&
                (record->connected() || !record->synced || directory_.replicas_of(slot) != 0 ||
                 record->applied_seq < log_.last_seq() || planner_.may_hold(slot) ||
                 claims_.has_limbo(slot))) {
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

MasterCore::Stats MasterCore::stats() const {
    Stats stats;
    stats.directory = directory_.stats();
    stats.claims = claims_.stats();
    stats.copies = planner_.stats();
    stats.waiting_lookups = lookup_waits_.size();
    const MutexLock lock(mutex_);
    stats.last_seq = log_.last_seq();
    stats.durable_seq = log_.durable_seq();
    stats.trimmed_seq = log_.trimmed_seq();
    stats.log_ops = log_.size();
    stats.pending_waits = waits_.size();
    for (NodeNumber slot = 0; slot < nodes_.end(); ++slot) {
        const NodeRecord* record = nodes_.at(slot);
        stats.nodes += record != nullptr && !record->removed ? 1 : 0;
        stats.connected += record != nullptr && record->connected() ? 1 : 0;
    }
    stats.announced = announced_.load();
    stats.refused_announces = refused_announces_.load();
    stats.withdrawn = withdrawn_.load();
    stats.removes = removes_.load();
    stats.flushes = flushes_.load();
    return stats;
}

}  // namespace kvstore
