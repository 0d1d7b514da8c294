// The half of a server's connection that any thread may touch: its socket's sending side, the queue
// of what the socket did not take yet, and why the session is to end. Private to the event
// server.
#pragma once

#include <sys/uio.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "net/admission.h"
#include "net/event_server.h"

namespace kvstore {

// One connection reads or writes this much, then it is the next one's turn.
inline constexpr size_t kBytesPerTurn = 4u << 20;
// Bodies are work, other than payload: that of an announce takes some milliseconds a mebibyte. So a
// thousand nodes that announce keep nobody's request waiting for long.
inline constexpr size_t kBodyBytesPerTurn = 32u << 10;

class EventLoop;

// What the loops of one server share. Outlives the server inside the connections' handles.
struct ServerState {
    explicit ServerState(EventServer::Options chosen)
        : options(std::move(chosen)),
          admission({.max_connections = options.max_connections,
                     .max_half_open = options.max_handshakes,
                     .reserved = options.reserved_connections},
                    options.principal_share),
          write_stall_ms(options.write_stall_ms),
          cluster_id(options.cluster_id) {}

    const EventServer::Options options;
    Admission admission;
    std::atomic<uint32_t> write_stall_ms;
    Mutex mutex;
    std::string cluster_id KV_GUARDED_BY(mutex);
    std::atomic<uint64_t> accepted{0};
    std::atomic<uint64_t> open{0};
    std::atomic<uint64_t> sessions{0};
    std::atomic<uint64_t> frames_in{0};
    std::atomic<uint64_t> frames_out{0};
    std::atomic<uint64_t> bytes_in{0};
    std::atomic<uint64_t> bytes_out{0};
    std::array<std::atomic<uint64_t>, 32> refusals{};
    Refusals refused;
    std::atomic<uint64_t> refused_users{0};
    // Group whose members the Unix socket serves, too; -1: none.
    std::atomic<int64_t> socket_group{-1};

    std::string cluster() KV_EXCLUDES(mutex) {
        const MutexLock lock(mutex);
        return cluster_id;
    }
    // `address`: of the peer; empty: of none in particular.
    void count_refusal(Code code, std::string_view address, std::string_view reason,
                       std::string_view who = {});
};

// Work for a loop's thread, and the event that wakes it. Outlives the loop inside the handles.
class Mailbox {
  public:
    Mailbox();
    int event_fd() const { return event_.get(); }
    void post(std::function<void()> fn);  // dropped once closed
    std::vector<std::function<void()>> take();
    void close();

  private:
    Fd event_;
    Mutex mutex_;
    std::vector<std::function<void()>> work_ KV_GUARDED_BY(mutex_);
    bool closed_ KV_GUARDED_BY(mutex_) = false;
};

// Walks over a frame's bytes, lead (header, body) then payload, as the socket takes them.
class FrameCursor {
  public:
    FrameCursor() = default;
    FrameCursor(std::span<const uint8_t> first, std::span<const uint8_t> second,
                std::span<const iovec> payload);
    bool done() const { return index_ == 2 + payload_.size(); }
    size_t gather(std::span<iovec> out) const;  // entries filled
    void advance(size_t bytes);

  private:
    iovec part(size_t index) const;
    void skip_empty();

    std::array<std::span<const uint8_t>, 2> lead_{};
    std::span<const iovec> payload_;
    size_t index_ = 0;
    size_t offset_ = 0;  // into part(index_)
};

class Outbox final : public ConnectionRef, public std::enable_shared_from_this<Outbox> {
  public:
    struct Ending {
        Code code = Code::kClosed;
        std::string reason;
        bool at_once = false;  // do not try to send anything more
    };
    Outbox(Stream stream, uint64_t id, EventLoop& loop, std::shared_ptr<Mailbox> mailbox,
           std::shared_ptr<ServerState> state);

    bool send(MessageType type, uint16_t flags, uint64_t request_id, std::span<const uint8_t> body,
              std::span<const iovec> payload, std::shared_ptr<void> keepalive) override;
    void close(Code code, std::string_view reason) override;
    void post(std::function<void(Connection&)> fn) override;
    bool open() const override;
    uint64_t id() const override { return id_; }

    // What follows is for the loop's thread only.
    int fd() const { return stream_.fd(); }
    Stream& stream() { return stream_; }
    Status enroll(int epoll_fd);
    // A handshake frame, with descriptors. It has to fit into the fresh socket's buffer.
    bool send_handshake(MessageType type, std::span<const uint8_t> body, std::span<const int> fds);
    // From here on send() writes; before, frames from other threads wait behind the Welcome.
    void set_opened();
    // The last frame of a session that is ending.
    void send_last(MessageType type, std::span<const uint8_t> body);
    // Writes what the socket takes (bounded). False when the socket is broken.
    bool flush();
    // To be called after reading from a TLS session: it may have answered by itself.
    void watch_unsent();
    void begin_tls(std::unique_ptr<TlsSession> session);
    bool drained() const;
    // Whether so much is queued that the peer gets no more requests read.
    bool congested() const;
    void set_reading(bool reading);
    bool reading() const { return reading_; }
    bool stalled(uint64_t now_ms) const;
    std::optional<Ending> ending() const;
    uint64_t answers() const;                                    // to requests of the peer
    void end(Code code, std::string_view reason, bool at_once);  // the first one counts
    void shut_down_sending();
    void close_socket();

  private:
    struct Queued {
        std::vector<uint8_t> lead;
        std::vector<iovec> payload;
        std::shared_ptr<void> keepalive;
        FrameCursor cursor;
        uint64_t payload_bytes = 0;
    };
    enum class Written : uint8_t { kAll, kPart, kBroken };
    Written write(FrameCursor* cursor, size_t budget, size_t* sent) KV_REQUIRES(mutex_);
    bool write_or_queue(const FrameHeader& header, std::span<const uint8_t> body,
                        std::span<const iovec> payload, std::shared_ptr<void>* keepalive)
        KV_REQUIRES(mutex_);
    void begin_ending(Code code, std::string_view reason, bool at_once) KV_REQUIRES(mutex_);
    void update_interest() KV_REQUIRES(mutex_);

    const uint64_t id_;
    EventLoop& loop_;  // used only by work that runs on its thread
    const std::shared_ptr<Mailbox> mailbox_;
    const std::shared_ptr<ServerState> state_;

    mutable Mutex mutex_;  // taken before the mailbox's
    // Written by the loop's thread with the mutex held: that thread reads them without, every other
    // one with it.
    Stream stream_;
    bool reading_ = true;
    int epoll_fd_ KV_GUARDED_BY(mutex_) = -1;
    bool opened_ KV_GUARDED_BY(mutex_) = false;
    bool closed_ KV_GUARDED_BY(mutex_) = false;
    uint32_t interest_ KV_GUARDED_BY(mutex_) = 0;
    std::optional<Ending> ending_ KV_GUARDED_BY(mutex_);
    std::deque<Queued> queue_ KV_GUARDED_BY(mutex_);
    size_t queued_lead_bytes_ KV_GUARDED_BY(mutex_) = 0;
    uint64_t queued_payload_bytes_ KV_GUARDED_BY(mutex_) = 0;
    uint64_t answers_ KV_GUARDED_BY(mutex_) = 0;
    uint64_t progress_ms_ KV_GUARDED_BY(mutex_) = 0;  // when the queue last moved
};

}  // namespace kvstore
