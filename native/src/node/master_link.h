// A node's connection to its master: keeps it alive with backoff, carries claims, the numbered
// stream of announces and withdraws, the master's operations in order, its copy orders, and the
// node's heartbeats.
//
// Life of one connection: connect and hello (a thread of its own) → adopted by the node's event
// server → missed operations are applied → everything is announced → up. A link number names one
// connection; whatever was claimed or announced on a lost one is void.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/hash.h"
#include "base/namespace_epoch.h"
#include "base/status.h"
#include "base/types.h"
#include "node/asked_heartbeat.h"
#include "node/link_state.h"
#include "wire/link_types.h"

namespace kvstore {

class Connection;
class EventServer;
class Tls;
struct FrameHeader;

class MasterLink {
  public:
    // What the link tells the node. Called from one server thread at a time, without locks held.
    class Handler {
      public:
        virtual ~Handler() = default;
        // Every claim and announce of this connection is void.
        virtual void on_link_down(uint64_t link) = 0;
        virtual void on_claims(uint64_t link, std::span<const ClaimAnswer> results) = 0;
        virtual void on_announced(uint64_t link, const NamespaceRef& ns,
                                  std::span<const AnnounceResult> results) = 0;
        virtual void on_ops(std::span<const OpView> ops) = 0;
        // Everything up to this operation has been applied here; acknowledge() is to follow once a
        // later life of the node would not undo it.
        virtual void on_applied(uint64_t seq) = 0;
        virtual void on_copy(CopyOrder job) = 0;
        // The next at most `limit` objects behind `cursor` (0 at the start); returns the cursor for
        // the next call, 0 when there is nothing behind.
        virtual uint32_t list_objects(uint32_t cursor, size_t limit,
                                      std::vector<AnnounceGroup>& out) = 0;
    };
    struct Options {
        std::string cluster_id;
        std::string node_id;
        uint32_t node_epoch = 0;
        uint64_t session_id = 0;   // 0: not registered yet, no connection is tried
        uint64_t applied_seq = 0;  // last operation that an earlier life of the node has applied
        HashSecret hash_secret{};
        std::vector<std::string> endpoints;  // tried in order
        std::string principal;
        std::string token;
        std::shared_ptr<const Tls> tls{};  // null: plain
        uint32_t connect_ms = 3'000;
        uint32_t backoff_max_ms = 1'000;
        uint32_t ping_ms = 2'000;    // a silent master is asked …
        uint32_t silent_ms = 5'000;  // … and given up
    };
    // `server` and `handler` outlive the link.
    MasterLink(Options options, EventServer& server, Handler& handler);
    ~MasterLink();

    void start();
    void stop();  // idempotent; before the server stops
    // A new registration: reconnects with it.
    void set_session(uint64_t session_id, std::vector<std::string> endpoints);
    // How it presents itself from the next connection on.
    void set_credentials(std::string principal, std::string token);
    LinkState state() const;
    bool wait_state(LinkState state, uint32_t timeout_ms);
    uint64_t losses() const;
    uint64_t applied_seq() const;
    // From any thread: the master need not keep operations up to this one for us.
    void acknowledge(uint64_t seq);
    std::string last_error() const;  // of the last attempt or connection

    // The number of the connection that is up; 0: none is.
    uint64_t up() const;

    // From any thread. False (kLost): connection `link` is not up any more, and nothing was sent.
    bool claim(uint64_t link, const NamespaceEpoch& ns, std::span<const ClaimItem> items,
               uint32_t timeout_ms);
    void abandon(uint64_t link, std::span<const uint64_t> claim_ids);
    // kNext: queued, and nobody gets a Pong of this node before it; kWaits: behind too many others.
    enum class Announced : uint8_t { kLost, kWaits, kNext };
    // To be followed by flush().
    Announced announce(uint64_t link, const NamespaceRef& ns, std::vector<AnnounceItem> items);
    void flush(uint64_t link);
    // Dropped while nothing has been announced on the current connection.
    void withdraw(const NamespaceRef& ns, std::vector<WithdrawItem> items);
    void copy_done(uint64_t link, uint64_t copy_id, Code code);
    // A HeartbeatRequest of the control plane. kUnavailable: the link is not up (while it syncs, an
    // answer might come only behind those to the full announce), is lost, or cannot carry it; or
    // another one was asked meanwhile.
    void heartbeat(std::string_view request, AskedHeartbeat::Heard heard);

    // The server's calls for a connection whose session is_link() says to be this link's.
    static bool is_link(const Connection& connection);
    void on_open(Connection& connection);
    void on_frame(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body);
    void on_ping(Connection& connection);
    void on_close(Connection& connection, std::string_view reason);
    void tick();  // every 100 ms or so, one thread at a time

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace kvstore
