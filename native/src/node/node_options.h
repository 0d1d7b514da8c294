// What a node is created with, and what it tells of itself.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/hash.h"
#include "base/histogram.h"
#include "base/limits.h"
#include "base/status.h"
#include "net/event_server.h"
#include "node/hot_reads.h"
#include "node/master_link.h"
#include "node/nvme_tier.h"
#include "node/ucx_port.h"
#include "store/block_store.h"

namespace kvstore {

// What may change while the node serves.
struct NodeTunables {
    uint64_t client_cap_bytes = 0;  // reserved and unpublished bytes of one client; 0: half
    uint32_t reservation_ms = limits::kReservationMs;
    // Tenants that may map the memory of their domain: only for reading, or for writing as well.
    std::vector<std::string> shm_read;
    std::vector<std::string> shm_write = {"default"};
    uint64_t pin_cap_bytes = 0;     // hard-pinned bytes of one tenant; 0: half of the segment
    double principal_share = 0.75;  // of the sessions for clients, that one principal may hold
    HotReadsPolicy hot_reads;
    NvmeTierTunables nvme;
};

// A part of the node's memory, with a segment, an index and slots of its own (domains.h).
struct DomainOptions {
    std::string name;                  // part of its files' names; empty: `segment`, `index` …
    std::vector<std::string> tenants;  // whose objects lie here
    bool others = true;                // and those of tenants that no domain names
    bool is_private = false;           // nobody may map it
    uint64_t segment_bytes = 0;        // 0: all of the node's
};

struct NodeOptions : NodeTunables {
    // Identity; the node id names the node in the cluster, the epoch is this incarnation.
    std::string cluster_id;  // expected of the master; empty accepts any
    std::string node_id;
    uint32_t node_epoch = 1;
    uint64_t session_id =
        0;  // from the registration; the link and the heartbeats carry the same one
    HashSecret hash_secret{};  // the cluster's, from the registration

    // Where it listens. Either may be empty; port 0 is chosen by the system.
    std::string tcp_endpoint;   // "tcp://host:port"
    std::string unix_endpoint;  // "unix:///path" or "unix:@name"
    SocketAccess unix_access;   // of that path

    // Where its master is: tried in order. Empty keeps the link down until set_session().
    std::vector<std::string> master_endpoints;
    std::string principal;  // how the node presents itself to the master and to its peers
    std::string token;      // that principal's secret; empty: no authentication
    std::vector<Principal> principals;  // who may connect; empty: no authentication
    std::shared_ptr<const Tls> tls;     // of TCP, in both directions; null: plain

    // Memory.
    uint64_t segment_bytes = 0;
    std::vector<DomainOptions> domains;  // empty: one for everybody
    uint32_t index_entries = 0;          // of each domain; 0: from its size
    uint64_t lease_cap_bytes = 0;        // leased bytes of one tenant; 0: half
    bool allow_cold_restart = false;     // rather start empty than not at all, for lack of room

    // The tier below, a folder on each device. Empty: none.
    std::vector<std::string> nvme_dirs;
    uint64_t nvme_bytes = 0;  // of all of them; each has the same share
    bool discard_foreign_nvme = false;
    double nvme_keep_free = 0.05;  // share of the file system that new log files leave free
    // One for each folder; they outlive the node. Empty: every start scans.
    std::vector<NvmeCatalog*> nvme_catalogs;
    std::function<void(const NvmeProgress&)> on_nvme_progress;  // of the start

    bool ucx = false;      // UCX processes will be adopted (NodeCore::adopt_ucx)
    bool tracing = false;  // somebody takes the spans of traced requests

    uint32_t server_threads = 2;
    uint32_t poll_us = 0;              // each of them polls for up to that long before it sleeps
    uint32_t max_timeout_ms = 60'000;  // longest wait of a put for its claim or its announcement
    uint32_t backoff_max_ms = 1'000;   // longest pause between two attempts to reach the master
};

struct NodeEndpoints {
    std::string tcp;  // with the chosen port; empty when not listening
    std::string unix_socket;
};

// Everything the node counts. Each number is exact; they are not of one instant.
struct NodeStats {
    LinkState link = LinkState::kDown;
    std::string link_error;  // of the last attempt to connect, or the last loss
    uint64_t link_losses = 0;
    uint64_t applied_seq = 0;    // last operation of the master that was applied here
    std::string prefault_error;  // why no more memory will be ready; empty: all is well
    BlockStore::Stats store;     // of all domains
    struct InDomain {
        std::string name;
        uint64_t capacity_bytes = 0;
        uint64_t used_bytes = 0;
        uint64_t objects = 0;
        UcxPort::Stats ucx;
    };
    std::vector<InDomain> domains;
    NvmeTierStats nvme;
    uint64_t puts_under_way = 0;
    uint64_t spans_dropped = 0;
    uint64_t hits_dram = 0;
    uint64_t hits_nvme = 0;
    std::array<uint64_t, kMissReasonCount> misses{};
    uint64_t puts_ok = 0;
    uint64_t puts_exist = 0;
    uint64_t puts_failed = 0;
    uint64_t put_bytes_shm = 0;  // written by clients of this host straight into the segment
    uint64_t put_bytes_tcp = 0;  // received over sockets of either kind
    uint64_t put_bytes_ucx = 0;  // fetched from clients' registered memory
    uint64_t get_bytes_tcp = 0;
    uint64_t get_bytes_ucx = 0;  // that clients were told where to fetch
    uint64_t hot_asks = 0;
    uint64_t copies_in = 0;
    uint64_t copies_out = 0;
    uint64_t copies_failed = 0;
    uint64_t copy_bytes_in = 0;
    uint64_t copy_bytes_out = 0;
    uint64_t live_slots = 0;  // client processes that map the segment
    // Clients of this host that could not map it, by AttachCause.
    std::array<uint64_t, kAttachCauseCount> attaches_refused{};
    ServerStats server;
    Histogram::Snapshot put_us;    // reserve to the answer of the commit (or put)
    Histogram::Snapshot get_us;    // request to answer handed to the socket
    Histogram::Snapshot claim_us;  // claim to its answer
    Histogram::Snapshot announce_us;
};

}  // namespace kvstore
