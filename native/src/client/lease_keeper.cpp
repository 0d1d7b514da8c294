// Acquiring, renewing and releasing leases on one session per node.
#include "client/lease_keeper.h"

#include <algorithm>
#include <chrono>

#include "base/fault_point.h"

namespace kvstore {
namespace {

constexpr uint64_t kAcquireCallMs = 1000;  // then another replica is asked
constexpr uint64_t kRenewCallMs = 1000;
constexpr uint64_t kReleaseCallMs = 500;
constexpr uint32_t kShortestRenewMs = 10;

}  // namespace

LeaseKeeper::~LeaseKeeper() {
    if (fork_guard_.in_child()) {
        (void)thread_.release();
    } else {
        shutdown();
    }
}

std::shared_ptr<LeaseKeeper::Session> LeaseKeeper::session_with(
    const std::shared_ptr<PeerNode>& peer) {
    const MutexLock lock(mutex_);
    if (stopping_) {
        return nullptr;
    }
    std::shared_ptr<Session>& session = sessions_[peer.get()];
    if (session == nullptr) {
        session = std::make_shared<Session>();
        session->peer = peer;
    }
    return session;
}

// With the session's mutex held.
Status LeaseKeeper::connect(Session& session, Deadline deadline) {
    if (session.channel != nullptr && session.channel->usable()) {
        return {};
    }
    lose(session);
    Result<std::unique_ptr<Channel>> channel = session.peer->open_socket(deadline);
    if (!channel.ok()) {
        return channel.status();
    }
    session.channel = std::move(*channel);
    ++session.number;
    return {};
}

// What was granted on a session ends with it.
void LeaseKeeper::lose(Session& session) {
    session.channel.reset();
    session.leases.clear();
}

Result<LeaseKeeper::Grant> LeaseKeeper::acquire(const std::shared_ptr<PeerNode>& peer,
                                                std::span<const std::string_view> keys,
                                                uint32_t lease_ms, uint32_t* length,
                                                Deadline deadline) {
    *length = 0;
    const std::shared_ptr<Session> session = session_with(peer);
    if (session == nullptr) {
        return {Code::kClosed, "the store is closed"};
    }
    // A node that hangs would cost every lookup its time again.
    if (!peer->breaker().allow()) {
        return {Code::kUnavailable, "the node did not answer a moment ago"};
    }
    deadline =
        Deadline::after_ms(std::min(kAcquireCallMs, static_cast<uint64_t>(deadline.left_ms())));
    const MutexLock talking(session->mutex);
    if (Status status = connect(*session, deadline); !status.ok()) {
        peer->breaker().failure();
        return status;
    }
    Lease request;
    request.keys = keys;
    request.stride = 1;
    request.lease_ms = lease_ms;
    request.timeout_ms = static_cast<uint32_t>(
        std::clamp(deadline.left_ms(), 1, static_cast<int>(limits::kMaxTimeoutMs)));
    LeaseReply reply;
    if (Status status = session->channel->exchange(request, &reply, deadline); !status.ok()) {
        if (!session->channel->alive()) {
            lose(*session);
            peer->breaker().failure();
        }
        return status;
    }
    peer->breaker().success();
    if (reply.code != 0) {
        return static_cast<Code>(reply.code);
    }
    *length = std::min(reply.length, static_cast<uint32_t>(keys.size()));
    if (*length == 0 || reply.lease_id == 0) {
        *length = 0;
        return Grant{};
    }
    fault_point("client_leased");
    session->leases[reply.lease_id] = lease_ms;
    const MutexLock lock(mutex_);
    shortest_ms_ = std::min(shortest_ms_, lease_ms);
    if (thread_ == nullptr && !stopping_) {
        thread_ = std::make_unique<std::thread>([this] { renew_loop(); });
    }
    changed_.notify_all();
    return Grant{peer, reply.lease_id, session->number};
}

bool LeaseKeeper::alive(const Grant& grant) {
    const std::shared_ptr<Session> session = session_with(grant.peer);
    if (session == nullptr) {
        return false;
    }
    const MutexLock talking(session->mutex);
    return session->number == grant.session && session->channel != nullptr &&
           session->leases.contains(grant.lease_id);
}

void LeaseKeeper::release(std::span<const Grant> grants) {
    for (const Grant& grant : grants) {
        const std::shared_ptr<Session> session = session_with(grant.peer);
        if (session == nullptr) {
            return;
        }
        const MutexLock talking(session->mutex);
        if (session->number != grant.session || session->leases.erase(grant.lease_id) == 0 ||
            session->channel == nullptr) {
            continue;
        }
        LeaseRelease request;
        const uint64_t ids[] = {grant.lease_id};
        request.lease_ids = std::span<const uint64_t>(ids);
        StatusReply reply;
        (void)session->channel->exchange(request, &reply, Deadline::after_ms(kReleaseCallMs));
        if (!session->channel->alive()) {
            lose(*session);
        }
    }
}

void LeaseKeeper::shutdown() {
    std::map<PeerNode*, std::shared_ptr<Session>> sessions;
    {
        const MutexLock lock(mutex_);
        stopping_ = true;
        sessions.swap(sessions_);
        changed_.notify_all();
    }
    if (thread_ != nullptr && thread_->joinable()) {
        thread_->join();
    }
    for (const auto& [peer, session] : sessions) {
        const MutexLock talking(session->mutex);
        lose(*session);
    }
}

void LeaseKeeper::renew_loop() {
    MutexLock lock(mutex_);
    while (!stopping_) {
        // A third of the shortest lease: two renewals may fail before anything is lost.
        const uint32_t pause = std::max(shortest_ms_ / 3, kShortestRenewMs);
        changed_.wait_for(mutex_, std::chrono::milliseconds(pause), [&] {
            return stopping_ || std::max(shortest_ms_ / 3, kShortestRenewMs) < pause;
        });
        if (stopping_) {
            return;
        }
        std::vector<std::shared_ptr<Session>> sessions;
        for (const auto& [peer, session] : sessions_) {
            sessions.push_back(session);
        }
        shortest_ms_ = UINT32_MAX;  // what is asked for meanwhile lowers it again
        lock.unlock();
        uint32_t shortest = UINT32_MAX;
        for (const std::shared_ptr<Session>& session : sessions) {
            shortest = std::min(shortest, renew(*session));
        }
        lock.lock();
        shortest_ms_ = std::min(shortest_ms_, shortest);
        changed_.wait(mutex_, [this] { return stopping_ || shortest_ms_ != UINT32_MAX; });
    }
}

// Renews everything on one session, grouped by duration; returns the shortest one left.
uint32_t LeaseKeeper::renew(Session& session) {
    const MutexLock talking(session.mutex);
    std::map<uint32_t, std::vector<uint64_t>> groups;
    for (const auto& [id, lease_ms] : session.leases) {
        groups[lease_ms].push_back(id);
    }
    for (const auto& [lease_ms, ids] : groups) {
        for (size_t first = 0; first < ids.size(); first += limits::kMaxBatchKeys) {
            const std::span<const uint64_t> some =
                std::span(ids).subspan(first, std::min(limits::kMaxBatchKeys, ids.size() - first));
            LeaseRenew request;
            request.lease_ids = some;
            request.lease_ms = lease_ms;
            StatusReply reply;
            const Status status = session.channel->exchange(
                request, &reply, Deadline::after_ms(std::min<uint64_t>(lease_ms, kRenewCallMs)));
            if (!status.ok()) {
                lose(session);
                return UINT32_MAX;
            }
            for (size_t i = 0; i < some.size(); ++i) {
                if (reply.status[i] != 0) {
                    session.leases.erase(some[i]);
                }
            }
        }
    }
    return groups.empty() ? UINT32_MAX : groups.begin()->first;
}

}  // namespace kvstore
