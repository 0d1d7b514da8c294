// Leases: what nodes keep for this process for as long as its connection lives.
//
// Each node gets a channel of its own here, because what it grants ends with the connection. A
// thread renews the leases; it waits while there are none.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string_view>
#include <thread>
#include <vector>

#include "base/fork_guard.h"
#include "base/mutex.h"
#include "client/peer_node.h"

namespace kvstore {

class LeaseKeeper {
  public:
    struct Grant {
        std::shared_ptr<PeerNode> peer;
        uint64_t lease_id = 0;
        uint64_t connection = 0;  // which of the connections to that node granted it
    };

    LeaseKeeper() = default;
    ~LeaseKeeper();
    LeaseKeeper(const LeaseKeeper&) = delete;
    LeaseKeeper& operator=(const LeaseKeeper&) = delete;

    // Leases the longest prefix of `keys` that this node has; `length` says how long it is, and the
    // grant is only good when it is not 0.
    Result<Grant> acquire(const std::shared_ptr<PeerNode>& peer,
                          std::span<const std::string_view> keys, uint32_t lease_ms,
                          uint32_t* length, Deadline deadline) KV_EXCLUDES(mutex_);
    bool alive(const Grant& grant) KV_EXCLUDES(mutex_);
    void release(std::span<const Grant> grants) KV_EXCLUDES(mutex_);

    // Closes all channels, and with them everything that was granted.
    void shutdown() KV_EXCLUDES(mutex_);

  private:
    // A channel with the leases that were granted on it.
    struct LeaseChannel {
        explicit LeaseChannel(std::shared_ptr<PeerNode> to) : peer(std::move(to)) {}

        const std::shared_ptr<PeerNode> peer;
        Mutex mutex;  // held during I/O; taken before LeaseKeeper::mutex_
        std::unique_ptr<Channel> channel KV_GUARDED_BY(mutex);
        uint64_t connection KV_GUARDED_BY(mutex) = 0;                   // grows with each
        std::map<uint64_t, uint32_t> leases KV_GUARDED_BY(mutex) = {};  // id → lease_ms

        Status connect(Deadline deadline) KV_REQUIRES(mutex);
        void lose() KV_REQUIRES(mutex);
        bool granted(const Grant& grant) const KV_REQUIRES(mutex);
        uint32_t renew() KV_EXCLUDES(mutex);
    };

    std::shared_ptr<LeaseChannel> channel_to(const std::shared_ptr<PeerNode>& peer)
        KV_EXCLUDES(mutex_);
    void renew_soon(uint32_t lease_ms) KV_EXCLUDES(mutex_);
    void renew_loop() KV_EXCLUDES(mutex_);

    ForkGuard fork_guard_;
    Mutex mutex_;
    CondVar changed_;
    bool stopping_ KV_GUARDED_BY(mutex_) = false;
    // Of the leases that were ever asked for.
    uint32_t shortest_ms_ KV_GUARDED_BY(mutex_) = UINT32_MAX;
    std::map<PeerNode*, std::shared_ptr<LeaseChannel>> channels_ KV_GUARDED_BY(mutex_);
    // Set once, while not stopping_; joined by shutdown(). Leaked by a forked child, which has no
    // such thread.
    std::unique_ptr<std::thread> thread_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
