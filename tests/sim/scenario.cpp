// The director: faults, rests, and the end of a run.
#include "scenario.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "client/client_core.h"

namespace kvstore::sim {
namespace {

constexpr uint64_t kSettleMs = 90'000;
constexpr uint64_t kSampleMs = 60;
constexpr uint64_t kLookMs = 150;
// A node learns from one heartbeat that it no longer drains, and acts on it with the next.
constexpr size_t kQuietLooks = 9;

}  // namespace

Plan draw_plan(Random& random, uint64_t seed) {
    Plan plan;
    plan.fault_free = seed % 10 == 0;
    plan.evictions = random.chance(250);
    plan.clients = random.between(2, 4);
    plan.keys = random.between(3, 10);
    plan.rounds = random.between(1, 2);
    plan.chaos_ms = random.between(6'000, 14'000);
    plan.pause_max_ms = random.chance(500) ? 60 : 500;
    plan.fault_pause_max_ms = random.between(600, 4'000);
    plan.preempt_permille = random.chance(300) ? 0 : random.between(1, 150);
    plan.network.delay_max_ns = random.chance(300) ? 10 * kMs : 500'000;
    plan.cluster.nodes = random.between(2, 4);
    plan.cluster.segment_bytes = plan.evictions ? 1u << 20 : 8u << 20;
    plan.cluster.loops = static_cast<uint32_t>(random.between(1, 2));
    plan.cluster.reservation_ms = random.chance(300) ? 2'000 : 30'000;
    // Large objects then take many round trips, while their neighbours come and go.
    plan.network.window_bytes = plan.evictions && seed % 2 == 0 ? 16 * 1024 : 256 * 1024;
    if (plan.fault_free) {
        plan.cluster.disk_slow_permille = 0;
        return plan;
    }
    plan.network.slow_permille = random.chance(500) ? 0 : random.between(1, 40);
    plan.network.slow_max_ns = random.chance(800) ? 300 * kMs : 2 * kSecond;
    plan.network.break_ppm = random.chance(500) ? 0 : random.between(100, 4'000);
    plan.network.refuse_permille = random.chance(700) ? 0 : random.between(1, 100);
    plan.network.split_permille = random.chance(500) ? 30 : 300;
    return plan;
}

Scenario::Scenario(Runtime& runtime, const Plan& plan)
    : runtime_(runtime),
      plan_(plan),
      network_(runtime),
      cluster_(runtime, network_, plan.cluster),
      checker_(cluster_, plan.evictions, plan.fault_free),
      starting_(plan.cluster.nodes, false) {
    for (size_t i = 0; i < plan.keys; ++i) {
        checker_.names.push_back({i % 3 == 2 ? "b" : "a", "key" + std::to_string(i)});
    }
}

void Scenario::run() {
    runtime_.log("plan: %zu nodes, %zu clients, %zu keys, %zu rounds%s%s", plan_.cluster.nodes,
                 plan_.clients, plan_.keys, plan_.rounds, plan_.fault_free ? ", no faults" : "",
                 plan_.evictions ? ", evictions" : "");
    network_.options = plan_.network;
    bool done = false;
    runtime_.spawn(0, "director", [this, &done] {
        direct();
        done = true;
    });
    runtime_.run(&done);
}

void Scenario::direct() {
    cluster_.start_master();
    for (size_t i = 0; i < cluster_.node_count(); ++i) {
        cluster_.start_node(i);
    }
    const NetworkOptions faulty = network_.options;
    rest();
    runtime_.set_preempt_permille(plan_.preempt_permille);
    for (size_t i = 0; i < plan_.clients; ++i) {
        clients_.push_back(nullptr);
        start_client(i);
    }
    for (size_t round = 0; round < plan_.rounds; ++round) {
        network_.options = faulty;
        calling_ = true;
        chaos();
        calling_ = false;
        rest();
        checker_.at_rest();
    }
    final_reads();
    over_ = true;
}

// ---- faults ----------------------------------------------------------------------------------

void Scenario::chaos() {
    const uint64_t until_ns = runtime_.now_ns() + plan_.chaos_ms * kMs;
    Random& random = runtime_.random();
    uint64_t next_fault_ns =
        runtime_.now_ns() + random.between(200, plan_.fault_pause_max_ms) * kMs;
    while (runtime_.now_ns() < until_ns) {
        runtime_.sleep_ms(kSampleMs);
        checker_.sample();
        if (!plan_.fault_free && runtime_.now_ns() >= next_fault_ns) {
            next_fault_ns = runtime_.now_ns() + random.between(20, plan_.fault_pause_max_ms) * kMs;
            one_fault();
        }
    }
}

void Scenario::later(uint64_t delay_ms, std::function<void()> fn) {
    runtime_.spawn(0, "later", [this, delay_ms, fn = std::move(fn)] {
        runtime_.sleep_ms(delay_ms);
        fn();
    });
}

void Scenario::restart_node_later(size_t index, uint64_t delay_ms) {
    starting_[index] = true;
    later(delay_ms, [this, index] {
        while (plan_.cluster.keep_memory && !cluster_.node(index).gone) {
            runtime_.sleep_ms(20);
        }
        starting_[index] = false;
        cluster_.start_node(index);
    });
}

Host Scenario::random_host() {
    Random& random = runtime_.random();
    const uint64_t draw = random.below(100);
    if (draw < 45) {
        return kMasterHost;
    }
    return draw < 85 ? Cluster::node_host(random.below(cluster_.node_count()))
                     : kFirstClientHost + static_cast<Host>(random.below(clients_.size()));
}

void Scenario::fault_in_the_network() {
    Random& random = runtime_.random();
    const Host a = random_host();
    Host b = random_host();
    if (a == b) {
        b = a == kMasterHost ? Cluster::node_host(random.below(cluster_.node_count()))
                             : kMasterHost;
    }
    if (random.chance(450)) {
        (void)network_.break_one(a, b);
        return;
    }
    network_.partition(a, b, random.chance(500));
    const uint64_t heal_ms =
        random.chance(600) ? random.between(50, 3'000) : random.between(3'000, 9'000);
    later(heal_ms, [this] { network_.heal_all(); });
}

void Scenario::one_fault() {
    Random& random = runtime_.random();
    const uint64_t draw = random.below(100);
    const size_t index = random.below(cluster_.node_count());
    if (draw < 40) {
        return fault_in_the_network();
    }
    if (draw < 62) {
        if (!cluster_.node_down(index) && !starting_[index]) {
            cluster_.crash_node(index, random.chance(300));
            restart_node_later(
                index, random.chance(500) ? random.between(10, 400) : random.between(400, 8'000));
        }
    } else if (draw < 80) {
        if (!cluster_.master_down() && !master_starting_) {
            cluster_.crash_master(random.chance(200));
            master_starting_ = true;
            later(random.chance(500) ? random.between(30, 400) : random.between(400, 4'000),
                  [this] {
                      master_starting_ = false;
                      cluster_.start_master();
                  });
        }
    } else if (draw < 86) {
        if (!cluster_.node_down(index) && !starting_[index] && cluster_.node(index).serving()) {
            cluster_.stop_node(index);
            starting_[index] = true;
            later(random.between(500, 4'000), [this, index] {
                while (!cluster_.node(index).agent_ended) {
                    runtime_.sleep_ms(20);
                }
                restart_node_later(index, 0);
            });
        }
    } else if (draw < 94) {
        const size_t client = random.below(clients_.size());
        if (!clients_[client]->dead) {
            clients_[client]->dead = true;
            network_.kill(clients_[client]->process, random.chance(300));
        }
    } else if (!cluster_.node_down(index)) {
        cluster_.drain(index, false);
        later(random.between(500, 3'000), [this, index] { cluster_.drain(index, true); });
    }
}

// ---- rests -----------------------------------------------------------------------------------

// Heals everything, brings everybody back and waits until nothing is in progress any more.
void Scenario::rest() {
    const uint64_t until_ns = runtime_.now_ns() + kSettleMs * kMs;
    network_.options.slow_permille = 0;
    network_.options.break_ppm = 0;
    network_.options.refuse_permille = 0;
    runtime_.log("rest");
    size_t quiet = 0;
    while (quiet < kQuietLooks) {
        network_.heal_all();
        if (cluster_.master_down() && !master_starting_) {
            cluster_.start_master();
        }
        for (size_t i = 0; i < cluster_.node_count(); ++i) {
            if (cluster_.node_down(i) && !starting_[i]) {
                restart_node_later(i, 0);
            }
            if (!cluster_.node_down(i) && cluster_.node(i).state == NodeState::kDraining) {
                cluster_.drain(i, true);
            }
        }
        for (size_t i = 0; i < clients_.size(); ++i) {
            if (clients_[i]->dead && clients_[i]->ended) {
                start_client(i);
            }
        }
        runtime_.sleep_ms(kLookMs);
        quiet = settled() ? quiet + 1 : 0;
        if (runtime_.now_ns() > until_ns) {
            runtime_.fail("comes to rest", why_unsettled());
        }
    }
    runtime_.log("at rest");
}

bool Scenario::settled() { return why_unsettled().empty(); }

std::string Scenario::why_unsettled() {
    MasterLife* const master = cluster_.master();
    if (master == nullptr || master->core->rebuilding()) {
        return master == nullptr ? "no master serves" : "the master is rebuilding";
    }
    if (network_.half_broken() != 0) {
        return "somebody has still to learn that a connection is broken";
    }
    for (const ClientPtr& client : clients_) {
        if (client->busy || client->dead) {
            return "client " + std::to_string(client->index) + " is in a call";
        }
    }
    const MasterCore::Stats stats = master->core->stats();
    if (stats.pending_waits != 0 || stats.durable_seq != stats.last_seq) {
        return "operations wait at the master";
    }
    if (stats.claims.granted + stats.claims.waiting + stats.claims.limbo + stats.claims.parked !=
        0) {
        return "claims are left: granted " + std::to_string(stats.claims.granted) + ", waiting " +
               std::to_string(stats.claims.waiting) + ", limbo " +
               std::to_string(stats.claims.limbo) + ", parked " +
               std::to_string(stats.claims.parked);
    }
    if (stats.copies.in_flight + stats.copies.queued != 0) {
        return "copies are in progress: " + std::to_string(stats.copies.in_flight) + ", queued " +
               std::to_string(stats.copies.queued);
    }
    for (size_t i = 0; i < cluster_.node_count(); ++i) {
        if (cluster_.node_down(i) || !cluster_.node(i).serving()) {
            return "node " + std::to_string(i + 1) + " is down";
        }
        NodeLife& life = cluster_.node(i);
        const NodeStats node = life.core->stats();
        if (node.link != LinkState::kUp || life.state != NodeState::kAlive) {
            return life.id + "'s link is " + link_state_name(node.link) + ", its state " +
                   std::to_string(static_cast<int>(life.state)) + ": " + node.link_error;
        }
        if (node.puts_under_way + node.store.reservations + node.store.quarantined != 0) {
            return life.id + " has writes in progress";
        }
    }
    for (const MasterCore::NodeView& node : master->core->nodes()) {
        if (!node.connected || !node.synced || node.applied_seq < stats.last_seq) {
            return node.info.node_id + " has not synced";
        }
    }
    return "";
}

}  // namespace kvstore::sim
