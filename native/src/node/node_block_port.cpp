// The node's life as a server: hello, dispatch, connections and their slots, ticks, counters.
#include "node/node_block_port.h"

#include <algorithm>

#include "base/clock.h"
#include "net/host_identity.h"

namespace kvstore {
namespace {

constexpr uint64_t kSendShare = 2;          // of the segment may be on its way to readers by socket
constexpr uint64_t kNvmeBytes = 256 << 20;  // memory for what is on its way from NVMe to them
// A peer that takes nothing for this long is disconnected: sooner while reads are refused for want
// of that share, and for a while after the last refusal.
constexpr uint32_t kStallMs = 30'000;
constexpr uint32_t kPressedStallMs = 1'000;
constexpr uint64_t kPressedMs = 5'000;

HelloParams peer_hello(const NodeOptions& options) {
    HelloParams hello;
    hello.role = Role::kNode;
    hello.cluster_id = options.cluster_id;
    hello.principal = options.principal;
    hello.token = options.token;
    hello.features = kAllFeatures & ~kFeatureSharedMemory;
    hello.node_id = options.node_id;
    hello.node_epoch = options.node_epoch;
    hello.client_name = options.node_id;
    hello.tls = options.tls;
    return hello;
}

EventServer::Options server_options(const NodeOptions& options,
                                    std::shared_ptr<Authenticator> authenticator) {
    EventServer::Options server;
    server.loops = std::max<uint32_t>(options.server_threads, 1);
    server.poll_us = options.poll_us;
    server.write_stall_ms = kStallMs;
    server.cluster_id = options.cluster_id;
    server.features |= options.ucx ? kFeatureUcx : 0;
    server.principal_share = options.principal_share;
    server.authenticator = std::move(authenticator);
    server.tls = options.tls;
    return server;
}

// What was applied before: where both tiers keep objects, in both of them.
uint64_t applied_before(const Domains& domains, const NvmeTier* tier) {
    const BlockStore::Beginning begun = domains.beginning();
    if (tier == nullptr || tier->is_empty()) {
        return begun.applied_seq;
    }
    return begun.warm ? std::min(begun.applied_seq, tier->recovered_applied())
                      : tier->recovered_applied();
}

MasterLink::Options link_options(const NodeOptions& options, const Domains& domains,
                                 const NvmeTier* tier) {
    MasterLink::Options link;
    link.cluster_id = options.cluster_id;
    link.node_id = options.node_id;
    link.node_epoch = options.node_epoch;
    link.session_id = options.session_id;
    link.applied_seq = applied_before(domains, tier);
    link.hash_secret = options.hash_secret;
    link.endpoints = options.master_endpoints;
    link.principal = options.principal;
    link.token = options.token;
    link.tls = options.tls;
    link.backoff_max_ms = options.backoff_max_ms;
    return link;
}

}  // namespace

NodeBlockPort::NodeBlockPort(const NodeOptions& options, Domains& domains, NvmeTier* tier)
    : options_(options),
      reservation_ms_(options.reservation_ms),
      domains_(domains),
      tier_(tier),
      spans_(options.tracing ? std::make_shared<SpanRing>() : nullptr),
      namespaces_(options.hash_secret),
      send_budget_(std::make_shared<SendBudget>(domains.segment_bytes() / kSendShare)),
      nvme_budget_(std::make_shared<SendBudget>(kNvmeBytes)),
      authenticator_(std::make_shared<Authenticator>(options.principals)) {
    for (const NamespaceRef& ns : domains.beginning().namespaces) {
        static_cast<void>(namespaces_.advance(ns->tenant, ns->name, ns->epoch));
    }
    hot_reads_.set_policy(options.hot_reads);
    begin_nvme();
    server_ = std::make_unique<EventServer>(server_options(options, authenticator_), *this);
    link_ = std::make_unique<MasterLink>(link_options(options, domains, tier), *server_, *this);
    for (const auto& domain : domains_.all()) {
        domain->flow = std::make_unique<PutFlow>(
            PutFlow::Options{options.hash_secret, options.reservation_ms, options.max_timeout_ms},
            *domain->store, tier_, *link_, metrics_, wishes_);
        domain->store->set_on_withdraw(
            [this](std::span<const BlockStore::Withdrawn> items) { on_withdrawn(items); });
    }
    PeerCopier::Options copier;
    copier.hash_secret = options.hash_secret;
    copier.hello = peer_hello(options);
    copier_ = std::make_unique<PeerCopier>(
        std::move(copier), domains_, tier_, namespaces_, wishes_, metrics_,
        [this](const CopyOrder& job, Code code) { link_->copy_done(job.link, job.copy_id, code); });
}

NodeBlockPort::~NodeBlockPort() {
    stop();
    for (const auto& domain : domains_.all()) {
        domain->flow = nullptr;  // it refers to what is destroyed here
    }
}

// A flush that DRAM knows of and NVMe does not: the earlier life ended between the two.
void NodeBlockPort::begin_nvme() {
    if (tier_ == nullptr) {
        return;
    }
    for (const NamespaceRef& ns : tier_->namespaces()) {
        static_cast<void>(namespaces_.advance(ns->tenant, ns->name, ns->epoch));
    }
    for (const NamespaceRef& ns : tier_->namespaces()) {
        const auto cell = namespaces_.open(ns->tenant, ns->name);
        if (cell.ok() && (*cell)->current()->epoch > ns->epoch) {
            tier_->flush(ns->id);
        }
    }
}

Result<NodeEndpoints> NodeBlockPort::start() {
    NodeEndpoints bound;
    for (const std::string* text : {&options_.tcp_endpoint, &options_.unix_endpoint}) {
        if (text->empty()) {
            continue;
        }
        const Result<Endpoint> endpoint = Endpoint::parse(*text);
        if (!endpoint.ok()) {
            return endpoint.status();
        }
        const Result<Endpoint> real = server_->listen(*endpoint, options_.unix_access);
        if (!real.ok()) {
            return real.status();
        }
        (real->is_unix() ? bound.unix_socket : bound.tcp) = real->to_string();
    }
    const Status status = server_->start();
    if (!status.ok()) {
        return status;
    }
    if (tier_ != nullptr) {
        tier_->start({[this](const NamespaceRef& ns, std::vector<WithdrawItem> items) {
                          link_->withdraw(ns, std::move(items));
                      },
                      [this](uint64_t seq) { link_->acknowledge(seq); }});
        // On its disk from the start: an earlier mark goes with the file that it is in.
        tier_->note_applied(applied_before(domains_, tier_));
    }
    copier_->start();
    link_->start();
    return bound;
}

// The link first, so that it does not come back; the server's end closes every session, which frees
// what the sessions had reserved.
void NodeBlockPort::stop() {
    link_->stop();
    copier_->stop();
    server_->stop();
    if (tier_ != nullptr) {
        tier_->stop();
    }
    for (const auto& domain : domains_.all()) {
        domain->ucx.forget_pulls();
        domain->store->set_on_withdraw(nullptr);
    }
}

void NodeBlockPort::set_principals(std::vector<Principal> principals) {
    authenticator_->replace(std::move(principals));
}

void NodeBlockPort::set_credentials(std::string principal, std::string token) {
    copier_->set_credentials(principal, token);
    link_->set_credentials(std::move(principal), std::move(token));
}

void NodeBlockPort::set_tunables(NodeTunables tunables) {
    // The shorter time first: what is said of a spare's time is never above what the store gives.
    reservation_ms_.store(std::min(reservation_ms_.load(), tunables.reservation_ms));
    for (const auto& domain : domains_.all()) {
        domain->store->set_limits(tunables.reservation_ms, tunables.client_cap_bytes);
        domain->store->set_pin_cap(tunables.pin_cap_bytes);
        domain->flow->set_reservation_ms(tunables.reservation_ms);
    }
    reservation_ms_.store(tunables.reservation_ms);
    domains_.set_access(std::move(tunables.shm_read), std::move(tunables.shm_write));
    server_->set_principal_share(tunables.principal_share);
    hot_reads_.set_policy(tunables.hot_reads);
    if (tier_ != nullptr) {
        tier_->set_tunables(tunables.nvme);
    }
}

// ---- sessions --------------------------------------------------------------------------------

// Descriptors and a slot for a client that asks for them, or the reason why it gets none.
void NodeBlockPort::share_memory(const Connection& connection, const Hello& hello,
                                 ClientConnection& session, HelloAnswer* answer) {
    const Peer& peer = connection.peer();
    if (!peer.is_unix || (peer.features & kFeatureSharedMemory) == 0) {
        return note_unattached(connection, hello);
    }
    WelcomeData& welcome = answer->welcome;
    const MapAccess access = map_access(peer);
    session.may_write = access == MapAccess::kWrite;
    if (access == MapAccess::kNone) {
        const bool by_tenant = domains_.access(hello.tenant) == MapAccess::kNone;
        welcome.attach_cause = by_tenant ? AttachCause::kTenant : AttachCause::kScope;
    } else if (welcome.slot = offer_memory(session, hello, peer.pid, &answer->fds);
               welcome.slot < 0) {
        welcome.attach_cause = AttachCause::kNoSlot;
    } else {
        return;
    }
    metrics_.attaches_refused[static_cast<size_t>(welcome.attach_cause)].add();
}

// What a client may do with the memory of its domain. Mapped, it is a grant for all of it: who may
// not read every key gets none, and who may not write every key none to write.
MapAccess NodeBlockPort::map_access(const Peer& peer) const {
    const MapAccess access = domains_.access(peer.tenant);
    if (peer.grant == nullptr || access == MapAccess::kNone) {
        return access;
    }
    if (!peer.grant->covers_every_key(Verb::kRead)) {
        return MapAccess::kNone;
    }
    return peer.grant->covers_every_key(Verb::kWrite) ? access : MapAccess::kRead;
}

// A client of this host that could not reach the Unix socket: nothing else tells the node.
void NodeBlockPort::note_unattached(const Connection& connection, const Hello& hello) {
    const AttachCause cause = known_cause(hello.attach_cause);
    const bool is_here = hello.host_identity != 0 && hello.host_identity == host_identity();
    if (is_here && !connection.peer().is_unix &&
        (cause == AttachCause::kPermission || cause == AttachCause::kNotFound ||
         cause == AttachCause::kNoListener)) {
        metrics_.attaches_refused[hello.attach_cause].add();
    }
}

Result<HelloAnswer> NodeBlockPort::on_hello(Connection& connection, const Hello& hello) {
    auto session = std::make_shared<ClientConnection>();
    session->role = hello.role;
    session->id = connection.id();
    HelloAnswer answer;
    WelcomeData& welcome = answer.welcome;
    welcome.session_id = session->id;
    welcome.hash_secret = options_.hash_secret;
    welcome.node_id = options_.node_id;
    welcome.node_epoch = options_.node_epoch;
    if (hello.role == Role::kNode) {
        if (hello.node_id.empty()) {
            return {Code::kInvalidArgument, "a node's hello without a node id"};
        }
    } else {
        if (!domains_.has_memory_for(hello.tenant)) {
            return {
                Code::kPermissionDenied,
                "tenant " + std::string(hello.tenant) + " has no memory on node " +
                    options_.node_id +
                    ": list it in shm_read, shm_write or domains, or give \"private\" a part in "
                    "domain_shares"};
        }
        session->domain = &domains_.of(hello.tenant);
        const BlockStore& store = *session->domain->store;
        welcome.segment_bytes = store.segment_bytes();
        welcome.flush_counter = store.flush_counter();  // before the epoch: at worst, asked again
        Result<std::shared_ptr<NamespaceCell>> ns = namespaces_.open(hello.tenant, hello.ns);
        if (!ns.ok()) {
            return ns.status();
        }
        session->ns = *ns;
        welcome.ns_epoch = session->ns->current()->epoch;
    }
    if (hello.role != Role::kNode) {
        welcome.host_identity = host_identity();
        share_memory(connection, hello, *session, &answer);
        session->offered_slot = welcome.slot;
    }
    answer.session = std::move(session);
    return answer;
}

// The slot that the session may confirm, and the descriptors that its process does not have yet.
int NodeBlockPort::offer_memory(ClientConnection& session, const Hello& hello, pid_t pid,
                                std::vector<int>* fds) {
    const BlockStore& store = *session.domain->store;
    ServedSlots& slots = session.domain->slots;
    const FileKey file{hello.slot_device, hello.slot_inode};
    if (hello.slot_plus_one != 0 && slots.is_held(hello.slot_plus_one - 1, file, pid)) {
        if (hello.mapped_epoch != options_.node_epoch) {
            *fds = {store.segment_fd(session.may_write), store.index_fd()};
        }
        return static_cast<int>(hello.slot_plus_one - 1);
    }
    int slot_fd = -1;
    const int slot = slots.offer(pid, &slot_fd);
    if (slot >= 0) {
        *fds = {store.segment_fd(session.may_write), store.index_fd(), slot_fd};
    }
    return slot;
}

void NodeBlockPort::on_open(Connection& connection) {
    if (MasterLink::is_link(connection)) {
        link_->on_open(connection);
    } else if (connection.session_as<ConnectionState>()->is_ucx_process()) {
        connection.session_as<UcxConnection>()->domain.ucx.connected(connection.ref());
    }
}

void NodeBlockPort::on_close(Connection& connection, Code, std::string_view reason) {
    if (MasterLink::is_link(connection)) {
        return link_->on_close(connection, reason);
    }
    if (connection.session_as<ConnectionState>()->is_ucx_process()) {
        return connection.session_as<UcxConnection>()->domain.ucx.disconnected();
    }
    auto& session = *connection.session_as<ClientConnection>();
    if (session.offered_slot >= 0) {
        session.domain->slots.give_back(session.offered_slot);
    }
    // The end of a socket only marks: what a living process may still write into is quarantined. A
    // peer may have copied into any domain.
    for (const auto& domain : domains_.all()) {
        if (session.domain == nullptr || session.domain == domain.get()) {
            domain->ucx.release_all(session.id);
            domain->flow->on_session_closed(session.id);
            domain->store->on_session_closed(session.id);
        }
    }
}

void NodeBlockPort::on_tick(size_t loop) {
    if (loop != 0) {
        return;
    }
    for (const auto& domain : domains_.all()) {
        domain->slots.tick();
        domain->store->tick();
        domain->flow->tick();
        domain->ucx.tick();
        domain->ucx.grow(domain->store->ready_bytes());
    }
    withdraw_replaced();
    link_->tick();
    watch_send_budget();
}

void NodeBlockPort::watch_send_budget() {
    const uint64_t now_ms = boottime_ms();
    const uint64_t refusals = send_budget_->refusals() + nvme_budget_->refusals();
    if (refusals != seen_refusals_) {
        seen_refusals_ = refusals;
        pressed_until_ms_ = now_ms + kPressedMs;
    }
    server_->set_write_stall_ms(now_ms < pressed_until_ms_ ? kPressedStallMs : kStallMs);
}

void NodeBlockPort::slot_ready(Connection& connection, const FrameHeader& header, Body body) {
    SlotReady message;
    if (!connection.decode(body, &message)) {
        return;
    }
    auto& session = *connection.session_as<ClientConnection>();
    Code code = Code::kUnsupported;
    if (session.slot >= 0 && message.slot == static_cast<uint32_t>(session.slot)) {
        code = Code::kOk;  // again, for what else it says
    } else if (session.offered_slot >= 0) {
        code = session.domain->slots.confirm(message.slot, connection.peer().pid,
                                             connection.peer().tenant);
        if (code == Code::kOk) {
            if (message.slot != static_cast<uint32_t>(session.offered_slot)) {
                session.domain->slots.give_back(session.offered_slot);
            }
            session.offered_slot = -1;
            session.slot = static_cast<int>(message.slot);
        }
    }
    if (code == Code::kOk) {
        session.domain->store->end_earlier_writes(session.slot, message.writes_ended_below);
    }
    const int32_t status = static_cast<int32_t>(code);
    StatusReply reply;
    reply.status = std::span(&status, 1);
    connection.ref()->send_message(reply, header.request_id);
}

void NodeBlockPort::resolve(Connection& connection, const FrameHeader& header) {
    const auto& session = *connection.session_as<ClientConnection>();
    ResolveReply reply;
    reply.flush_counter = session.domain->store->flush_counter();
    const NamespaceRef ns = session.ns->current();
    reply.namespace_id = ns->id;
    reply.ns_epoch = ns->epoch;
    connection.ref()->send_message(reply, header.request_id);
}

// ---- dispatch --------------------------------------------------------------------------------

void NodeBlockPort::on_ping(Connection& connection) {
    if (MasterLink::is_link(connection)) {
        link_->on_ping(connection);
    }
}

void NodeBlockPort::on_frame(Connection& connection, const FrameHeader& header, Body body,
                             PayloadPlan* plan) {
    if (MasterLink::is_link(connection)) {
        return link_->on_frame(connection, header, body);
    }
    if (connection.session_as<ConnectionState>()->is_ucx_process()) {
        return on_process_frame(connection, header, body);
    }
    const bool is_peer = connection.session_as<ClientConnection>()->role == Role::kNode;
    switch (header.message()) {
        case MessageType::kPut:
            if (!is_peer) {
                return begin_put(connection, header, body, plan);
            }
            break;
        case MessageType::kCopyPut:
            if (is_peer) {
                return begin_copy(connection, header, body, plan);
            }
            break;
        default:
            if (header.payload_bytes == 0 &&
                (on_session_frame(connection, header, body) ||
                 (!is_peer && on_object_frame(connection, header, body)))) {
                return;
            }
            break;
    }
    connection.ref()->send_error(
        header.request_id, Code::kPermissionDenied,
        std::string(message_type_name(header.type)) + " is not a request of this role to a node");
}

bool NodeBlockPort::on_session_frame(Connection& connection, const FrameHeader& header, Body body) {
    switch (header.message()) {
        case MessageType::kSlotReady:
            return slot_ready(connection, header, body), true;
        case MessageType::kStats:
            return answer_stats(connection, header), true;
        default:
            return false;
    }
}

bool NodeBlockPort::on_object_frame(Connection& connection, const FrameHeader& header, Body body) {
    switch (header.message()) {
        case MessageType::kReserve:
            return reserve(connection, header, body), true;
        case MessageType::kCommit:
            return commit(connection, header, body), true;
        case MessageType::kAbort:
            return abort(connection, header, body), true;
        case MessageType::kGet:
            return get(connection, header, body), true;
        case MessageType::kPrefetch:
            return prefetch(connection, header, body), true;
        case MessageType::kExplain:
            return explain(connection, header, body), true;
        case MessageType::kLease:
            return lease(connection, header, body), true;
        case MessageType::kLeaseRenew:
            return lease_renew(connection, header, body), true;
        case MessageType::kLeaseRelease:
            return lease_release(connection, header, body), true;
        case MessageType::kHold:
            return hold(connection, header, body), true;
        case MessageType::kUnhold:
            return unhold(connection, header, body), true;
        case MessageType::kResolve:
            return resolve(connection, header), true;
        case MessageType::kUcxOpen:
            return ucx_open(connection, header), true;
        case MessageType::kUcxGet:
            return ucx_get(connection, header, body), true;
        case MessageType::kUcxDone:
            return ucx_done(connection, body), true;
        case MessageType::kUcxPut:
            return ucx_put(connection, header, body), true;
        default:
            return false;
    }
}

// ---- counters --------------------------------------------------------------------------------

void NodeBlockPort::fill(NodeStats& stats) const {
    stats.link = link_->state();
    stats.link_error = link_->last_error();
    stats.link_losses = link_->losses();
    stats.applied_seq = link_->applied_seq();
    stats.store = domains_.stats();
    stats.prefault_error = domains_.prefault_status().message();
    stats.puts_under_way = 0;
    stats.live_slots = 0;
    for (const auto& domain : domains_.all()) {
        const BlockStore::Stats one = domain->store->stats();
        stats.domains.push_back({domain->options.name, one.segment_bytes, one.used_bytes,
                                 one.objects, domain->ucx.stats()});
        stats.puts_under_way += domain->flow->under_way();
        stats.live_slots += domain->slots.live();
    }
    if (tier_ != nullptr) {
        stats.nvme = tier_->stats();
    }
    stats.spans_dropped = spans_ == nullptr ? 0 : spans_->dropped();
    stats.hits_dram = metrics_.hits_dram.get();
    stats.hits_nvme = metrics_.hits_nvme.get();
    for (size_t i = 0; i < stats.misses.size(); ++i) {
        stats.misses[i] = metrics_.misses[i].get();
    }
    stats.puts_ok = metrics_.puts_ok.get();
    stats.puts_exist = metrics_.puts_exist.get();
    stats.puts_failed = metrics_.puts_failed.get();
    stats.put_bytes_shm = metrics_.put_bytes_shm.get();
    stats.put_bytes_tcp = metrics_.put_bytes_socket.get();
    stats.put_bytes_ucx = metrics_.put_bytes_ucx.get();
    stats.get_bytes_tcp = metrics_.get_bytes_socket.get();
    stats.get_bytes_ucx = metrics_.get_bytes_ucx.get();
    stats.hot_asks = metrics_.hot_asks.get();
    stats.copies_in = metrics_.copies_in.get();
    stats.copies_out = metrics_.copies_out.get();
    stats.copies_failed = metrics_.copies_failed.get();
    stats.copy_bytes_in = metrics_.copy_bytes_in.get();
    stats.copy_bytes_out = metrics_.copy_bytes_out.get();
    for (size_t i = 0; i < stats.attaches_refused.size(); ++i) {
        stats.attaches_refused[i] = metrics_.attaches_refused[i].get();
    }
    stats.server = server_->stats();
    stats.attaches_refused[static_cast<size_t>(AttachCause::kUser)] = stats.server.refused_users;
    stats.put_us = metrics_.put_us.snapshot();
    stats.get_us = metrics_.get_us.snapshot();
    stats.claim_us = metrics_.claim_us.snapshot();
    stats.announce_us = metrics_.announce_us.snapshot();
}

void NodeBlockPort::answer_stats(Connection& connection, const FrameHeader& header) {
    NodeStats stats;
    fill(stats);
    const std::pair<std::string_view, uint64_t> rows[] = {
        {"capacity_bytes", stats.store.segment_bytes},
        {"used_bytes", stats.store.used_bytes},
        {"objects", stats.store.objects},
        {"evictions", stats.store.evictions},
        {"hits", stats.hits_dram + stats.hits_nvme},
        {"puts_ok", stats.puts_ok},
        {"put_bytes_shm", stats.put_bytes_shm},
        {"put_bytes_tcp", stats.put_bytes_tcp},
        {"get_bytes_tcp", stats.get_bytes_tcp},
        {"put_bytes_ucx", stats.put_bytes_ucx},
        {"get_bytes_ucx", stats.get_bytes_ucx},
        {"connections", stats.server.open},
    };
    std::vector<std::string_view> names;
    std::vector<uint64_t> values;
    for (const auto& [name, value] : rows) {
        names.push_back(name);
        values.push_back(value);
    }
    StatsReply reply;
    reply.names = names;
    reply.values = values;
    connection.ref()->send_message(reply, header.request_id);
}

}  // namespace kvstore
