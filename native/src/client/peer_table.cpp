// Keeping the node table fresh, and choosing nodes from it.
#include "client/peer_table.h"

#include <unistd.h>

#include <algorithm>

#include "base/interrupt.h"

namespace kvstore {
namespace {

std::string host_name() {
    char name[256] = {};
    return gethostname(name, sizeof(name) - 1) == 0 ? std::string(name) : std::string();
}

double free_ratio(const PeerInfo& info) {
    return info.capacity_bytes == 0
               ? 0.0
               : static_cast<double>(info.free_bytes) / static_cast<double>(info.capacity_bytes);
}

}  // namespace

uint64_t cheap_random() {
    static std::atomic<uint64_t> state{monotonic_ns()};
    uint64_t z = state.fetch_add(0x9E3779B97F4A7C15, std::memory_order_relaxed);  // splitmix64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
}

PeerTable::PeerTable(MasterClient& master, HelloParams node_hello, Transport transport,
                     OnUnattached on_unattached, std::string numa)
    : master_(master),
      node_hello_(std::move(node_hello)),
      transport_(transport),
      on_unattached_(std::move(on_unattached)),
      host_(host_name()),
      numa_(std::move(numa)),
      snapshot_(std::make_shared<const Snapshot>()) {}

std::shared_ptr<const PeerTable::Snapshot> PeerTable::snapshot() const {
    const MutexLock lock(mutex_);
    return snapshot_;
}

Status PeerTable::refresh(Deadline deadline) {
    const MutexLock one_at_a_time(refresh_mutex_);
    return fetch(deadline);
}

Status PeerTable::fetch(Deadline deadline) {
    const WaitsLocked waits;
    Nodes request;
    request.timeout_ms = MasterClient::remote_timeout_ms(deadline);
    NodesReply reply;
    ChannelPool::Lease lease;
    const Status status = master_.exchange(request, &reply, &lease, deadline);
    if (status.ok()) {
        install(reply);
    }
    return status;
}

Status PeerTable::ensure(uint64_t nodes_id, Deadline deadline) {
    if (snapshot()->nodes_id == nodes_id) {
        return {};
    }
    const MutexLock one_at_a_time(refresh_mutex_);
    return snapshot()->nodes_id == nodes_id ? Status() : fetch(deadline);
}

void PeerTable::keep_fresh(uint64_t max_age_ms, Deadline deadline) {
    if (boottime_ms() - snapshot()->fetched_ms < max_age_ms) {
        return;
    }
    // One thread asks; the others go on with what is known.
    if (refresh_mutex_.try_lock()) {
        (void)fetch(deadline);
        refresh_mutex_.unlock();
    }
}

void PeerTable::install(const NodesReply& reply) {
    auto next = std::make_shared<Snapshot>();
    next->nodes_id = reply.nodes_id;
    next->fetched_ms = boottime_ms();
    std::vector<std::shared_ptr<LocalNode>> gone;  // unmapped when the mutex is free again
    const MutexLock lock(mutex_);
    for (size_t row = 0; row < reply.indexes.size(); ++row) {
        PeerInfo info;
        info.index = reply.indexes[row];
        info.id = std::string(reply.ids[row]);
        info.state = static_cast<NodeState>(reply.states[row]);
        if (!reply.restarting.empty() && reply.restarting[row] != 0) {
            info.state = NodeState::kRestarting;
        }
        info.tcp_endpoint = std::string(reply.tcp_endpoints[row]);
        info.unix_endpoint = std::string(reply.unix_endpoints[row]);
        info.host = std::string(reply.hosts[row]);
        info.locality = Locality{.numa = std::string(reply.numas[row]),
                                 .rack = std::string(reply.racks[row]),
                                 .rdma_domain = std::string(reply.rdma_domains[row])}
                            .bounded();
        info.weight = reply.weights[row];
        info.free_bytes = reply.free_bytes[row];
        info.capacity_bytes = reply.capacity_bytes[row];
        info.epoch = reply.epochs[row];
        const bool has_unix = !info.unix_endpoint.empty();
        std::shared_ptr<PeerNode>& peer = known_[info.id];
        if (peer == nullptr) {
            peer = std::make_shared<PeerNode>(std::move(info), node_hello_, transport_,
                                              on_unattached_);
        } else {
            gone.push_back(peer->update(std::move(info)));
        }
        next->by_index[reply.indexes[row]] = next->nodes.size();
        next->nodes.push_back(peer);
        if (has_unix && transport_ != Transport::kTcp && transport_ != Transport::kUcx) {
            next->host_candidates.push_back(peer);
        }
    }
    std::stable_partition(next->host_candidates.begin(), next->host_candidates.end(),
                          [this](const std::shared_ptr<PeerNode>& peer) {
                              return !numa_.empty() && peer->info()->locality.numa == numa_;
                          });
    for (const auto& [id, peer] : known_) {
        if (!next->by_index.contains(peer->info()->index)) {
            gone.push_back(peer->forget());
        }
    }
    snapshot_ = std::move(next);
}

std::shared_ptr<PeerNode> PeerTable::at(uint32_t index) const {
    const std::shared_ptr<const Snapshot> now = snapshot();
    const auto found = now->by_index.find(index);
    return found == now->by_index.end() ? nullptr : now->nodes[found->second];
}

std::vector<std::shared_ptr<PeerNode>> PeerTable::all() const { return snapshot()->nodes; }

void PeerTable::locals(Deadline deadline, std::vector<LocalPeer>* out) {
    out->clear();
    const std::shared_ptr<const Snapshot> now = snapshot();
    for (const std::shared_ptr<PeerNode>& peer : now->host_candidates) {
        if (std::shared_ptr<LocalNode> node = peer->local(deadline)) {
            out->push_back({peer, std::move(node)});
        }
    }
}

std::vector<uint32_t> PeerTable::broken() const {
    const std::shared_ptr<const Snapshot> now = snapshot();
    std::vector<uint32_t> out;
    for (const auto& [index, position] : now->by_index) {
        const std::shared_ptr<PeerNode>& node = now->nodes[position];
        const bool restarts = node->info()->state == NodeState::kRestarting;
        if (restarts ? node->kept() == nullptr : !node->breaker().ready()) {
            out.push_back(index);
        }
    }
    return out;
}

bool PeerTable::on_this_host(const PeerNode& peer) const {
    const Place place = peer.place();
    return place == Place::kUnknown ? !host_.empty() && peer.info()->host == host_
                                    : place == Place::kThisHost;
}

std::vector<std::shared_ptr<PeerNode>> PeerTable::taking_puts(
    std::span<const std::shared_ptr<PeerNode>> nodes) {
    std::vector<std::shared_ptr<PeerNode>> out;
    std::copy_if(nodes.begin(), nodes.end(), std::back_inserter(out),
                 [](const std::shared_ptr<PeerNode>& peer) { return peer->takes_puts(); });
    return out;
}

std::shared_ptr<PeerNode> PeerTable::choose(
    std::span<const std::shared_ptr<PeerNode>> eligible) const {
    if (eligible.size() <= 1) {
        return eligible.empty() ? nullptr : eligible.front();
    }
    uint64_t total = 0;
    for (const std::shared_ptr<PeerNode>& peer : eligible) {
        total += peer->info()->weight;
    }
    const auto draw = [&]() -> const std::shared_ptr<PeerNode>& {
        if (total == 0) {
            return eligible[cheap_random() % eligible.size()];
        }
        uint64_t point = cheap_random() % total;
        for (const std::shared_ptr<PeerNode>& peer : eligible) {
            const uint64_t weight = peer->info()->weight;
            if (point < weight) {
                return peer;
            }
            point -= weight;
        }
        return eligible.back();  // weights changed between the two passes
    };
    const std::shared_ptr<PeerNode>& one = draw();
    const std::shared_ptr<PeerNode>& two = draw();
    return free_ratio(*one->info()) >= free_ratio(*two->info()) ? one : two;
}

bool PeerTable::another_takes_puts(const PeerNode& peer) const {
    const std::shared_ptr<const Snapshot> now = snapshot();
    return std::ranges::any_of(now->nodes, [&](const std::shared_ptr<PeerNode>& other) {
        return other.get() != &peer && other->takes_puts();
    });
}

void PeerTable::shutdown() {
    const MutexLock lock(mutex_);
    for (const auto& [id, peer] : known_) {
        peer->shutdown();
    }
}

}  // namespace kvstore
