// Blocking transfers over a TLS session; in plain, the socket's.
#include "net/stream.h"

#include <errno.h>
#include <poll.h>

#include <array>

namespace kvstore {

Status Stream::error(const char* call) const {
    if (errno == EPROTO && is_tls()) {
        return {Code::kUnauthenticated, tls_->problem()};
    }
    if (errno == EPIPE || errno == ECONNRESET) {
        return {Code::kClosed, "the peer has closed the connection"};
    }
    return errno_status(call, "socket");
}

Status send_all(Stream& stream, TransferCursor* cursor, Deadline deadline, int flags) {
    if (!stream.is_tls()) {
        return send_all(stream.fd(), cursor, deadline, flags);
    }
    const bool more = (flags & MSG_MORE) != 0;
    std::array<iovec, kIovecsPerStep> extents;
    while (!cursor->done() || (!more && stream.has_unsent())) {
        msghdr message{};
        message.msg_iov = extents.data();
        message.msg_iovlen = cursor->gather(extents);
        const ssize_t count = cursor->done() ? stream.flush() : stream.send(message, flags);
        if (count >= 0) {
            cursor->passed(static_cast<size_t>(count));
            if (!cursor->done() && deadline.expired()) {
                return {Code::kDeadlineExceeded, "sending"};
            }
        } else if (errno != EAGAIN) {
            return stream.error("send");
        } else if (Status status = wait_ready(stream.fd(), POLLOUT, deadline); !status.ok()) {
            return {status.code(), "sending"};
        }
    }
    return {};
}

Status send_all(Stream& stream, std::span<const iovec> parts, Deadline deadline, int flags) {
    TransferCursor cursor(parts);
    return send_all(stream, &cursor, deadline, flags);
}

Result<size_t> recv_some(Stream& stream, TransferCursor* cursor) {
    if (!stream.is_tls()) {
        return recv_some(stream.fd(), cursor);
    }
    std::array<iovec, kIovecsPerStep> extents;
    msghdr message{};
    message.msg_iov = extents.data();
    message.msg_iovlen = cursor->gather(extents);
    const ssize_t count = stream.receive(&message, 0);
    if (count == 0) {
        return {Code::kClosed, "the peer has closed the connection"};
    }
    if (count < 0) {
        return errno == EAGAIN ? Result<size_t>(size_t{0}) : Result<size_t>(stream.error("recv"));
    }
    cursor->passed(static_cast<size_t>(count));
    return static_cast<size_t>(count);
}

Status recv_all(Stream& stream, TransferCursor* cursor, Deadline deadline) {
    if (!stream.is_tls()) {
        return recv_all(stream.fd(), cursor, deadline);
    }
    while (!cursor->done()) {
        const Result<size_t> count = recv_some(stream, cursor);
        if (!count.ok()) {
            return count.status();
        }
        if (*count == 0) {
            if (Status status = wait_ready(stream.fd(), POLLIN, deadline); !status.ok()) {
                return {status.code(), "receiving"};
            }
        } else if (!cursor->done() && deadline.expired()) {
            return {Code::kDeadlineExceeded, "receiving"};
        }
    }
    return {};
}

Status recv_all(Stream& stream, std::span<uint8_t> into, Deadline deadline) {
    const iovec part{into.data(), into.size()};
    TransferCursor cursor({&part, 1});
    return recv_all(stream, &cursor, deadline);
}

}  // namespace kvstore
