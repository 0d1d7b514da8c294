// Finding the active master, and failing fast while there is none.
#include "client/master_client.h"

#include <algorithm>

namespace kvstore {
namespace {

constexpr int kConnectMs = 2000;  // for one address of several

// Refusals that another address of the same cluster would repeat.
bool is_final(Code code) {
    return code == Code::kUnauthenticated || code == Code::kPermissionDenied ||
           code == Code::kVersionMismatch || code == Code::kInvalidArgument ||
           code == Code::kClosed;
}

}  // namespace

MasterClient::MasterClient(std::vector<Endpoint> endpoints, HelloParams hello)
    : endpoints_(std::move(endpoints)),
      hello_(std::move(hello)),
      pool_([this](Deadline deadline) { return connect(deadline); }) {
    KV_ASSERT(!endpoints_.empty());
    hello_.features &= ~(kFeatureSharedMemory | kFeatureUcx);
}

Status MasterClient::open(Deadline deadline) {
    Result<ChannelPool::Lease> lease = pool_.checkout(deadline);
    if (!lease.ok()) {
        return lease.status();
    }
    const WelcomeData& welcome = (*lease)->welcome();
    cluster_id_ = welcome.cluster_id;
    hash_secret_ = welcome.hash_secret;
    hello_.cluster_id = welcome.cluster_id;
    return {};
}

Result<std::unique_ptr<Channel>> MasterClient::connect(Deadline deadline) {
    Status last;
    const size_t first = active_.load(std::memory_order_relaxed);
    for (size_t i = 0; i < endpoints_.size(); ++i) {
        const size_t at = (first + i) % endpoints_.size();
        const bool only = endpoints_.size() == 1;
        const Deadline until = only ? deadline
                                    : Deadline::after_ms(static_cast<uint64_t>(
                                          std::min(deadline.left_ms(), kConnectMs)));
        Result<std::unique_ptr<Channel>> channel = Channel::connect(endpoints_[at], hello_, until);
        if (channel.ok()) {
            active_.store(at, std::memory_order_relaxed);
            namespace_epoch_.store((*channel)->welcome().ns_epoch, std::memory_order_relaxed);
            return channel;
        }
        last = channel.status();
        if (is_final(last.code()) || deadline.expired()) {
            break;
        }
    }
    return last;
}

Status MasterClient::note(Status status) {
    if (!is_connection_failure(status.code())) {
        breaker_.success();
        return status;
    }
    breaker_.failure();
    failures_.fetch_add(1, std::memory_order_relaxed);
    if (status.code() == Code::kDeadlineExceeded) {
        return status;
    }
    return {Code::kUnavailable, "no master answers: " + status.to_string()};
}

uint32_t MasterClient::remote_timeout_ms(Deadline deadline) {
    const auto left = static_cast<uint32_t>(deadline.left_ms());
    const uint32_t margin = std::clamp(left / 10, 2u, 200u);
    return std::clamp(left > margin ? left - margin : 1u, 1u, limits::kMaxTimeoutMs);
}

}  // namespace kvstore
