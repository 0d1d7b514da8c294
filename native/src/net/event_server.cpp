// The event server's outside: listeners, loops, adoption, stopping.
#include "net/event_server.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <utility>

#include "base/mutex.h"
#include "net/event_loop.h"

namespace kvstore {
namespace {

constexpr std::chrono::seconds kSessionsPatience{2};

}  // namespace

bool ConnectionRef::send_error(uint64_t request_id, Code code, std::string_view message) {
    return send_message(
        Error{.code = static_cast<int32_t>(code), .message = message.substr(0, kMaxErrorTextBytes)},
        request_id);
}

struct EventServer::Impl {
    explicit Impl(Options options) : state(std::make_shared<ServerState>(std::move(options))) {}

    const std::shared_ptr<ServerState> state;
    std::vector<std::unique_ptr<EventLoop>> loops;
    std::atomic<size_t> next_loop{0};
    Mutex stop_mutex;  // one stop() at a time
    Mutex mutex KV_ACQUIRED_AFTER(stop_mutex);
    std::vector<std::string> unix_paths KV_GUARDED_BY(mutex);
    bool started KV_GUARDED_BY(mutex) = false;
    bool stopped KV_GUARDED_BY(mutex) = false;

    EventLoop& place() { return *loops[next_loop++ % loops.size()]; }
};

EventServer::EventServer(Options options, ConnectionHandler& service)
    : impl_(std::make_unique<Impl>(std::move(options))) {
    const size_t count = std::max<size_t>(impl_->state->options.loops, 1);
    for (size_t i = 0; i < count; ++i) {
        impl_->loops.push_back(std::make_unique<EventLoop>(
            i, impl_->state, service,
            [impl = impl_.get()]() -> EventLoop& { return impl->place(); }));
    }
}

EventServer::~EventServer() { stop(); }

Result<Endpoint> EventServer::listen(const Endpoint& endpoint, const SocketAccess& access) {
    const MutexLock lock(impl_->mutex);
    if (impl_->stopped) {
        return {Code::kClosed, "the server has stopped"};
    }
    Result<Fd> fd = listen_on(endpoint, access);
    if (!fd.ok()) {
        return fd.status();
    }
    Result<Endpoint> bound = bound_endpoint(fd->get(), endpoint);
    if (!bound.ok()) {
        return bound;
    }
    if (endpoint.is_unix() && !endpoint.path.starts_with('@')) {
        impl_->unix_paths.push_back(endpoint.path);
        struct stat info{};
        if ((access.mode & S_IWGRP) != 0 && lstat(endpoint.path.c_str(), &info) == 0) {
            impl_->state->socket_group = info.st_gid;
        }
    }
    impl_->loops.front()->add_listener(std::move(*fd));
    return bound;
}

Status EventServer::start() {
    const MutexLock lock(impl_->mutex);
    if (impl_->started || impl_->stopped) {
        return {Code::kInternal, "an event server starts once"};
    }
    impl_->started = true;
    for (const std::unique_ptr<EventLoop>& loop : impl_->loops) {
        if (Status status = loop->start(); !status.ok()) {
            return status;
        }
    }
    return {};
}

void EventServer::stop() {
    const MutexLock stopping(impl_->stop_mutex);
    std::vector<std::string> paths;
    {
        // Not held while joining: a callback on a loop may be asking for it.
        const MutexLock lock(impl_->mutex);
        impl_->stopped = true;
        paths = std::exchange(impl_->unix_paths, {});
    }
    for (const std::unique_ptr<EventLoop>& loop : impl_->loops) {
        loop->stop();
    }
    for (const std::string& path : paths) {
        (void)unlink(path.c_str());
    }
}

Result<std::shared_ptr<ConnectionRef>> EventServer::adopt(Stream stream, Peer peer,
                                                          std::shared_ptr<void> session) {
    const MutexLock lock(impl_->mutex);
    if (!impl_->started || impl_->stopped || !stream.valid()) {
        return {Code::kClosed, "the server does not run, or the socket is closed"};
    }
    return std::shared_ptr<ConnectionRef>(
        impl_->place().add_adopted(std::move(stream), std::move(peer), std::move(session)));
}

void EventServer::set_cluster_id(std::string cluster_id) {
    const MutexLock lock(impl_->state->mutex);
    impl_->state->cluster_id = std::move(cluster_id);
}

void EventServer::set_write_stall_ms(uint32_t stall_ms) {
    impl_->state->write_stall_ms.store(stall_ms, std::memory_order_relaxed);
}

void EventServer::set_principal_share(double share) {
    impl_->state->admission.set_principal_share(share);
}

void EventServer::post(size_t loop, std::function<void()> fn) {
    impl_->loops[loop % impl_->loops.size()]->mailbox()->post(std::move(fn));
}

void EventServer::count_refusal(Code code, std::string_view address, std::string_view reason) {
    impl_->state->count_refusal(code, address, reason);
}

std::vector<Refusal> EventServer::take_refusals() { return impl_->state->refused.take(); }

std::vector<SessionView> EventServer::sessions() const {
    struct Gathering {
        Mutex mutex;
        CondVar changed;
        size_t answers KV_GUARDED_BY(mutex) = 0;
        std::vector<SessionView> found KV_GUARDED_BY(mutex);
    };
    const auto gathering = std::make_shared<Gathering>();
    for (const std::unique_ptr<EventLoop>& loop : impl_->loops) {
        loop->mailbox()->post([gathering, loop = loop.get()] {
            std::vector<SessionView> views = loop->views();
            const MutexLock lock(gathering->mutex);
            std::ranges::move(views, std::back_inserter(gathering->found));
            ++gathering->answers;
            gathering->changed.notify_all();
        });
    }
    std::vector<SessionView> found;
    {
        const MutexLock lock(gathering->mutex);
        // A loop that has stopped, or hangs, has none.
        gathering->changed.wait_for(gathering->mutex, kSessionsPatience,
                                    [&]() KV_REQUIRES(gathering->mutex) {
                                        return gathering->answers == impl_->loops.size();
                                    });
        found = std::move(gathering->found);
    }
    std::ranges::sort(found, {}, [](const SessionView& view) { return view.ref->id(); });
    return found;
}

size_t EventServer::end_sessions(std::span<const uint64_t> ids, Code code,
                                 std::string_view reason) {
    size_t count = 0;
    for (const SessionView& view : sessions()) {
        if (std::ranges::find(ids, view.ref->id()) != ids.end() && !view.is_outgoing) {
            view.ref->close(code, reason);
            ++count;
        }
    }
    return count;
}

ServerStats EventServer::stats() const {
    const ServerState& state = *impl_->state;
    ServerStats stats;
    stats.accepted = state.accepted;
    stats.open = state.open;
    stats.sessions = state.sessions;
    stats.frames_in = state.frames_in;
    stats.frames_out = state.frames_out;
    stats.bytes_in = state.bytes_in;
    stats.bytes_out = state.bytes_out;
    std::ranges::copy(state.refusals, stats.refusals.begin());
    stats.refused_users = state.refused_users;
    if (state.options.authenticator != nullptr) {
        stats.proofs = state.options.authenticator->failures();
    }
    return stats;
}

}  // namespace kvstore
