// Connecting to the master, and the frames of both directions.
#include "node/master_link.h"

#include <algorithm>
#include <thread>

#include "base/mutation.h"
#include "base/mutex.h"
#include "net/channel.h"
#include "net/event_server.h"
#include "node/announce_stream.h"
#include "node/claim_columns.h"
#include "node/connection_state.h"
#include "node/link_rows.h"

namespace kvstore {
namespace {

constexpr uint64_t kFirstBackoffMs = 10;
constexpr size_t kMostAhead = 2;  // frames that a Ping has sent at once, whatever the window
// Objects of one frame of the full announce: half a millisecond of the master's time, in which it
// does nothing for others.
constexpr size_t kListBatch = 512;

}  // namespace

struct MasterLink::Impl {
    // Where a connection stands between its hello and being up.
    enum class Sync : uint8_t { kCatchingUp, kListing, kEnding, kDone };

    Impl(Options given, EventServer& event_server, Handler& node)
        : options(given),
          server(event_server),
          handler(node),
          session_id(given.session_id),
          endpoints(std::move(given.endpoints)),
          principal(std::move(given.principal)),
          token(std::move(given.token)),
          applied_seq(options.applied_seq),
          acked_seq(options.applied_seq) {}

    void connect_loop();
    Status connect_once(const std::string& endpoint, uint64_t link, const HelloParams& params);
    HelloParams hello() const KV_REQUIRES(mutex);
    void set_state(LinkState to) KV_REQUIRES(mutex);
    void ping() KV_REQUIRES(mutex);
    void send_stream() KV_REQUIRES(mutex);
    bool is_current(const Connection& connection) const KV_REQUIRES(mutex);

    void on_claim_reply(Connection& connection, std::span<const uint8_t> body);
    void on_announce_reply(Connection& connection, std::span<const uint8_t> body);
    void on_ops(Connection& connection, std::span<const uint8_t> body);
    void on_copy(Connection& connection, std::span<const uint8_t> body);
    void on_pong();
    void on_heartbeat_reply(Connection& connection, uint64_t number, std::span<const uint8_t> body);
    void on_error(uint64_t number, std::span<const uint8_t> body);
    void announce_everything();

    const Options options;  // but for the registration and the credentials, which may change
    EventServer& server;
    Handler& handler;

    mutable Mutex mutex;
    CondVar changed;
    uint64_t session_id KV_GUARDED_BY(mutex);
    std::vector<std::string> endpoints KV_GUARDED_BY(mutex);
    std::string principal KV_GUARDED_BY(mutex);
    std::string token KV_GUARDED_BY(mutex);
    bool stopping KV_GUARDED_BY(mutex) = false;
    bool connected KV_GUARDED_BY(mutex) = false;  // adopted, or about to be
    LinkState state KV_GUARDED_BY(mutex) = LinkState::kDown;
    uint64_t link KV_GUARDED_BY(mutex) = 0;  // number of the current or last attempt
    uint64_t losses KV_GUARDED_BY(mutex) = 0;
    uint64_t applied_seq KV_GUARDED_BY(mutex);  // in this life
    uint64_t acked_seq KV_GUARDED_BY(mutex);    // for every later one
    std::string last_error KV_GUARDED_BY(mutex);
    std::shared_ptr<ConnectionRef> ref KV_GUARDED_BY(mutex);
    AnnounceStream stream KV_GUARDED_BY(mutex);
    bool takes_heartbeats KV_GUARDED_BY(mutex) = false;  // this master, over this connection
    AskedHeartbeat heartbeat;

    Sync sync KV_GUARDED_BY(mutex) = Sync::kCatchingUp;
    // The master's last operation when it welcomed us.
    uint64_t wanted_seq KV_GUARDED_BY(mutex) = 0;
    bool ops_since_ping KV_GUARDED_BY(mutex) = false;
    uint64_t heard_ms KV_GUARDED_BY(mutex) = 0;
    uint64_t pinged_ms KV_GUARDED_BY(mutex) = 0;
    uint32_t cursor = 0;  // of the full announce; the connection's loop only
    std::thread thread;
};

// ---- connecting ------------------------------------------------------------------------------

HelloParams MasterLink::Impl::hello() const {
    HelloParams params;
    params.role = Role::kNode;
    params.cluster_id = options.cluster_id;
    params.principal = principal;
    params.token = token;
    params.session_id = session_id;
    params.node_id = options.node_id;
    params.node_epoch = options.node_epoch;
    params.applied_seq = acked_seq;
    params.client_name = options.node_id;
    params.tls = options.tls;
    return params;
}

void MasterLink::Impl::connect_loop() {
    uint64_t backoff_ms = kFirstBackoffMs;
    MutexLock lock(mutex);
    while (!stopping) {
        changed.wait(mutex, [&]() KV_REQUIRES(mutex) {
            return stopping || (!connected && session_id != 0 && !endpoints.empty());
        });
        if (stopping) {
            return;
        }
        const uint64_t number = ++link;
        connected = true;
        sync = Sync::kCatchingUp;
        const HelloParams params = hello();
        const std::vector<std::string> addresses = endpoints;
        lock.unlock();
        Status status(Code::kUnavailable, "no master address");
        for (const std::string& endpoint : addresses) {
            status = connect_once(endpoint, number, params);
            if (status.ok()) {
                break;
            }
        }
        lock.lock();
        if (status.ok()) {
            changed.wait(mutex, [&]() KV_REQUIRES(mutex) {
                return stopping || !connected || sync == Sync::kDone;
            });
            if (sync == Sync::kDone) {
                backoff_ms = kFirstBackoffMs;
                continue;
            }
        } else {
            last_error = status.to_string();
            connected = false;
        }
        const uint64_t session = session_id;
        changed.wait_for(mutex, std::chrono::milliseconds(backoff_ms),
                         [&]() KV_REQUIRES(mutex) { return stopping || session_id != session; });
        backoff_ms = std::min<uint64_t>(backoff_ms * 2, options.backoff_max_ms);
    }
}

Status MasterLink::Impl::connect_once(const std::string& text, uint64_t number,
                                      const HelloParams& params) {
    Result<Endpoint> endpoint = Endpoint::parse(text);
    if (!endpoint.ok()) {
        return endpoint.status();
    }
    Result<std::unique_ptr<Channel>> channel =
        Channel::connect(*endpoint, params, Deadline::after_ms(options.connect_ms));
    if (!channel.ok()) {
        return channel.status();
    }
    const WelcomeData welcome = (*channel)->welcome();
    if (options.hash_secret != HashSecret{} && welcome.hash_secret != options.hash_secret) {
        return {Code::kInvalidArgument, text + " hashes with another secret: another cluster?"};
    }
    {
        const MutexLock lock(mutex);
        wanted_seq = welcome.ops_seq;
    }
    Peer peer;
    peer.role = Role::kNode;
    peer.address = text;
    peer.version = welcome.version;
    peer.features = welcome.features;
    peer.session_id = params.session_id;
    const auto adopted = server.adopt((*channel)->release(), std::move(peer),
                                      std::make_shared<LinkConnection>(number));
    return adopted.status();
}

void MasterLink::Impl::set_state(LinkState to) {
    state = to;
    changed.notify_all();
}

bool MasterLink::Impl::is_current(const Connection& connection) const {
    const auto* session = connection.session_as<LinkConnection>();
    return connected && session->link == link && ref != nullptr;
}

void MasterLink::Impl::ping() {
    pinged_ms = boottime_ms();
    ref->send_message(Ping{link}, link);
}

// ---- what the node sends ---------------------------------------------------------------------

void MasterLink::Impl::send_stream() {
    while (state == LinkState::kUp && stream.send_next(*ref)) {
    }
}

bool MasterLink::claim(uint64_t link, const NamespaceEpoch& ns, std::span<const ClaimItem> items,
                       uint32_t timeout_ms) {
    const ClaimColumns columns(items);
    std::shared_ptr<ConnectionRef> to;
    {
        const MutexLock lock(impl_->mutex);
        if (impl_->state != LinkState::kUp || impl_->link != link) {
            return false;
        }
        to = impl_->ref;
    }
    return to->send_message(columns.message(ns, timeout_ms), 0);
}

void MasterLink::abandon(uint64_t link, std::span<const uint64_t> claim_ids) {
    const MutexLock lock(impl_->mutex);
    if (impl_->state != LinkState::kUp || impl_->link != link) {
        return;  // the master has forgotten them with the connection
    }
    for (size_t first = 0; first < claim_ids.size(); first += limits::kMaxBatchKeys) {
        Abandon message;
        message.claim_ids =
            claim_ids.subspan(first, std::min(limits::kMaxBatchKeys, claim_ids.size() - first));
        impl_->ref->send_message(message, 0);
    }
}

MasterLink::Announced MasterLink::announce(uint64_t link, const NamespaceRef& ns,
                                           std::vector<AnnounceItem> items) {
    const MutexLock lock(impl_->mutex);
    if (impl_->state != LinkState::kUp || impl_->link != link) {
        return Announced::kLost;
    }
    impl_->stream.push(ns, std::move(items));
    return impl_->stream.queued() <= kMostAhead ? Announced::kNext : Announced::kWaits;
}

void MasterLink::flush(uint64_t link) {
    const MutexLock lock(impl_->mutex);
    if (impl_->link == link) {
        impl_->send_stream();
    }
}

void MasterLink::withdraw(const NamespaceRef& ns, std::vector<WithdrawItem> items) {
    const MutexLock lock(impl_->mutex);
    if (!impl_->connected || impl_->sync == Impl::Sync::kCatchingUp) {
        return;  // the full announce will not list them
    }
    impl_->stream.push(ns, std::move(items));
    impl_->send_stream();
}

void MasterLink::copy_done(uint64_t link, uint64_t copy_id, Code code) {
    const MutexLock lock(impl_->mutex);
    if (impl_->state != LinkState::kDown && impl_->link == link) {
        impl_->ref->send_message(CopyDone{copy_id, static_cast<int32_t>(code)}, 0);
    }
}

void MasterLink::heartbeat(std::string_view request, AskedHeartbeat::Heard heard) {
    const uint64_t number = impl_->heartbeat.begin(std::move(heard));
    {
        const MutexLock lock(impl_->mutex);
        if (impl_->state == LinkState::kUp && impl_->takes_heartbeats &&
            request.size() <= limits::kMaxHeartbeatBytes &&
            impl_->ref->send_message(Heartbeat{request}, number)) {
            return;
        }
    }
    impl_->heartbeat.end(number, Status(Code::kUnavailable, "the link does not carry it"));
}

// ---- what the master sends -------------------------------------------------------------------

void MasterLink::Impl::on_claim_reply(Connection& connection, std::span<const uint8_t> body) {
    ClaimReply reply;
    if (!connection.decode(body, &reply)) {
        return;
    }
    const LinkId from = connection.session_as<LinkConnection>()->link;
    handler.on_claims(from, answers_of(reply, from));
}

void MasterLink::Impl::on_announce_reply(Connection& connection, std::span<const uint8_t> body) {
    AnnounceReply reply;
    if (!connection.decode(body, &reply)) {
        return;
    }
    AnnounceStream::Sent sent;
    {
        const MutexLock lock(mutex);
        if (!stream.take_acked(reply.seq, reply.status.size(), &sent)) {
            return connection.fail(Code::kProtocolError, "an answer to no announce");
        }
        if (sent.phase == AnnouncePhase::kEnd) {
            sync = Sync::kDone;
            set_state(LinkState::kUp);
        }
        send_stream();
    }
    std::vector<AnnounceResult> results;
    for (size_t row = 0; row < sent.items.size(); ++row) {
        results.push_back({&sent.items[row], static_cast<Code>(reply.status[row])});
    }
    if (!results.empty()) {
        handler.on_announced(connection.session_as<LinkConnection>()->link, sent.ns, results);
    }
    announce_everything();
}

void MasterLink::Impl::on_ops(Connection& connection, std::span<const uint8_t> body) {
    Ops message;
    if (!connection.decode(body, &message)) {
        return;
    }
    uint64_t known_seq = 0;
    {
        const MutexLock lock(mutex);
        known_seq = applied_seq;
    }
    handler.on_ops(new_ops_of(message, known_seq));
    const bool numbered = message.first_seq != 0 && !message.kinds.empty();
    const uint64_t last_seq = numbered ? message.first_seq + message.kinds.size() - 1 : 0;
    {
        const MutexLock lock(mutex);
        applied_seq = std::max(applied_seq, last_seq);
        ops_since_ping = true;
    }
    if (numbered) {
        handler.on_applied(last_seq);
    }
}

void MasterLink::acknowledge(uint64_t seq) {
    const MutexLock lock(impl_->mutex);
    impl_->acked_seq = std::max(impl_->acked_seq, seq);
    if (impl_->connected && impl_->ref != nullptr) {
        impl_->ref->send_message(OpsAck{impl_->acked_seq}, 0);
    }
}

void MasterLink::Impl::on_copy(Connection& connection, std::span<const uint8_t> body) {
    Copy message;
    if (!connection.decode(body, &message)) {
        return;
    }
    handler.on_copy({.link = connection.session_as<LinkConnection>()->link,
                     .copy_id = message.copy_id,
                     .ns = {std::string(message.tenant), std::string(message.ns), message.epoch},
                     .key = std::string(message.key),
                     .version = message.version,
                     .target_node = std::string(message.target_node),
                     .target_endpoint = std::string(message.target_endpoint)});
}

// The answer comes behind every operation that was sent before it, so this tells the end of the
// missed ones even where the log no longer has those that we never needed.
void MasterLink::Impl::on_pong() {
    {
        const MutexLock lock(mutex);
        pinged_ms = 0;
        if (state != LinkState::kSyncing || sync != Sync::kCatchingUp) {
            return;
        }
        if (KV_GUARD("catch-up", applied_seq < wanted_seq) &&
            std::exchange(ops_since_ping, false)) {
            return ping();
        }
        sync = Sync::kListing;
        cursor = 0;
        stream.send_phase(*ref, AnnouncePhase::kBegin, {}, {});
    }
    announce_everything();
}

// As much of the full announce as the window takes. Only the connection's loop comes here, and the
// listing runs without the mutex: it may call withdraw().
void MasterLink::Impl::announce_everything() {
    std::vector<AnnounceGroup> groups;
    while (true) {
        {
            const MutexLock lock(mutex);
            if (state != LinkState::kSyncing || sync != Sync::kListing || stream.window_full()) {
                return;
            }
        }
        groups.clear();
        cursor = handler.list_objects(cursor, kListBatch, groups);
        const MutexLock lock(mutex);
        if (ref == nullptr) {
            return;
        }
        for (AnnounceGroup& group : groups) {
            stream.send_phase(*ref, AnnouncePhase::kMiddle, std::move(group.ns),
                              std::move(group.items));
        }
        if (cursor == 0) {
            stream.send_phase(*ref, AnnouncePhase::kEnd, {}, {});
            sync = Sync::kEnding;
        }
    }
}

void MasterLink::Impl::on_heartbeat_reply(Connection& connection, uint64_t number,
                                          std::span<const uint8_t> body) {
    HeartbeatReply reply;
    if (connection.decode(body, &reply)) {
        heartbeat.end(number, std::string(reply.reply));
    }
}

void MasterLink::Impl::on_error(uint64_t number, std::span<const uint8_t> body) {
    Error error;
    if (!decode_message(body, &error).ok()) {
        return;
    }
    const Status status = remote_status(error.code, error.message);
    if (number != 0) {  // of what may be refused, heartbeats alone have one
        return heartbeat.end(number, status);
    }
    const MutexLock lock(mutex);
    last_error = status.to_string();
}

// ---- the interface ---------------------------------------------------------------------------

MasterLink::MasterLink(Options options, EventServer& server, Handler& handler)
    : impl_(std::make_unique<Impl>(std::move(options), server, handler)) {}

MasterLink::~MasterLink() { stop(); }

void MasterLink::start() {
    impl_->thread = std::thread([this] { impl_->connect_loop(); });
}

void MasterLink::stop() {
    {
        const MutexLock lock(impl_->mutex);
        impl_->stopping = true;
        impl_->changed.notify_all();
        if (impl_->ref != nullptr) {
            impl_->ref->close(Code::kClosed, "the node is stopping");
        }
    }
    if (impl_->thread.joinable()) {
        impl_->thread.join();
    }
}

void MasterLink::set_session(uint64_t session_id, std::vector<std::string> endpoints) {
    const MutexLock lock(impl_->mutex);
    if (impl_->session_id == session_id && impl_->endpoints == endpoints) {
        return;
    }
    impl_->session_id = session_id;
    impl_->endpoints = std::move(endpoints);
    if (impl_->ref != nullptr) {
        impl_->ref->close(Code::kExpired, "a new session begins");
    }
    impl_->changed.notify_all();
}

void MasterLink::set_credentials(std::string principal, std::string token) {
    const MutexLock lock(impl_->mutex);
    impl_->principal = std::move(principal);
    impl_->token = std::move(token);
}

LinkState MasterLink::state() const {
    const MutexLock lock(impl_->mutex);
    return impl_->state;
}

bool MasterLink::wait_state(LinkState state, uint32_t timeout_ms) {
    Impl& impl = *impl_;
    const MutexLock lock(impl.mutex);
    return impl.changed.wait_for(impl.mutex, std::chrono::milliseconds(timeout_ms),
                                 [&]() KV_REQUIRES(impl.mutex) { return impl.state == state; });
}

uint64_t MasterLink::losses() const {
    const MutexLock lock(impl_->mutex);
    return impl_->losses;
}

uint64_t MasterLink::applied_seq() const {
    const MutexLock lock(impl_->mutex);
    return impl_->applied_seq;
}

std::string MasterLink::last_error() const {
    const MutexLock lock(impl_->mutex);
    return impl_->last_error;
}

uint64_t MasterLink::up() const {
    const MutexLock lock(impl_->mutex);
    return impl_->state == LinkState::kUp ? impl_->link : 0;
}

bool MasterLink::is_link(const Connection& connection) {
    return connection.session_as<ConnectionState>()->is_link();
}

void MasterLink::on_open(Connection& connection) {
    const MutexLock lock(impl_->mutex);
    const auto* session = connection.session_as<LinkConnection>();
    if (impl_->stopping || !impl_->connected || session->link != impl_->link) {
        return connection.ref()->close(Code::kClosed, "superseded");
    }
    impl_->ref = connection.ref();
    impl_->stream.reset();
    impl_->heard_ms = boottime_ms();
    impl_->ops_since_ping = false;
    impl_->takes_heartbeats = (connection.peer().features & kFeatureHeartbeats) != 0;
    impl_->set_state(LinkState::kSyncing);
    impl_->ping();
}

void MasterLink::on_frame(Connection& connection, const FrameHeader& header,
                          std::span<const uint8_t> body) {
    {
        const MutexLock lock(impl_->mutex);
        if (!impl_->is_current(connection)) {
            return;
        }
        impl_->heard_ms = boottime_ms();
    }
    switch (header.message()) {
        case MessageType::kClaimReply:
            return impl_->on_claim_reply(connection, body);
        case MessageType::kAnnounceReply:
            return impl_->on_announce_reply(connection, body);
        case MessageType::kOps:
            return impl_->on_ops(connection, body);
        case MessageType::kCopy:
            return impl_->on_copy(connection, body);
        case MessageType::kPong:
            return impl_->on_pong();
        case MessageType::kHeartbeatReply:
            return impl_->on_heartbeat_reply(connection, header.request_id, body);
        case MessageType::kError:
            return impl_->on_error(header.request_id, body);
        default:
            return connection.fail(Code::kProtocolError, "not a message of the master to a node");
    }
}

// A fence of the master: what was answered to writers is announced before the Pong.
void MasterLink::on_ping(Connection& connection) {
    const MutexLock lock(impl_->mutex);
    if (KV_GUARD("fence-flush", impl_->is_current(connection)) && impl_->state == LinkState::kUp) {
        impl_->stream.send_all(*impl_->ref);
    }
}

void MasterLink::on_close(Connection& connection, std::string_view reason) {
    const uint64_t link = connection.session_as<LinkConnection>()->link;
    {
        const MutexLock lock(impl_->mutex);
        if (link != impl_->link || !impl_->connected) {
            return;
        }
        impl_->connected = false;
        impl_->ref = nullptr;
        impl_->stream.reset();
        ++impl_->losses;
        if (impl_->last_error.empty() || impl_->state == LinkState::kUp) {
            impl_->last_error = reason;
        }
        impl_->sync = Impl::Sync::kCatchingUp;
        impl_->set_state(LinkState::kDown);
    }
    impl_->heartbeat.lost();
    impl_->handler.on_link_down(link);
}

void MasterLink::tick() {
    const MutexLock lock(impl_->mutex);
    if (impl_->ref == nullptr) {
        return;
    }
    const uint64_t now = boottime_ms();
    const uint64_t silent_ms = now - std::min(now, impl_->heard_ms);
    if (silent_ms >= impl_->options.silent_ms) {
        impl_->ref->close(Code::kDeadlineExceeded, "the master is silent");
    } else if (silent_ms >= impl_->options.ping_ms && impl_->pinged_ms == 0) {
        impl_->ping();
    }
}

}  // namespace kvstore
