// What every path of a client shares: who it is, the master, the nodes, the counters.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "base/client_counters.h"
#include "base/fork_guard.h"
#include "base/hash.h"
#include "client/master_client.h"
#include "client/nearness.h"
#include "client/peer_table.h"
#include "client/placement_cache.h"
#include "client/ucx_lane.h"
#include "gpu/devices.h"

namespace kvstore {

struct ClientOptions {
    std::vector<std::string> masters;  // tried in order
    std::string tenant = "default";
    std::string ns;
    std::string principal;
    std::string token;
    std::string client_name;
    uint32_t timeout_ms = 5000;
    Transport transport = Transport::kAuto;
    uint32_t stripes = 1;  // connections that a large read from one node is spread over, at most
    uint32_t poll_us = 0;  // a wait polls for up to that long before it sleeps
    std::shared_ptr<const Tls> tls{};  // null: plain
    OnUnattached on_unattached{};
    UcxOptions ucx{};     // without libraries: none
    Locality locality{};  // of this process
};

using ClientCounts = std::array<std::atomic<uint64_t>, kClientCounterCount>;

// What one call counts, added up at its end.
struct CallTally {
    std::array<uint64_t, kClientCounterCount> values{};
    void add(ClientCounter counter, uint64_t amount = 1) {
        values[static_cast<size_t>(counter)] += amount;
    }
    void miss(MissReason reason) { add(miss_counter(reason)); }
    // Adds it to a store's counters and, unless it is null, to the slot that a node reads.
    void count(ClientCounts* counts, ClientSlot* slot) const;
};

// An object's key with its hash, computed once per namespace id (a flush in between changes the
// id).
struct HashedKey {
    std::string_view key;
    Hash128 hash;
    NamespaceId ns = 0;
};

class ClientContext {
  public:
    static Result<std::unique_ptr<ClientContext>> open(ClientOptions options);

    const ClientOptions& options() const { return options_; }
    MasterClient& master() { return *master_; }
    PeerTable& nodes() { return *nodes_; }
    PlacementCache& placements() { return placements_; }
    ClientUcx& ucx() { return ucx_; }
    // How near a node is, as far as labels and earlier calls tell.
    Nearness nearness(const PeerNode& peer) const;
    // Its nodes in the order in which a read asks them, equals as they were.
    void nearest_first(Placement* placement) const;
    // Whether no fabric leads to the node: it is not tried, unless transport ucx wants it.
    bool is_apart(const PeerNode& peer) const;
    // For a transfer of so many bytes with a node of another host, or of any with transport ucx.
    ClientUcx::Lease ucx_lane(PeerNode& peer, uint64_t bytes);
    Devices& devices() { return devices_; }
    // Open while no node could be written to: puts then do not wait for one.
    Breaker& write_breaker() { return write_breaker_; }
    Deadline deadline(uint32_t timeout_ms = 0) const;

    // Whether calls are still allowed: not closed, not in a forked child.
    Status check_open() const;
    bool in_forked_child() const { return fork_guard_.in_child(); }
    bool closed() const { return closed_.load(std::memory_order_acquire); }
    void shutdown();

    // The namespace's id as last heard from the master or a node.
    NamespaceId namespace_now() const { return namespace_id_.load(std::memory_order_relaxed); }
    void set_namespace(NamespaceId id) { namespace_id_.store(id, std::memory_order_relaxed); }
    // The id that it has, or had, in this epoch.
    NamespaceId namespace_at(uint32_t epoch) const {
        return namespace_id(secret_, options_.tenant, options_.ns, epoch);
    }
    // Makes the hash that of `ns`.
    void rehash(HashedKey* key, NamespaceId ns) const {
        if (key->ns != ns) {
            key->hash = key_hash(secret_, ns, key->key);
            key->ns = ns;
        }
    }
    Identity identity(const HashedKey& key, Version version = 0, uint64_t length = 0) const {
        return {tenant_id_, key.ns, key.hash, version, length};
    }

    // Adds to this store's counters and to the slot that the home node reads.
    void count(const CallTally& tally, ClientSlot* slot) { tally.count(counters_.get(), slot); }
    // For what is counted after the call, perhaps after the store was closed.
    const std::shared_ptr<ClientCounts>& counts() const { return counters_; }
    uint64_t counter(ClientCounter which) const;

  private:
    explicit ClientContext(ClientOptions options)
        : options_(std::move(options)), ucx_(options_.ucx) {}

    const ClientOptions options_;
    ForkGuard fork_guard_;
    std::atomic<bool> closed_{false};
    HashSecret secret_{};
    TenantId tenant_id_ = 0;
    std::atomic<NamespaceId> namespace_id_{0};
    const std::shared_ptr<ClientCounts> counters_ = std::make_shared<ClientCounts>();
    PlacementCache placements_;
    Devices devices_;
    Breaker write_breaker_;
    ClientUcx ucx_;
    std::unique_ptr<MasterClient> master_;
    std::unique_ptr<PeerTable> nodes_;
};

}  // namespace kvstore
