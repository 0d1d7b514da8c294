// What a node answers: the block protocol's messages for clients, peers and the master, joined with
// the block store. Owns the server, the link to the master and the copier.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "net/event_server.h"
#include "node/connection_state.h"
#include "node/master_link.h"
#include "node/node_metrics.h"
#include "node/node_namespaces.h"
#include "node/node_options.h"
#include "node/peer_copier.h"
#include "node/put_flow.h"
#include "node/replica_wishes.h"
#include "node/send_budget.h"
#include "node/served_slots.h"
#include "node/spans.h"

namespace kvstore {

class NodeBlockPort final : public ConnectionHandler, public MasterLink::Handler {
  public:
    // Both outlive the service; `tier` may be null.
    NodeBlockPort(const NodeOptions& options, Domains& domains, NvmeTier* tier);
    ~NodeBlockPort() override;

    Result<NodeEndpoints> start();
    void stop();
    MasterLink& link() { return *link_; }
    void set_draining(bool draining) { draining_.store(draining); }
    void set_principals(std::vector<Principal> principals);
    void set_credentials(std::string principal, std::string token);
    void set_tunables(NodeTunables tunables);
    void fill(NodeStats& stats) const;
    // Finished since the last call; none unless the options say that they are exported.
    std::vector<FinishedSpan> take_spans() {
        return spans_ == nullptr ? std::vector<FinishedSpan>() : spans_->take();
    }
    std::vector<Refusal> take_refusals() { return server_->take_refusals(); }
    std::vector<SessionView> sessions() const { return server_->sessions(); }
    size_t end_sessions(std::span<const uint64_t> ids, std::string_view reason) {
        return server_->end_sessions(ids, Code::kClosed, reason);
    }

    // node_ucx.cpp
    // Serves the socket of a domain's UCX process.
    Status adopt_ucx(size_t domain, Fd socket);
    // That process is no more; to be told once it cannot write any more.
    void ucx_ended(size_t domain);

    // node_block_port.cpp
    Result<HelloAnswer> on_hello(Connection& connection, const Hello& hello) override;
    void on_open(Connection& connection) override;
    void on_frame(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body,
                  PayloadPlan* plan) override;
    void on_ping(Connection& connection) override;
    void on_payload(Connection& connection, const FrameHeader& header,
                    std::span<const uint8_t> body, const std::shared_ptr<void>& context) override;
    void on_close(Connection& connection, Code code, std::string_view reason) override;
    void on_tick(size_t loop) override;

    // node_link_events.cpp
    void on_link_down(uint64_t link) override;
    void on_claims(uint64_t link, std::span<const ClaimAnswer> results) override;
    void on_announced(uint64_t link, const NamespaceRef& ns,
                      std::span<const AnnounceResult> results) override;
    void on_ops(std::span<const OpView> ops) override;
    void on_applied(uint64_t seq) override;
    void on_copy(CopyOrder job) override;
    uint32_t list_objects(uint32_t cursor, size_t limit, std::vector<AnnounceGroup>& out) override;

  private:
    using Body = std::span<const uint8_t>;
    // Cursors of a listing: what NVMe has, and the next domain from its beginning.
    static constexpr uint32_t kListNvme = UINT32_MAX;
    static constexpr uint32_t kListNextDomain = UINT32_MAX - 1;
    struct Incoming;  // a put whose payload is being received
    struct Getting;   // a get, until its last byte is sent

    // node_block_port.cpp
    void begin_nvme();
    void share_memory(const Connection& connection, const Hello& hello, ClientConnection& session,
                      HelloAnswer* answer);
    int offer_memory(ClientConnection& session, const Hello& hello, pid_t pid,
                     std::vector<int>* fds);
    MapAccess map_access(const Peer& peer) const;
    void note_unattached(const Connection& connection, const Hello& hello);
    bool on_session_frame(Connection& connection, const FrameHeader& header, Body body);
    bool on_object_frame(Connection& connection, const FrameHeader& header, Body body);
    void slot_ready(Connection& connection, const FrameHeader& header, Body body);
    void resolve(Connection& connection, const FrameHeader& header);
    void answer_stats(Connection& connection, const FrameHeader& header);
    void watch_send_budget();

    // node_reads.cpp
    void get(Connection& connection, const FrameHeader& header, Body body);
    bool get_from_nvme(const std::shared_ptr<Getting>& get, const NamespaceRef& ns,
                       std::span<const BlockStore::Key> keys);
    void finish_get(const std::shared_ptr<Getting>& get);
    std::vector<uint8_t> note_remote(const NamespaceRef& ns, std::span<const BlockStore::Key> keys,
                                     std::span<const BlockStore::Found> found);
    void prefetch(Connection& connection, const FrameHeader& header, Body body);
    void explain(Connection& connection, const FrameHeader& header, Body body);
    void lease(Connection& connection, const FrameHeader& header, Body body);
    void lease_renew(Connection& connection, const FrameHeader& header, Body body);
    void lease_release(Connection& connection, const FrameHeader& header, Body body);
    void hold(Connection& connection, const FrameHeader& header, Body body);
    void unhold(Connection& connection, const FrameHeader& header, Body body);
    std::vector<BlockStore::Key> store_keys(const NamespaceEpoch& ns, const KeyList& keys,
                                            const U64Column& versions) const;

    // node_ucx.cpp
    class Pulling;
    Status check_ucx(const Connection& connection) const;
    void on_process_frame(Connection& connection, const FrameHeader& header, Body body);
    void ucx_open(Connection& connection, const FrameHeader& header);
    void ucx_get(Connection& connection, const FrameHeader& header, Body body);
    void ucx_done(Connection& connection, Body body);
    void ucx_put(Connection& connection, const FrameHeader& header, Body body);

    // node_writes.cpp
    void reserve(Connection& connection, const FrameHeader& header, Body body);
    void commit(Connection& connection, const FrameHeader& header, Body body);
    void abort(Connection& connection, const FrameHeader& header, Body body);
    void begin_put(Connection& connection, const FrameHeader& header, Body body, PayloadPlan* plan);
    void put_spares(Connection& connection, const FrameHeader& header, const Put& message);
    // For a later put of the session's process; all zero where there is no room for it.
    GrantedSpare grant_spare(const ClientConnection& session, uint64_t size_bytes);
    void begin_copy(Connection& connection, const FrameHeader& header, Body body,
                    PayloadPlan* plan);
    void plan_payload(const FrameHeader& header, std::shared_ptr<Incoming> incoming,
                      std::span<const PutFlow::Begun> begun, const U64Column& sizes,
                      uint64_t crcs_behind, PayloadPlan* plan);
    void finish_put(Incoming& incoming);

    // node_link_events.cpp
    void on_withdrawn(std::span<const BlockStore::Withdrawn> items);
    void withdraw_replaced();
    void apply(const OpView& op);
    void remove(const NamespaceRef& ns, const BlockStore::Key& key, Version version);
    uint32_t list_dram(BlockStore& store, uint32_t cursor, size_t limit,
                       std::vector<AnnounceGroup>& out);

    const NodeOptions options_;  // but for the tunables, which are below
    std::atomic<uint32_t> reservation_ms_;
    HotReads hot_reads_;
    Domains& domains_;
    NvmeTier* const tier_;
    NodeMetrics metrics_;
    const std::shared_ptr<SpanRing> spans_;  // null: none are exported
    ReplicaWishes wishes_;
    NodeNamespaces namespaces_;
    std::atomic<bool> draining_{false};
    const std::shared_ptr<SendBudget> send_budget_;
    const std::shared_ptr<SendBudget> nvme_budget_;  // for what is read from NVMe
    uint64_t seen_refusals_ = 0;                     // these two: the ticking loop only
    uint64_t pressed_until_ms_ = 0;
    std::shared_ptr<Authenticator> authenticator_;
    std::unique_ptr<EventServer> server_;
    std::unique_ptr<MasterLink> link_;
    std::unique_ptr<PeerCopier> copier_;

    size_t listed_domain_ = 0;  // these two: of the full announce; the link's loop only
    NvmeDevices::Cursor listed_nvme_;

    Mutex replaced_mutex_;
    // Older versions, withdrawn behind the new ones.
    std::vector<BlockStore::Withdrawn> replaced_ KV_GUARDED_BY(replaced_mutex_);
};

}  // namespace kvstore
