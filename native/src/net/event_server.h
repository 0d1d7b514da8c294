// The server's side of sessions: N epoll threads that shake hands, receive frames (payload straight
// into the service's memory) and send replies from any thread without ever blocking.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "net/handshake.h"
#include "net/refusals.h"
#include "net/stream.h"
#include "net/tls.h"
#include "wire/messages.h"

namespace kvstore {

class Connection;

// Who is at the other end; complete once the Welcome is sent.
struct Peer {
    Role role = Role::kClient;
    std::string tenant{};
    std::string ns{};
    std::string principal{};               // empty: not authenticated
    std::shared_ptr<const Grant> grant{};  // null: no limits beside the role's
    std::string client_name{};
    std::string node_id{};
    uint32_t node_epoch = 0;
    uint64_t session_id = 0;
    uint64_t applied_seq = 0;
    uint32_t version = 0;
    uint64_t features = 0;  // offered by both
    std::string address{};  // for logs
    bool is_tls = false;
    bool is_unix = false;  // descriptors can be passed
    uid_t uid = 0;         // Unix only
    pid_t pid = 0;
};

// A handle on a connection for any thread. It outlives the connection; then send() says false.
class ConnectionRef {
  public:
    virtual ~ConnectionRef() = default;
    // Writes at once what the socket takes and queues the rest; the body is copied when queued, the
    // payload is sent from where it lies: `keepalive` is held until its last byte is written (or
    // the connection closed). False when the connection is closed or is being closed because its
    // queue is full (the service then hears on_close).
    virtual bool send(MessageType type, uint16_t flags, uint64_t request_id,
                      std::span<const uint8_t> body, std::span<const iovec> payload = {},
                      std::shared_ptr<void> keepalive = nullptr) = 0;
    // Sends what is queued, as far as the socket takes it now, and closes. on_close follows.
    virtual void close(Code code, std::string_view reason) = 0;
    // Runs `fn` on the connection's loop; not at all when the connection is closed by then.
    virtual void post(std::function<void(Connection&)> fn) = 0;
    virtual bool open() const = 0;
    virtual uint64_t id() const = 0;  // unique in the process

    template <class M>
    bool send_message(const M& message, uint64_t request_id, uint16_t flags = 0,
                      std::span<const iovec> payload = {},
                      std::shared_ptr<void> keepalive = nullptr) {
        static thread_local std::vector<uint8_t> body;
        body.clear();
        encode_message(message, body);
        return send(M::kType, flags, request_id, body, payload, std::move(keepalive));
    }
    bool send_error(uint64_t request_id, Code code, std::string_view message);
};

// A connection as its loop thread sees it (the thread that calls the Service).
class Connection {
  public:
    virtual ~Connection() = default;
    virtual const Peer& peer() const = 0;
    virtual const std::shared_ptr<ConnectionRef>& ref() const = 0;
    virtual size_t loop() const = 0;
    // After it returns no further frame is read: sends a fatal Error and closes.
    virtual void fail(Code code, std::string_view reason) = 0;
    uint64_t id() const { return ref()->id(); }

    std::shared_ptr<void> session;  // the service's own
    template <class T>
    T* session_as() const {
        return static_cast<T*>(session.get());
    }
    // Decodes, or fails the connection.
    template <class M>
    bool decode(std::span<const uint8_t> body, M* message) {
        const Status status = decode_message(body, message);
        if (!status.ok()) {
            fail(status.code(), status.message());
        }
        return status.ok();
    }
};

// What the service answers to an authenticated hello.
struct HelloAnswer {
    WelcomeData welcome;   // version, features and cluster_id are filled in by the server
    std::vector<int> fds;  // segment, index, clients; duplicated at once. Unix only, else left out
    std::shared_ptr<void> session;
};

// Where the payload of a frame goes. An empty `into` discards it.
struct PayloadPlan {
    std::vector<iovec> into;        // exactly payload_bytes in total
    std::span<uint32_t> crcs;       // the CRC32C of each part; in the context's memory, or none
    std::shared_ptr<void> context;  // handed to on_payload, held until then or the close
};

// Called on the loop's threads: never block. Calls for one connection never overlap and come from
// one thread.
class ConnectionHandler {
  public:
    virtual ~ConnectionHandler() = default;
    // A refusal's code and sentence go to the peer. `hello` views the frame.
    virtual Result<HelloAnswer> on_hello(Connection& connection, const Hello& hello) = 0;
    // The Welcome is on its way: from here on messages may be pushed to the connection.
    virtual void on_open(Connection&) {}
    // A frame without payload is complete. For one with payload fill `plan`; on_payload follows.
    virtual void on_frame(Connection& connection, const FrameHeader& header,
                          std::span<const uint8_t> body, PayloadPlan* plan) = 0;
    // Before the server answers a Ping: what has to come before the Pong is sent now.
    virtual void on_ping(Connection&) {}
    // The payload has arrived (or was discarded); `body` is the same as in on_frame. The server
    // itself answers Ping, and ends the session on a fatal Error from the peer.
    virtual void on_payload(Connection&, const FrameHeader&, std::span<const uint8_t> /*body*/,
                            const std::shared_ptr<void>& /*context*/) {}
    // Once for every connection whose on_hello was accepted (or that was adopted). A payload that
    // was being received is not written to any more.
    virtual void on_close(Connection&, Code, std::string_view /*reason*/) {}
    // Every tick_ms on every loop.
    virtual void on_tick(size_t /*loop*/) {}
};

// A session, for who lists them.
struct SessionView {
    std::shared_ptr<ConnectionRef> ref;
    Peer peer;
    uint64_t age_ms = 0;
    uint64_t in_progress = 0;  // requests without an answer yet
    bool is_outgoing = false;  // adopted: we have connected to it
};

struct ServerStats {
    uint64_t accepted = 0;
    uint64_t open = 0;  // connections now, handshakes included
    uint64_t sessions = 0;
    uint64_t frames_in = 0;
    uint64_t frames_out = 0;
    uint64_t bytes_in = 0;
    uint64_t bytes_out = 0;
    std::array<uint64_t, 32>
        refusals{};              // by -Code: refused hellos and connections closed for an error
    uint64_t refused_users = 0;  // hellos on a Unix socket by a user that it does not serve
    FailedProofs::Stats proofs;  // wrong ones
};

class EventServer {
  public:
    struct Options {
        size_t loops = 2;
        std::string cluster_id{};
        uint64_t features = kAllFeatures;
        uint32_t version_min = kProtocolVersionMin;
        uint32_t version_max = kProtocolVersionMax;
        size_t max_connections = limits::kMaxConnections;
        size_t max_handshakes = 256;  // of them before their Welcome; then the oldest one goes
        size_t reserved_connections = 256;  // that clients leave to nodes and operators
        double principal_share = 1;         // of the clients' sessions, that one principal may hold
        uint32_t handshake_ms = limits::kHandshakeMs;
        size_t max_queued_bytes = limits::kMaxQueuedBytes;
        uint64_t max_queued_payload_bytes = limits::kMaxPayloadBytes;
        uint32_t write_stall_ms = 30'000;  // closed after queued bytes did not move for this long
        uint32_t read_stall_ms = 20'000;   // closed after a begun frame did not go on for this long
        uint32_t tick_ms = 50;
        uint32_t poll_us = 0;  // each loop polls for up to that long before it sleeps
        std::shared_ptr<Authenticator> authenticator{};  // none: authentication off
        std::shared_ptr<const Tls> tls{};                // of TCP; none: plain alone
    };
    // `service` outlives the server.
    EventServer(Options options, ConnectionHandler& service);
    ~EventServer();  // stop()

    // Before or after start(). Returns the endpoint with its real port. Where the group may connect
    // to a Unix path, its members are served without a token, too.
    Result<Endpoint> listen(const Endpoint& endpoint, const SocketAccess& access = {});
    Status start();
    // Closes every connection (each session hears on_close), joins the threads. Idempotent. Not
    // from a loop thread.
    void stop();

    // Serves a stream whose handshake the caller has done (Channel::release). on_open is called on
    // the loop before any frame.
    Result<std::shared_ptr<ConnectionRef>> adopt(Stream stream, Peer peer,
                                                 std::shared_ptr<void> session);
    void set_cluster_id(std::string cluster_id);
    // Options::write_stall_ms from now on, for connections that are open too.
    void set_write_stall_ms(uint32_t stall_ms);
    // Options::principal_share from now on, for new sessions.
    void set_principal_share(double share);
    // Runs `fn` on a loop thread; dropped when the server has stopped.
    void post(size_t loop, std::function<void()> fn);
    // Counts and logs what the service refuses without ending the connection.
    void count_refusal(Code code, std::string_view address, std::string_view reason);
    // Refused peers and ended connections since the last call, for the log.
    std::vector<Refusal> take_refusals();
    ServerStats stats() const;
    // All sessions, by id. Waits for the loops; not from a loop thread.
    std::vector<SessionView> sessions() const;
    // Ends the sessions with these ids, and returns how many there were. Not from a loop thread.
    size_t end_sessions(std::span<const uint64_t> ids, Code code, std::string_view reason);

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace kvstore
