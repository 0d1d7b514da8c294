// The client's calls: checks, then the path that does the work.
#include "client/client_core.h"

#include <algorithm>
#include <map>

#include "client/lease_rounds.h"

namespace kvstore {
namespace {

constexpr size_t kTextPerMessage = 4u << 20;
constexpr uint64_t kStatsMs = 500;  // how long one node may take to say its counters

// Splits keys so that each part fits one message; stops at the first failure.
template <class Fn>
Status for_each_part(std::span<const std::string_view> keys, Fn fn) {
    for (size_t first = 0; first < keys.size();) {
        size_t text = 0;
        size_t count = 0;
        while (first + count < keys.size() && count < limits::kMaxBatchKeys &&
               text < kTextPerMessage) {
            text += keys[first + count].size();
            ++count;
        }
        if (Status status = fn(first, keys.subspan(first, count)); !status.ok()) {
            return status;
        }
        first += count;
    }
    return {};
}

}  // namespace

bool LeasedPrefix::alive() {
    const MutexLock lock(mutex_);
    return !fork_guard_.in_child() && keeper_ != nullptr &&
           std::all_of(grants_.begin(), grants_.end(),
                       [&](const LeaseKeeper::Grant& grant)
                           KV_REQUIRES(mutex_) { return keeper_->alive(grant); });
}

void LeasedPrefix::release() {
    if (fork_guard_.in_child()) {
        return;  // the leases are the parent's
    }
    const MutexLock lock(mutex_);
    if (keeper_ != nullptr) {
        keeper_->release(grants_);
        keeper_.reset();
        grants_.clear();
    }
}

Result<std::unique_ptr<ClientCore>> ClientCore::connect(ClientOptions options) {
    Result<std::unique_ptr<ClientContext>> context = ClientContext::open(std::move(options));
    if (!context.ok()) {
        return context.status();
    }
    std::unique_ptr<ClientCore> core(new ClientCore());
    core->context_ = std::move(*context);
    core->keeper_ = std::make_shared<LeaseKeeper>();
    std::vector<LocalPeer> locals;
    core->context_->nodes().locals(core->context_->deadline(), &locals);
    if (core->context_->options().transport == Transport::kShm && locals.empty()) {
        return {Code::kUnavailable,
                "transport shm: no node of this host shares its memory (see "
                "socket_dir, socket_group, shm_write and shm_read of the nodes)" +
                    core->why_unattached()};
    }
    return core;
}

ClientCore::~ClientCore() { close(); }

void ClientCore::close() {
    std::call_once(close_once_, [this] {
        context_->shutdown();
        keeper_->shutdown();
    });
}

Status ClientCore::get(std::span<GetItem> items, GetMemory* memory) {
    if (Status status = context_->check_open(); !status.ok()) {
        return status;
    }
    GetPath(*context_, memory).run(items, context_->deadline());
    return context_->check_open();
}

Status ClientCore::put(std::span<PutItem> items, const PutOptions& options) {
    if (Status status = context_->check_open(); !status.ok()) {
        return status;
    }
    PutPath(*context_, options).run(items, context_->deadline());
    return {};
}

Status ClientCore::get(std::span<const GetItem> items, const DeviceCall& call,
                       const DeviceGet::Options& options,
                       const std::shared_ptr<DeviceTransfer>& transfer) {
    if (Status status = context_->check_open(); !status.ok()) {
        return status;
    }
    const Status status =
        DeviceGet(*context_, call, options).run(items, transfer, context_->deadline());
    if (status.code() == Code::kDeadlineExceeded && !options.is_queued) {
        // Copies still go on, so no destination counts as loaded.
        for (size_t row = 0; row < items.size(); ++row) {
            transfer->set(row, {static_cast<int64_t>(status.code()), MissReason::kUnavailable});
        }
        return context_->check_open();
    }
    return status.ok() ? context_->check_open() : status;
}

Status ClientCore::put(std::span<PutItem> items, const PutOptions& options,
                       const DeviceCall& call) {
    DeviceSource source(*context_, call);
    PutOptions from_device = options;
    from_device.device = &source;
    return put(items, from_device);
}

Status ClientCore::sizes(std::span<const std::string_view> keys, std::vector<int64_t>* out,
                         bool local) {
    if (Status status = context_->check_open(); !status.ok()) {
        return status;
    }
    LocatePath path(*context_);
    path.run(keys, {.local = local}, context_->deadline());
    out->clear();
    for (const Located& located : path.found()) {
        out->push_back(located.size);
    }
    return {};
}

Deadline ClientCore::waiting_deadline(uint32_t wait_ms) const {
    return context_->deadline(std::max(context_->options().timeout_ms, wait_ms));
}

Result<size_t> ClientCore::prefix_length(std::span<const std::string_view> keys, size_t stride,
                                         uint32_t wait_ms, MissReason* reason, bool local) {
    if (Status status = context_->check_open(); !status.ok()) {
        return status;
    }
    LocatePath path(*context_);
    path.run(keys, {.stop_at_gap = true, .wait_ms = wait_ms, .local = local},
             waiting_deadline(wait_ms));
    if (Status status = context_->check_open(); !status.ok()) {
        return status;
    }
    if (reason != nullptr) {
        *reason = path.gap_reason();
    }
    return path.prefix_length(stride);
}

Result<std::unique_ptr<LeasedPrefix>> ClientCore::lease_prefix(
    std::span<const std::string_view> keys, size_t stride, uint32_t lease_ms, uint32_t wait_ms,
    bool local) {
    if (Status status = context_->check_open(); !status.ok()) {
        return status;
    }
    const Deadline deadline = waiting_deadline(wait_ms);
    LocatePath path(*context_);
    path.run(keys, {.stop_at_gap = true, .wait_ms = wait_ms, .local = local}, deadline);
    if (Status status = context_->check_open(); !status.ok()) {
        return status;
    }
    const size_t present = path.prefix_length(stride);
    std::vector<LeaseKeeper::Grant> grants;
    const size_t leased = lease_at_nodes(path, present, lease_ms, &grants, deadline);
    const size_t length = leased - leased % stride;
    CallTally tally;
    tally.add(ClientCounter::kLeases, grants.size());
    context_->count(tally, nullptr);
    // Present but not leased: its nodes do not answer, or the tenant has leased all that it may.
    const MissReason reason = leased == present ? path.gap_reason() : MissReason::kUnavailable;
    auto prefix = std::make_unique<LeasedPrefix>(keeper_, length, reason, std::move(grants));
    if (length == 0) {
        prefix->release();
    }
    return prefix;
}

// Leases what it can of the first `length` keys; how many of them are leased without a gap.
size_t ClientCore::lease_at_nodes(LocatePath& located, size_t length, uint32_t lease_ms,
                                  std::vector<LeaseKeeper::Grant>* grants, Deadline deadline) {
    // What is leased is what will be read: a node of this host that has it, then the nearest of the
    // replicas that the master named.
    located.nearest_first();
    const auto replica = [&](size_t row, size_t nth) -> std::shared_ptr<PeerNode> {
        const Located& found = located.found()[row];
        const size_t locals = found.local >= 0 ? 1 : 0;
        if (nth < locals) {
            return located.locals()[static_cast<size_t>(found.local)].peer;
        }
        return nth - locals < found.placement.count
                   ? context_->nodes().at(found.placement.nodes[nth - locals])
                   : nullptr;
    };
    const auto ask = [&](const std::shared_ptr<PeerNode>& node, std::span<const size_t> rows) {
        std::vector<std::string_view> keys;
        keys.reserve(rows.size());
        for (const size_t row : rows) {
            keys.push_back(located.found()[row].key.key);
        }
        uint32_t granted = 0;
        Result<LeaseKeeper::Grant> grant =
            keeper_->acquire(node, keys, lease_ms, &granted, deadline);
        if (grant.ok() && granted > 0) {
            grants->push_back(std::move(*grant));
        }
        return size_t{granted};
    };
    LeaseRounds rounds(length, replica, ask);
    rounds.run(deadline);
    return rounds.leased_prefix();
}

Result<std::unique_ptr<ObjectView>> ClientCore::view(std::string_view key) {
    if (Status status = context_->check_open(); !status.ok()) {
        return status;
    }
    return ObjectView::open(*context_, key, context_->deadline());
}

template <class Request, class Reply>
Status ClientCore::ask_master(Request& request, Reply* reply, ChannelPool::Lease* lease) {
    if (Status status = context_->check_open(); !status.ok()) {
        return status;
    }
    const Deadline deadline = context_->deadline();
    request.timeout_ms = MasterClient::remote_timeout_ms(deadline);
    return context_->master().exchange(request, reply, lease, deadline);
}

Status ClientCore::remove(std::span<const std::string_view> keys, std::vector<Code>* out,
                          std::vector<std::string>* unreached) {
    out->assign(keys.size(), Code::kUnavailable);
    return for_each_part(keys, [&](size_t first, std::span<const std::string_view> part) {
        Remove request;
        request.keys = part;
        RemoveReply reply;
        ChannelPool::Lease lease;
        const Status status = ask_master(request, &reply, &lease);
        for (size_t i = 0; i < part.size(); ++i) {
            (*out)[first + i] = status.ok() ? static_cast<Code>(reply.status[i]) : status.code();
        }
        for (const std::string_view node : reply.unreached) {
            if (status.ok() &&
                std::find(unreached->begin(), unreached->end(), node) == unreached->end()) {
                unreached->emplace_back(node);
            }
        }
        return context_->check_open();
    });
}

Status ClientCore::set_pin(std::span<const std::string_view> keys, Pin level,
                           std::vector<Code>* out) {
    out->assign(keys.size(), Code::kUnavailable);
    return for_each_part(keys, [&](size_t first, std::span<const std::string_view> part) {
        const std::vector<uint8_t> levels(part.size(), static_cast<uint8_t>(level));
        SetPin request;
        request.keys = part;
        request.levels = levels;
        StatusReply reply;
        ChannelPool::Lease lease;
        const Status status = ask_master(request, &reply, &lease);
        for (size_t i = 0; i < part.size(); ++i) {
            (*out)[first + i] = status.ok() ? static_cast<Code>(reply.status[i]) : status.code();
        }
        return context_->check_open();
    });
}

Status ClientCore::flush() {
    Flush request;
    FlushReply reply;
    ChannelPool::Lease lease;
    const Status status = ask_master(request, &reply, &lease);
    return status.ok() ? Status(static_cast<Code>(reply.code)) : status;
}

Result<ClientCore::KeyPage> ClientCore::list(std::string_view prefix, std::string_view cursor,
                                             uint32_t limit) {
    List request;
    request.prefix = prefix;
    request.cursor = cursor;
    request.limit = limit;
    ListReply reply;
    ChannelPool::Lease lease;
    if (Status status = ask_master(request, &reply, &lease); !status.ok()) {
        return status;
    }
    KeyPage page;
    for (const std::string_view key : reply.keys) {
        page.keys.emplace_back(key);
    }
    page.cursor = std::string(reply.cursor);
    return page;
}

Result<ClientCore::Inspection> ClientCore::inspect(std::string_view key) {
    Inspect request;
    request.key = key;
    InspectReply reply;
    ChannelPool::Lease lease;
    if (Status status = ask_master(request, &reply, &lease); !status.ok()) {
        return status;
    }
    Inspection out;
    out.found = reply.found;
    out.size = reply.size;
    out.version = reply.version;
    out.pin = reply.pin;
    out.create_ms = reply.create_ms;
    out.replicas_wanted = reply.replicas_wanted;
    for (size_t i = 0; i < reply.replica_node_ids.size(); ++i) {
        out.replicas.emplace_back(reply.replica_node_ids[i], reply.replica_tiers[i]);
    }
    return out;
}

// Every node that may answer, with a time-out of its own. `ask`: whether it did.
void ClientCore::ask_nodes(const std::function<bool(PeerNode&, Deadline)>& ask) {
    const Deadline deadline = context_->deadline();
    context_->nodes().keep_fresh(kTableAgeMs, deadline);
    for (const std::shared_ptr<PeerNode>& peer : context_->nodes().all()) {
        if (is_gone(peer->info()->state) || !peer->breaker().allow()) {
            continue;
        }
        const uint64_t patience_ms =
            std::min<uint64_t>(kStatsMs, static_cast<uint64_t>(deadline.left_ms()));
        if (ask(*peer, Deadline::after_ms(patience_ms))) {
            peer->breaker().success();
        } else {
            peer->breaker().failure();
        }
    }
}

std::vector<std::pair<std::string, ClientCore::Counters>> ClientCore::node_counters() {
    std::vector<std::pair<std::string, Counters>> out;
    if (!context_->check_open().ok()) {
        return out;
    }
    ask_nodes([&out](PeerNode& peer, Deadline deadline) {
        StatsReply reply;
        ChannelPool::Lease lease;
        if (!peer.sockets().exchange(Stats{}, &reply, &lease, deadline).ok()) {
            return false;
        }
        Counters& counters = out.emplace_back(peer.info()->id, Counters{}).second;
        for (size_t row = 0; row < reply.names.size(); ++row) {
            counters.emplace_back(reply.names[row], reply.values[row]);
        }
        return true;
    });
    return out;
}

Result<std::vector<ClientCore::Explanation>> ClientCore::explain(std::string_view key) {
    if (Status status = context_->check_open(); !status.ok()) {
        return status;
    }
    std::vector<Explanation> out;
    ask_nodes([&](PeerNode& peer, Deadline deadline) {
        Explain request;
        request.keys = KeyList(key);
        ExplainReply reply;
        ChannelPool::Lease lease;
        if (!peer.sockets().exchange(request, &reply, &lease, deadline).ok() ||
            reply.places.size() != 1) {
            return false;
        }
        Explanation& known = out.emplace_back();
        known.node = peer.info()->id;
        known.in_dram = (reply.places[0] & kInDram) != 0;
        known.on_nvme = (reply.places[0] & kOnNvme) != 0;
        known.version = reply.versions[0];
        known.size = reply.sizes[0];
        known.put_ms = reply.put_ms[0];
        known.used_ms = reply.used_ms[0];
        known.gone_ms = reply.gone_ms[0];
        known.reason = reply.reasons[0] < kMissReasonCount
                           ? static_cast<MissReason>(reply.reasons[0])
                           : MissReason::kAbsent;
        return true;
    });
    return out;
}

Result<size_t> ClientCore::prefetch(std::span<const std::string_view> keys) {
    if (Status status = context_->check_open(); !status.ok()) {
        return status;
    }
    const Deadline deadline = context_->deadline();
    LocatePath located(*context_);
    located.run(keys, {}, deadline);
    located.nearest_first();
    size_t here = 0;
    std::map<std::shared_ptr<PeerNode>, std::vector<std::string_view>> below;
    for (const Located& one : located.found()) {
        if (one.local >= 0) {
            ++here;  // in this host's memory
        } else if (one.present() && one.placement.count > 0) {
            const auto peer = context_->nodes().at(one.placement.nodes[0]);
            if (peer != nullptr && peer->breaker().allow()) {
                below[peer].push_back(one.key.key);
            }
        }
    }
    for (const auto& [peer, names] : below) {
        for (size_t first = 0; first < names.size(); first += limits::kMaxBatchKeys) {
            Prefetch request;
            request.keys = std::span(names).subspan(
                first, std::min(limits::kMaxBatchKeys, names.size() - first));
            StatusReply reply;
            ChannelPool::Lease lease;
            // A wish: a node that cannot hear it is not asked again, and nothing is lost.
            if (!peer->sockets().exchange(request, &reply, &lease, deadline).ok()) {
                break;
            }
            here += static_cast<size_t>(std::count(reply.status.begin(), reply.status.end(), 0));
        }
    }
    return here;
}

std::vector<ClientCore::NodeSummary> ClientCore::nodes() const {
    std::vector<NodeSummary> out;
    for (const std::shared_ptr<PeerNode>& peer : context_->nodes().all()) {
        out.push_back({*peer->info(), peer->path(), peer->knows_ucx_region(), peer->ucx_detail(),
                       context_->is_apart(*peer), context_->nearness(*peer)});
    }
    return out;
}

std::vector<ClientCore::NodeSummary> ClientCore::peers() {
    if (!context_->check_open().ok()) {
        return nodes();
    }
    const bool with_ucx =
        context_->ucx().wanted() && context_->options().transport != Transport::kTcp;
    ask_nodes([&](PeerNode& peer, Deadline deadline) {
        const bool is_mapped = peer.local(deadline) != nullptr;
        const bool is_known = peer.info()->unix_endpoint.empty() || peer.place() != Place::kUnknown;
        const bool try_ucx = with_ucx && !context_->is_apart(peer);
        if (is_mapped || (is_known && !try_ucx)) {
            return true;
        }
        const Result<ChannelPool::Lease> opened = peer.sockets().checkout(deadline);
        if (opened.ok() && try_ucx) {
            (void)peer.ucx_region(**opened, deadline);
        }
        return opened.ok();
    });
    return nodes();
}

// ": node-a: connect(unix:///…): Permission denied, …", or nothing where no node was tried.
std::string ClientCore::why_unattached() const {
    std::string out;
    for (const NodeSummary& node : nodes()) {
        if (!node.path.detail.empty()) {
            out += (out.empty() ? ": " : "; ") + node.info.id + ": " + node.path.detail;
        }
    }
    return out;
}

}  // namespace kvstore
