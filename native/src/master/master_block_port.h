// The master's block port: sessions of clients and links of nodes, decoded and handed to
// MasterCore.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "master/deeds.h"
#include "master/master_core.h"
#include "net/event_server.h"

namespace kvstore {

class MasterBlockPort final : public ConnectionHandler {
  public:
    struct Options {
        std::vector<std::string> listen;  // block endpoints, port 0 works
        size_t loops = 2;
        uint32_t poll_us = 0;  // each of them polls for up to that long before it sleeps
        std::string cluster_id;
        std::string grpc_endpoint;
        std::string http_endpoint;
        std::vector<std::string> peers;
        std::vector<Principal> principals;  // none: no authentication
        std::shared_ptr<const Tls> tls;     // null: plain
    };
    MasterBlockPort(MasterCore& core, Options options);
    ~MasterBlockPort() override;

    // Returns the bound endpoints, in the order of Options::listen.
    Result<std::vector<std::string>> start();
    void stop();
    void set_principals(std::vector<Principal> principals);
    // The largest share of the clients' sessions, and of what waits, that one principal may have.
    void set_principal_share(double share);
    // What the hello names; before start() when they are known, or any time later.
    // Whoever came by TLS is told `tls_grpc`, unless it is empty.
    void set_endpoints(const std::string& grpc, const std::string& http,
                       const std::string& tls_grpc = {});
    ServerStats stats() const { return server_->stats(); }
    // Runs `fn` on the first event loop; dropped once the port has stopped.
    void post(std::function<void()> fn) { server_->post(0, std::move(fn)); }
    std::vector<Refusal> take_refusals() { return server_->take_refusals(); }
    std::vector<SessionView> sessions() const { return server_->sessions(); }
    size_t end_sessions(std::span<const uint64_t> ids, std::string_view reason) {
        return server_->end_sessions(ids, Code::kClosed, reason);
    }
    // Whether somebody takes deeds from now on.
    void keep_deeds(bool wanted) { deeds_->set_wanted(wanted); }
    // Those since the last call, for the audit log; and how many there was no room for.
    std::pair<std::vector<Deed>, uint64_t> take_deeds() { return deeds_->take(); }

    Result<HelloAnswer> on_hello(Connection& connection, const Hello& hello) override;
    void on_open(Connection& connection) override;
    void on_frame(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body,
                  PayloadPlan* plan) override;
    void on_ping(Connection& connection) override;
    void on_close(Connection& connection, Code code, std::string_view reason) override;

  private:
    struct Session;

    void on_client_frame(Connection& connection, const FrameHeader& header,
                         std::span<const uint8_t> body);
    // What nodes may have answered of the keys that a request names, and is not recorded yet.
    enum class Fenced : uint8_t {
        kNo,       // not looked at
        kKnown,    // nothing, when the request was repeated
        kUnknown,  // a node did not say in time
    };
    void answer_client(Connection& connection, const FrameHeader& header,
                       std::span<const uint8_t> body, Fenced fenced);
    // True: the request comes again when that is recorded.
    bool comes_again(Connection& connection, const FrameHeader& header,
                     std::span<const uint8_t> body, std::span<const std::string_view> keys);
    void on_link_frame(Connection& connection, const FrameHeader& header,
                       std::span<const uint8_t> body);
    // The session's namespace; null while it does not exist.
    const NamespacePtr& space_of(Connection& connection);
    // A place among the changes that wait; null: refused, and answered.
    Shares::Held admit_change(Connection& connection, const FrameHeader& header);
    // What was asked, to be told with its outcome, by whoever knows that and whenever. Empty where
    // nobody wants deeds.
    using DeedEnd = std::function<void(Code)>;
    DeedEnd begin_deed(const Connection& connection, std::string_view call, size_t keys = 0,
                       std::string_view prefix = {}) const;
    void claim(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body);
    void heartbeat(Connection& connection, const FrameHeader& header,
                   std::span<const uint8_t> body);
    void lookup(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body,
                Fenced fenced);
    void wait_for_keys(Connection& connection, const FrameHeader& header,
                       std::span<const uint8_t> body);
    void nodes(Connection& connection, const FrameHeader& header);
    void remove(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body);
    void list(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body);
    void inspect(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body);
    void set_pin(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body);
    void flush(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body);

    MasterCore& core_;
    const Options options_;  // but for the endpoints, which may change
    Mutex mutex_;
    std::string grpc_endpoint_ KV_GUARDED_BY(mutex_);
    std::string http_endpoint_ KV_GUARDED_BY(mutex_);
    std::string tls_grpc_endpoint_ KV_GUARDED_BY(mutex_);
    std::shared_ptr<Authenticator> authenticator_;
    const std::shared_ptr<Deeds> deeds_ = std::make_shared<Deeds>();
    std::unique_ptr<EventServer> server_;
};

}  // namespace kvstore
