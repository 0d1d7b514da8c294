// The client's handshake, and blocking requests whose payload goes straight to and from the caller.
#include "net/channel.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/interrupt.h"
#include "net/minted_token.h"
#include "net/tls.h"

namespace kvstore {
namespace {

constexpr size_t kReplyBytes = 16 * 1024;
constexpr uint64_t kSentTogetherBytes = 64 * 1024;  // data that is worth no call of its own
constexpr size_t kKeptReplyBytes = 1 << 20;         // a larger buffer is given back after its reply

iovec to_iovec(std::span<const uint8_t> bytes) {
    return {const_cast<uint8_t*>(bytes.data()), bytes.size()};
}

}  // namespace

Result<std::unique_ptr<Channel>> Channel::connect(const Endpoint& endpoint,
                                                  const HelloParams& params, Deadline deadline) {
    Result<Fd> fd = connect_to(endpoint, deadline);
    if (!fd.ok()) {
        return fd.status();
    }
    if (params.tls == nullptr || endpoint.is_unix()) {
        return handshake(std::move(*fd), params, deadline);
    }
    bool is_plain = false;
    auto session = params.tls->connect(fd->get(), endpoint.host, deadline, &is_plain);
    if (session.ok()) {
        return handshake(Stream(std::move(*fd), std::move(*session)), params, deadline);
    }
    if (!is_plain || params.tls->required()) {
        return session.status();
    }
    fd = connect_to(endpoint, deadline);
    if (!fd.ok()) {
        return fd.status();
    }
    return handshake(std::move(*fd), params, deadline);
}

Result<std::unique_ptr<Channel>> Channel::handshake(Stream stream, const HelloParams& params,
                                                    Deadline deadline) {
    std::unique_ptr<Channel> channel(new Channel(std::move(stream)));
    Status status = channel->shake_hands(params, deadline);
    if (!status.ok()) {
        return status;
    }
    channel->input_.resize(kReplyBytes);
    return channel;
}

// ------------------------------------------------------------------------------------ handshake

Status Channel::shake_hands(const HelloParams& params, Deadline deadline) {
    Nonce nonce;
    random_bytes(nonce);
    std::vector<uint8_t> hello_body;
    encode_message(params.hello(nonce), hello_body);
    // A server that is full refuses before it reads: its sentence is worth more than our EPIPE.
    const Status sent = send_handshake(MessageType::kHello, hello_body, deadline);
    FrameHeader header;
    Status status = receive_handshake(&header, deadline);
    if (!status.ok()) {
        return sent.ok() || status.code() != Code::kClosed ? status : sent;
    }
    Digest proof{};
    const bool challenged = header.message() == MessageType::kChallenge;
    if (challenged) {
        status = answer_challenge(params, hello_body, &proof, deadline);
        if (status.ok()) {
            status = receive_handshake(&header, deadline);
        }
    }
    if (status.ok() && header.message() != MessageType::kWelcome) {
        status = Status(Code::kProtocolError, "no Welcome in the handshake");
    }
    if (status.ok() && !challenged && !params.token.empty()) {
        status = Status(Code::kUnauthenticated, "the server did not prove that it knows the token");
    }
    return status.ok() ? take_welcome(params, challenged ? &proof : nullptr) : status;
}

Status Channel::answer_challenge(const HelloParams& params, std::span<const uint8_t> hello_body,
                                 Digest* proof, Deadline deadline) {
    Challenge challenge;
    if (Status status = decode_message(input_, &challenge); !status.ok()) {
        return status;
    }
    if (params.token.empty()) {
        return {Code::kUnauthenticated, "the server asks for a token"};
    }
    if (!params.cluster_id.empty() && challenge.cluster_id != params.cluster_id) {
        return {Code::kInvalidArgument, "this is cluster " + std::string(challenge.cluster_id) +
                                            ", not " + params.cluster_id};
    }
    const std::string_view secret = proving_secret(params.token);
    *proof = server_mac(secret, hello_body, input_);
    std::vector<uint8_t> body;
    encode_message(Auth{.mac = client_mac(secret, hello_body, input_)}, body);
    return send_handshake(MessageType::kAuth, body, deadline);
}

Status Channel::send_handshake(MessageType type, std::span<const uint8_t> body, Deadline deadline) {
    const FrameHeaderBytes head =
        encode_header({.body_bytes = static_cast<uint32_t>(body.size()),
                       .type = static_cast<uint16_t>(type),
                       .request_id = type == MessageType::kHello ? kHelloMagic : 0});
    iovec parts[2] = {to_iovec(head), to_iovec(body)};
    return send_all(stream_, parts, deadline);
}

// Reads exactly one frame, its body into input_: what follows belongs to whoever owns the socket
// then.
Status Channel::receive_handshake(FrameHeader* header, Deadline deadline) {
    FrameHeaderBytes head;
    Status status = stream_.is_tls()
                        ? recv_all(stream_, std::span<uint8_t>(head), deadline)
                        : recv_all_with_fds(stream_.fd(), head, &fds_, kMaxPassedFds, deadline);
    if (status.ok()) {
        status = decode_handshake_header(head, header);
    }
    if (status.ok()) {
        input_.resize(header->body_bytes);
        status = recv_all(stream_, std::span<uint8_t>(input_), deadline);
    }
    if (!status.ok()) {
        return status;
    }
    if (header->message() == MessageType::kRefused || header->message() == MessageType::kError) {
        Refused refused;
        status = decode_message(input_, &refused);
        return status.ok() ? remote_status(refused.code, refused.message) : status;
    }
    return {};
}

Status Channel::take_welcome(const HelloParams& params, const Digest* proof) {
    Welcome welcome;
    if (Status status = decode_message(input_, &welcome); !status.ok()) {
        return status;
    }
    if (proof != nullptr && !equal_constant_time(*proof, welcome.server_mac)) {
        return {Code::kUnauthenticated, "the server did not prove that it knows the token"};
    }
    if (welcome.version < params.version_min || welcome.version > params.version_max) {
        return {Code::kVersionMismatch,
                "the server chose protocol version " + version_text(welcome.version)};
    }
    if ((params.required & ~welcome.features) != 0) {
        return {Code::kVersionMismatch, "the server lacks required features: " +
                                            feature_names(params.required & ~welcome.features)};
    }
    if (!params.cluster_id.empty() && welcome.cluster_id != params.cluster_id) {
        return {Code::kInvalidArgument, "this is cluster " + std::string(welcome.cluster_id) +
                                            ", not " + params.cluster_id};
    }
    if (welcome.fd_count != fds_.size()) {
        return {Code::kProtocolError, "descriptors are missing from the Welcome"};
    }
    welcome_ = WelcomeData::from(welcome);
    return {};
}

// ------------------------------------------------------------------------------------ requests

Status Channel::kill(Status status) {
    dead_ = true;
    (void)::shutdown(stream_.fd(), SHUT_RDWR);
    return shut_down_ ? Status(Code::kClosed, "the channel was shut down") : status;
}

bool Channel::usable() {
    if (!alive() || shut_down_ || payload_left_ != 0 || has_input()) {
        return false;
    }
    pollfd entry{stream_.fd(), POLLIN, 0};
    if (poll(&entry, 1, 0) == 0) {
        return true;
    }
    (void)kill(Status(Code::kClosed, "the peer has closed the connection"));
    return false;
}

bool Channel::await_input(Deadline deadline) {
    if (has_input()) {
        return true;
    }
    for (;;) {
        const int ready = poll_input(wait_slice_ms(deadline.left_ms()));
        if (ready > 0 || (ready < 0 && errno != EINTR)) {
            return true;  // an error is for the receive to tell
        }
        if ((ready == 0 && deadline.expired()) || check_interrupt()) {
            return false;
        }
    }
}

void Channel::shutdown() {
    shut_down_ = true;
    (void)::shutdown(stream_.fd(), SHUT_RDWR);
}

Stream Channel::release() {
    dead_ = true;
    return std::move(stream_);
}

Result<Channel::Reply> Channel::call(MessageType type, std::span<const uint8_t> body,
                                     const Payload& payload, Deadline deadline) {
    if (Status status = send(type, body, payload, deadline); !status.ok()) {
        return status;
    }
    return receive(deadline);
}

Status Channel::send(MessageType type, std::span<const uint8_t> body, const Payload& payload,
                     Deadline deadline) {
    if (!alive() || shut_down_) {
        return {Code::kClosed, "the channel is dead"};
    }
    if (payload_left_ != 0) {
        return kill(Status(Code::kInternal, "the last reply's payload was not taken"));
    }
    FrameHeader header{.body_bytes = static_cast<uint32_t>(body.size()),
                       .type = static_cast<uint16_t>(type),
                       .request_id = ++request_id_};
    uint64_t data_bytes = 0;
    for (const iovec& part : payload.parts) {
        data_bytes += part.iov_len;
    }
    header.payload_bytes = data_bytes + payload.crcs.size_bytes();
    if (body.size() > limits::kMaxBodyBytes || header.payload_bytes > limits::kMaxPayloadBytes) {
        return {Code::kTooLarge, "request above the frame's limits"};  // nothing was sent
    }
    const FrameHeaderBytes head = encode_header(header);
    parts_.clear();
    parts_.push_back(to_iovec(head));
    parts_.push_back(to_iovec(body));
    Status status;
    if (payload.crcs.empty()) {
        parts_.insert(parts_.end(), payload.parts.begin(), payload.parts.end());
        status = send_all(stream_, parts_, deadline);
    } else {
        status = send_checked(payload, data_bytes, deadline);
    }
    return status.ok() ? status : kill(status);
}

// Head and body are in parts_. A small payload goes with them, in one call; of a larger one,
// nothing is held back for more than the next call.
Status Channel::send_checked(const Payload& payload, uint64_t data_bytes, Deadline deadline) {
    static_assert(std::endian::native == std::endian::little, "numbers are sent as they lie");
    const iovec crcs{payload.crcs.data(), payload.crcs.size_bytes()};
    if (data_bytes <= kSentTogetherBytes) {
        TransferCursor(payload.parts, payload.crcs, payload.crc_of).passed(data_bytes);
        parts_.insert(parts_.end(), payload.parts.begin(), payload.parts.end());
        parts_.push_back(crcs);
        return send_all(stream_, parts_, deadline);
    }
    if (Status status = send_all(stream_, parts_, deadline, MSG_MORE); !status.ok()) {
        return status;
    }
    TransferCursor cursor(payload.parts, payload.crcs, payload.crc_of);
    if (Status status = send_all(stream_, &cursor, deadline, MSG_MORE); !status.ok()) {
        return status;
    }
    return send_all(stream_, std::span(&crcs, 1), deadline);
}

// Makes [begin_, end_) hold at least `wanted` bytes. The buffer grows with what has arrived, not
// with what was announced.
int Channel::poll_input(int timeout_ms) {
    if (has_unread()) {
        return 1;
    }
    pollfd entry{stream_.fd(), POLLIN, 0};
    return polling_.wait(timeout_ms, [&](int ms) { return poll(&entry, 1, ms); });
}

Status Channel::fill(size_t wanted, Deadline deadline) {
    while (end_ - begin_ < wanted) {
        if (begin_ != 0 && input_.size() - begin_ < wanted) {
            std::memmove(input_.data(), input_.data() + begin_, end_ - begin_);
            end_ -= begin_;
            begin_ = 0;
        }
        if (end_ == input_.size()) {
            input_.resize(std::min(begin_ + wanted, 2 * input_.size()));
        }
        const ssize_t count = stream_.receive(std::span(input_).subspan(end_), 0);
        if (count > 0) {
            end_ += static_cast<size_t>(count);
        } else if (count == 0) {
            return {Code::kClosed, "the peer has closed the connection"};
        } else if (errno != EAGAIN && errno != EINTR) {
            return stream_.error("recv");
        }
        if (count < 0 || deadline.expired()) {
            if (end_ - begin_ < wanted && poll_input(wait_slice_ms(deadline.left_ms())) <= 0 &&
                (deadline.expired() || check_interrupt())) {
                return {Code::kDeadlineExceeded, "waiting for the reply"};
            }
        }
    }
    return {};
}

std::span<const uint8_t> Channel::take(size_t size) {
    begin_ += size;
    return {input_.data() + begin_ - size, size};
}

Result<Channel::Reply> Channel::receive(Deadline deadline) {
    Result<Reply> reply = receive_any(deadline);
    if (reply.ok() && reply->header.request_id != request_id_) {
        return kill(Status(Code::kProtocolError, "a reply to another request"));
    }
    return reply;
}

Result<Channel::Reply> Channel::receive_any(Deadline deadline) {
    if (!alive() || shut_down_) {
        return {Code::kClosed, "the channel is dead"};
    }
    if (begin_ == end_) {
        begin_ = end_ = 0;
        if (input_.size() > kKeptReplyBytes) {
            std::vector<uint8_t>(kReplyBytes).swap(input_);
        }
    }
    Reply reply;
    Status status = fill(kFrameHeaderBytes, deadline);
    if (status.ok()) {
        status = decode_header(take(kFrameHeaderBytes).first<kFrameHeaderBytes>(), &reply.header);
    }
    if (status.ok()) {
        status = fill(reply.header.body_bytes, deadline);
    }
    if (!status.ok()) {
        return kill(status);
    }
    reply.body = take(reply.header.body_bytes);
    payload_left_ = reply.header.payload_bytes;
    const bool fatal = (reply.header.flags & kFlagFatal) != 0;
    if (reply.header.request_id > request_id_ && !fatal) {
        return kill(Status(Code::kProtocolError, "a reply to a request that was never sent"));
    }
    if (reply.header.message() == MessageType::kError) {
        Error error;
        status = decode_message(reply.body, &error);
        if (!status.ok() || fatal) {
            return kill(status.ok() ? remote_status(error.code, error.message) : status);
        }
        return remote_status(error.code, error.message);
    }
    return reply;
}

Status Channel::recv_payload(std::span<const iovec> into, Deadline deadline) {
    if (!alive() || shut_down_) {
        return {Code::kClosed, "the channel is dead"};
    }
    uint64_t wanted = 0;
    for (const iovec& part : into) {
        wanted += part.iov_len;
    }
    if (wanted > payload_left_) {
        return kill(Status(Code::kInternal, "more payload asked for than the reply has"));
    }
    payload_left_ -= wanted;
    TransferCursor cursor(into);
    take_buffered(&cursor);
    const Status status = recv_all(stream_, &cursor, deadline);
    return status.ok() ? status : kill(status);
}

void Channel::take_buffered(TransferCursor* cursor) {
    for (iovec next; begin_ != end_ && cursor->gather({&next, 1}) != 0;) {
        const size_t count = std::min(end_ - begin_, next.iov_len);
        std::memcpy(next.iov_base, take(count).data(), count);
        cursor->passed(count);
    }
}

Result<bool> Channel::reply_arrived() {
    if (!alive() || shut_down_) {
        return {Code::kClosed, "the channel is dead"};
    }
    const auto here = [this](size_t wanted) -> Result<bool> {
        const Status status = fill(wanted, Deadline::after_ms(0));
        if (status.ok()) {
            return true;
        }
        return status.code() == Code::kDeadlineExceeded ? Result<bool>(false) : kill(status);
    };
    Result<bool> whole = here(kFrameHeaderBytes);
    if (!whole.ok() || !*whole) {
        return whole;
    }
    FrameHeader header;
    const std::span<const uint8_t> head(input_.data() + begin_, kFrameHeaderBytes);
    if (Status status = decode_header(head.first<kFrameHeaderBytes>(), &header); !status.ok()) {
        return kill(status);
    }
    return here(kFrameHeaderBytes + header.body_bytes);
}

Result<size_t> Channel::recv_some(TransferCursor* cursor) {
    if (!alive() || shut_down_) {
        return {Code::kClosed, "the channel is dead"};
    }
    size_t count = end_ - begin_;
    if (count != 0) {
        take_buffered(cursor);
        count -= end_ - begin_;
    } else {
        const Result<size_t> received = kvstore::recv_some(stream_, cursor);
        if (!received.ok()) {
            return kill(received.status());
        }
        count = *received;
    }
    payload_left_ -= count;
    return count;
}

Status Channel::discard_payload(Deadline deadline) {
    uint8_t waste[16 * 1024];
    while (payload_left_ != 0) {
        const iovec part{waste, std::min<uint64_t>(payload_left_, sizeof waste)};
        if (Status status = recv_payload(std::span(&part, 1), deadline); !status.ok()) {
            return status;
        }
    }
    return {};
}

}  // namespace kvstore
