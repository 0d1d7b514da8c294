// Hello parameters, owned welcomes, and the proofs of the token challenge.
#include "net/handshake.h"

#include <algorithm>

#include "base/clock.h"
#include "base/mutex.h"
#include "net/minted_token.h"

namespace kvstore {
namespace {

// The hashes have a fixed length, so no two different pairs of bodies give the same message.
Digest transcript_mac(std::string_view label, std::string_view secret,
                      std::span<const uint8_t> hello_body,
                      std::span<const uint8_t> challenge_body) {
    std::vector<uint8_t> message(label.begin(), label.end());
    for (const std::span<const uint8_t> body : {hello_body, challenge_body}) {
        const Digest digest = sha256(body);
        message.insert(message.end(), digest.begin(), digest.end());
    }
    return hmac_sha256({reinterpret_cast<const uint8_t*>(secret.data()), secret.size()}, message);
}

bool may_come_as(const Principal& principal, Role role) {
    return principal.role == role || (principal.role == Role::kOperator && role == Role::kClient);
}

bool may_use(const Principal& principal, std::string_view tenant) {
    return std::ranges::any_of(principal.tenants, [tenant](const std::string& allowed) {
        return allowed == "*" || allowed == tenant;
    });
}

Status check_rights(const Principal& principal, const Hello& hello) {
    if (!may_come_as(principal, hello.role)) {
        return {Code::kPermissionDenied, "principal " + principal.name + " may not take this role"};
    }
    if (hello.role != Role::kNode && !may_use(principal, hello.tenant)) {
        return {Code::kPermissionDenied,
                "principal " + principal.name + " may not use tenant " + std::string(hello.tenant)};
    }
    return {};
}

}  // namespace

Hello HelloParams::hello(const Nonce& nonce) const {
    Hello hello;
    hello.version_min = version_min;
    hello.version_max = version_max;
    hello.features = features;
    hello.required = required;
    hello.cluster_id = cluster_id;
    hello.role = role;
    hello.tenant = tenant;
    hello.ns = ns;
    hello.principal = principal;
    hello.auth_method = token.empty() ? AuthMethod::kNone : AuthMethod::kToken;
    hello.client_nonce = nonce;
    hello.session_id = session_id;
    hello.node_id = node_id;
    hello.node_epoch = node_epoch;
    hello.applied_seq = applied_seq;
    hello.client_name = client_name;
    hello.slot_plus_one = slot_plus_one;
    hello.slot_device = slot_device;
    hello.slot_inode = slot_inode;
    hello.mapped_epoch = mapped_epoch;
    hello.host_identity = host_identity;
    hello.attach_cause = static_cast<uint8_t>(attach_cause);
    hello.claims = claims_of(token);
    return hello;
}

void WelcomeData::encode(uint32_t fd_count, const Digest& server_mac,
                         std::vector<uint8_t>& out) const {
    const std::vector<std::string_view> peer_views(peers.begin(), peers.end());
    Welcome welcome;
    welcome.version = version;
    welcome.features = features;
    welcome.cluster_id = cluster_id;
    welcome.master_epoch = master_epoch;
    welcome.session_id = session_id;
    welcome.hash_secret = hash_secret;
    welcome.ns_epoch = ns_epoch;
    welcome.grpc_endpoint = grpc_endpoint;
    welcome.http_endpoint = http_endpoint;
    welcome.peers = peer_views;
    welcome.node_id = node_id;
    welcome.node_epoch = node_epoch;
    welcome.slot_plus_one = slot + 1;
    welcome.flush_counter = flush_counter;
    welcome.segment_bytes = segment_bytes;
    welcome.fd_count = fd_count;
    welcome.server_mac = server_mac;
    welcome.ops_seq = ops_seq;
    welcome.host_identity = host_identity;
    welcome.attach_cause = static_cast<uint8_t>(attach_cause);
    encode_message(welcome, out);
}

WelcomeData WelcomeData::from(const Welcome& welcome) {
    WelcomeData data;
    data.version = welcome.version;
    data.features = welcome.features;
    data.cluster_id = welcome.cluster_id;
    data.master_epoch = welcome.master_epoch;
    data.session_id = welcome.session_id;
    data.hash_secret = welcome.hash_secret;
    data.ns_epoch = welcome.ns_epoch;
    data.grpc_endpoint = welcome.grpc_endpoint;
    data.http_endpoint = welcome.http_endpoint;
    for (const std::string_view peer : welcome.peers) {
        data.peers.emplace_back(peer);
    }
    data.node_id = welcome.node_id;
    data.node_epoch = welcome.node_epoch;
    data.slot = welcome.slot_plus_one - 1;
    data.flush_counter = welcome.flush_counter;
    data.segment_bytes = welcome.segment_bytes;
    data.ops_seq = welcome.ops_seq;
    data.host_identity = welcome.host_identity;
    data.attach_cause = known_cause(welcome.attach_cause);
    return data;
}

Status remote_status(int32_t code, std::string_view message) {
    std::string text(message);
    std::ranges::replace_if(
        text, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; }, '?');
    return {code < 0 ? static_cast<Code>(code) : Code::kProtocolError, std::move(text)};
}

Digest client_mac(std::string_view secret, std::span<const uint8_t> hello_body,
                  std::span<const uint8_t> challenge_body) {
    return transcript_mac("kvstore 1 client proof", secret, hello_body, challenge_body);
}

Digest server_mac(std::string_view secret, std::span<const uint8_t> hello_body,
                  std::span<const uint8_t> challenge_body) {
    return transcript_mac("kvstore 1 server proof", secret, hello_body, challenge_body);
}

Authenticator::Authenticator(std::vector<Principal> principals) { replace(std::move(principals)); }

void Authenticator::replace(std::vector<Principal> principals) {
    std::ranges::stable_sort(principals, {}, &Principal::name);
    auto fresh = std::make_shared<const Principals>(std::move(principals));
    {
        const MutexLock lock(mutex_);
        principals_ = std::move(fresh);
    }
    failed_.clear();
    replacements_.fetch_add(1, std::memory_order_release);
}

std::shared_ptr<const Authenticator::Principals> Authenticator::current() const {
    const MutexLock lock(mutex_);
    return principals_;
}

bool Authenticator::required() const { return !current()->empty(); }

Result<Authenticator::Proven> Authenticator::verify(const Hello& hello,
                                                    std::span<const uint8_t> hello_body,
                                                    std::span<const uint8_t> challenge_body,
                                                    const Digest& mac, std::string_view network) {
    const std::shared_ptr<const Principals> principals = current();
    const auto named = std::ranges::equal_range(*principals, hello.principal, {}, &Principal::name);
    const auto key_of = [&](const Principal& principal) {
        return hello.claims.empty() ? principal.secret
                                    : minted_key(principal.secret, principal.name, hello.claims);
    };
    const auto found = std::ranges::find_if(named, [&](const Principal& principal) {
        return !principal.secret.empty() &&
               equal_constant_time(client_mac(key_of(principal), hello_body, challenge_body), mac);
    });
    if (found == named.end()) {
        if (std::ranges::all_of(named, &std::string::empty, &Principal::secret)) {
            // The same work, so that names cannot be told by the time it takes.
            const Digest unknown = client_mac("unknown principal", hello_body, challenge_body);
            static_cast<void>(equal_constant_time(unknown, mac));
        }
        const uint64_t pause_ms = failed_.failed(hello.principal, network, boottime_ms());
        return {Code::kUnauthenticated,
                pause_ms == 0 ? "unknown principal or wrong token"
                              : "unknown principal or wrong token, once more: the next attempt is "
                                "heard in " +
                                    std::to_string(pause_ms / 1000) + " s"};
    }
    failed_.passed(hello.principal, network);
    Proven proven;
    if (Status status = admit(*found, hello, &proven); !status.ok()) {
        return status;
    }
    proven.credential = Credential(principals, &*found);
    proven.proof = server_mac(key_of(*found), hello_body, challenge_body);
    return proven;
}

// What somebody may do who has proven to be this principal, or to have a token that it signed.
Status Authenticator::admit(const Principal& principal, const Hello& hello, Proven* proven) {
    Claims claims;
    if (!hello.claims.empty()) {
        if (principal.role == Role::kNode) {
            return {Code::kPermissionDenied, "a node's secret mints no tokens"};
        }
        Result<Claims> read = Claims::read(hello.claims);
        const uint64_t now_ms = wall_ms();
        const Status valid = read.ok() ? read->check_time(now_ms / 1000) : read.status();
        if (!valid.ok()) {
            return valid;
        }
        claims = std::move(*read);
        // From here on by a clock that nobody sets.
        proven->expires_ms = boottime_ms() + claims.expires_s * 1000 - now_ms;
    }
    if (Status may = check_rights(principal, hello); !may.ok()) {
        return may;
    }
    const std::span<const Scope> layers[] = {principal.scopes, claims.scopes};
    proven->grant = Grant::of(principal.name, hello.tenant, layers);
    if (proven->grant != nullptr && proven->grant->is_empty()) {
        return {Code::kPermissionDenied, "no scope of principal " + principal.name +
                                             " is about tenant " + std::string(hello.tenant)};
    }
    return {};
}

Status Authenticator::may_try(std::string_view principal, std::string_view network) {
    const uint64_t wait_ms = failed_.refuse_ms(principal, network, boottime_ms());
    return wait_ms == 0 ? Status()
                        : Status(Code::kUnauthenticated,
                                 "too many wrong tokens for this principal from this address: try "
                                 "again in " +
                                     std::to_string(wait_ms / 1000 + 1) + " s");
}

Result<Authenticator::Proven> Authenticator::admit_certified(std::string_view certified,
                                                             const Hello& hello) const {
    if (!hello.claims.empty()) {
        return {Code::kUnauthenticated,
                "a minted token is proven by its secret: a token is required"};
    }
    const std::shared_ptr<const Principals> principals = current();
    const auto named = std::ranges::equal_range(*principals, certified, {}, &Principal::name);
    const auto found = std::ranges::find_if(
        named, [](const Principal& principal) { return principal.secret.empty(); });
    if (found == named.end()) {
        return {Code::kUnauthenticated,
                "a token is required: no line of the token file admits the certificate of " +
                    std::string(certified) + " without one"};
    }
    Proven proven;
    if (Status status = admit(*found, hello, &proven); !status.ok()) {
        return status;
    }
    proven.credential = Credential(principals, &*found);
    return proven;
}

Credential Authenticator::renewed(const Principal& principal) const {
    const std::shared_ptr<const Principals> principals = current();
    const auto named = std::ranges::equal_range(*principals, principal.name, {}, &Principal::name);
    const auto found = std::ranges::find(named, principal);
    return found == named.end() ? nullptr : Credential(principals, &*found);
}

}  // namespace kvstore
