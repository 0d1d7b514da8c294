// The epoll thread: events, accepted sockets, posted work, ticks.
#include "net/event_loop.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <limits>

#include "base/signals_blocked.h"

namespace kvstore {
namespace {

constexpr uint64_t kWakeId = 0;
constexpr uint64_t kListenerBit = uint64_t{1} << 63;
constexpr size_t kScratchBytes = 256 * 1024;
constexpr int kAcceptsPerTurn = 4;          // so that a flood delays sessions by little
constexpr int kDelayMs = 2;                 // of a listener whose next connection would evict …
constexpr uint64_t kEvictionsAtOnce = 8;    // … and evictions that it may cause after that
constexpr uint64_t kSpareDescriptors = 64;  // for files; an eighth where only few are allowed
constexpr std::string_view kEvicted =
    "too many connections before their Welcome: the oldest ones give way to new ones";
constexpr std::string_view kOutOfDescriptors =
    "out of descriptors: raise the limit on open files (ulimit -n)";

std::atomic<uint64_t> next_connection_id{1};

Peer peer_of(int fd) {
    Peer peer;
    if (const std::optional<PeerCredentials> credentials = peer_credentials(fd)) {
        peer.is_unix = true;
        peer.uid = credentials->uid;
        peer.pid = credentials->pid;
    }
    peer.address = peer_address(fd);
    return peer;
}

uint64_t most_descriptors() {
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        return std::numeric_limits<uint64_t>::max();
    }
    return limit.rlim_cur - std::min<uint64_t>(kSpareDescriptors, limit.rlim_cur / 8);
}

// Best effort, before the socket is closed at once.
void send_refused(int fd, std::string_view reason) {
    std::vector<uint8_t> body;
    encode_message(Refused{.code = static_cast<int32_t>(Code::kOverloaded), .message = reason},
                   body);
    const FrameHeaderBytes head = encode_header({.body_bytes = static_cast<uint32_t>(body.size()),
                                                 .type = static_cast<uint16_t>(Refused::kType),
                                                 .flags = kFlagFatal});
    body.insert(body.begin(), head.begin(), head.end());
    (void)!send(fd, body.data(), body.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

}  // namespace

EventLoop::EventLoop(size_t index, std::shared_ptr<ServerState> state, ConnectionHandler& service,
                     std::function<EventLoop&()> place)
    : index_(index),
      state_(std::move(state)),
      service_(service),
      place_(std::move(place)),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      scratch_(kScratchBytes) {}

EventLoop::~EventLoop() { stop(); }

Status EventLoop::start() {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = kWakeId;
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, mailbox_->event_fd(), &event) != 0) {
        return errno_status("epoll_ctl", "event loop");
    }
    const SignalsBlocked blocked;
    thread_ = std::thread([this] { run(); });
    pthread_setname_np(thread_.native_handle(), ("kv-loop-" + std::to_string(index_)).c_str());
    return {};
}

void EventLoop::stop() {
    if (thread_.joinable()) {
        mailbox_->post([this] { stopping_ = true; });
        thread_.join();
    }
    mailbox_->close();
}

void EventLoop::run() {
    std::array<epoll_event, 128> events;
    next_tick_ms_ = boottime_ms() + state_->options.tick_ms;
    polling_ = Polling(state_->options.poll_us);
    most_descriptors_ = most_descriptors();
    while (!stopping_) {
        const uint64_t now_ms = boottime_ms();
        const int to_tick = now_ms >= next_tick_ms_ ? 0 : static_cast<int>(next_tick_ms_ - now_ms);
        const int patience = delayed_listeners_.empty() ? to_tick : std::min(to_tick, kDelayMs);
        const int count = polling_.wait(patience, [&](int timeout_ms) {
            return epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()),
                              timeout_ms);
        });
        for (int i = 0; i < count; ++i) {
            handle(events[static_cast<size_t>(i)].data.u64, events[static_cast<size_t>(i)].events);
        }
        if (!delayed_listeners_.empty() && boottime_us() >= next_eviction_us_) {
            resume(&delayed_listeners_);
        }
        if (boottime_ms() >= next_tick_ms_) {
            tick();
        }
    }
    close_all();
}

void EventLoop::handle(uint64_t id, uint32_t events) {
    if (id == kWakeId) {
        return work();
    }
    if ((id & kListenerBit) != 0) {
        return accept_some(static_cast<size_t>(id & ~kListenerBit));
    }
    const auto found = connections_.find(id);
    if (found != connections_.end()) {
        found->second->on_event(events);
        after(*found->second);
    }
}

void EventLoop::work() {
    for (const std::function<void()>& fn : mailbox_->take()) {
        fn();
    }
}

void EventLoop::tick() {
    const uint64_t now_ms = boottime_ms();
    next_tick_ms_ = now_ms + state_->options.tick_ms;
    if (!listeners_.empty()) {
        most_descriptors_ = most_descriptors();
    }
    resume(&paused_listeners_);
    const bool again = principals_changed();
    std::vector<EventConnection*> finished;
    for (const auto& [id, connection] : connections_) {
        connection->tick(now_ms);
        if (again) {
            connection->authenticate_again();
        }
        if (connection->finished() || connection->outbox().ending()) {
            finished.push_back(connection.get());
        }
    }
    for (EventConnection* connection : finished) {
        after(*connection);
    }
    service_.on_tick(index_);
}

bool EventLoop::principals_changed() {
    const Authenticator* authenticator = state_->options.authenticator.get();
    const uint64_t now = authenticator == nullptr ? 0 : authenticator->replacements();
    return std::exchange(seen_replacements_, now) != now;
}

std::vector<SessionView> EventLoop::views() const {
    const uint64_t now_ms = boottime_ms();
    std::vector<SessionView> views;
    for (const auto& [id, connection] : connections_) {
        if (std::optional<SessionView> view = connection->view(now_ms)) {
            views.push_back(std::move(*view));
        }
    }
    return views;
}

void EventLoop::after(EventConnection& connection) {
    connection.settle();
    if (connection.finished()) {
        connection.outbox().close_socket();
        --state_->open;
        state_->admission.end(connection.outbox().id());
        connections_.erase(connection.outbox().id());
    }
}

void EventLoop::settle(uint64_t id) {
    const auto found = connections_.find(id);
    if (found != connections_.end()) {
        after(*found->second);
    }
}

void EventLoop::visit(uint64_t id, const std::function<void(Connection&)>& fn) {
    const auto found = connections_.find(id);
    if (found != connections_.end() && found->second->outbox().open()) {
        fn(*found->second);
        after(*found->second);
    }
}

// A newer connection takes the place of this half-open one.
void EventLoop::evict(uint64_t id) {
    const auto found = connections_.find(id);
    if (found != connections_.end()) {
        if (!found->second->outbox().ending() && !found->second->peer().is_tls) {
            send_refused(found->second->outbox().fd(), kEvicted);
        }
        found->second->evict(kEvicted);
        after(*found->second);
    }
}

void EventLoop::close_all() {
    for (const auto& [id, connection] : connections_) {
        connection->outbox().end(Code::kClosed, "the server stops", true);
        connection->settle();
        connection->outbox().close_socket();
        --state_->open;
        state_->admission.end(id);
    }
    connections_.clear();
    listeners_.clear();
}

// ------------------------------------------------------------------------------------ new sockets

void EventLoop::add_listener(Fd fd) {
    mailbox_->post([this, shared = std::make_shared<Fd>(std::move(fd))] {
        listeners_.push_back(std::move(*shared));
        watch_listener(listeners_.size() - 1, true);
    });
}

void EventLoop::watch_listener(size_t listener, bool on) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = kListenerBit | listener;
    (void)epoll_ctl(epoll_.get(), on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, listeners_[listener].get(),
                    &event);
}

void EventLoop::accept_some(size_t listener) {
    for (int i = 0; i < kAcceptsPerTurn; ++i) {
        if (state_->admission.full() && !take_eviction()) {
            return pause(listener, &delayed_listeners_);
        }
        Fd fd(accept4(listeners_[listener].get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
        if (!fd.valid()) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
                return run_out_of_descriptors(listener);
            }
            if (errno != ECONNABORTED && errno != EINTR) {
                return;
            }
            continue;
        }
        ++state_->accepted;
        accept_one(std::move(fd));
    }
}

void EventLoop::run_out_of_descriptors(size_t listener) {
    state_->count_refusal(Code::kOverloaded, {}, kOutOfDescriptors);
    (void)state_->admission.evict_oldest();
    pause(listener, &paused_listeners_);
}

void EventLoop::pause(size_t listener, std::vector<size_t>* until) {
    watch_listener(listener, false);
    until->push_back(listener);
}

void EventLoop::resume(std::vector<size_t>* paused) {
    for (const size_t listener : std::exchange(*paused, {})) {
        watch_listener(listener, true);
    }
}

// A tick's worth of them, given out over the tick: all at once, they would delay every session.
bool EventLoop::take_eviction() {
    const uint64_t now_us = boottime_us();
    if (now_us < next_eviction_us_) {
        return false;
    }
    const uint64_t a_tick = state_->admission.most_evictions();
    const uint64_t gap_us = uint64_t{state_->options.tick_ms} * 1000 / a_tick;
    const uint64_t at_once = std::clamp<uint64_t>(a_tick / 8, 1, kEvictionsAtOnce);
    const uint64_t saved_us = std::min(now_us, (at_once - 1) * gap_us);
    next_eviction_us_ = std::max(next_eviction_us_, now_us - saved_us) + gap_us;
    return true;
}

void EventLoop::accept_one(Fd fd) {
    Peer peer = peer_of(fd.get());
    if (state_->open >= state_->options.max_connections) {
        return refuse(fd, peer.address, "too many connections");
    }
    // The spare ones are for files: whoever has not shown a token yet must not use them up.
    if (static_cast<uint64_t>(fd.get()) >= most_descriptors_) {
        (void)state_->admission.evict_oldest();
        return refuse(fd, peer.address, kOutOfDescriptors);
    }
    ++state_->open;  // counted here, not where it is served, so that the caps are exact
    std::string network = peer_network(fd.get());
    EventLoop& loop = place_();
    std::shared_ptr<Outbox> outbox = loop.make_outbox(std::move(fd));
    state_->admission.begin(outbox->id(), std::move(network), [&loop, id = outbox->id()] {
        loop.mailbox()->post([&loop, id] { loop.evict(id); });
    });
    loop.add_accepted(std::move(outbox), std::move(peer));
}

void EventLoop::refuse(const Fd& fd, const std::string& address, std::string_view reason) {
    send_refused(fd.get(), reason);
    state_->count_refusal(Code::kOverloaded, address, reason);
}

std::shared_ptr<Outbox> EventLoop::make_outbox(Stream stream) {
    return std::make_shared<Outbox>(std::move(stream), next_connection_id++, *this, mailbox_,
                                    state_);
}

EventConnection* EventLoop::insert(std::shared_ptr<Outbox> outbox, Peer peer) {
    const uint64_t id = outbox->id();
    const Status enrolled = outbox->enroll(epoll_.get());
    auto connection = std::make_unique<EventConnection>(std::move(outbox), std::move(peer), index_,
                                                        *state_, service_, scratch_);
    if (!enrolled.ok()) {
        connection->outbox().end(enrolled.code(), enrolled.message(), true);
    }
    return (connections_[id] = std::move(connection)).get();
}

void EventLoop::add_accepted(std::shared_ptr<Outbox> outbox, Peer peer) {
    mailbox_->post([this, outbox = std::move(outbox), peer = std::move(peer)] {
        const int on = 1;
        (void)setsockopt(outbox->fd(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        after(*insert(outbox, peer));
    });
}

std::shared_ptr<Outbox> EventLoop::add_adopted(Stream stream, Peer peer,
                                               std::shared_ptr<void> session) {
    const Peer found = peer_of(stream.fd());
    peer.is_unix = found.is_unix;
    peer.uid = found.uid;
    peer.pid = found.pid;
    peer.address = found.address;
    peer.is_tls = stream.is_tls();
    ++state_->open;
    std::shared_ptr<Outbox> outbox = make_outbox(std::move(stream));
    outbox->set_opened();
    mailbox_->post([this, outbox, peer = std::move(peer), session = std::move(session)] {
        EventConnection* connection = insert(outbox, peer);
        connection->start_adopted(session);
        after(*connection);
    });
    return outbox;
}

}  // namespace kvstore
