// One seeded run: a cluster, clients that write, read and remove, faults, rests, checks.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "checker.h"
#include "cluster.h"

namespace kvstore {
class ClientCore;
}

namespace kvstore::sim {

// Everything that is drawn from the seed before the run begins.
struct Plan {
    bool fault_free = false;
    bool evictions = false;
    size_t clients = 3;
    size_t keys = 8;
    size_t rounds = 2;  // of faults, each followed by a rest
    uint64_t chaos_ms = 12'000;
    uint64_t pause_max_ms = 400;  // of a client between two calls
    uint64_t fault_pause_max_ms = 2'500;
    uint64_t preempt_permille = 20;
    NetworkOptions network;
    ClusterOptions cluster;
};
Plan draw_plan(Random& random, uint64_t seed);

class Scenario {
  public:
    Scenario(Runtime& runtime, const Plan& plan);
    // The whole run; on the scheduler's stack.
    void run();
    const Checker& checker() const { return checker_; }

  private:
    struct Client {
        size_t index = 0;
        Process process = 0;
        bool dead = false;
        bool busy = false;
        bool ended = false;
        std::unique_ptr<ClientCore> core;
    };
    using ClientPtr = std::shared_ptr<Client>;

    void direct();
    void start_client(size_t index);
    void client_loop(const ClientPtr& client);
    void one_call(Client& client, ClientCore& core, const std::string& ns);
    void put(Client& client, ClientCore& core, const KeyName& name);
    void raw_put(Client& client, const KeyName& name, bool upsert);
    void get(Client& client, ClientCore& core, const KeyName& name);
    void remove(Client& client, ClientCore& core, const KeyName& name);
    void flush(Client& client, ClientCore& core, const std::string& ns);
    uint64_t draw_size();

    void chaos();
    void one_fault();
    void fault_in_the_network();
    void later(uint64_t delay_ms, std::function<void()> fn);
    void restart_node_later(size_t index, uint64_t delay_ms);
    Host random_host();
    void rest();
    bool settled();
    std::string why_unsettled();
    void final_reads();

    Runtime& runtime_;
    const Plan plan_;
    Network network_;
    Cluster cluster_;
    Checker checker_;
    std::vector<ClientPtr> clients_;
    std::vector<bool> starting_;  // nodes that will be started again
    bool master_starting_ = false;
    bool calling_ = false;  // clients go on with calls
    bool over_ = false;
    uint32_t timeout_ms_ = 3000;
};

}  // namespace kvstore::sim
