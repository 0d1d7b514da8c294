// One node as a client knows it: what the master says of it, and the ways to reach it.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "base/locality.h"
#include "base/mutex.h"
#include "client/breaker.h"
#include "client/local_node.h"
#include "client/nearness.h"
#include "client/node_path.h"
#include "ucx/ucx_region.h"

namespace kvstore {

enum class Transport : uint8_t { kAuto = 0, kShm = 1, kTcp = 2, kUcx = 3 };

struct PeerInfo {
    uint32_t index = 0;  // the master's number for it
    std::string id;
    NodeState state = NodeState::kJoining;
    std::string tcp_endpoint;
    std::string unix_endpoint;
    std::string host;
    Locality locality{};
    uint32_t weight = 0;
    uint64_t free_bytes = 0;
    uint64_t capacity_bytes = 0;
    uint32_t epoch = 0;
};

// Thread-safe. Lives as long as its store, through restarts of the node.
class PeerNode {
  public:
    PeerNode(PeerInfo info, HelloParams hello, Transport transport,
             OnUnattached on_unattached = {});

    std::shared_ptr<const PeerInfo> info() const KV_EXCLUDES(mutex_);
    // Returns the memory of a node whose process has ended, which nobody reads any more: the caller
    // lets go of it, without a lock, as unmapping takes its time.
    [[nodiscard]] std::shared_ptr<LocalNode> update(PeerInfo info);
    // The same when the master does not know the node any more.
    [[nodiscard]] std::shared_ptr<LocalNode> forget();
    // Whether new objects may be put there.
    bool takes_puts() const { return info()->state == NodeState::kAlive && breaker_.ready(); }

    // The node's memory when it is on this host: attached before, or now. Null when it is not to be
    // had; then nothing is tried again for a short while.
    std::shared_ptr<LocalNode> local(Deadline deadline);
    // The same, without trying to attach.
    std::shared_ptr<LocalNode> attached() const;

    // The memory of a node that restarts, as its process has left it; null once the next process
    // has taken it over. It may be outdated: whoever reads there has asked the master which version
    // is valid.
    std::shared_ptr<LocalNode> kept() const;

    // What can be read of it now, without trying to attach.
    ReadWay read_way() const;

    // How it is reached, as far as earlier calls found out.
    NodePath path() const KV_EXCLUDES(mutex_);
    Place place() const { return place_.load(std::memory_order_relaxed); }

    // Channels for reads and writes by socket.
    ChannelPool& sockets() { return sockets_; }
    Breaker& breaker() { return breaker_; }
    const HelloParams& hello() const { return hello_; }
    // That this process's calls read from it now.
    std::atomic<uint64_t>& reading_bytes() { return reading_bytes_; }
    Result<std::unique_ptr<Channel>> open_socket(Deadline deadline);

    // Where its segment can be read by UCX, asked for on `channel` when that is not known yet; null
    // when it cannot be, or not now.
    std::shared_ptr<const UcxRegion> ucx_region(Channel& channel, Deadline deadline);
    bool knows_ucx_region() const KV_EXCLUDES(mutex_);
    // What was known is outdated: the next one asks again.
    void forget_ucx_region();
    Breaker& ucx_breaker() { return ucx_breaker_; }
    const Breaker& ucx_breaker() const { return ucx_breaker_; }
    // Why it is not reached by UCX, as far as that is known.
    std::string ucx_detail() const KV_EXCLUDES(mutex_);

    void shutdown();

  private:
    // Whether the process of this epoch was seen to end.
    bool ended(uint32_t epoch) const KV_EXCLUDES(mutex_);
    std::shared_ptr<LocalNode> take_if_gone() KV_REQUIRES(mutex_);
    std::shared_ptr<LocalNode> attach(const PeerInfo& known, const Endpoint& endpoint,
                                      Deadline deadline) KV_EXCLUDES(mutex_);
    void note_place(Place place, uint32_t epoch) KV_REQUIRES(mutex_);
    Result<std::unique_ptr<Channel>> open_pooled(Deadline deadline);
    void learn_place(const WelcomeData& welcome) KV_EXCLUDES(mutex_);
    void note_failure(const PeerInfo& known, AttachCause cause, const Status& status)
        KV_EXCLUDES(mutex_);
    void report_unattached(const PeerInfo& known, bool answered) KV_EXCLUDES(mutex_);

    const HelloParams hello_;
    const Transport transport_;
    mutable Mutex mutex_;
    std::shared_ptr<const PeerInfo> info_ KV_GUARDED_BY(mutex_);
    std::shared_ptr<LocalNode> local_ KV_GUARDED_BY(mutex_);
    bool closed_ KV_GUARDED_BY(mutex_) = false;
    NodePath path_ KV_GUARDED_BY(mutex_);  // of what it says, cause, detail and failures
    uint32_t failures_in_a_row_ KV_GUARDED_BY(mutex_) = 0;
    uint32_t failed_epoch_ KV_GUARDED_BY(mutex_) = 0;  // of the node at the last of them
    uint32_t reported_ KV_GUARDED_BY(mutex_) = 0;      // bit by AttachCause
    uint32_t place_epoch_ KV_GUARDED_BY(mutex_) = 0;   // of the node that place_ is of
    std::atomic<Place> place_{Place::kUnknown};        // stored with the mutex held
    const OnUnattached on_unattached_;
    // Held by the one thread that attaches, during I/O; mutex_ is taken within.
    Mutex attach_mutex_ KV_ACQUIRED_BEFORE(mutex_);
    Breaker breaker_;
    std::atomic<uint64_t> reading_bytes_{0};
    Breaker attach_breaker_;
    Breaker ucx_breaker_;
    std::shared_ptr<const UcxRegion> ucx_region_ KV_GUARDED_BY(mutex_);
    std::string ucx_detail_ KV_GUARDED_BY(mutex_);
    ChannelPool sockets_;
};

}  // namespace kvstore
