// A client's way to the master: sessions with whichever listed master answers, behind a breaker.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "client/breaker.h"
#include "client/channel_pool.h"

namespace kvstore {

class MasterClient {
  public:
    // `hello` needs tenant, namespace, principal and token.
    MasterClient(std::vector<Endpoint> endpoints, HelloParams hello);

    // The first session: says whether the cluster answers and who it is. Its refusals (no token, no
    // common version) are returned as they are.
    Status open(Deadline deadline);

    // Fixed after open(): a master that answers later must belong to the same cluster.
    const std::string& cluster_id() const { return cluster_id_; }
    const HashSecret& hash_secret() const { return hash_secret_; }
    uint32_t namespace_epoch() const { return namespace_epoch_.load(std::memory_order_relaxed); }
    uint64_t failures() const { return failures_.load(std::memory_order_relaxed); }

    // One request. Answers kUnavailable at once while the master is unreachable.
    template <class Request, class Reply>
    Status exchange(const Request& request, Reply* reply, ChannelPool::Lease* lease,
                    Deadline deadline) {
        if (!breaker_.allow()) {
            return {Code::kUnavailable, "the master did not answer a moment ago"};
        }
        return note(pool_.exchange(request, reply, lease, deadline));
    }
    void shutdown() { pool_.shutdown(); }

    // What a request should tell the master about its time: a little less than there is, so that
    // its own "too late" still arrives.
    static uint32_t remote_timeout_ms(Deadline deadline);

  private:
    Result<std::unique_ptr<Channel>> connect(Deadline deadline);
    Status note(Status status);

    const std::vector<Endpoint> endpoints_;
    HelloParams hello_;
    std::string cluster_id_;
    HashSecret hash_secret_{};
    std::atomic<size_t> active_{0};
    std::atomic<uint32_t> namespace_epoch_{0};
    std::atomic<uint64_t> failures_{0};
    Breaker breaker_;
    ChannelPool pool_;
};

}  // namespace kvstore
