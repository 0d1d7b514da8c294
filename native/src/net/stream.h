// The bytes of a connection beneath its frames: those of the socket, or of a TLS session on it.
#pragma once

#include <sys/socket.h>

#include <memory>
#include <span>
#include <string>
#include <utility>

#include "net/socket.h"
#include "net/tls_session.h"

namespace kvstore {

// In plain, every call is the socket's own. Else it has the same meaning: bytes, 0 at the end of
// the stream, or -1 with errno; EPROTO means that problem() says what is wrong. What poll(2) says
// of fd() is not all: there may be something to read in the session (has_unread), or to send
// (has_unsent).
class Stream {
  public:
    Stream() = default;
    Stream(Fd fd, std::unique_ptr<TlsSession> tls = nullptr)
        : fd_(std::move(fd)), tls_(std::move(tls)) {}

    int fd() const { return fd_.get(); }
    bool valid() const { return fd_.valid(); }
    bool is_tls() const { return tls_ != nullptr; }
    const TlsSession* tls() const { return tls_.get(); }
    void begin_tls(std::unique_ptr<TlsSession> tls) { tls_ = std::move(tls); }
    // The socket alone; only of a plain stream.
    Fd take_fd() {
        KV_ASSERT(!is_tls());
        return std::move(fd_);
    }
    void reset() {
        tls_.reset();
        fd_.reset();
    }

    // `flags` as of sendmsg(2): MSG_MORE holds a TLS session's bytes back, too.
    ssize_t send(const msghdr& message, int flags) {
        return is_tls() ? tls_->send({message.msg_iov, message.msg_iovlen}, (flags & MSG_MORE) != 0)
                        : ::sendmsg(fd_.get(), &message, flags);
    }
    ssize_t receive(std::span<uint8_t> into, int flags) {
        if (is_tls()) {
            const iovec part{into.data(), into.size()};
            return tls_->receive({&part, 1});
        }
        return ::recv(fd_.get(), into.data(), into.size(), flags);
    }
    ssize_t receive(msghdr* message, int flags) {
        return is_tls() ? tls_->receive({message->msg_iov, message->msg_iovlen})
                        : ::recvmsg(fd_.get(), message, flags);
    }
    bool has_unread() const { return is_tls() && tls_->has_unread(); }
    bool has_unsent() const { return is_tls() && tls_->has_unsent(); }
    int flush() { return is_tls() ? tls_->flush() : 0; }
    // Of the last -1: kClosed, or what is wrong. Reads errno.
    Status error(const char* call) const;

  private:
    Fd fd_;
    std::unique_ptr<TlsSession> tls_;
};

// As those of a socket (socket.h); a send returns when the socket has taken all, but with MSG_MORE.
Status send_all(Stream& stream, TransferCursor* cursor, Deadline deadline, int flags = 0);
Status send_all(Stream& stream, std::span<const iovec> parts, Deadline deadline, int flags = 0);
Status recv_all(Stream& stream, TransferCursor* cursor, Deadline deadline);
Status recv_all(Stream& stream, std::span<uint8_t> into, Deadline deadline);
Result<size_t> recv_some(Stream& stream, TransferCursor* cursor);

}  // namespace kvstore
