// Acquiring, renewing and releasing leases on one channel per node.
#include "client/lease_keeper.h"

#include <algorithm>
#include <chrono>

#include "base/fault_point.h"
#include "base/interrupt.h"

namespace kvstore {
namespace {

constexpr uint64_t kAcquireCallMs = 1000;  // then another replica is asked
constexpr uint64_t kRenewCallMs = 1000;
constexpr uint64_t kReleaseCallMs = 500;
constexpr uint32_t kShortestRenewMs = 10;

}  // namespace

LeaseKeeper::~LeaseKeeper() {
    if (fork_guard_.in_child()) {
        // No other thread exists in the child; one of the parent's may have held the mutex.
        mutex_.assert_held();
        (void)thread_.release();
    } else {
        shutdown();
    }
}

std::shared_ptr<LeaseKeeper::LeaseChannel> LeaseKeeper::channel_to(
    const std::shared_ptr<PeerNode>& peer) {
    const MutexLock lock(mutex_);
    if (stopping_) {
        return nullptr;
    }
    std::shared_ptr<LeaseChannel>& channel = channels_[peer.get()];
    if (channel == nullptr) {
        channel = std::make_shared<LeaseChannel>(peer);
    }
    return channel;
}

Status LeaseKeeper::LeaseChannel::connect(Deadline deadline) {
    if (channel != nullptr && channel->usable()) {
        return {};
    }
    lose();
    Result<std::unique_ptr<Channel>> opened = peer->open_socket(deadline);
    if (!opened.ok()) {
        return opened.status();
    }
    channel = std::move(*opened);
    ++connection;
    return {};
}

// What was granted on a connection ends with it.
void LeaseKeeper::LeaseChannel::lose() {
    channel.reset();
    leases.clear();
}

bool LeaseKeeper::LeaseChannel::granted(const Grant& grant) const {
    return connection == grant.connection && channel != nullptr && leases.contains(grant.lease_id);
}

Result<LeaseKeeper::Grant> LeaseKeeper::acquire(const std::shared_ptr<PeerNode>& peer,
                                                std::span<const std::string_view> keys,
                                                uint32_t lease_ms, uint32_t* length,
                                                Deadline deadline) {
    *length = 0;
    const std::shared_ptr<LeaseChannel> to = channel_to(peer);
    if (to == nullptr) {
        return {Code::kClosed, "the store is closed"};
    }
    // A node that hangs would cost every lookup its time again.
    if (!peer->breaker().allow()) {
        return {Code::kUnavailable, "the node did not answer a moment ago"};
    }
    deadline =
        Deadline::after_ms(std::min(kAcquireCallMs, static_cast<uint64_t>(deadline.left_ms())));
    const MutexLock talking(to->mutex);
    const Uninterrupted waits;  // an interrupted call would end the channel, and all leases on it
    if (Status status = to->connect(deadline); !status.ok()) {
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
    if (Status status = to->channel->exchange(request, &reply, deadline); !status.ok()) {
        if (!to->channel->alive()) {
            to->lose();
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
    to->leases[reply.lease_id] = lease_ms;
    renew_soon(lease_ms);
    return Grant{peer, reply.lease_id, to->connection};
}

void LeaseKeeper::renew_soon(uint32_t lease_ms) {
    const MutexLock lock(mutex_);
    shortest_ms_ = std::min(shortest_ms_, lease_ms);
    if (thread_ == nullptr && !stopping_) {
        thread_ = std::make_unique<std::thread>([this] { renew_loop(); });
    }
    changed_.notify_all();
}

bool LeaseKeeper::alive(const Grant& grant) {
    const std::shared_ptr<LeaseChannel> to = channel_to(grant.peer);
    if (to == nullptr) {
        return false;
    }
    const MutexLock talking(to->mutex);
    return to->granted(grant);
}

void LeaseKeeper::release(std::span<const Grant> grants) {
    for (const Grant& grant : grants) {
        const std::shared_ptr<LeaseChannel> to = channel_to(grant.peer);
        if (to == nullptr) {
            return;
        }
        const MutexLock talking(to->mutex);
        if (!to->granted(grant)) {
            continue;
        }
        to->leases.erase(grant.lease_id);
        LeaseRelease request;
        const uint64_t ids[] = {grant.lease_id};
        request.lease_ids = std::span<const uint64_t>(ids);
        StatusReply reply;
        (void)to->channel->exchange(request, &reply, Deadline::after_ms(kReleaseCallMs));
        if (!to->channel->alive()) {
            to->lose();
        }
    }
}

void LeaseKeeper::shutdown() {
    std::map<PeerNode*, std::shared_ptr<LeaseChannel>> channels;
    std::unique_ptr<std::thread> thread;
    {
        const MutexLock lock(mutex_);
        stopping_ = true;
        channels.swap(channels_);
        thread = std::move(thread_);
        changed_.notify_all();
    }
    if (thread != nullptr) {
        thread->join();
    }
    for (const auto& [peer, channel] : channels) {
        const MutexLock talking(channel->mutex);
        channel->lose();
    }
}

void LeaseKeeper::renew_loop() {
    MutexLock lock(mutex_);
    while (!stopping_) {
        // A third of the shortest lease: two renewals may fail before anything is lost.
        const uint32_t pause = std::max(shortest_ms_ / 3, kShortestRenewMs);
        changed_.wait_for(mutex_, std::chrono::milliseconds(pause), [&]() KV_REQUIRES(mutex_) {
            return stopping_ || std::max(shortest_ms_ / 3, kShortestRenewMs) < pause;
        });
        if (stopping_) {
            return;
        }
        std::vector<std::shared_ptr<LeaseChannel>> channels;
        for (const auto& [peer, channel] : channels_) {
            channels.push_back(channel);
        }
        shortest_ms_ = UINT32_MAX;  // what is asked for meanwhile lowers it again
        lock.unlock();
        uint32_t shortest = UINT32_MAX;
        for (const std::shared_ptr<LeaseChannel>& channel : channels) {
            shortest = std::min(shortest, channel->renew());
        }
        lock.lock();
        shortest_ms_ = std::min(shortest_ms_, shortest);
        changed_.wait(mutex_, [this]() KV_REQUIRES(mutex_) {
            return stopping_ || shortest_ms_ != UINT32_MAX;
        });
    }
}

// Renews everything that this channel has, grouped by duration; returns the shortest one left.
uint32_t LeaseKeeper::LeaseChannel::renew() {
    const MutexLock talking(mutex);
    std::map<uint32_t, std::vector<uint64_t>> groups;
    for (const auto& [id, lease_ms] : leases) {
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
            const Status status = channel->exchange(
                request, &reply, Deadline::after_ms(std::min<uint64_t>(lease_ms, kRenewCallMs)));
            if (!status.ok()) {
                lose();
                return UINT32_MAX;
            }
            for (size_t i = 0; i < some.size(); ++i) {
                if (reply.status[i] != 0) {
                    leases.erase(some[i]);
                }
            }
        }
    }
    return groups.empty() ? UINT32_MAX : groups.begin()->first;
}

}  // namespace kvstore
