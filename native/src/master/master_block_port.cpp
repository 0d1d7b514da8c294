// Frames to calls and back. Everything here runs on the event server's loops and never blocks; what
// has to wait for nodes answers later through the connection's reference. Removes, pins, flushes,
// lists and inspections are in client_requests.cpp.
#include "master/master_block_port.h"

#include <algorithm>

#include "base/mutation.h"
#include "base/mutex.h"
#include "master/master_wire.h"

namespace kvstore {
namespace {

// The keys that a request asks for and that have to be recorded; false when there are none, or it
// cannot be decoded. A remove covers what is not recorded yet.
bool keys_of(MessageType type, std::span<const uint8_t> body, std::vector<std::string_view>* keys) {
    if (type == MessageType::kSetPin) {
        SetPin request;
        if (decode_message(body, &request).ok()) {
            keys->assign(request.keys.begin(), request.keys.end());
        }
    } else if (type == MessageType::kInspect) {
        Inspect request;
        if (decode_message(body, &request).ok()) {
            keys->push_back(request.key);
        }
    }
    return !keys->empty();
}

// One lookup in the directory and its answer; a thread reuses its memory for every lookup.
class LookupAnswer {
  public:
    static LookupAnswer& of_this_thread() {
        static thread_local LookupAnswer answer;
        return answer;
    }
    void find(MasterCore& core, const Namespace* ns, const KeyList& keys) {
        ns_ = ns;
        keys_.assign(keys.begin(), keys.end());
        places_.resize(std::max(places_.size(), keys_.size()));
        if (ns == nullptr) {
            core.directory().find_nowhere(std::span(places_).first(keys_.size()));
        } else {
            core.directory().find(*ns, keys_, places_);
        }
    }
    // Who does not know whether they are there does not say that they are absent.
    void doubt_missing() {
        for (ObjectPlace& place : std::span(places_).first(keys_.size())) {
            if (place.code != Code::kOk) {
                place.code = Code::kUnavailable;
                place.reason = MissReason::kUnavailable;
            }
        }
    }
    std::vector<std::string_view> missing() const {
        std::vector<std::string_view> keys;
        for (size_t i = 0; i < keys_.size(); ++i) {
            if (places_[i].code != Code::kOk) {
                keys.push_back(keys_[i]);
            }
        }
        return keys;
    }
    bool complete() const {
        return std::ranges::all_of(
            found(), [](const ObjectPlace& place) { return place.code == Code::kOk; });
    }
    // Counts what it answers: a lookup that waited has been looked up before.
    void send(MasterCore& core, uint32_t flags, ConnectionRef& to, uint64_t request_id) {
        core.directory().count(ns_, found());
        if ((flags & kLookupRestarting) != 0 && ns_ != nullptr) {
            add_restarting(core.directory());
        }
        columns_.fill(found(), (flags & kLookupNoNodes) == 0);
        to.send_message(columns_.reply(core.nodes_id()), request_id);
    }

  private:
    // Who asks for them may read their memory, or says why it finds nothing.
    void add_restarting(const Directory& directory) {
        const DirectoryEpoch& epoch = *ns_->current.load(std::memory_order_acquire);
        for (size_t i = 0; i < keys_.size(); ++i) {
            if (places_[i].code != Code::kOk && places_[i].reason == MissReason::kNodeDown) {
                const ObjectPlace place = directory.lookup_restarting(epoch, keys_[i]);
                places_[i] = place.code == Code::kOk ? place : places_[i];
            }
        }
    }
    std::span<const ObjectPlace> found() const { return std::span(places_).first(keys_.size()); }

    const Namespace* ns_ = nullptr;  // until it is sent
    std::vector<std::string_view> keys_;
    std::vector<ObjectPlace> places_;
    LookupColumns columns_;
};

}  // namespace

struct MasterBlockPort::Session {
    NamespacePtr ns;              // of clients and operators, once it exists
    MasterCore::LinkHello hello;  // node links
    LinkId link = 0;
    std::shared_ptr<WireNodeLink> to;  // the same, for what it has heard
    bool is_link = false;
    std::vector<int32_t> codes;  // reused by the connection's frames
    std::vector<ClaimAnswer> answers;
};

MasterBlockPort::MasterBlockPort(MasterCore& core, Options options)
    : core_(core),
      options_(std::move(options)),
      grpc_endpoint_(options_.grpc_endpoint),
      http_endpoint_(options_.http_endpoint),
      authenticator_(std::make_shared<Authenticator>(options_.principals)) {
    EventServer::Options server;
    server.loops = options_.loops;
    server.poll_us = options_.poll_us;
    server.cluster_id = options_.cluster_id;
    server.authenticator = authenticator_;
    server.tls = options_.tls;
    server_ = std::make_unique<EventServer>(std::move(server), *this);
}

MasterBlockPort::~MasterBlockPort() { stop(); }

Result<std::vector<std::string>> MasterBlockPort::start() {
    std::vector<std::string> bound;
    for (const std::string& text : options_.listen) {
        Result<Endpoint> endpoint = Endpoint::parse(text);
        if (!endpoint.ok()) {
            return endpoint.status();
        }
        Result<Endpoint> real = server_->listen(*endpoint);
        if (!real.ok()) {
            return real.status();
        }
        bound.push_back(real->to_string());
    }
    const Status started = server_->start();
    if (!started.ok()) {
        return started;
    }
    return bound;
}

void MasterBlockPort::stop() { server_->stop(); }

void MasterBlockPort::set_principals(std::vector<Principal> principals) {
    authenticator_->replace(std::move(principals));
}

void MasterBlockPort::set_principal_share(double share) {
    server_->set_principal_share(share);
    core_.set_principal_share(share);
}

void MasterBlockPort::set_endpoints(const std::string& grpc, const std::string& http,
                                    const std::string& tls_grpc) {
    const MutexLock lock(mutex_);
    grpc_endpoint_ = grpc;
    http_endpoint_ = http;
    tls_grpc_endpoint_ = tls_grpc;
}

Result<HelloAnswer> MasterBlockPort::on_hello(Connection& connection, const Hello& hello) {
    auto session = std::make_shared<Session>();
    HelloAnswer answer;
    if (hello.role == Role::kNode) {
        session->is_link = true;
        session->hello = {.node_id = std::string(hello.node_id),
                          .session_id = hello.session_id,
                          .node_epoch = hello.node_epoch,
                          .applied_seq = hello.applied_seq};
        // Without a session it only asks where the control plane is, to register there.
        if (hello.session_id != 0) {
            const Result<uint64_t> ops_seq = core_.check_link(session->hello);
            if (!ops_seq.ok()) {
                return ops_seq.status();
            }
            answer.welcome.ops_seq = *ops_seq;
        }
        answer.welcome.session_id = hello.session_id;
    } else {
        if (hello.tenant.empty()) {
            return {Code::kInvalidArgument, "a hello without a tenant"};
        }
        session->ns = core_.directory().namespaces().find(hello.tenant, hello.ns);
        if (session->ns != nullptr) {
            answer.welcome.ns_epoch = session->ns->current.load()->epoch;
        }
        answer.welcome.session_id = connection.id();
    }
    answer.welcome.master_epoch = core_.options().epoch;
    answer.welcome.hash_secret = core_.options().secret;
    answer.welcome.peers = options_.peers;
    {
        const MutexLock lock(mutex_);
        const bool tls = connection.peer().is_tls;
        answer.welcome.grpc_endpoint =
            tls && !tls_grpc_endpoint_.empty() ? tls_grpc_endpoint_ : grpc_endpoint_;
        answer.welcome.http_endpoint = http_endpoint_;
    }
    answer.session = std::move(session);
    return answer;
}

void MasterBlockPort::on_open(Connection& connection) {
    Session& session = *connection.session_as<Session>();
    if (!session.is_link || session.hello.session_id == 0) {
        return;
    }
    session.to = std::make_shared<WireNodeLink>(connection.ref());
    Result<LinkId> link = core_.open_link(session.hello, session.to);
    if (!link.ok()) {
        connection.fail(link.code(), link.status().message());
        return;
    }
    session.link = *link;
}

void MasterBlockPort::on_close(Connection& connection, Code, std::string_view) {
    const Session* session = connection.session_as<Session>();
    if (session != nullptr && session->link != 0) {
        core_.close_link(session->link);
    }
    core_.lookup_waits().drop(connection.id());
}

void MasterBlockPort::on_frame(Connection& connection, const FrameHeader& header,
                               std::span<const uint8_t> body, PayloadPlan*) {
    if (header.payload_bytes != 0) {
        return connection.fail(Code::kProtocolError, "no message to a master has a payload");
    }
    if (header.message() == MessageType::kPing) {
        Ping ping;
        if (connection.decode(body, &ping)) {
            reply(connection, header, Pong{.token = ping.token});
        }
        return;
    }
    if (const Session& session = *connection.session_as<Session>(); session.is_link) {
        if (session.link == 0) {
            return connection.fail(Code::kPermissionDenied, "a node link needs a session");
        }
        on_link_frame(connection, header, body);
    } else {
        on_client_frame(connection, header, body);
    }
}

void MasterBlockPort::on_ping(Connection& connection) {
    if (const Session& session = *connection.session_as<Session>(); session.to != nullptr) {
        session.to->note_heard();
    }
}

void MasterBlockPort::on_client_frame(Connection& connection, const FrameHeader& header,
                                      std::span<const uint8_t> body) {
    // A lookup looks for itself: only the keys that it does not find matter.
    if (header.message() != MessageType::kLookup && core_.has_unannounced()) {
        std::vector<std::string_view> keys;
        if ((keys_of(header.message(), body, &keys) || header.message() == MessageType::kList) &&
            comes_again(connection, header, body, keys)) {
            return;
        }
    }
    answer_client(connection, header, body, Fenced::kNo);
}

bool MasterBlockPort::comes_again(Connection& connection, const FrameHeader& header,
                                  std::span<const uint8_t> body,
                                  std::span<const std::string_view> keys) {
    const NamespacePtr& ns = space_of(connection);
    if (ns == nullptr) {
        return false;  // a claim creates it
    }
    const std::vector<LinkId> links = core_.unannounced(*ns, keys);
    if (!KV_GUARD("announce-fence", !links.empty())) {
        return false;
    }
    auto again =
        [this, ref = connection.ref(), header,
         copy = std::make_shared<std::vector<uint8_t>>(body.begin(), body.end())](bool known) {
            ref->post([this, header, copy, known](Connection& to) {
                answer_client(to, header, *copy, known ? Fenced::kKnown : Fenced::kUnknown);
            });
        };
    if (!core_.fence(links, body.size(), std::move(again))) {
        connection.ref()->send_error(header.request_id, Code::kOverloaded,
                                     "too many requests wait for announcements already");
    }
    return true;
}

void MasterBlockPort::answer_client(Connection& connection, const FrameHeader& header,
                                    std::span<const uint8_t> body, Fenced fenced) {
    if (fenced == Fenced::kUnknown && header.message() != MessageType::kLookup) {
        connection.ref()->send_error(header.request_id, Code::kUnavailable,
                                     "a node that writes such a key does not answer");
        return;
    }
    switch (header.message()) {
        case MessageType::kLookup:
            return lookup(connection, header, body, fenced);
        case MessageType::kNodes:
            return nodes(connection, header);
        case MessageType::kRemove:
            return remove(connection, header, body);
        case MessageType::kList:
            return list(connection, header, body);
        case MessageType::kInspect:
            return inspect(connection, header, body);
        case MessageType::kSetPin:
            return set_pin(connection, header, body);
        case MessageType::kFlush:
            return flush(connection, header, body);
        default:
            connection.ref()->send_error(header.request_id, Code::kUnsupported,
                                         "a master does not answer this message from a client");
    }
}

void MasterBlockPort::on_link_frame(Connection& connection, const FrameHeader& header,
                                    std::span<const uint8_t> body) {
    Session& session = *connection.session_as<Session>();
    session.to->note_heard();
    const auto check = [&](const Status& status) {
        if (!status.ok()) {
            connection.fail(status.code(), status.message());
        }
        return status.ok();
    };
    switch (header.message()) {
        case MessageType::kClaim:
            return claim(connection, header, body);
        case MessageType::kAbandon: {
            Abandon abandon;
            if (connection.decode(body, &abandon)) {
                core_.abandon(session.link, abandon);
            }
            return;
        }
        case MessageType::kAnnounce: {
            Announce announce;
            if (connection.decode(body, &announce)) {
                check(core_.announce(session.link, announce, session.codes,
                                     [ref = connection.ref(), id = header.request_id,
                                      seq = announce.seq](const std::vector<int32_t>& codes) {
                                         ref->send_message(
                                             AnnounceReply{.seq = seq, .status = codes}, id);
                                     }));
            }
            return;
        }
        case MessageType::kWithdraw: {
            Withdraw withdraw;
            if (connection.decode(body, &withdraw)) {
                check(core_.withdraw(session.link, withdraw));
            }
            return;
        }
        case MessageType::kOpsAck: {
            OpsAck ack;
            if (connection.decode(body, &ack)) {
                core_.ops_ack(session.link, ack.seq);
            }
            return;
        }
        case MessageType::kPong: {
            Pong pong;
            if (connection.decode(body, &pong)) {
                core_.pong(session.link, pong.token);
            }
            return;
        }
        case MessageType::kCopyDone: {
            CopyDone done;
            if (connection.decode(body, &done)) {
                core_.copy_done(session.link, done.copy_id, static_cast<Code>(done.code));
            }
            return;
        }
        case MessageType::kHeartbeat:
            return heartbeat(connection, header, body);
        default:
            connection.ref()->send_error(header.request_id, Code::kUnsupported,
                                         "a master does not answer this message from a node");
    }
}

const NamespacePtr& MasterBlockPort::space_of(Connection& connection) {
    Session& session = *connection.session_as<Session>();
    if (session.ns == nullptr) {
        const Peer& peer = connection.peer();
        session.ns = core_.directory().namespaces().find(peer.tenant, peer.ns);
    }
    return session.ns;
}

void MasterBlockPort::claim(Connection& connection, const FrameHeader& header,
                            std::span<const uint8_t> body) {
    Session& session = *connection.session_as<Session>();
    Claim claim;
    if (!connection.decode(body, &claim)) {
        return;
    }
    session.answers.clear();
    const Status in_space = core_.claim(session.link, claim, session.answers);
    if (in_space.code() == Code::kNoSpace) {
        // The put says NoSpace, and no more.
        server_->count_refusal(in_space.code(), connection.peer().address, in_space.message());
    }
    const bool more = session.answers.size() < claim.keys.size();
    send_claim_reply(*connection.ref(), header.request_id, more ? kFlagMore : uint16_t{0},
                     session.answers);
}

void MasterBlockPort::heartbeat(Connection& connection, const FrameHeader& header,
                                std::span<const uint8_t> body) {
    const Session& session = *connection.session_as<Session>();
    Heartbeat heartbeat;
    if (connection.decode(body, &heartbeat)) {
        core_.heartbeat({.link = session.link,
                         .request_id = header.request_id,
                         .node_id = session.hello.node_id,
                         .session_id = session.hello.session_id,
                         .request = std::string(heartbeat.request)});
    }
}

void MasterBlockPort::lookup(Connection& connection, const FrameHeader& header,
                             std::span<const uint8_t> body, Fenced fenced) {
    Lookup request;
    if (!connection.decode(body, &request)) {
        return;
    }
    const uint64_t settled = core_.settled();
    LookupAnswer& answer = LookupAnswer::of_this_thread();
    answer.find(core_, space_of(connection).get(), request.keys);
    if (request.wait_ms != 0 && !answer.complete()) {
        return wait_for_keys(connection, header, body);
    }
    if (fenced == Fenced::kNo && !answer.complete()) {
        if (core_.has_unannounced() && comes_again(connection, header, body, answer.missing())) {
            return;
        }
        if (core_.settled() != settled) {  // after the directory was asked, before its claim was
            answer.find(core_, space_of(connection).get(), request.keys);
        }
    }
    if (fenced == Fenced::kUnknown) {
        answer.doubt_missing();
    }
    answer.send(core_, request.flags, *connection.ref(), header.request_id);
}

void MasterBlockPort::wait_for_keys(Connection& connection, const FrameHeader& header,
                                    std::span<const uint8_t> body) {
    LookupWaits::Request wait;
    wait.body.assign(body.begin(), body.end());  // the frame's own memory is used again
    Lookup request;
    if (!connection.decode(wait.body, &request)) {
        return;
    }
    const Peer& peer = connection.peer();
    const Result<NamespacePtr> ns = core_.directory().namespaces().open_for(peer.tenant, peer.ns);
    if (!ns.ok()) {
        connection.ref()->send_error(header.request_id, ns.code(), ns.status().message());
        return;
    }
    wait.owner = connection.id();
    wait.principal = peer.principal;
    wait.ns = *ns;
    wait.keys = request.keys;
    // The client's own deadline bounds it too: nobody would hear a later answer.
    wait.deadline_ms =
        boottime_ms() +
        (request.timeout_ms == 0 ? request.wait_ms : std::min(request.wait_ms, request.timeout_ms));
    wait.done = [&core = core_, ns = *ns, flags = request.flags, ref = connection.ref(),
                 id = header.request_id](const KeyList& keys) {
        LookupAnswer& answer = LookupAnswer::of_this_thread();
        answer.find(core, ns.get(), keys);
        answer.send(core, flags, *ref, id);
    };
    const Status parked = core_.lookup_waits().park(std::move(wait));
    if (!parked.ok()) {
        connection.ref()->send_error(header.request_id, parked.code(), parked.message());
    }
}

void MasterBlockPort::nodes(Connection& connection, const FrameHeader& header) {
    const uint64_t nodes_id =
        core_.nodes_id();  // before the table: a change makes it stale, not lost
    const std::vector<MasterCore::NodeView> views = core_.nodes();
    NodeColumns columns;
    columns.fill(views);
    reply(connection, header, columns.reply(nodes_id));
}

}  // namespace kvstore
