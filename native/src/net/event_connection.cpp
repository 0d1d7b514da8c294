// The stream and the frames of one connection; its handshake is in event_handshake.cpp. Everything
// here runs on the loop's thread.
#include "net/event_connection.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace kvstore {
namespace {

constexpr size_t kHandshakeInputBytes = 1024;
constexpr size_t kKeptInputBytes = 256 * 1024;  // a larger buffer is given back when it is empty
constexpr uint64_t kLingerMs = 1000;            // for the peer to read why its connection ends

}  // namespace

EventConnection::EventConnection(std::shared_ptr<Outbox> outbox, Peer peer, size_t loop,
                                 ServerState& state, ConnectionHandler& service,
                                 std::span<uint8_t> scratch)
    : outbox_(std::move(outbox)),
      ref_(outbox_),
      peer_(std::move(peer)),
      loop_(loop),
      state_(state),
      service_(service),
      scratch_(scratch),
      since_ms_(boottime_ms()),
      input_(kHandshakeInputBytes) {}

void EventConnection::fail(Code code, std::string_view reason) {
    outbox_->end(code, reason, false);
}

void EventConnection::evict(std::string_view reason) {
    if (phase_ <= Phase::kAuth && !admitted_) {
        outbox_->end(Code::kOverloaded, reason, true);
    } else if (phase_ == Phase::kDraining && !admitted_) {
        enter(Phase::kFinished);
    }
}

void EventConnection::start_adopted(std::shared_ptr<void> adopted_session) {
    session = std::move(adopted_session);
    is_adopted_ = true;
    opened_ms_ = boottime_ms();
    ++state_.sessions;
    enter(Phase::kOpen);
    begun_ = true;
    input_.resize(kInputBytes);
    service_.on_open(*this);
    if (outbox_->stream().has_unread()) {
        read();  // what came right behind the Welcome
    }
}

void EventConnection::authenticate_again() {
    const Authenticator& authenticator = *state_.options.authenticator;
    if (phase_ != Phase::kOpen || is_adopted_ || !authenticator.required()) {
        return;  // a handshake is checked against the new principals
    }
    credential_ = credential_ == nullptr ? nullptr : authenticator.renewed(*credential_);
    if (credential_ == nullptr) {
        fail(Code::kUnauthenticated, peer_.principal.empty() ? "a token is required now"
                                                             : "this token was revoked or changed");
    }
}

std::optional<SessionView> EventConnection::view(uint64_t now_ms) const {
    if (phase_ != Phase::kOpen) {
        return std::nullopt;
    }
    const uint64_t answers = std::min(outbox_->answers(), requests_);
    return SessionView{.ref = ref_,
                       .peer = peer_,
                       .age_ms = now_ms - std::min(opened_ms_, now_ms),
                       .in_progress = requests_ - answers,
                       .is_outgoing = is_adopted_};
}

void EventConnection::on_event(uint32_t events) {
    if ((events & EPOLLOUT) != 0) {
        if (!outbox_->flush()) {
            outbox_->end(Code::kClosed, "the peer has closed the connection", true);
            if (phase_ == Phase::kDraining) {
                return enter(Phase::kFinished);
            }
        } else if (phase_ == Phase::kDraining && outbox_->drained()) {
            outbox_->shut_down_sending();
        }
    }
    if (!outbox_->reading() && phase_ == Phase::kOpen && !outbox_->congested()) {
        outbox_->set_reading(true);
        events |= EPOLLIN;  // frames may wait in the buffer
    }
    const bool hung_up = (events & (EPOLLHUP | EPOLLERR)) != 0;
    if (outbox_->reading() && ((events & EPOLLIN) != 0 || hung_up)) {
        phase_ >= Phase::kDraining ? drain_input() : read();
    } else if (hung_up) {
        outbox_->end(Code::kClosed, "the peer has closed the connection", true);
    }
}

void EventConnection::settle() {
    const std::optional<Outbox::Ending> ending = outbox_->ending();
    if (!ending || phase_ >= Phase::kDraining) {
        return;
    }
    const Phase was = phase_;
    enter(Phase::kDraining);
    if (ending->code != Code::kOk && ending->code != Code::kClosed) {
        const std::string_view claimed = handshake_ ? handshake_->hello.principal : "";
        const std::string who(peer_.principal.empty() ? claimed : peer_.principal);
        state_.count_refusal(ending->code, peer_.address,
                             who.empty() ? ending->reason : who + ": " + ending->reason, who);
    }
    if (was == Phase::kWelcoming || was == Phase::kOpen) {
        --state_.sessions;
        service_.on_close(*this, ending->code, ending->reason);
    }
    transfer_ = {};
    plan_ = {};
    session.reset();
    handshake_.reset();
    if (ending->at_once) {
        return enter(Phase::kFinished);
    }
    if (ending->code != Code::kOk) {
        std::vector<uint8_t> body;
        encode_message(
            Error{.code = static_cast<int32_t>(ending->code),
                  .message = std::string_view(ending->reason).substr(0, kMaxErrorTextBytes)},
            body);
        outbox_->send_last(was == Phase::kOpen ? MessageType::kError : MessageType::kRefused, body);
    }
    since_ms_ = boottime_ms();
    outbox_->set_reading(true);
    if (outbox_->drained()) {
        outbox_->shut_down_sending();
    }
}

void EventConnection::tick(uint64_t now_ms) {
    switch (phase_) {
        case Phase::kHello:
        case Phase::kAuth:
        case Phase::kWelcoming:
            if (now_ms > since_ms_ + state_.options.handshake_ms) {
                fail(Code::kDeadlineExceeded, "no complete handshake in time");
            }
            break;
        case Phase::kOpen:
            if (expires_ms_ != 0 && now_ms >= expires_ms_) {
                fail(Code::kUnauthenticated, "this token has expired");
            }
            if (outbox_->stalled(now_ms)) {
                outbox_->end(Code::kOverloaded, "a slow reader: its replies do not move", true);
            }
            if (std::exchange(moved_, false) || !outbox_->reading() || !in_frame()) {
                since_ms_ = now_ms;
            } else if (now_ms > since_ms_ + state_.options.read_stall_ms) {
                fail(Code::kDeadlineExceeded, "a begun frame does not go on");
            }
            break;
        case Phase::kDraining:
            if (now_ms > since_ms_ + kLingerMs) {
                enter(Phase::kFinished);
            }
            break;
        case Phase::kFinished:
            break;
    }
}

// ------------------------------------------------------------------------------------ the stream

void EventConnection::read() {
    size_t taken = 0;
    size_t bodies = 0;
    bool more = true;
    while (consume() && more && taken < kBytesPerTurn && bodies < kBodyBytesPerTurn) {
        const bool payload = next_part_ == Part::kPayload;
        const ssize_t count = payload ? read_payload(&more) : read_input(&more);
        if (count == 0) {
            return peer_ended();
        }
        if (count < 0) {
            return stop_reading();
        }
        moved_ = true;
        (payload ? taken : bodies) += static_cast<size_t>(count);
        state_.bytes_in.fetch_add(static_cast<uint64_t>(count), std::memory_order_relaxed);
    }
    if (outbox_->stream().has_unread() && outbox_->reading()) {
        // The turn is over, and the socket may have no event for what it has given already.
        outbox_->post([](Connection& me) { static_cast<EventConnection&>(me).read(); });
    }
    if (outbox_->stream().is_tls()) {
        outbox_->watch_unsent();
    }
}

void EventConnection::stop_reading() {
    if (errno == EPROTO && outbox_->stream().is_tls()) {
        const Code code = phase_ == Phase::kOpen ? Code::kProtocolError : Code::kUnauthenticated;
        fail(code, outbox_->stream().tls()->problem());
    } else if (errno != EAGAIN && errno != EINTR) {
        outbox_->end(Code::kClosed, "the peer has closed the connection", true);
    }
    if (outbox_->stream().is_tls()) {
        outbox_->watch_unsent();
    }
}

void EventConnection::peer_ended() {
    if (in_frame()) {
        fail(Code::kProtocolError, "the stream ended in the middle of a frame");
    } else {
        outbox_->end(Code::kClosed, "the peer has closed the connection", true);
    }
}

void EventConnection::drain_input() {
    const ssize_t count = recv(outbox_->fd(), scratch_.data(), scratch_.size(), MSG_DONTWAIT);
    if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR)) {
        enter(Phase::kFinished);
    }
}

// Handles what is buffered. False: read no further now.
bool EventConnection::consume() {
    for (;;) {
        if (outbox_->ending()) {
            return false;
        }
        if (phase_ == Phase::kOpen && outbox_->congested()) {
            outbox_->set_reading(false);
            return false;
        }
        if (!begun_ && (buffered() < Tls::kHelloBytes || !begin_stream())) {
            return !outbox_->ending();
        }
        if (next_part_ == Part::kPayload) {
            take_buffered_payload();
            if (payload_left_ != 0) {
                return true;
            }
            finish_payload();
            continue;
        }
        if (next_part_ == Part::kHeader && (buffered() < kFrameHeaderBytes || !take_header())) {
            return !outbox_->ending();
        }
        if (buffered() < header_.body_bytes) {
            return true;
        }
        const std::span<const uint8_t> body(input_.data() + begin_, header_.body_bytes);
        begin_ += header_.body_bytes;
        next_part_ = Part::kHeader;
        state_.frames_in.fetch_add(1, std::memory_order_relaxed);
        dispatch(body);
    }
}

// What is buffered tells whether the peer speaks TLS. False: read again, or it is refused.
bool EventConnection::begin_stream() {
    begun_ = true;
    const std::shared_ptr<const Tls>& tls = state_.options.tls;
    if (peer_.is_unix || tls == nullptr) {
        return true;
    }
    const std::span<const uint8_t> first(input_.data() + begin_, buffered());
    if (!Tls::is_hello(first)) {
        if (tls->required()) {
            fail(Code::kUnauthenticated, "TLS is required here: set tls (at least its ca)");
        }
        return !tls->required();
    }
    Result<std::unique_ptr<TlsSession>> begun = tls->accept(outbox_->fd(), first);
    if (!begun.ok()) {
        fail(begun.code(), begun.status().message());
        return false;
    }
    outbox_->begin_tls(std::move(*begun));
    peer_.is_tls = true;
    begin_ = end_ = 0;
    return false;
}

bool EventConnection::take_header() {
    const std::span<const uint8_t, kFrameHeaderBytes> bytes(input_.data() + begin_,
                                                            kFrameHeaderBytes);
    const Status status = phase_ == Phase::kOpen ? decode_header(bytes, &header_)
                                                 : decode_handshake_header(bytes, &header_);
    if (!status.ok()) {
        fail(status.code(), status.message());
        return false;
    }
    begin_ += kFrameHeaderBytes;
    next_part_ = Part::kBody;
    return true;
}

void EventConnection::dispatch(std::span<const uint8_t> body) {
    const MessageType expected = phase_ == Phase::kHello ? MessageType::kHello : MessageType::kAuth;
    if (phase_ == Phase::kOpen) {
        on_frame(body);
    } else if (header_.message() != expected) {
        fail(Code::kProtocolError,
             std::string(message_type_name(header_.type)) + " instead of " +
                 std::string(message_type_name(static_cast<uint16_t>(expected))));
    } else if (phase_ == Phase::kHello) {
        on_hello(body);
    } else {
        on_auth(body);
    }
}

// The buffer grows with what has arrived, not with what a header announces.
ssize_t EventConnection::read_input(bool* more) {
    if (buffered() == 0) {
        begin_ = end_ = 0;
        if (input_.size() > kKeptInputBytes) {
            std::vector<uint8_t>(kInputBytes).swap(input_);
        }
    }
    const size_t wanted = next_part_ == Part::kBody ? header_.body_bytes : kFrameHeaderBytes;
    if (begin_ != 0 && input_.size() - begin_ < wanted) {
        std::memmove(input_.data(), input_.data() + begin_, buffered());
        end_ -= begin_;
        begin_ = 0;
    }
    if (end_ == input_.size()) {
        input_.resize(std::min(begin_ + wanted, 2 * input_.size()));
    }
    const size_t room = input_.size() - end_;
    Stream& stream = outbox_->stream();
    const ssize_t count = stream.receive(std::span(input_).subspan(end_, room), MSG_DONTWAIT);
    if (count > 0) {
        end_ += static_cast<size_t>(count);
        *more = static_cast<size_t>(count) == room || stream.has_unread();
    }
    return count;
}

void EventConnection::begin_payload(PayloadPlan plan) {
    plan_ = std::move(plan);
    transfer_ = TransferCursor(plan_.into, plan_.crcs);
    payload_left_ = header_.payload_bytes;
    uint64_t planned = 0;
    for (const iovec& part : plan_.into) {
        planned += part.iov_len;
    }
    if (!plan_.into.empty() && planned != payload_left_) {
        return fail(Code::kInternal, "the payload has another size than its plan");
    }
    next_part_ = Part::kPayload;
}

void EventConnection::take_buffered_payload() {
    while (buffered() != 0 && payload_left_ != 0) {
        size_t count = std::min<uint64_t>(buffered(), payload_left_);
        if (iovec next; transfer_.gather({&next, 1}) != 0) {
            count = std::min(count, next.iov_len);
            std::memcpy(next.iov_base, input_.data() + begin_, count);
            transfer_.passed(count);
        }
        begin_ += count;
        payload_left_ -= count;
    }
}

ssize_t EventConnection::read_payload(bool* more) {
    std::array<iovec, kIovecsPerStep> extents;
    const bool discard = transfer_.done();
    msghdr message{};
    message.msg_iov = extents.data();
    message.msg_iovlen = transfer_.gather(extents);
    if (discard) {
        extents[0] = {scratch_.data(), std::min<uint64_t>(scratch_.size(), payload_left_)};
        message.msg_iovlen = 1;
    }
    const ssize_t count = outbox_->stream().receive(&message, MSG_DONTWAIT);
    if (count > 0) {
        payload_left_ -= static_cast<uint64_t>(count);
        if (!discard) {
            transfer_.passed(static_cast<size_t>(count));
        }
        *more = true;
    }
    return count;
}

void EventConnection::finish_payload() {
    next_part_ = Part::kHeader;
    transfer_ = {};
    const std::shared_ptr<void> context = std::move(plan_.context);
    plan_ = {};
    if (!denied_) {
        service_.on_payload(*this, header_, body_, context);
    }
}

// ------------------------------------------------------------------------------------ frames

void EventConnection::on_frame(std::span<const uint8_t> body) {
    switch (header_.message()) {
        case MessageType::kPing:
            if (Ping ping; decode(body, &ping)) {
                service_.on_ping(*this);
                outbox_->send_message(Pong{.token = ping.token}, header_.request_id);
            }
            return;
        case MessageType::kHello:
        case MessageType::kChallenge:
        case MessageType::kAuth:
        case MessageType::kWelcome:
        case MessageType::kRefused:
            return fail(Code::kProtocolError,
                        std::string(message_type_name(header_.type)) + " inside a session");
        case MessageType::kError:
            if ((header_.flags & kFlagFatal) != 0) {
                Error error;
                if (decode(body, &error)) {
                    const Status status = remote_status(error.code, error.message);
                    outbox_->end(status.code(), "the peer ends: " + status.message(), true);
                }
                return;
            }
            break;
        default:
            break;
    }
    requests_ += header_.request_id != 0 ? 1 : 0;
    PayloadPlan plan;  // of what is not granted: its payload is discarded
    body_ = body;
    denied_ = peer_.grant != nullptr && !is_granted(body);
    if (!denied_) {
        service_.on_frame(*this, header_, body, &plan);
    }
    if (header_.payload_bytes != 0 && !outbox_->ending()) {
        begin_payload(std::move(plan));
    }
}

// Of a session with limits; says so, if it is not.
bool EventConnection::is_granted(std::span<const uint8_t> body) {
    const Status allowed = check_request(*peer_.grant, header_.message(), body);
    if (!allowed.ok()) {
        state_.count_refusal(allowed.code(), peer_.address, allowed.message(), peer_.principal);
        outbox_->send_error(header_.request_id, allowed.code(), allowed.message());
    }
    return allowed.ok();
}

}  // namespace kvstore
