// A node: owns a segment's blocks, serves clients and peers over Unix sockets and TCP, and keeps
// the master informed. Joins the block store (storage) with the block protocol (transport).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "node/domains.h"
#include "node/node_options.h"
#include "node/served_slots.h"
#include "node/spans.h"
#include "store/block_store.h"
#include "store/store_files.h"
#include "store/use_sampler.h"

namespace kvstore {

class NodeCore {
  public:
    // Takes over or creates the segment and the store; nothing listens yet. kInvalidArgument,
    // kVersionMismatch, kNoSpace or kIoError with a sentence that names the option. `files`: of
    // each domain, opened before the registration; none: anonymous memory.
    static Result<std::unique_ptr<NodeCore>> create(
        const NodeOptions& options, std::vector<std::unique_ptr<StoreFiles>> files = {});
    ~NodeCore();  // stop()

    // Listens and begins to connect to the master.
    Result<NodeEndpoints> start();
    // A new registration (after the master restarted or forgot this node): reconnects with it.
    void set_session(uint64_t session_id, const std::vector<std::string>& master_endpoints);
    // Who may connect; replaceable at any time. Sessions of principals that are not there any more,
    // or are not what they were, end. Empty: no authentication.
    void set_principals(std::vector<Principal> principals);
    // How the node presents itself from the next connection on; those that are open stay.
    void set_credentials(std::string principal, std::string token);
    // For reservations and sessions from now on; those that there are keep what they were given.
    void set_tunables(NodeTunables tunables);
    // A draining node takes no new object of clients or peers; reads and removes go on.
    void set_draining(bool draining);
    LinkState link_state() const;
    // True when the state was reached within the time.
    bool wait_link(LinkState state, uint32_t timeout_ms);
    // As MasterLink::heartbeat; kUnavailable, too, when there is no answer within the time. Blocks.
    Result<std::string> heartbeat(std::string_view request, uint32_t timeout_ms);
    NodeStats stats() const;
    // What somebody has done to the shared memory from outside, and which processes had it mapped;
    // empty while it is whole. The node has to be replaced by one with new memory.
    std::string damage();
    // Clients that have spoiled their slots since the last call, which costs them the mapping: a
    // phrase each.
    std::vector<std::string> take_lost_clients();
    // Refused peers and ended connections since the last call, for the log.
    std::vector<Refusal> take_refusals();
    // Of traced requests, finished since the last call.
    std::vector<FinishedSpan> take_spans();
    std::vector<SessionView> sessions() const;
    // Ends those with these ids; how many there were.
    size_t end_sessions(std::span<const uint64_t> ids, std::string_view reason);
    std::vector<TenantCounters> client_counters() const;
    // Uses since the last call, for the master; from now on they are sampled at `level`.
    UseSampler::Taken take_uses(uint32_t level);
    // The chains that were read most since the last call, over all domains.
    std::vector<BlockStore::PrefixUse> take_prefixes();
    // Serves the socket of a UCX process of a domain (ucx/ucx_process.h), by the domain's number.
    Status adopt_ucx(size_t domain, Fd socket);
    // That process has ended, and cannot write into the segment any more.
    void ucx_ended(size_t domain);
    Domains& domains();
    NvmeTier* nvme();  // null: none
    // Closes every connection and the link, ends the threads. Idempotent. The files of a folder
    // stay for the node's next life.
    void stop();

  private:
    struct Impl;
    explicit NodeCore(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace kvstore
