// The links of the nodes: hello, claims, announcements, acknowledgements, and what is pushed to
// them.
#include <algorithm>
#include <span>

#include "base/clock.h"
#include "base/mutation.h"
#include "base/mutex.h"
#include "master/master_core.h"
#include "wire/messages_node.h"

namespace kvstore {
namespace {

constexpr uint32_t kDefaultClaimMs = 5'000;
// How long an announce waits for nodes that hold older versions; one that hangs is not waited for.
constexpr uint32_t kOvertakenMs = 1'000;
constexpr size_t kKnownServed = 4096;  // namespaces that a link remembers; noted again beyond it
constexpr size_t kOpsPerFrame = 1024;
constexpr uint64_t kOpsWindow = 16'384;  // operations on their way to a node: bounds its send queue

// A node without the log's history (a new one, or the log was trimmed) has to know which namespaces
// were flushed, or its claims would name ended epochs. Without a number: they may come again. Only
// what the journal has: a node that were ahead of the next life of the master could not claim.
void send_epochs(const NamespaceTable& namespaces, NodeLink& to) {
    std::vector<Op> ops;
    for (const auto& [ns, current] : namespaces.all()) {
        const uint32_t epoch = ns->durable_epoch.load();
        if (epoch != 0) {
            ops.push_back({.kind = OpKind::kFlush,
                           .epoch = epoch - 1,
                           .arg = epoch,
                           .tenant = ns->tenant,
                           .ns = ns->name});
        }
    }
    for (size_t first = 0; first < ops.size(); first += kOpsPerFrame) {
        to.send_ops(std::span(ops).subspan(first, std::min(kOpsPerFrame, ops.size() - first)));
    }
}

std::vector<AnnouncedObject> objects_of(const Announce& message) {
    std::vector<AnnouncedObject> out;
    out.reserve(message.keys.size());
    for (size_t row = 0; row < message.keys.size(); ++row) {
        out.push_back({.key = message.keys[row],
                       .version = message.versions[row],
                       .size = message.sizes[row],
                       .pin = static_cast<Pin>(message.pins[row]),
                       .replicas_wanted = message.replicas[row],
                       .ttl_ms = message.ttl_ms[row]});
    }
    return out;
}

}  // namespace

Result<uint64_t> MasterCore::check_link(const LinkHello& hello) {
    const MutexLock lock(mutex_);
    const NodeRecord* record = nodes_.find(hello.node_id);
    if (record == nullptr || KV_GUARD("session", record->info.session_id != hello.session_id ||
                                                     is_gone(record->info.state))) {
        return Status(Code::kExpired,
                      "no such session of node " + hello.node_id + ": register first");
    }
    const bool same_life = record->linked_epoch == hello.node_epoch;
    const uint64_t applied =
        same_life ? std::max(record->applied_seq, hello.applied_seq) : hello.applied_seq;
    return log_.run_after(applied, 1).empty() ? hello.applied_seq : log_.durable_seq();
}

Result<LinkId> MasterCore::open_link(const LinkHello& hello, std::shared_ptr<NodeLink> to) {
    auto link = std::make_shared<LinkRecord>();
    Effects effects;
    {
        const MutexLock lock(mutex_);
        const NodeNumber slot = nodes_.slot_of(hello.node_id);
        if (slot == kNoNode ||
            KV_GUARD("session", nodes_.at(slot)->info.session_id != hello.session_id)) {
            return Status(Code::kExpired, "this session was replaced: register first");
        }
        NodeRecord& record = *nodes_.at(slot);
        lose_link(record, "a newer link of this node has opened");
        log_.skip_to(hello.applied_seq);
        if (KV_GUARD("node-epoch", record.linked_epoch != hello.node_epoch)) {
            // Only this life of the node knows what its memory has seen: what an earlier one has
            // acknowledged may have been another memory.
            record.linked_epoch = hello.node_epoch;
            record.applied_seq = hello.applied_seq;
            record.synced = false;
        }
        record.applied_seq = std::max(record.applied_seq, hello.applied_seq);
        if (record.applied_seq < log_.trimmed_seq()) {
            // Operations that it missed are no longer known: whatever they may have removed counts
            // as removed. What it has announced before cannot have been.
            record.floor = record.synced ? 0 : log_.version_floor();
            record.applied_seq = log_.trimmed_seq();
        }
        record.sent_seq = record.applied_seq;
        record.info.node_epoch = hello.node_epoch;
        link->id = next_link_.fetch_add(1);
        link->node = slot;
        link->floor = record.floor;
        link->to = std::move(to);
        record.link = link->to;
        record.link_id = link->id;
        record.doubted = false;
        record.announced = false;
        links_id_.fetch_add(1, std::memory_order_release);
        change_state(slot, record, record.info.state, effects);
        {
            const WriterLock links(links_mutex_);
            links_.emplace(link->id, link);
        }
        send_epochs(directory_.namespaces(), *record.link);
        push_ops(record);
        collect_ready(boottime_ms(), effects);
    }
    run(effects);
    return link->id;
}

void MasterCore::push_ops(NodeRecord& record) {
    while (record.sent_seq < std::min(log_.durable_seq(), record.applied_seq + kOpsWindow)) {
        const std::vector<Op> run = log_.run_after(record.sent_seq, kOpsPerFrame);
        if (run.empty()) {
            record.sent_seq = log_.durable_seq();
            return;
        }
        record.sent_seq = run.back().seq;
        record.link->send_ops(run);
    }
}

std::shared_ptr<MasterCore::LinkRecord> MasterCore::lose_link(NodeRecord& record,
                                                              const std::string& reason) {
    if (!record.connected()) {
        return nullptr;
    }
    std::shared_ptr<LinkRecord> link;
    {
        const WriterLock links(links_mutex_);
        const auto at = links_.find(record.link_id);
        link = at->second;
        links_.erase(at);
    }
    record.link->close(reason);
    record.link = nullptr;
    record.link_id = 0;
    links_id_.fetch_add(1, std::memory_order_release);
    directory_.set_readable(link->node, record.readable());
    claims_.link_lost(link->id);
    fences_.lost(link->id);
    turns_.lost(link->id, boottime_ms());
    heartbeats_.lost(link->id);
    return link;
}

void MasterCore::close_link(LinkId id) {
    const std::shared_ptr<LinkRecord> link = find_link(id);
    if (link == nullptr) {
        return;  // replaced before
    }
    Effects effects;
    MutexLock lock(mutex_);
    NodeRecord* record = nodes_.at(link->node);
    if (record != nullptr && record->link_id == id) {
        lose_link(*record, "closed");
        record->doubted = true;
        change_state(link->node, *record, record->info.state, effects);
    }
    collect_ready(boottime_ms(), effects);
    lock.unlock();
    run(effects);
}

std::shared_ptr<MasterCore::LinkRecord> MasterCore::find_link(LinkId link) const {
    const ReaderLock lock(links_mutex_);
    const auto at = links_.find(link);
    return at == links_.end() ? nullptr : at->second;
}

void MasterCore::deliver(const std::vector<ClaimAnswer>& answers) {
    for (size_t begin = 0; begin < answers.size();) {
        size_t end = begin + 1;
        while (end < answers.size() && answers[end].link == answers[begin].link &&
               end - begin < limits::kMaxBatchKeys) {
            ++end;
        }
        if (const std::shared_ptr<LinkRecord> link = find_link(answers[begin].link)) {
            link->to->send_claims(std::span(answers).subspan(begin, end - begin));
        }
        begin = end;
    }
}

void MasterCore::note_served(LinkRecord& link, const Namespace& ns) {
    if (link.served_last == ns.uid) {
        return;
    }
    link.served_last = ns.uid;
    if (link.served.size() >= kKnownServed) {
        link.served.clear();  // those that have gone, too
    }
    if (!link.served.insert(ns.uid).second) {
        return;
    }
    const MutexLock lock(mutex_);
    if (NodeRecord* record = nodes_.at(link.node)) {
        record->served.insert(ns.uid);
    }
}

Result<const DirectoryEpoch*> MasterCore::epoch_of(LinkRecord& link, std::string_view tenant,
                                                   std::string_view ns, uint32_t epoch,
                                                   bool is_claim) {
    if (link.space == nullptr || link.space->name != ns || link.space->tenant != tenant) {
        // What a node holds already is recorded, whatever its tenant may have.
        NamespaceTable& namespaces = directory_.namespaces();
        Result<NamespacePtr> opened =
            is_claim ? namespaces.open_for(tenant, ns) : namespaces.open(tenant, ns);
        if (!opened.ok()) {
            return opened.status();
        }
        link.space = std::move(*opened);
    }
    const DirectoryEpoch* current = link.space->current.load(std::memory_order_acquire);
    if (KV_GUARD("flushed-epoch", epoch < current->epoch)) {
        return Status(Code::kRemoved, "this epoch of the namespace was flushed");
    }
    if (epoch > current->epoch) {
        return Status(Code::kVersionMismatch, "this epoch of the namespace is not known here");
    }
    return current;
}

Status MasterCore::claim(LinkId id, const Claim& message, std::vector<ClaimAnswer>& out) {
    const std::shared_ptr<LinkRecord> link = find_link(id);
    if (link == nullptr) {
        return {};
    }
    const Result<const DirectoryEpoch*> ns =
        epoch_of(*link, message.tenant, message.ns, message.epoch, true);
    std::vector<ClaimRequest> requests;
    requests.reserve(message.keys.size());
    for (size_t i = 0; i < message.keys.size(); ++i) {
        const std::string_view key = message.keys[i];
        if (!ns.ok() || !is_valid_key(key)) {
            out.push_back(
                {id, message.claim_ids[i], ns.ok() ? Code::kInvalidArgument : ns.code(), 0});
            continue;
        }
        const bool upsert = (message.flags[i] & kPutUpsert) != 0;
        if (upsert && !journal_room_.has_room()) {
            // It may overtake replicas elsewhere, whose removal is an operation.
            out.push_back({id, message.claim_ids[i], journal_room_.refusal(), 0});
            continue;
        }
        requests.push_back({.link = id,
                            .node = link->node,
                            .claim_id = message.claim_ids[i],
                            .key = key,
                            .upsert = upsert});
    }
    if (!requests.empty()) {
        note_served(*link, *(*ns)->owner);
        const uint32_t timeout_ms = message.timeout_ms == 0 ? kDefaultClaimMs : message.timeout_ms;
        claims_.claim(**ns, requests, boottime_ms() + timeout_ms, out);
    }
    if (find_link(id) == nullptr) {
        lost_while_claiming(*link);
    }
    return ns.status();
}

void MasterCore::lost_while_claiming(const LinkRecord& link) {
    // What was granted after the link was lost falls into limbo too, and ends when its node has.
    claims_.link_lost(link.id);
    Effects effects;
    MutexLock lock(mutex_);
    const NodeRecord* record = nodes_.at(link.node);
    if (record == nullptr || record->removed || is_gone(record->info.state)) {
        claims_.end_limbo(link.node, effects.answers);
    }
    lock.unlock();
    run(effects);
}

void MasterCore::abandon(LinkId link, const Abandon& message) {
    Effects effects;
    const std::vector<uint64_t> ids(message.claim_ids.begin(), message.claim_ids.end());
    claims_.abandon(link, ids, effects.answers);
    run(effects);
}

Status MasterCore::check_seq(LinkRecord& link, uint64_t seq) {
    if (link.next_seq != 0 && seq != link.next_seq) {
        return Status(Code::kProtocolError, "a gap in the announcements, expected number " +
                                                std::to_string(link.next_seq) + ", got " +
                                                std::to_string(seq) +
                                                ": announce everything again");
    }
    link.next_seq = seq + 1;
    return {};
}

Status MasterCore::announce(LinkId id, const Announce& message, std::vector<int32_t>& codes,
                            const Announced& answer) {
    codes.clear();
    const std::shared_ptr<LinkRecord> link = find_link(id);
    if (link == nullptr) {
        return Status(Code::kClosed, "this link was replaced");
    }
    Effects effects;
    std::vector<Pending> overtaken;
    MutexLock work(link->work);
    const Status recorded = record_announce(*link, message, codes, effects, overtaken);
    work.unlock();
    if (recorded.ok()) {
        run(effects);
        answer_announce(id, message.phase, codes, answer, std::move(overtaken));
    }
    return recorded;
}

Status MasterCore::record_announce(LinkRecord& link, const Announce& message,
                                   std::vector<int32_t>& codes, Effects& effects,
                                   std::vector<Pending>& overtaken) {
    if (link.closed) {
        return Status(Code::kClosed, "this node was removed");
    }
    const Status in_order = check_seq(link, message.seq);
    if (!in_order.ok()) {
        return in_order;
    }
    if (message.phase == AnnouncePhase::kBegin) {
        directory_.begin_full(link.node);
    }
    if (!message.keys.empty()) {
        const Result<const DirectoryEpoch*> ns =
            epoch_of(link, message.tenant, message.ns, message.epoch, false);
        if (ns.ok()) {
            note_served(link, *(*ns)->owner);
            record_objects(link, **ns, message, codes, effects, overtaken);
            effects.announced_in = (*ns)->owner;
            effects.announced_keys = &message.keys;
        } else {
            codes.assign(message.keys.size(), static_cast<int32_t>(ns.code()));
        }
    }
    if (message.phase == AnnouncePhase::kEnd) {
        end_announce(link, effects);
    }
    return {};
}

void MasterCore::answer_announce(LinkId link, AnnouncePhase phase,
                                 const std::vector<int32_t>& codes, const Announced& answer,
                                 std::vector<Pending> overtaken) {
    // A full announce is answered in its order, in the link's turn; and no put waits for it.
    const bool is_full = phase != AnnouncePhase::kIncremental;
    const bool waits = answer && !overtaken.empty() && !is_full;
    if (answer && is_full) {
        const uint64_t now_ms = boottime_ms();
        turns_.answer(link, now_ms, phase == AnnouncePhase::kEnd,
                      [answer, codes] { answer(codes); });
        if (find_link(link) == nullptr) {
            turns_.lost(link, now_ms);  // what came before has not heard of this frame
        }
    } else if (answer && !waits) {
        answer(codes);
    }
    if (overtaken.empty()) {
        return;
    }
    RemoveDone done;
    if (waits) {
        done = [answer, codes](const std::vector<Code>&, const std::vector<std::string>&) {
            answer(codes);
        };
    }
    submit(std::move(overtaken), kOvertakenMs, std::move(done));
}

void MasterCore::record_objects(LinkRecord& link, const DirectoryEpoch& ns, const Announce& message,
                                std::vector<int32_t>& codes, Effects& effects,
                                std::vector<Pending>& overtaken) {
    const bool settled = message.phase == AnnouncePhase::kIncremental && !directory_.rebuilding();
    const std::vector<AnnouncedObject> items = objects_of(message);
    std::vector<AnnounceOutcome> outcomes(items.size());
    directory_.announce(ns, link.node, items, link.floor, outcomes);
    bool copies = false;
    std::optional<std::vector<NodeNumber>> silent;
    for (size_t i = 0; i < items.size(); ++i) {
        const AnnouncedObject& item = items[i];
        const AnnounceOutcome& outcome = outcomes[i];
        const bool accepted = outcome.code == Code::kOk;
        codes.push_back(static_cast<int32_t>(outcome.code));
        (accepted ? announced_ : refused_announces_).fetch_add(1, std::memory_order_relaxed);
        const bool was_upsert =
            claims_.settle(ns, item.key, item.version, accepted, effects.answers);
        if (accepted) {
            planner_.landed(ns, item.key, link.node);
            // After a full announce or a rebuild the scan finds what is missing.
            const uint8_t wanted = std::max<uint8_t>(outcome.wanted, message.copies[i]);
            if (settled && outcome.readable < wanted) {
                copies = planner_.want(ns, item.key, message.copies[i]) || copies;
            }
        }
        AckRow behind{.holders = outcome.superseded};
        if (outcome.is_newer) {
            // A copy of an older version may have landed where nobody has heard of it yet.
            for (const NodeNumber target : planner_.targets(ns, item.key)) {
                behind.add_holder(target == link.node ? kNoNode : target);
            }
        }
        if (KV_GUARD("upsert-floor", was_upsert)) {
            // So may nodes of which this master has heard nothing yet.
            if (!silent.has_value()) {
                silent = unheard();  // it looks at every node: once a message
            }
            for (const NodeNumber node : *silent) {
                behind.add_holder(node == link.node ? kNoNode : node);
            }
        }
        if (!behind.holders.empty()) {
            // Other nodes have, or may have, an older version: for them this is a remove up to just
            // below this one.
            directory_.set_tombstone(ns, item.key, item.version - 1);
            Pending& pending = overtaken.emplace_back();
            pending.row = std::move(behind);
            pending.op = Op{.kind = OpKind::kRemove,
                            .epoch = ns.epoch,
                            .version = item.version - 1,
                            .tenant = ns.owner->tenant,
                            .ns = ns.owner->name,
                            .key = std::string(item.key)};
        }
    }
    if (copies) {
        wake_.notify_one();
    }
}

void MasterCore::end_announce(LinkRecord& link, Effects& effects) {
    directory_.end_full(link.node);
    link.floor = 0;
    {
        const MutexLock lock(mutex_);
        NodeRecord* record = nodes_.at(link.node);
        if (record != nullptr && record->link_id == link.id) {
            record->synced = true;
            links_id_.fetch_add(1, std::memory_order_release);
            record->announced = true;
            record->forgotten.clear();
            record->floor = 0;
            change_state(link.node, *record, record->info.state, effects);
        }
    }
    claims_.end_limbo(link.node, effects.answers);
    scan_requests_.fetch_add(1);
}

Status MasterCore::withdraw(LinkId id, const Withdraw& message) {
    const std::shared_ptr<LinkRecord> link = find_link(id);
    if (link == nullptr) {
        return Status(Code::kClosed, "this link was replaced");
    }
    const MutexLock work(link->work);
    const Status in_order = check_seq(*link, message.seq);
    if (!in_order.ok() || link->closed || message.keys.empty()) {
        return in_order;
    }
    const Result<const DirectoryEpoch*> ns =
        epoch_of(*link, message.tenant, message.ns, message.epoch, false);
    for (size_t i = 0; ns.ok() && i < message.keys.size(); ++i) {
        const uint8_t reason = message.reasons[i];
        directory_.withdraw(
            **ns, link->node, message.keys[i], message.versions[i],
            reason < kMissReasonCount ? static_cast<MissReason>(reason) : MissReason::kAbsent);
        withdrawn_.fetch_add(1, std::memory_order_relaxed);
    }
    return {};
}

void MasterCore::ops_ack(LinkId id, uint64_t seq) {
    const std::shared_ptr<LinkRecord> link = find_link(id);
    if (link == nullptr) {
        return;
    }
    Effects effects;
    MutexLock lock(mutex_);
    NodeRecord* record = nodes_.at(link->node);
    if (record == nullptr || record->link_id != id) {
        return;
    }
    record->applied_seq = std::max(record->applied_seq, std::min(seq, record->sent_seq));
    push_ops(*record);
    trim();
    collect_ready(boottime_ms(), effects);
    lock.unlock();
    run(effects);
}

void MasterCore::copy_done(LinkId link, uint64_t copy_id, Code code) {
    if (find_link(link) != nullptr) {
        planner_.done(copy_id, code, boottime_ms());
    }
}

void MasterCore::heartbeat(NodeHeartbeat heartbeat) {
    const LinkId link = heartbeat.link;
    if (const std::optional<uint64_t> refused = heartbeats_.add(std::move(heartbeat))) {
        answer_heartbeat(link, *refused, Code::kOverloaded, "another heartbeat waits here");
    }
    if (find_link(link) == nullptr) {
        heartbeats_.lost(link);
    }
}

std::vector<NodeHeartbeat> MasterCore::take_heartbeats(uint32_t timeout_ms) {
    size_t links = 0;
    {
        const ReaderLock lock(links_mutex_);
        links = links_.size();
    }
    return heartbeats_.take(timeout_ms, Heartbeats::gap_ms(links));
}

void MasterCore::answer_heartbeat(LinkId id, uint64_t request_id, Code code,
                                  std::string_view text) {
    if (const std::shared_ptr<LinkRecord> link = find_link(id)) {
        link->to->send_heartbeat_answer(request_id, code, text);
    }
}

}  // namespace kvstore
