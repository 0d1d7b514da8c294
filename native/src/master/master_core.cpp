// Nodes and the journal. Links are in node_links.cpp, what clients ask is in client_calls.cpp, and
// what happens by itself in maintenance.cpp.
#include "master/master_core.h"

#include <algorithm>

#include "base/clock.h"
#include "base/mutex.h"

namespace kvstore {
namespace {

constexpr size_t kJournalBatch = 4096;
// An announcement that a node built before it applied a remove may arrive after its
// acknowledgement.
constexpr uint64_t kTombstoneGraceMs = 10'000;

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
    fences_.end_all();
    heartbeats_.stop();
    directory_.watch().interrupt();
    if (maintenance_.joinable()) {
        maintenance_.join();
    }
}

void MasterCore::set_principal_share(double share) {
    lookup_waits_.set_principal_share(share);
    waiting_changes_.set_principal_share(share);
}

Result<NodeNumber> MasterCore::register_node(const NodeInfo& info, bool known) {
    if (info.node_id.empty() || !is_valid_name(info.node_id)) {
        return Status(Code::kInvalidArgument, "bad node id");
    }
    Effects effects;
    MutexLock lock(mutex_);
    const bool seen = nodes_.find(info.node_id) != nullptr;
    Result<NodeNumber> slot = nodes_.add(info.node_id);
    if (!slot.ok()) {
        return slot;
    }
    NodeRecord& record = *nodes_.at(*slot);
    record.unheard = seen || !info.fresh;
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
    directory_.set_restarting(slot, state == NodeState::kRestarting);
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
    if (is_gone(state)) {
        lose_link(record, state == NodeState::kDead ? "this node was declared dead"
                                                    : "this node has announced its restart");
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
                                 const std::string& unix_endpoint, const std::string& host,
                                 const Locality& locality) {
    const MutexLock lock(mutex_);
    NodeRecord* record = nodes_.find(node_id);
    if (record == nullptr) {
        return Status(Code::kNotFound, "unknown node " + node_id);
    }
    NodeInfo& info = record->info;
    if (info.tcp_endpoint != tcp || info.unix_endpoint != unix_endpoint || info.host != host ||
        info.locality != locality) {
        info.tcp_endpoint = tcp;
        info.unix_endpoint = unix_endpoint;
        info.host = host;
        info.locality = locality;
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
        directory_.set_restarting(slot, false);
        nodes_changed();
        scan_requests_.fetch_add(1);
        claims_.end_limbo(slot, effects.answers);
        trim();
    }
    if (link != nullptr) {
        // An announcement that is in progress ends first: nothing may be recorded for the slot
        // later.
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

std::pair<bool, bool> MasterCore::link_of(const std::string& node_id) const {
    const MutexLock lock(mutex_);
    const NodeRecord* record = nodes_.at(nodes_.slot_of(node_id));
    return record == nullptr ? std::pair{false, false}
                             : std::pair{record->connected(), record->synced};
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
    for (size_t i = 0; i < records.size(); ++i) {
        const std::vector<uint8_t>& record = records[i];
        Result<Op> op = OpsLog::decode(record);
        const Status loaded = op.ok() ? log_.load(record) : op.status();
        if (!loaded.ok()) {
            return Status(loaded.code(), "record " + std::to_string(i + 1) + " of " +
                                             std::to_string(records.size()) + ": " +
                                             loaded.message());
        }
        Result<NamespacePtr> ns = directory_.namespaces().open(op->tenant, op->ns);
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
    Result<NamespacePtr> space = directory_.namespaces().open(tenant, ns);
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
        journal_room_.give_back(OpsLog::record_bytes(op.tenant, op.ns, op.key));
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
    stats.namespaces = directory_.namespaces().size();
    return stats;
}

}  // namespace kvstore
