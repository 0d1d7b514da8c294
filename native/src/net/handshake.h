// Who may open a session: principals, the HMAC-SHA-256 challenge, and both sides' hello parameters.
//
// Hello → Challenge → Auth → Welcome with tokens, Hello → Welcome without. The MACs cover the exact
// bodies of Hello and Challenge, so both nonces, version range, features, role, tenant, namespace,
// principal and cluster id; the Welcome proves in return that the server knows the secret. Bytes
// after the handshake are neither encrypted nor signed: that needs TLS or a trusted network.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/mutex.h"
#include "net/failed_proofs.h"
#include "net/scope.h"
#include "wire/messages_session.h"

namespace kvstore {

class Tls;

// What a client says of itself; owns its strings.
struct HelloParams {
    Role role = Role::kClient;
    std::string cluster_id;  // empty: any
    std::string tenant = "default";
    std::string ns;
    std::string principal;  // with a token
    std::string token;      // the secret, or a minted token; empty: no authentication
    uint64_t features = kAllFeatures;
    uint64_t required = 0;
    uint64_t session_id = 0;
    std::string node_id;
    uint32_t node_epoch = 0;
    uint64_t applied_seq = 0;
    std::string client_name;
    uint32_t slot_plus_one = 0;
    uint64_t slot_device = 0;
    uint64_t slot_inode = 0;
    uint32_t mapped_epoch = 0;
    uint64_t host_identity = 0;
    AttachCause attach_cause = AttachCause::kNone;
    uint32_t version_min = kProtocolVersionMin;
    uint32_t version_max = kProtocolVersionMax;
    uint32_t poll_us = 0;  // not told: the channel polls for up to that long before it sleeps
    std::shared_ptr<const Tls> tls{};  // with it, TCP is used with TLS and no other way

    Hello hello(const Nonce& nonce) const;  // views into *this
};

// A Welcome that owns its strings: what a service answers and what a client has received.
struct WelcomeData {
    uint32_t version = 0;   // set by the event server
    uint64_t features = 0;  // set by the event server
    std::string cluster_id;
    uint32_t master_epoch = 0;
    uint64_t session_id = 0;
    HashSecret hash_secret{};
    uint32_t ns_epoch = 0;
    std::string grpc_endpoint;
    std::string http_endpoint;
    std::vector<std::string> peers;
    std::string node_id;
    uint32_t node_epoch = 0;
    int slot = -1;
    uint64_t flush_counter = 0;
    uint64_t segment_bytes = 0;
    uint64_t ops_seq = 0;
    uint64_t host_identity = 0;
    AttachCause attach_cause = AttachCause::kNone;

    void encode(uint32_t fd_count, const Digest& server_mac, std::vector<uint8_t>& out) const;
    static WelcomeData from(const Welcome& welcome);
};

// The code and sentence of a Refused or Error: printable, and never Ok.
Status remote_status(int32_t code, std::string_view message);

struct Principal {
    std::string name;
    Role role = Role::kClient;         // an operator may also come as a client
    std::vector<std::string> tenants;  // "*": every tenant
    std::string secret;                // empty: comes with a certificate of its name, and no token
    std::vector<Scope> scopes{};       // none: everything that the role may do

    bool operator==(const Principal&) const = default;
};

Digest client_mac(std::string_view secret, std::span<const uint8_t> hello_body,
                  std::span<const uint8_t> challenge_body);
Digest server_mac(std::string_view secret, std::span<const uint8_t> hello_body,
                  std::span<const uint8_t> challenge_body);

// As which principal a session has authenticated; null without authentication.
using Credential = std::shared_ptr<const Principal>;

// The principals of the token file; replaceable while the server runs. Several may have one name:
// each has its own secret, so that a new one can be introduced before the old one goes. Without
// any, authentication is off: TCP peers are trusted, Unix peers must have our uid, be root, or be
// in the socket's group where it may connect (SocketAccess). Thread-safe.
class Authenticator {
  public:
    struct Proven {
        Credential credential;
        std::shared_ptr<const Grant> grant;  // null: the session has no limits
        uint64_t expires_ms = 0;             // boot time at which a minted token ends; 0: never
        Digest proof{};                      // the server's MAC for the Welcome
    };

    explicit Authenticator(std::vector<Principal> principals = {});
    void replace(std::vector<Principal> principals);
    bool required() const;
    // Whether `mac` proves the hello's principal, and that one may have its role and tenant.
    // `network`: where it comes from; wrong proofs are counted by it (failed_proofs.h).
    Result<Proven> verify(const Hello& hello, std::span<const uint8_t> hello_body,
                          std::span<const uint8_t> challenge_body, const Digest& mac,
                          std::string_view network = {});
    // Why this principal may not try now, after wrong proofs from there; Ok: it may.
    Status may_try(std::string_view principal, std::string_view network);
    bool has_failures() const { return failed_.any(); }
    FailedProofs::Stats failures() const { return failed_.stats(); }
    // Whether the principal of a verified certificate is admitted without a token: one whose secret
    // is empty. There is no proof.
    Result<Proven> admit_certified(std::string_view certified, const Hello& hello) const;
    // How often the principals were replaced: sessions are looked at again when it changes.
    uint64_t replacements() const { return replacements_.load(std::memory_order_acquire); }
    // The same principal as it stands now; null if its secret, role, tenants or scopes have
    // changed.
    Credential renewed(const Principal& principal) const;

  private:
    using Principals = std::vector<Principal>;  // by name

    std::shared_ptr<const Principals> current() const KV_EXCLUDES(mutex_);
    static Status admit(const Principal& principal, const Hello& hello, Proven* proven);

    mutable Mutex mutex_;
    std::shared_ptr<const Principals> principals_ KV_GUARDED_BY(mutex_);
    std::atomic<uint64_t> replacements_{0};
    FailedProofs failed_;
};

}  // namespace kvstore
