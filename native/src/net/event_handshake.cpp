// How a connection becomes a session: hello, proof or certificate, Welcome. Everything here runs on
// the loop's thread.
#include <unistd.h>

#include <algorithm>

#include "base/clock.h"
#include "net/event_connection.h"

namespace kvstore {

uint64_t EventConnection::offered_features() const {
    return peer_.is_unix ? state_.options.features
                         : state_.options.features & ~kFeatureSharedMemory;
}

Status EventConnection::check_hello(const Hello& hello) const {
    for (const std::string_view name : {hello.tenant, hello.ns, hello.principal, hello.node_id,
                                        hello.cluster_id, hello.client_name}) {
        if (!is_valid_name(name)) {
            return {Code::kInvalidArgument, "a name in the hello is not well-formed"};
        }
    }
    const uint64_t lacking = hello.required & ~offered_features();
    if (lacking != 0) {
        return {Code::kVersionMismatch,
                "required features are not offered here: " + feature_names(lacking)};
    }
    const std::string cluster = state_.cluster();
    if (!hello.cluster_id.empty() && !cluster.empty() && hello.cluster_id != cluster) {
        return {Code::kInvalidArgument,
                "this is cluster " + cluster + ", not " + std::string(hello.cluster_id)};
    }
    return {};
}

void EventConnection::on_hello(std::span<const uint8_t> body) {
    handshake_ = std::make_unique<Handshake>();
    handshake_->hello_body.assign(body.begin(), body.end());
    Hello& hello = handshake_->hello;
    if (!decode(handshake_->hello_body, &hello)) {
        return;
    }
    const EventServer::Options& options = state_.options;
    const Result<uint32_t> version = negotiate_version(options.version_min, options.version_max,
                                                       hello.version_min, hello.version_max);
    const Status checked = version.ok() ? check_hello(hello) : version.status();
    if (!checked.ok()) {
        return fail(checked.code(), checked.message());
    }
    peer_.version = *version;
    peer_.features = hello.features & offered_features();
    if (options.authenticator != nullptr && options.authenticator->required()) {
        if (hello.auth_method == AuthMethod::kToken) {
            return challenge();
        }
        return admit_certificate();
    }
    if (const Status served = check_user(); !served.ok()) {
        ++state_.refused_users;
        return fail(served.code(), served.message());
    }
    open_session(Digest{});
}

// Without tokens a Unix socket serves its owner, root, and its group where that may connect.
Status EventConnection::check_user() const {
    if (!peer_.is_unix || peer_.uid == geteuid() || peer_.uid == 0) {
        return {};
    }
    const int64_t group = state_.socket_group;
    if (group >= 0 && peer_in_group(outbox_->fd(), static_cast<gid_t>(group))) {
        return {};
    }
    return {Code::kPermissionDenied,
            "this Unix socket serves its owner (uid " + std::to_string(geteuid()) +
                "), root and the group in socket_group, not uid " + std::to_string(peer_.uid)};
}

void EventConnection::admit_certificate() {
    const TlsSession* const tls = outbox_->stream().tls();
    const std::string name = tls == nullptr ? "" : tls->peer_name();
    if (name.empty() || !is_valid_name(name)) {
        return fail(Code::kUnauthenticated, "a token is required");
    }
    Result<Authenticator::Proven> admitted =
        state_.options.authenticator->admit_certified(name, handshake_->hello);
    if (!admitted.ok()) {
        return fail(admitted.code(), admitted.status().message());
    }
    peer_.principal = name;
    peer_.grant = std::move(admitted->grant);
    credential_ = std::move(admitted->credential);
    open_session(Digest{});
}

void EventConnection::challenge() {
    if (const Status status = may_prove(); !status.ok()) {
        return fail(status.code(), status.message());
    }
    Nonce nonce;
    random_bytes(nonce);
    const std::string cluster = state_.cluster();
    encode_message(Challenge{.nonce = nonce, .cluster_id = cluster}, handshake_->challenge_body);
    enter(Phase::kAuth);
    if (!outbox_->send_handshake(MessageType::kChallenge, handshake_->challenge_body, {})) {
        outbox_->end(Code::kClosed, "the peer has closed the connection", true);
    }
}

// Asked again before the proof is looked at: many connections may have been challenged at once.
Status EventConnection::may_prove() const {
    Authenticator& authenticator = *state_.options.authenticator;
    return authenticator.has_failures()
               ? authenticator.may_try(handshake_->hello.principal, peer_network(outbox_->fd()))
               : Status();
}

void EventConnection::on_auth(std::span<const uint8_t> body) {
    Auth auth;
    if (!decode(body, &auth)) {
        return;
    }
    if (const Status status = may_prove(); !status.ok()) {
        return fail(status.code(), status.message());
    }
    Result<Authenticator::Proven> proven = state_.options.authenticator->verify(
        handshake_->hello, handshake_->hello_body, handshake_->challenge_body, auth.mac,
        peer_network(outbox_->fd()));
    if (!proven.ok()) {
        return fail(proven.code(), proven.status().message());
    }
    peer_.principal = handshake_->hello.principal;
    peer_.grant = std::move(proven->grant);
    expires_ms_ = proven->expires_ms;
    credential_ = std::move(proven->credential);
    open_session(proven->proof);
}

void EventConnection::open_session(const Digest& proof) {
    const Hello& hello = handshake_->hello;
    peer_.role = hello.role;
    peer_.tenant = hello.tenant;
    peer_.ns = hello.ns;
    peer_.client_name = hello.client_name;
    peer_.node_id = hello.node_id;
    peer_.node_epoch = hello.node_epoch;
    peer_.session_id = hello.session_id;
    peer_.applied_seq = hello.applied_seq;
    if (Status admitted = state_.admission.open(outbox_->id(), peer_.role, peer_.principal);
        !admitted.ok()) {
        return fail(admitted.code(), admitted.message());
    }
    admitted_ = true;
    Result<HelloAnswer> answer = service_.on_hello(*this, hello);
    if (!answer.ok()) {
        return fail(answer.code(), answer.status().message());
    }
    enter(Phase::kWelcoming);
    ++state_.sessions;
    session = std::move(answer->session);
    if (outbox_->ending() || !send_welcome(&*answer, proof)) {
        return;
    }
    handshake_.reset();
    opened_ms_ = boottime_ms();
    enter(Phase::kOpen);
    input_.resize(std::max(input_.size(), kInputBytes));
    outbox_->set_opened();
    service_.on_open(*this);
}

bool EventConnection::send_welcome(HelloAnswer* answer, const Digest& proof) {
    if ((peer_.features & kFeatureSharedMemory) == 0) {
        answer->fds.clear();
    }
    answer->welcome.version = peer_.version;
    answer->welcome.features = peer_.features;
    if (answer->welcome.cluster_id.empty()) {
        answer->welcome.cluster_id = state_.cluster();
    }
    std::vector<uint8_t> body;
    answer->welcome.encode(static_cast<uint32_t>(answer->fds.size()), proof, body);
    if (body.size() > kMaxWelcomeBodyBytes || answer->fds.size() > kMaxPassedFds) {
        fail(Code::kInternal, "the Welcome exceeds its limits");
        return false;
    }
    if (!outbox_->send_handshake(MessageType::kWelcome, body, answer->fds)) {
        outbox_->end(Code::kClosed, "the peer has closed the connection", true);
        return false;
    }
    return true;
}

}  // namespace kvstore
