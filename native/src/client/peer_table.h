// The nodes of the cluster as a client knows them: the master's table, refreshed when it has
// changed.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "client/master_client.h"
#include "client/peer_node.h"

namespace kvstore {

inline constexpr uint64_t kTableAgeMs =
    1000;  // states and weights older than this are asked for again

// A node of this host with the memory that is mapped now.
struct LocalPeer {
    std::shared_ptr<PeerNode> peer;
    std::shared_ptr<LocalNode> node;
};

// Thread-safe. Nodes are never forgotten while the store lives: a PeerNode stays valid.
class PeerTable {
  public:
    // `numa`: the NUMA node whose memory this process uses; empty: not known.
    PeerTable(MasterClient& master, HelloParams node_hello, Transport transport,
              OnUnattached on_unattached, std::string numa = "");

    Status refresh(Deadline deadline) KV_EXCLUDES(refresh_mutex_);
    // Refreshes when the table is of another state than `nodes_id`.
    Status ensure(uint64_t nodes_id, Deadline deadline) KV_EXCLUDES(refresh_mutex_);
    // Refreshes a table older than `max_age_ms`; when that fails it stays as it is.
    void keep_fresh(uint64_t max_age_ms, Deadline deadline) KV_EXCLUDES(refresh_mutex_);

    std::shared_ptr<PeerNode> at(uint32_t index) const;
    std::vector<std::shared_ptr<PeerNode>> all() const;
    // The nodes whose memory is usable, re-attached where they have restarted; the home node first,
    // and those of this process's NUMA node before others. Fills `out`, which the caller reuses.
    void locals(Deadline deadline, std::vector<LocalPeer>* out);
    // Numbers of the nodes that this client could not reach when it last tried, a moment ago, or
    // that restart and whose memory it has not mapped: most often none.
    std::vector<uint32_t> broken() const;
    // As the node said by socket, or by its label until it has.
    bool on_this_host(const PeerNode& peer) const;

    // Where the next put goes: two draws by weight, the one with more free space wins. Only nodes
    // that are alive and `eligible`; null when there is none.
    std::shared_ptr<PeerNode> choose(std::span<const std::shared_ptr<PeerNode>> eligible) const;
    static std::vector<std::shared_ptr<PeerNode>> taking_puts(
        std::span<const std::shared_ptr<PeerNode>> nodes);
    // Whether a node other than this one does.
    bool another_takes_puts(const PeerNode& peer) const;
    void shutdown();

  private:
    Status fetch(Deadline deadline) KV_REQUIRES(refresh_mutex_) KV_EXCLUDES(mutex_);
    struct Snapshot {
        uint64_t nodes_id = 0;
        uint64_t fetched_ms = 0;
        std::vector<std::shared_ptr<PeerNode>> nodes;            // in the master's order
        std::unordered_map<uint32_t, size_t> by_index;           // position in `nodes`
        std::vector<std::shared_ptr<PeerNode>> host_candidates;  // with a Unix endpoint, by NUMA
    };
    std::shared_ptr<const Snapshot> snapshot() const KV_EXCLUDES(mutex_);
    void install(const NodesReply& reply) KV_REQUIRES(refresh_mutex_) KV_EXCLUDES(mutex_);

    MasterClient& master_;
    const HelloParams node_hello_;
    const Transport transport_;
    const OnUnattached on_unattached_;
    const std::string host_;
    const std::string numa_;
    Mutex refresh_mutex_;  // held by the one thread that asks the master, during I/O
    mutable Mutex mutex_ KV_ACQUIRED_AFTER(refresh_mutex_);  // those of the nodes come within
    std::shared_ptr<const Snapshot> snapshot_ KV_GUARDED_BY(mutex_);
    std::unordered_map<std::string, std::shared_ptr<PeerNode>> known_
        KV_GUARDED_BY(mutex_);  // by node id
};

// A cheap draw for choices that need no quality: replicas, nodes. Thread-safe.
uint64_t cheap_random();

}  // namespace kvstore
