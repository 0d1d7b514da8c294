// Lives and deaths of the nodes: what kvstore/node/agent.py and server.py do around NodeCore.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "base/file.h"
#include "cluster.h"
#include "net/channel.h"

namespace kvstore::sim {
namespace {

constexpr uint64_t kCallTimeoutMs = 2'000;
constexpr uint64_t kHeartbeatMs = 1'000;
constexpr uint16_t kNodePort = 7'000;

}  // namespace

void Cluster::start_node(size_t index) {
    auto life = std::make_shared<NodeLife>();
    life->id = "n" + std::to_string(index + 1);
    life->host = node_host(index);
    life->process = network_.start_process(life->host, life->id);
    life->incarnation = runtime_.random().next() | 1;
    nodes_[index] = life;
    runtime_.log("start %s", life->id.c_str());
    runtime_.spawn(life->process, life->id + "-agent", [this, life] { run_agent(life); });
}

void Cluster::crash_node(size_t index, bool silent) {
    const LifePtr life = nodes_[index];
    if (options_.keep_memory && life->core != nullptr) {
        save_memory(*life);
    }
    life->dead = true;
    network_.kill(life->process, silent);
    runtime_.wake(life.get());
    bury(life);
}

void Cluster::stop_node(size_t index) {
    runtime_.log("stop %s", nodes_[index]->id.c_str());
    nodes_[index]->stopping = true;
    network_.note_disturbance();
    saved_memory_.erase(nodes_[index]->id);
    runtime_.wake(nodes_[index].get());
}

void Cluster::bury(const LifePtr& life) {
    runtime_.spawn(life->process, "undertaker", [this, life] {
        while (!life->agent_ended) {
            runtime_.sleep_ms(20);
        }
        if (life->core != nullptr) {
            life->core->stop();
            life->core.reset();
        }
        life->gone = true;
    });
}

// ---- the control plane's calls ---------------------------------------------------------------

bool Cluster::call_master(const LifePtr& life, const std::function<void(MasterLife&)>& handle) {
    auto answered = std::make_shared<bool>(false);
    const auto cut = [this, host = life->host] { return network_.is_cut(host, kMasterHost); };
    runtime_.at(
        runtime_.now_ns() + network_.message_delay_ns(), [this, life, answered, cut, handle] {
            if (cut() || master_ == nullptr || !master_->serving || master_->dead) {
                return;
            }
            master_->calls.push_back([this, life, answered, cut, handle](MasterLife& master) {
                handle(master);
                if (master.dead) {
                    return;
                }
                runtime_.at(runtime_.now_ns() + network_.message_delay_ns(),
                            [this, life, answered, cut] {
                                if (!cut()) {
                                    *answered = true;
                                    runtime_.wake(life.get());
                                }
                            });
            });
            runtime_.wake(master_.get());
        });
    const uint64_t until_ns = runtime_.now_ns() + kCallTimeoutMs * kMs;
    while (!*answered && !life->dead && runtime_.now_ns() < until_ns) {
        runtime_.block(life.get(), until_ns);
    }
    return *answered && !life->dead;
}

void Cluster::pause_ms(const NodeLife& life, uint64_t duration_ms) {
    const uint64_t until_ns = runtime_.now_ns() + duration_ms * kMs;
    while (!life.dead && !life.stopping && runtime_.now_ns() < until_ns) {
        runtime_.block(&life, until_ns);
    }
}

bool Cluster::find_master(const LifePtr&) {
    HelloParams hello;
    hello.role = Role::kNode;
    hello.cluster_id = "";
    const Result<Endpoint> endpoint = Endpoint::parse(kMasterEndpoint);
    return Channel::connect(*endpoint, hello, Deadline::after_ms(kCallTimeoutMs)).ok();
}

Code Cluster::register_once(const LifePtr& life) {
    auto reply = std::make_shared<policy::Registered>();
    const uint64_t session = runtime_.random().next() | 1;
    const bool answered =
        call_master(life, [this, reply, session, id = life->id, incarnation = life->incarnation,
                           epoch = life->epoch, tcp = life->endpoint](MasterLife& master) {
            *reply =
                policy::register_node(id, incarnation, epoch, session, tcp, options_.segment_bytes);
            policy::carry_out(*master.core, reply->calls);
        });
    if (!answered) {
        return Code::kUnavailable;
    }
    if (reply->code == Code::kOk) {
        life->session = reply->session_id;
        life->epoch = reply->node_epoch;
        runtime_.log("%s registered, epoch %u", life->id.c_str(), life->epoch);
    }
    return reply->code;
}

bool Cluster::join(const LifePtr& life) {
    const bool served = life->session != 0;
    for (int failures = 1; !life->dead && !life->stopping; ++failures) {
        Code code = Code::kUnavailable;
        if (find_master(life) && !life->dead) {
            code = register_once(life);
        }
        if (life->dead || life->stopping) {
            return false;
        }
        switch (policy::after_register(code, served)) {
            case NodeStep::kContinue:
                return true;
            case NodeStep::kGiveUp:
                runtime_.log("%s gives up", life->id.c_str());
                return false;
            default:
                pause_ms(*life,
                         policy::backoff_ms(
                             failures, static_cast<double>(runtime_.random().below(1000)) / 1000));
        }
    }
    return false;
}

// ---- the node's process ----------------------------------------------------------------------

bool Cluster::create_core(const LifePtr& life) {
    NodeOptions options;
    options.cluster_id = "sim";
    options.node_id = life->id;
    options.node_epoch = life->epoch;
    options.session_id = life->session;
    options.hash_secret = disk_.secret;
    options.tcp_endpoint =
        "tcp://10.0.0." + std::to_string(life->host) + ":" + std::to_string(kNodePort);
    options.master_endpoints = {kMasterEndpoint};
    options.segment_bytes = options_.segment_bytes;
    options.index_entries = 1024;
    options.reservation_ms = options_.reservation_ms;
    options.server_threads = options_.loops;
    std::vector<std::unique_ptr<StoreFiles>> files;
    if (options_.keep_memory) {
        restore_memory(*life);
        StoreFiles::Options folder;
        folder.directory = memory_of(*life);
        auto opened = StoreFiles::open(folder);
        if (!opened.ok()) {
            runtime_.fail("harness", "no folder: " + opened.status().to_string());
        }
        files.push_back(std::move(*opened));
    }
    auto core = NodeCore::create(options, std::move(files));
    if (!core.ok()) {
        runtime_.fail("harness", "no node: " + core.status().to_string());
    }
    life->core = std::move(*core);
    if (life->dead) {
        return false;
    }
    const auto bound = life->core->start();
    if (!bound.ok()) {
        runtime_.fail("harness", "a node cannot listen: " + bound.status().to_string());
    }
    life->endpoint = bound->tcp;
    return !life->dead;
}

void Cluster::run_agent(const LifePtr& life) {
    // The life before on this host holds the port, and with keep_memory its files, to its end.
    if (join(life) && create_core(life)) {
        heartbeats(life);
    }
    if (!life->dead && life->session != 0) {
        (void)call_master(life, [id = life->id, session = life->session](MasterLife& master) {
            policy::carry_out(*master.core, policy::unregister(id, session));
        });
    }
    if (!life->dead) {
        if (life->core != nullptr) {  // a polite end of the process
            life->core->stop();
        }
        if (!life->dead) {
            life->dead = true;
            network_.kill(life->process, false);
            bury(life);
        }
    }
    life->agent_ended = true;
}

void Cluster::heartbeats(const LifePtr& life) {
    while (!life->dead && !life->stopping) {
        const bool draining = life->state == NodeState::kDraining;
        life->core->set_draining(draining);
        const NodeStats stats = life->core->stats();
        const bool refuses = draining && stats.store.reservations == 0 && stats.puts_under_way == 0;
        auto reply = std::make_shared<policy::Beaten>();
        const bool answered =
            call_master(life, [reply, id = life->id, session = life->session, tcp = life->endpoint,
                               refuses, capacity = stats.store.capacity_bytes,
                               used = stats.store.used_bytes](MasterLife& master) {
                *reply = policy::heartbeat(id, session, capacity, used, tcp, refuses);
                policy::carry_out(*master.core, reply->calls);
            });
        const Code code = answered ? reply->code : Code::kUnavailable;
        if (code == Code::kOk) {
            life->state = reply->state;
        }
        if (life->dead || life->stopping) {
            return;
        }
        switch (policy::after_heartbeat(code)) {
            case NodeStep::kRegister:
                if (!join(life)) {
                    return;
                }
                life->core->set_session(life->session, {kMasterEndpoint});
                break;
            case NodeStep::kFindMaster:
                (void)find_master(life);
                break;
            default:
                break;
        }
        pause_ms(*life, kHeartbeatMs);
    }
}

void Cluster::drain(size_t index, bool cancel) {
    if (MasterLife* const master = this->master()) {
        runtime_.log("%s %s", cancel ? "undrain" : "drain", nodes_[index]->id.c_str());
        network_.note_disturbance();
        master->calls.push_back([id = nodes_[index]->id, cancel](MasterLife& life) {
            policy::carry_out(*life.core, policy::drain(id, cancel));
        });
        runtime_.wake(master);
    }
}

// ---- memory that outlives its process (ClusterOptions::keep_memory) ----------------------------

std::string Cluster::memory_of(const NodeLife& life) const {
    return options_.memory_folder + "/" + life.id;
}

// A process that is killed leaves its files as they are at that moment; ours goes on to tidy up.
void Cluster::save_memory(const NodeLife& life) {
    auto& files = saved_memory_[life.id];
    files.clear();
    for (const auto& entry : std::filesystem::directory_iterator(memory_of(life))) {
        const Fd fd(open(entry.path().c_str(), O_RDONLY | O_CLOEXEC));
        SavedFile& saved = files[entry.path().filename()];
        saved.size = static_cast<off_t>(entry.file_size());
        // Most of them is holes.
        for (off_t end = 0, begin; (begin = lseek(fd.get(), end, SEEK_DATA)) >= 0;) {
            end = lseek(fd.get(), begin, SEEK_HOLE);
            auto& [offset, bytes] = saved.parts.emplace_back(begin, std::string());
            bytes.resize(static_cast<size_t>(end - begin));
            KV_ASSERT(pread(fd.get(), bytes.data(), bytes.size(), offset) == end - begin);
        }
    }
}

void Cluster::restore_memory(const NodeLife& life) {
    const std::string folder = memory_of(life);
    mkdir(options_.memory_folder.c_str(), 0700);
    mkdir(folder.c_str(), 0700);
    for (const auto& [name, saved] : saved_memory_[life.id]) {
        const Fd fd(
            open((folder + "/" + name).c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
        KV_ASSERT(ftruncate(fd.get(), saved.size) == 0);
        for (const auto& [offset, bytes] : saved.parts) {
            KV_ASSERT(pwrite(fd.get(), bytes.data(), bytes.size(), offset) ==
                      static_cast<ssize_t>(bytes.size()));
        }
    }
    saved_memory_.erase(life.id);
}

}  // namespace kvstore::sim
