// Messages of every session: hello, authentication, errors, and the answers that many requests
// share.
#pragma once

#include "base/hash.h"
#include "base/hmac.h"
#include "wire/attach_cause.h"
#include "wire/fields.h"
#include "wire/frame.h"

namespace kvstore {

using Nonce = std::array<uint8_t, 32>;
enum class AuthMethod : uint8_t { kNone = 0, kToken = 1 };

struct Hello {
    static constexpr MessageType kType = MessageType::kHello;
    uint32_t version_min = 0;
    uint32_t version_max = 0;
    uint64_t features = 0;          // offered
    uint64_t required = 0;          // refuse me when you lack one
    std::string_view cluster_id{};  // empty: any
    Role role = Role::kClient;
    std::string_view tenant{};
    std::string_view ns{};
    std::string_view principal{};
    AuthMethod auth_method = AuthMethod::kNone;
    Nonce client_nonce{};
    uint64_t session_id = 0;     // node link: given by the master at registration
    std::string_view node_id{};  // node link and node to node
    uint32_t node_epoch = 0;
    uint64_t applied_seq = 0;        // node link: the last op (messages_link.h) it has applied
    std::string_view client_name{};  // for logs
    // Client to node, where the process holds a slot there already and needs no descriptor for it:
    uint32_t slot_plus_one = 0;  // 0: none
    uint64_t slot_device = 0;    // the file that the slot is in
    uint64_t slot_inode = 0;
    uint32_t mapped_epoch = 0;  // of the node whose memory this client has mapped; 0: none
    // Client to node by socket, where it would rather map the node's memory:
    uint64_t host_identity = 0;  // net/host_identity.h
    uint8_t attach_cause = 0;    // AttachCause: why it could not; may be a later build's
    std::string_view claims{};   // of the minted token whose key proves them
    static void fields(auto& m, auto& v) {
        v.number(1, m.version_min);
        v.number(2, m.version_max);
        v.number(3, m.features);
        v.number(4, m.required);
        v.text(5, m.cluster_id, limits::kMaxNameBytes);
        v.number(6, m.role, 2);
        v.text(7, m.tenant, limits::kMaxNameBytes);
        v.text(8, m.ns, limits::kMaxNameBytes);
        v.text(9, m.principal, limits::kMaxNameBytes);
        v.number(10, m.auth_method, 1);
        v.bytes(11, m.client_nonce);
        v.number(12, m.session_id);
        v.text(13, m.node_id, limits::kMaxNameBytes);
        v.number(14, m.node_epoch);
        v.number(15, m.applied_seq);
        v.text(16, m.client_name, limits::kMaxNameBytes);
        v.number(17, m.slot_plus_one, limits::kMaxClients);
        v.number(18, m.slot_device);
        v.number(19, m.slot_inode);
        v.number(20, m.mapped_epoch);
        v.number(21, m.host_identity);
        v.number(22, m.attach_cause);
        v.text(23, m.claims, limits::kMaxClaimsBytes);
    }
};

struct Challenge {
    static constexpr MessageType kType = MessageType::kChallenge;
    Nonce nonce{};
    std::string_view cluster_id{};
    static void fields(auto& m, auto& v) {
        v.bytes(1, m.nonce);
        v.text(2, m.cluster_id, limits::kMaxNameBytes);
    }
};

struct Auth {
    static constexpr MessageType kType = MessageType::kAuth;
    Digest mac{};  // handshake.h: client_mac
    static void fields(auto& m, auto& v) { v.bytes(1, m.mac); }
};

struct Welcome {
    static constexpr MessageType kType = MessageType::kWelcome;
    uint32_t version = 0;
    uint64_t features = 0;  // offered by both
    std::string_view cluster_id{};
    uint32_t master_epoch = 0;
    uint64_t session_id = 0;
    HashSecret hash_secret{};
    uint32_t ns_epoch = 0;
    std::string_view grpc_endpoint{};
    std::string_view http_endpoint{};
    KeyList peers{};  // block endpoints of the other masters
    // From a node only:
    std::string_view node_id{};
    uint32_t node_epoch = 0;
    int32_t slot_plus_one = 0;  // client slot + 1; 0: none
    uint64_t flush_counter = 0;
    uint64_t segment_bytes = 0;
    uint32_t fd_count = 0;  // descriptors sent along: segment, index, clients (see 0x01)
    Digest server_mac{};    // proves that the server knows the token too; all zero without a token
    uint64_t ops_seq = 0;   // node link: the last op the master has made
    // From a node only:
    uint64_t host_identity = 0;  // net/host_identity.h
    uint8_t attach_cause = 0;    // AttachCause: why no descriptors come, though they were asked for
    static void fields(auto& m, auto& v) {
        v.number(1, m.version);
        v.number(2, m.features);
        v.text(3, m.cluster_id, limits::kMaxNameBytes);
        v.number(4, m.master_epoch);
        v.number(5, m.session_id);
        v.bytes(6, m.hash_secret);
        v.number(7, m.ns_epoch);
        v.text(8, m.grpc_endpoint, limits::kMaxEndpointBytes);
        v.text(9, m.http_endpoint, limits::kMaxEndpointBytes);
        v.list(10, m.peers, 16);
        v.text(11, m.node_id, limits::kMaxNameBytes);
        v.number(12, m.node_epoch);
        v.number(13, m.slot_plus_one, limits::kMaxClients);
        v.number(14, m.flush_counter);
        v.number(15, m.segment_bytes);
        v.number(16, m.fd_count, 3);
        v.bytes(17, m.server_mac);
        v.number(18, m.ops_seq);
        v.number(19, m.host_identity);
        v.number(20, m.attach_cause);
    }
};

// Before Welcome; the connection is closed after it.
struct Refused {
    static constexpr MessageType kType = MessageType::kRefused;
    int32_t code = 0;
    std::string_view message{};
    static void fields(auto& m, auto& v) {
        v.number(1, m.code);
        v.text(2, m.message, kMaxErrorTextBytes);
    }
};

// Instead of a reply, or with kFlagFatal before the connection is closed.
struct Error {
    static constexpr MessageType kType = MessageType::kError;
    int32_t code = 0;
    std::string_view message{};
    static void fields(auto& m, auto& v) {
        v.number(1, m.code);
        v.text(2, m.message, kMaxErrorTextBytes);
    }
};

// The answer to every request that only needs a Code per row; to a Put with a spare beside it.
struct StatusReply {
    static constexpr MessageType kType = MessageType::kStatusReply;
    I32Column status{};
    uint64_t spare_generation = 0;  // 0: none was granted
    uint64_t spare_offset = 0;      // into the segment
    uint32_t spare_ms = 0;          // how long it may be named
    static void fields(auto& m, auto& v) {
        v.rows(1, m.status);
        v.number(2, m.spare_generation);
        v.number(3, m.spare_offset);
        v.number(4, m.spare_ms);
    }
};

struct Ping {
    static constexpr MessageType kType = MessageType::kPing;
    uint64_t token = 0;
    static void fields(auto& m, auto& v) { v.number(1, m.token); }
};
struct Pong {
    static constexpr MessageType kType = MessageType::kPong;
    uint64_t token = 0;
    static void fields(auto& m, auto& v) { v.number(1, m.token); }
};

}  // namespace kvstore
