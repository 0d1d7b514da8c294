// The simulated cluster: a master with its disk, nodes with their agents, on simulated hosts. What
// serves inside them is the product; what is around it (files of the control plane, gRPC, process
// supervision) is played here.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "master/master_block_port.h"
#include "master/master_core.h"
#include "network.h"
#include "node/node_core.h"
#include "policy.h"
#include "runtime.h"

namespace kvstore::sim {

inline constexpr Host kMasterHost = 1;
inline constexpr Host kFirstNodeHost = 11;
inline constexpr Host kFirstClientHost = 101;
inline const char* const kMasterEndpoint = "tcp://10.0.0.1:50051";

struct ClusterOptions {
    size_t nodes = 3;
    uint64_t segment_bytes = 8u << 20;
    uint32_t reservation_ms = 30'000;
    uint32_t loops = 2;
    bool keep_memory = false;       // a restarted node finds the files of its life before
    std::string memory_folder;      // on tmpfs; with keep_memory
    uint64_t disk_min_ns = 50'000;  // one write of the master's disk
    uint64_t disk_max_ns = 3 * kMs;
    uint64_t disk_slow_permille = 20;
    uint64_t disk_slow_max_ns = 800 * kMs;
};

// What a master leaves behind. An append is there as a whole or not at all.
struct MasterDisk {
    uint32_t epoch = 0;
    HashSecret secret{};
    std::map<uint64_t, std::vector<uint8_t>> ops;
    uint64_t trimmed_seq = 0;
    Version version_floor = 0;
    std::map<std::pair<std::string, std::string>, uint32_t> namespaces;
};

class Cluster;

// One process of the master.
struct MasterLife {
    Process process = 0;
    std::unique_ptr<MasterCore> core;
    std::unique_ptr<MasterBlockPort> service;
    bool serving = false;
    bool dead = false;
    size_t threads = 0;                                  // control and journal
    std::deque<std::function<void(MasterLife&)>> calls;  // of the control plane
};

// One process of a node.
struct NodeLife {
    Process process = 0;
    std::string id;
    Host host = 0;
    uint64_t incarnation = 0;
    uint32_t epoch = 0;
    uint64_t session = 0;
    std::string endpoint;
    std::unique_ptr<NodeCore> core;
    NodeState state = NodeState::kJoining;
    bool stopping = false;  // politely
    bool dead = false;
    bool agent_ended = false;
    bool gone = false;
    bool serving() const { return core != nullptr && !dead && !stopping; }
};

class Cluster {
  public:
    Cluster(Runtime& runtime, Network& network, ClusterOptions options);

    Runtime& runtime() { return runtime_; }
    Network& network() { return network_; }
    const ClusterOptions& options() const { return options_; }
    const MasterDisk& disk() const { return disk_; }
    // Told of each operation when it has become durable.
    std::function<void(const Op&)> on_durable;

    void start_master();
    void crash_master(bool silent);
    // Null while there is none that serves.
    MasterLife* master() {
        return master_ != nullptr && master_->serving && !master_->dead ? master_.get() : nullptr;
    }
    bool master_down() const { return master_ == nullptr || master_->dead; }

    size_t node_count() const { return nodes_.size(); }
    void start_node(size_t index);
    void crash_node(size_t index, bool silent);
    void stop_node(size_t index);  // says goodbye
    NodeLife& node(size_t index) { return *nodes_[index]; }
    bool node_down(size_t index) const {
        return nodes_[index] == nullptr || nodes_[index]->dead || nodes_[index]->agent_ended;
    }
    void drain(size_t index, bool cancel);
    static Host node_host(size_t index) { return kFirstNodeHost + static_cast<Host>(index); }

  private:
    using LifePtr = std::shared_ptr<NodeLife>;
    void run_master(const std::shared_ptr<MasterLife>& life);
    void control_loop(MasterLife& life);
    void journal_loop(MasterLife& life);
    bool disk_write(MasterLife& life);
    void trim(MasterLife& life);
    void bury(const std::shared_ptr<MasterLife>& life);

    // A unary call of the control plane from `life`: false when it is lost or nobody answers.
    bool call_master(const LifePtr& life, const std::function<void(MasterLife&)>& handle);
    void run_agent(const LifePtr& life);
    bool join(const LifePtr& life);
    bool find_master(const LifePtr& life);
    Code register_once(const LifePtr& life);
    bool create_core(const LifePtr& life);
    void heartbeats(const LifePtr& life);
    void bury(const LifePtr& life);
    std::string memory_of(const NodeLife& life) const;
    void save_memory(const NodeLife& life);
    void restore_memory(const NodeLife& life);
    void pause_ms(const NodeLife& life, uint64_t duration_ms);

    Runtime& runtime_;
    Network& network_;
    const ClusterOptions options_;
    MasterDisk disk_;
    std::shared_ptr<MasterLife> master_;
    std::vector<LifePtr> nodes_;
    struct SavedFile {
        off_t size = 0;
        std::vector<std::pair<off_t, std::string>> parts{};
    };
    std::map<std::string, std::map<std::string, SavedFile>> saved_memory_;  // by node, by file
};

}  // namespace kvstore::sim
