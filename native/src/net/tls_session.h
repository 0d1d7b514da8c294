// TLS on one connected socket: what is sent is encrypted on its way, what is received decrypted
// into the caller's memory. Calls never block, and return what those of the socket would.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/status.h"
#include "net/tls_library.h"

namespace kvstore {

// Thread-safe: one thread may receive while another one sends.
class TlsSession {
  public:
    enum class Side : uint8_t { kClient, kServer };
    // Bytes that one call takes at most; they are encrypted together, for one write to the socket.
    static constexpr size_t kMostTogether = 256u << 10;

    // Takes over `ssl`; `fd` outlives the session. `received`: the peer's first bytes, if they were
    // read from the socket already.
    TlsSession(const OpenSsl& library, openssl::Ssl ssl, int fd, Side side,
               std::span<const uint8_t> received = {});
    ~TlsSession();
    TlsSession(const TlsSession&) = delete;
    TlsSession& operator=(const TlsSession&) = delete;

    // The client's handshake; the server's is part of receive(). Waits until the deadline.
    Status shake_hands(Deadline deadline);
    // As sendmsg(2): how many bytes were taken. Some may still be unsent; with `more` they wait for
    // the next call. -1: EAGAIN while those of an earlier call are.
    ssize_t send(std::span<const iovec> parts, bool more) KV_EXCLUDES(mutex_);
    // Sends what is unsent. 0, or -1: EAGAIN, or the socket is broken.
    int flush() KV_EXCLUDES(mutex_);
    bool has_unsent() const KV_EXCLUDES(mutex_);
    // As recvmsg(2). EPROTO: the peer is refused, or sent something else than TLS; problem() tells.
    ssize_t receive(std::span<const iovec> into) KV_EXCLUDES(mutex_);
    // Whether receive() has something although the socket may have nothing: poll(2) sees the
    // socket.
    bool has_unread() const KV_EXCLUDES(mutex_);
    std::string problem() const KV_EXCLUDES(mutex_);
    // Whom the peer's verified certificate names: the last segment of its SPIFFE id, else its
    // common name; empty without one. After the handshake.
    std::string peer_name() const KV_EXCLUDES(mutex_);
    // What the peer sent when it answered in plain text, up to 512 bytes; else empty.
    std::vector<uint8_t> plain_answer() const KV_EXCLUDES(mutex_);

  private:
    struct Bio;  // what OpenSSL calls
    int read_socket(std::span<uint8_t> into) KV_REQUIRES(mutex_);
    void take_records(std::span<const uint8_t> bytes) KV_REQUIRES(mutex_);
    bool encrypt(std::span<const uint8_t> bytes) KV_REQUIRES(mutex_);
    bool flush_now() KV_REQUIRES(mutex_);
    ssize_t failed(int result) KV_REQUIRES(mutex_);
    std::string describe() const KV_REQUIRES(mutex_);

    const OpenSsl& library_;
    const openssl::Api& api_;
    const int fd_;
    const Side side_;
    mutable Mutex mutex_;
    openssl::Ssl const ssl_ KV_PT_GUARDED_BY(mutex_);
    std::vector<uint8_t> received_ KV_GUARDED_BY(mutex_);  // by others, for the session
    std::vector<uint8_t> out_ KV_GUARDED_BY(mutex_);       // encrypted; [sent_, size) is unsent
    size_t sent_ KV_GUARDED_BY(mutex_) = 0;
    std::vector<uint8_t> plain_answer_ KV_GUARDED_BY(mutex_);
    bool heard_ KV_GUARDED_BY(mutex_) = false;  // the peer has sent something
    bool dry_ KV_GUARDED_BY(mutex_) = true;     // the last read found no whole record
    bool ended_ KV_GUARDED_BY(mutex_) = false;  // the peer's end of the stream
    int error_ KV_GUARDED_BY(mutex_) = 0;       // of the socket
    std::string problem_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
