// Leases and socket holds: what nodes keep for this process for as long as its session lives.
//
// Each node gets one session of its own here, because what it grants ends with the session. A
// thread renews the leases; it runs only while there are any.
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
        uint64_t session = 0;  // which of the sessions with that node granted it
    };

    LeaseKeeper() = default;
    ~LeaseKeeper();
    LeaseKeeper(const LeaseKeeper&) = delete;
    LeaseKeeper& operator=(const LeaseKeeper&) = delete;

    // Leases the longest prefix of `keys` that this node has; `length` says how long it is, and the
    // grant is only good when it is not 0.
    Result<Grant> acquire(const std::shared_ptr<PeerNode>& peer,
                          std::span<const std::string_view> keys, uint32_t lease_ms,
                          uint32_t* length, Deadline deadline);
    bool alive(const Grant& grant);
    void release(std::span<const Grant> grants);

    // Ends all sessions, and with them everything that was granted.
    void shutdown();

  private:
    struct Session {
        Mutex mutex;  // held during I/O on the channel
        std::shared_ptr<PeerNode> peer;
        std::unique_ptr<Channel> channel;
        uint64_t number = 0;                  // grows with each connection
        std::map<uint64_t, uint32_t> leases;  // id → lease_ms
    };

    std::shared_ptr<Session> session_with(const std::shared_ptr<PeerNode>& peer);
    Status connect(Session& session, Deadline deadline);
    void lose(Session& session);
    void renew_loop();
    uint32_t renew(Session& session);

    ForkGuard fork_guard_;
    Mutex mutex_;
    CondVar changed_;
    bool stopping_ = false;
    uint32_t shortest_ms_ = UINT32_MAX;  // of the leases that were ever asked for
    std::map<PeerNode*, std::shared_ptr<Session>> sessions_;
    std::unique_ptr<std::thread> thread_;  // leaked by a forked child, which has no such thread
};

}  // namespace kvstore
