// Lives and deaths of the master, and its control plane's threads.
#include "cluster.h"

namespace kvstore::sim {
namespace {

constexpr uint64_t kTickMs = 100;         // of the registry (MasterServer)
constexpr uint32_t kJournalWaitMs = 200;  // Journal
constexpr uint64_t kTrimIntervalNs = kSecond;

}  // namespace

Cluster::Cluster(Runtime& runtime, Network& network, ClusterOptions options)
    : runtime_(runtime), network_(network), options_(std::move(options)), nodes_(options_.nodes) {
    for (uint8_t& byte : disk_.secret) {
        byte = static_cast<uint8_t>(runtime_.random().next());
    }
}

void Cluster::start_master() {
    auto life = std::make_shared<MasterLife>();
    life->process = network_.start_process(kMasterHost, "m");
    master_ = life;
    runtime_.spawn(life->process, "master", [this, life] { run_master(life); });
}

void Cluster::run_master(const std::shared_ptr<MasterLife>& life) {
    ++disk_.epoch;
    MasterCore::Options options;
    options.secret = disk_.secret;
    options.epoch = disk_.epoch;
    options.rebuilding = policy::rebuilding();
    options.trimmed_seq = disk_.trimmed_seq;
    options.version_floor = disk_.version_floor;
    runtime_.log("master starts, epoch %u%s, %zu operations", options.epoch,
                 options.rebuilding ? ", rebuilding" : "", disk_.ops.size());
    life->core = std::make_unique<MasterCore>(options);
    for (const auto& [name, epoch] : disk_.namespaces) {
        (void)life->core->set_namespace_epoch(name.first, name.second, epoch);
    }
    std::vector<std::vector<uint8_t>> records;
    for (const auto& [seq, record] : disk_.ops) {
        records.push_back(record);
    }
    if (const Status loaded = life->core->load_ops(records); !loaded.ok()) {
        runtime_.fail("journal", loaded.to_string());
    }
    if (life->dead) {
        return;
    }
    policy::carry_out(*life->core, policy::start_master());
    MasterBlockPort::Options service;
    service.listen = {kMasterEndpoint};
    service.loops = options_.loops;
    service.cluster_id = "sim";
    service.grpc_endpoint = "10.0.0.1:50052";
    life->service = std::make_unique<MasterBlockPort>(*life->core, service);
    life->threads = 1;
    runtime_.spawn(life->process, "journal", [this, life] { journal_loop(*life); });
    const auto bound = life->service->start();
    if (!bound.ok()) {
        runtime_.fail("harness", "the master cannot listen: " + bound.status().to_string());
    }
    if (!life->dead) {
        life->serving = true;
        ++life->threads;
        control_loop(*life);
    }
}

void Cluster::control_loop(MasterLife& life) {
    uint64_t next_tick_ns = runtime_.now_ns();
    while (!life.dead) {
        if (!life.calls.empty()) {
            const auto call = std::move(life.calls.front());
            life.calls.pop_front();
            call(life);
        } else if (runtime_.now_ns() >= next_tick_ns) {
            next_tick_ns = runtime_.now_ns() + kTickMs * kMs;
            const std::vector<MasterCore::NodeView> seen = life.core->nodes();
            if (!life.dead) {
                policy::carry_out(*life.core, policy::tick(seen));
            }
        } else {
            runtime_.block(&life, next_tick_ns);
        }
    }
    --life.threads;
}

// ---- the disk --------------------------------------------------------------------------------

// Takes its time. False: the process has died meanwhile; then the write has happened or not.
bool Cluster::disk_write(MasterLife& life) {
    Random& random = runtime_.random();
    const uint64_t most = random.chance(options_.disk_slow_permille) ? options_.disk_slow_max_ns
                                                                     : options_.disk_max_ns;
    runtime_.sleep_ns(random.between(options_.disk_min_ns, most));
    return !life.dead;
}

void Cluster::journal_loop(MasterLife& life) {
    uint64_t trimmed_ns = runtime_.now_ns();
    while (!life.dead) {
        const auto batch = life.core->wait_journal(kJournalWaitMs);
        if (life.dead) {
            break;
        }
        if (!batch.empty()) {
            const uint32_t epoch = disk_.epoch;
            const bool alive = disk_write(life);
            // Begun before the death, it may reach the disk; not when a successor has read it.
            if (!alive && (disk_.epoch != epoch || runtime_.random().chance(500))) {
                break;
            }
            for (const auto& [seq, record] : batch) {
                disk_.ops[seq] = record;
                if (const Result<Op> op = OpsLog::decode(record); op.ok() && on_durable) {
                    runtime_.log("durable op %llu kind %d %s up to %llx",
                                 static_cast<unsigned long long>(seq), static_cast<int>(op->kind),
                                 op->key.c_str(), static_cast<unsigned long long>(op->version));
                    on_durable(*op);
                }
            }
            if (!alive) {
                break;
            }
            life.core->journal_done(batch.back().first);
        }
        if (runtime_.now_ns() >= trimmed_ns + kTrimIntervalNs) {
            trimmed_ns = runtime_.now_ns();
            trim(life);
        }
    }
    --life.threads;
}

void Cluster::trim(MasterLife& life) {
    const auto [seq, floor] = life.core->journal_trimmed();
    if (seq <= disk_.trimmed_seq) {
        return;
    }
    const auto namespaces = life.core->directory().namespaces().all();
    if (!disk_write(life)) {
        return;
    }
    for (const auto& [ns, epoch] : namespaces) {
        if (epoch != 0) {
            disk_.namespaces[{ns->tenant, ns->name}] = epoch;
        }
    }
    disk_.trimmed_seq = seq;
    disk_.version_floor = floor;
    disk_.ops.erase(disk_.ops.begin(), disk_.ops.upper_bound(seq));
}

// ---- deaths ----------------------------------------------------------------------------------

void Cluster::crash_master(bool silent) {
    const std::shared_ptr<MasterLife> life = master_;
    life->dead = true;
    network_.kill(life->process, silent);
    runtime_.wake(life.get());
    bury(life);
}

// The objects of a dead process go without anybody seeing: its sockets lead nowhere.
void Cluster::bury(const std::shared_ptr<MasterLife>& life) {
    runtime_.spawn(life->process, "undertaker", [this, life] {
        // A process that was still starting ends by itself first.
        runtime_.sleep_ms(20);
        if (life->core != nullptr) {
            life->core->stop();
        }
        if (life->service != nullptr) {
            life->service->stop();
        }
        while (life->threads != 0) {
            runtime_.sleep_ms(50);
        }
        life->service.reset();
        life->core.reset();
    });
}

}  // namespace kvstore::sim
