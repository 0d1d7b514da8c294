// Carries out the master's copy orders: pushes objects that this node holds to other nodes.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "net/channel.h"
#include "node/domains.h"
#include "node/master_link.h"
#include "node/node_metrics.h"
#include "node/node_namespaces.h"
#include "node/nvme_tier.h"
#include "node/replica_wishes.h"
#include "store/block_store.h"

namespace kvstore {

// A thread of its own, because it does blocking I/O. Orders for one node and namespace that have
// queued up travel in one message.
class PeerCopier {
  public:
    struct Options {
        HashSecret hash_secret{};
        HelloParams hello;  // role node
        uint32_t connect_ms = 2'000;
        uint32_t copy_ms = 30'000;  // of one message, its acknowledgement by the master included
    };
    using Done = std::function<void(const CopyOrder& job, Code code)>;

    // `tier` may be null.
    PeerCopier(Options options, Domains& domains, NvmeTier* tier, NodeNamespaces& namespaces,
               const ReplicaWishes& wishes, NodeMetrics& metrics, Done done);
    ~PeerCopier();
    void start();
    void stop();  // idempotent
    // How it presents itself from the next connection on.
    void set_credentials(std::string principal, std::string token);
    void push(CopyOrder job);
    void drop_link(uint64_t link);  // its orders are void

  private:
    static constexpr size_t kMaxQueued = 65'536;
    static constexpr size_t kMaxBatch = 256;
    static constexpr uint64_t kMaxBatchBytes = 32u << 20;
    static constexpr size_t kMaxChannels = 64;

    struct Outgoing {
        std::vector<CopyOrder> jobs;  // those that are sent
        std::vector<BlockStore::Found> found;
        std::vector<uint32_t> crcs;
        std::vector<std::string> parents;  // empty where there is none
        uint64_t bytes = 0;
    };

    void loop();
    std::vector<CopyOrder> next_batch();
    Outgoing load(std::vector<CopyOrder> jobs);
    BlockStore::Found find(const NamespaceRef& ns, const BlockStore::Key& key);
    void send(Outgoing outgoing);
    Status exchange(Channel& channel, const Outgoing& outgoing, std::vector<Code>* codes);
    Result<Channel*> channel_to(const CopyOrder& job);

    const Options options_;  // but for the hello, which is below
    Domains& domains_;
    NvmeTier* const tier_;
    NodeNamespaces& namespaces_;
    const ReplicaWishes& wishes_;
    NodeMetrics& metrics_;
    const Done done_;

    Mutex mutex_;
    CondVar changed_;
    HelloParams hello_ KV_GUARDED_BY(mutex_);
    bool stopping_ KV_GUARDED_BY(mutex_) = false;
    std::deque<CopyOrder> queue_ KV_GUARDED_BY(mutex_);
    Channel* busy_ KV_GUARDED_BY(mutex_) = nullptr;             // for stop()
    std::map<std::string, std::unique_ptr<Channel>> channels_;  // by endpoint; the thread's own
    std::thread thread_;
};

}  // namespace kvstore
