// Sending without blocking: a direct write while the queue is empty, else the queue and EPOLLOUT.
#include "net/event_outbox.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/mutex.h"
#include "net/event_loop.h"

namespace kvstore {
namespace {

constexpr size_t kIovecsPerWrite = 128;

}  // namespace

void ServerState::count_refusal(Code code, std::string_view address, std::string_view reason,
                                std::string_view who) {
    const auto index = static_cast<size_t>(-static_cast<int32_t>(code));
    if (index < refusals.size()) {
        refusals[index].fetch_add(1, std::memory_order_relaxed);
    }
    refused.add(code, address, reason, who);
}

Mailbox::Mailbox() : event_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}

void Mailbox::post(std::function<void()> fn) {
    const MutexLock lock(mutex_);
    if (closed_) {
        return;
    }
    work_.push_back(std::move(fn));
    if (work_.size() == 1) {
        const uint64_t one = 1;
        (void)!write(event_.get(), &one, sizeof one);
    }
}

std::vector<std::function<void()>> Mailbox::take() {
    const MutexLock lock(mutex_);
    uint64_t count = 0;
    (void)!read(event_.get(), &count, sizeof count);
    return std::exchange(work_, {});
}

void Mailbox::close() {
    std::vector<std::function<void()>> dropped;
    const MutexLock lock(mutex_);
    closed_ = true;
    dropped.swap(work_);
}

// ---------------------------------------------------------------------------------- FrameCursor

FrameCursor::FrameCursor(std::span<const uint8_t> first, std::span<const uint8_t> second,
                         std::span<const iovec> payload)
    : lead_{first, second}, payload_(payload) {
    skip_empty();
}

iovec FrameCursor::part(size_t index) const {
    if (index >= lead_.size()) {
        return payload_[index - lead_.size()];
    }
    return {const_cast<uint8_t*>(lead_[index].data()), lead_[index].size()};
}

void FrameCursor::skip_empty() {
    while (!done() && part(index_).iov_len == offset_) {
        ++index_;
        offset_ = 0;
    }
}

size_t FrameCursor::gather(std::span<iovec> out) const {
    size_t filled = 0;
    size_t skip = offset_;
    for (size_t i = index_; i < 2 + payload_.size() && filled < out.size(); ++i) {
        const iovec whole = part(i);
        out[filled++] = {static_cast<uint8_t*>(whole.iov_base) + skip, whole.iov_len - skip};
        skip = 0;
    }
    return filled;
}

void FrameCursor::advance(size_t bytes) {
    while (bytes != 0) {
        const size_t step = std::min(bytes, part(index_).iov_len - offset_);
        offset_ += step;
        bytes -= step;
        skip_empty();
    }
}

// ---------------------------------------------------------------------------------- Outbox

Outbox::Outbox(Stream stream, uint64_t id, EventLoop& loop, std::shared_ptr<Mailbox> mailbox,
               std::shared_ptr<ServerState> state)
    : id_(id),
      loop_(loop),
      mailbox_(std::move(mailbox)),
      state_(std::move(state)),
      stream_(std::move(stream)) {}

bool Outbox::send(MessageType type, uint16_t flags, uint64_t request_id,
                  std::span<const uint8_t> body, std::span<const iovec> payload,
                  std::shared_ptr<void> keepalive) {
    FrameHeader header{.body_bytes = static_cast<uint32_t>(body.size()),
                       .type = static_cast<uint16_t>(type),
                       .flags = flags,
                       .request_id = request_id};
    for (const iovec& part : payload) {
        header.payload_bytes += part.iov_len;
    }
    // The keepalive is released by our caller's frame, never under the mutex: what it frees may
    // lock.
    const MutexLock lock(mutex_);
    if (closed_ || ending_) {
        return false;
    }
    if (body.size() > limits::kMaxBodyBytes || header.payload_bytes > limits::kMaxPayloadBytes) {
        begin_ending(Code::kInternal, "a reply above the frame's limits", true);
        return false;
    }
    answers_ += request_id != 0 && type != MessageType::kPong && (flags & kFlagMore) == 0 ? 1 : 0;
    return write_or_queue(header, body, payload, &keepalive);
}

uint64_t Outbox::answers() const {
    const MutexLock lock(mutex_);
    return answers_;
}

bool Outbox::write_or_queue(const FrameHeader& header, std::span<const uint8_t> body,
                            std::span<const iovec> payload, std::shared_ptr<void>* keepalive) {
    const FrameHeaderBytes head = encode_header(header);
    state_->frames_out.fetch_add(1, std::memory_order_relaxed);
    size_t sent = 0;
    if (opened_ && queue_.empty()) {
        FrameCursor cursor(head, body, payload);
        switch (write(&cursor, kBytesPerTurn, &sent)) {
            case Written::kAll:
                if (stream_.has_unsent()) {
                    progress_ms_ = boottime_ms();
                    update_interest();
                }
                return true;
            case Written::kBroken:
                begin_ending(Code::kClosed, "the peer has closed the connection", true);
                return false;
            case Written::kPart:
                progress_ms_ = boottime_ms();
        }
    }
    if (queue_.empty()) {
        progress_ms_ = boottime_ms();
    }
    Queued& entry = queue_.emplace_back();
    entry.lead.reserve(head.size() + body.size());
    entry.lead.assign(head.begin(), head.end());
    entry.lead.insert(entry.lead.end(), body.begin(), body.end());
    entry.payload.assign(payload.begin(), payload.end());
    entry.payload_bytes = header.payload_bytes;
    entry.keepalive = std::move(*keepalive);
    entry.cursor = FrameCursor(entry.lead, {}, entry.payload);
    entry.cursor.advance(sent);
    queued_lead_bytes_ += entry.lead.size();
    queued_payload_bytes_ += entry.payload_bytes;
    if (queued_lead_bytes_ > state_->options.max_queued_bytes ||
        queued_payload_bytes_ > state_->options.max_queued_payload_bytes) {
        begin_ending(Code::kOverloaded, "a slow reader: too many unsent bytes", true);
        return false;
    }
    update_interest();
    return true;
}

Outbox::Written Outbox::write(FrameCursor* cursor, size_t budget, size_t* sent) {
    std::array<iovec, kIovecsPerWrite> parts;
    while (!cursor->done()) {
        msghdr message{};
        message.msg_iov = parts.data();
        message.msg_iovlen = cursor->gather(parts);
        const ssize_t count = stream_.send(message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (count < 0 && errno != EINTR) {
            return errno == EAGAIN ? Written::kPart : Written::kBroken;
        }
        if (count > 0) {
            cursor->advance(static_cast<size_t>(count));
            *sent += static_cast<size_t>(count);
            state_->bytes_out.fetch_add(static_cast<uint64_t>(count), std::memory_order_relaxed);
        }
        if (*sent >= budget && !cursor->done()) {
            return Written::kPart;
        }
    }
    return Written::kAll;
}

bool Outbox::flush() {
    std::vector<std::shared_ptr<void>> finished;  // released after the mutex
    const MutexLock lock(mutex_);
    size_t sent = 0;
    const bool had_unsent = stream_.has_unsent();
    if (stream_.flush() != 0 && errno != EAGAIN) {
        return false;
    }
    Written written = Written::kAll;
    while (opened_ && !queue_.empty() && written == Written::kAll && sent < kBytesPerTurn) {
        Queued& front = queue_.front();
        written = write(&front.cursor, kBytesPerTurn, &sent);
        if (written == Written::kAll) {
            queued_lead_bytes_ -= front.lead.size();
            queued_payload_bytes_ -= front.payload_bytes;
            finished.push_back(std::move(front.keepalive));
            queue_.pop_front();
        }
    }
    if (sent != 0 || (had_unsent && !stream_.has_unsent())) {
        progress_ms_ = boottime_ms();
    }
    update_interest();
    return written != Written::kBroken;
}

void Outbox::begin_tls(std::unique_ptr<TlsSession> session) {
    const MutexLock lock(mutex_);  // others look whether something is unsent
    stream_.begin_tls(std::move(session));
}

void Outbox::watch_unsent() {
    const MutexLock lock(mutex_);
    update_interest();
}

bool Outbox::send_handshake(MessageType type, std::span<const uint8_t> body,
                            std::span<const int> fds) {
    const FrameHeaderBytes head = encode_header(
        {.body_bytes = static_cast<uint32_t>(body.size()), .type = static_cast<uint16_t>(type)});
    iovec parts[2] = {{const_cast<uint8_t*>(head.data()), head.size()},
                      {const_cast<uint8_t*>(body.data()), body.size()}};
    alignas(cmsghdr) char control[CMSG_SPACE(kMaxPassedFds * sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = body.empty() ? 1 : 2;
    if (!fds.empty()) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(fds.size_bytes());
        cmsghdr* item = CMSG_FIRSTHDR(&message);
        item->cmsg_level = SOL_SOCKET;
        item->cmsg_type = SCM_RIGHTS;
        item->cmsg_len = CMSG_LEN(fds.size_bytes());
        std::memcpy(CMSG_DATA(item), fds.data(), fds.size_bytes());
    }
    const ssize_t count = stream_.send(message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0 || static_cast<size_t>(count) != head.size() + body.size()) {
        return false;
    }
    state_->frames_out.fetch_add(1, std::memory_order_relaxed);
    state_->bytes_out.fetch_add(static_cast<uint64_t>(count), std::memory_order_relaxed);
    return true;
}

void Outbox::set_opened() {
    const MutexLock lock(mutex_);
    opened_ = true;
    update_interest();
}

void Outbox::send_last(MessageType type, std::span<const uint8_t> body) {
    std::shared_ptr<void> nothing;
    const MutexLock lock(mutex_);
    opened_ = true;
    (void)write_or_queue({.body_bytes = static_cast<uint32_t>(body.size()),
                          .type = static_cast<uint16_t>(type),
                          .flags = kFlagFatal},
                         body, {}, &nothing);
}

void Outbox::close(Code code, std::string_view reason) {
    const MutexLock lock(mutex_);
    begin_ending(code, reason, false);
}

void Outbox::end(Code code, std::string_view reason, bool at_once) {
    const MutexLock lock(mutex_);
    begin_ending(code, reason, at_once);
}

void Outbox::begin_ending(Code code, std::string_view reason, bool at_once) {
    if (closed_ || ending_) {
        return;
    }
    ending_ = Ending{code, std::string(reason), at_once};
    mailbox_->post([&loop = loop_, id = id_] { loop.settle(id); });
}

void Outbox::post(std::function<void(Connection&)> fn) {
    mailbox_->post([&loop = loop_, id = id_, fn = std::move(fn)] { loop.visit(id, fn); });
}

bool Outbox::open() const {
    const MutexLock lock(mutex_);
    return !closed_ && !ending_;
}

Status Outbox::enroll(int epoll_fd) {
    const MutexLock lock(mutex_);
    epoll_event event{};
    event.events = interest_ = EPOLLIN;
    event.data.u64 = id_;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, stream_.fd(), &event) != 0) {
        return errno_status("epoll_ctl", "connection");
    }
    epoll_fd_ = epoll_fd;
    update_interest();
    return {};
}

void Outbox::update_interest() {
    uint32_t wanted = reading_ ? static_cast<uint32_t>(EPOLLIN) : 0;
    if ((opened_ && !queue_.empty()) || stream_.has_unsent()) {
        wanted |= EPOLLOUT;
    }
    if (epoll_fd_ < 0 || closed_ || wanted == interest_) {
        return;
    }
    epoll_event event{};
    event.events = interest_ = wanted;
    event.data.u64 = id_;
    (void)epoll_ctl(epoll_fd_, EPOLL_CTL_MOD, stream_.fd(), &event);
}

bool Outbox::drained() const {
    const MutexLock lock(mutex_);
    return queue_.empty() && !stream_.has_unsent();
}

bool Outbox::congested() const {
    const MutexLock lock(mutex_);
    // Reading goes on below a quarter, so that it does not flap.
    const uint64_t share = reading_ ? 2 : 4;
    return queued_lead_bytes_ > state_->options.max_queued_bytes / share ||
           queued_payload_bytes_ > state_->options.max_queued_payload_bytes / share;
}

void Outbox::set_reading(bool reading) {
    const MutexLock lock(mutex_);
    reading_ = reading;
    update_interest();
}

bool Outbox::stalled(uint64_t now_ms) const {
    const MutexLock lock(mutex_);
    return opened_ && (!queue_.empty() || stream_.has_unsent()) &&
           now_ms > progress_ms_ + state_->write_stall_ms.load(std::memory_order_relaxed);
}

std::optional<Outbox::Ending> Outbox::ending() const {
    const MutexLock lock(mutex_);
    return ending_;
}

void Outbox::shut_down_sending() { (void)::shutdown(stream_.fd(), SHUT_WR); }

void Outbox::close_socket() {
    std::deque<Queued> dropped;  // released after the mutex
    const MutexLock lock(mutex_);
    closed_ = true;
    dropped.swap(queue_);
    stream_.reset();
}

}  // namespace kvstore
