// One filled-in sample of every message: for round trips, golden transcripts, mutations and
// fuzzing.
#pragma once

#include <array>
#include <cstdint>
#include <numeric>
#include <string_view>

#include "wire/messages.h"

namespace kvstore::samples {

inline constexpr std::array<std::string_view, 3> kKeys = {"llama/0", "llama/1", "k\xC3\xA9y"};
inline constexpr std::array<std::string_view, 3> kParents = {"", "llama/0", ""};
inline constexpr std::array<std::string_view, 3> kNames = {"node-a", "node-b", "node-c"};
inline constexpr std::array<std::string_view, 3> kTcp = {"tcp://10.0.0.1:7001",
                                                         "tcp://10.0.0.2:7001", ""};
inline constexpr std::array<std::string_view, 3> kUnix = {"unix:///run/kv/a", "", "unix:@c"};
inline constexpr std::array<uint64_t, 3> kU64 = {1, 0x0000020000000007, UINT64_MAX};
inline constexpr std::array<uint64_t, 3> kSizes = {0, 4096, 1ull << 33};
inline constexpr std::array<uint32_t, 3> kU32 = {0, 7, 0xDEADBEEF};
inline constexpr std::array<int32_t, 3> kCodes = {0, -2, -15};
inline constexpr std::array<uint8_t, 3> kSmall = {0, 1, 2};
inline constexpr std::array<uint32_t, 3> kNodeIndexes = {4, 0, 9};
inline constexpr std::array<uint8_t, 3> kMarks = {0, 1, 0};

template <size_t N>
std::array<uint8_t, N> counting(uint8_t first) {
    std::array<uint8_t, N> bytes;
    std::iota(bytes.begin(), bytes.end(), first);
    return bytes;
}

inline KeyList keys() { return std::span<const std::string_view>(kKeys); }
inline KeyList names() { return std::span<const std::string_view>(kNames); }
inline KeyList parents() { return std::span<const std::string_view>(kParents); }
inline U64Column u64s() { return std::span<const uint64_t>(kU64); }
inline U64Column sizes() { return std::span<const uint64_t>(kSizes); }
inline U32Column u32s() { return std::span<const uint32_t>(kU32); }
inline I32Column codes() { return std::span<const int32_t>(kCodes); }
inline U8Column small() { return std::span<const uint8_t>(kSmall); }

// Calls visit(message) for every message of the session.
template <class Visit>
void session_messages(Visit&& visit) {
    visit(Hello{.version_min = 0x10000,
                .version_max = 0x10001,
                .features = 7,
                .required = 1,
                .cluster_id = "prod-7",
                .role = Role::kNode,
                .tenant = "default",
                .ns = "llama-3-70b",
                .principal = "node-a",
                .auth_method = AuthMethod::kToken,
                .client_nonce = counting<32>(1),
                .session_id = 99,
                .node_id = "node-a",
                .node_epoch = 3,
                .applied_seq = 1234,
                .client_name = "kvstore-node 0.1"});
    visit(Challenge{.nonce = counting<32>(33), .cluster_id = "prod-7"});
    visit(Auth{.mac = counting<32>(65)});
    visit(Welcome{.version = 0x10000,
                  .features = 5,
                  .cluster_id = "prod-7",
                  .master_epoch = 2,
                  .session_id = 17,
                  .hash_secret = counting<16>(97),
                  .ns_epoch = 1,
                  .grpc_endpoint = "10.0.0.9:50052",
                  .http_endpoint = "10.0.0.9:9080",
                  .peers = std::span<const std::string_view>(kTcp),
                  .node_id = "node-b",
                  .node_epoch = 6,
                  .slot_plus_one = 12,
                  .flush_counter = 5,
                  .segment_bytes = 1ull << 36,
                  .fd_count = 3,
                  .server_mac = counting<32>(113),
                  .ops_seq = 55});
    visit(Refused{.code = -8, .message = "no token"});
    visit(Error{.code = -11, .message = "field 3 comes twice"});
    visit(StatusReply{.status = codes()});
    visit(Ping{.token = 42});
    visit(Pong{.token = 42});
}

template <class Visit>
void master_messages(Visit&& visit) {
    static constexpr std::array<uint8_t, 3> kCounts = {1, 0, 2};
    visit(Lookup{.keys = keys(), .flags = kLookupNoNodes, .timeout_ms = 250});
    visit(LookupReply{.status = codes(),
                      .versions = u64s(),
                      .sizes = sizes(),
                      .reasons = small(),
                      .replica_counts = std::span<const uint8_t>(kCounts),
                      .nodes = std::span<const uint32_t>(kNodeIndexes),
                      .nodes_id = 8});
    visit(Nodes{.timeout_ms = 250});
    visit(NodesReply{.indexes = std::span<const uint32_t>(kNodeIndexes),
                     .ids = names(),
                     .states = small(),
                     .tcp_endpoints = std::span<const std::string_view>(kTcp),
                     .unix_endpoints = std::span<const std::string_view>(kUnix),
                     .hosts = names(),
                     .weights = u32s(),
                     .free_bytes = sizes(),
                     .capacity_bytes = sizes(),
                     .epochs = u32s(),
                     .nodes_id = 8});
    visit(Remove{.keys = keys(), .timeout_ms = 250});
    visit(RemoveReply{.status = codes(), .unreached = names()});
    visit(List{.prefix = "llama/", .cursor = "llama/0", .limit = 100, .timeout_ms = 250});
    visit(ListReply{.keys = keys(), .cursor = "llama/1"});
    visit(Inspect{.key = "llama/0", .timeout_ms = 250});
    visit(InspectReply{.found = true,
                       .size = 4096,
                       .version = 0x20000000007,
                       .pin = Pin::kSoft,
                       .create_ms = 1'700'000'000'000,
                       .replica_node_ids = names(),
                       .replica_tiers = small(),
                       .reason = 1,
                       .replicas_wanted = 3});
    visit(SetPin{.keys = keys(), .levels = small(), .timeout_ms = 250});
    visit(Flush{.timeout_ms = 250});
    visit(FlushReply{.code = -15, .unreached = names(), .ns_epoch = 4});
}

template <class Visit>
void node_messages(Visit&& visit) {
    visit(SlotReady{.slot = 11, .timeout_ms = 250});
    visit(Reserve{.keys = keys(),
                  .sizes = sizes(),
                  .pins = small(),
                  .replicas = small(),
                  .ttl_ms = u32s(),
                  .flags = small(),
                  .parents = parents(),
                  .timeout_ms = 250});
    visit(ReserveReply{.status = codes(), .generations = u64s(), .offsets = sizes()});
    visit(Commit{.generations = u64s(), .crcs = u32s(), .timeout_ms = 250});
    visit(Abort{.generations = u64s(), .timeout_ms = 250});
    visit(Get{.keys = keys(), .versions = u64s(), .max_sizes = sizes(), .timeout_ms = 250});
    visit(GetReply{.status = codes(),
                   .sizes = sizes(),
                   .versions = u64s(),
                   .crcs = u32s(),
                   .reasons = small()});
    visit(Put{.keys = keys(),
              .sizes = sizes(),
              .pins = small(),
              .replicas = small(),
              .ttl_ms = u32s(),
              .flags = small(),
              .parents = parents(),
              .crcs = u32s(),
              .timeout_ms = 250});
    visit(Lease{.keys = keys(), .stride = 3, .lease_ms = 5000, .timeout_ms = 250});
    visit(LeaseReply{.code = 0, .lease_id = 77, .length = 3, .node_epoch = 6});
    visit(LeaseRenew{.lease_ids = u64s(), .lease_ms = 5000, .timeout_ms = 250});
    visit(LeaseRelease{.lease_ids = u64s(), .timeout_ms = 250});
    visit(Hold{.generations = u64s(), .timeout_ms = 250});
    visit(Unhold{.generations = u64s(), .timeout_ms = 250});
    visit(Resolve{.timeout_ms = 250});
    visit(ResolveReply{.code = -2, .namespace_id = 0xABCDEF, .ns_epoch = 4, .flush_counter = 5});
    visit(CopyPut{.tenant = "default",
                  .ns = "llama-3-70b",
                  .epoch = 1,
                  .keys = keys(),
                  .sizes = sizes(),
                  .pins = small(),
                  .replicas = small(),
                  .ttl_ms = u32s(),
                  .parents = parents(),
                  .versions = u64s(),
                  .crcs = u32s(),
                  .timeout_ms = 250});
    visit(Prefetch{.keys = keys(), .timeout_ms = 250});
    visit(Explain{.keys = keys(), .timeout_ms = 250});
    visit(ExplainReply{.places = small(),
                       .versions = u64s(),
                       .sizes = sizes(),
                       .put_ms = u64s(),
                       .used_ms = u64s(),
                       .reasons = small(),
                       .gone_ms = u64s()});
    visit(Stats{.timeout_ms = 250});
    visit(StatsReply{.names = names(), .values = u64s()});
}

template <class Visit>
void ucx_samples(Visit&& visit) {
    visit(UcxOpen{.timeout_ms = 250});
    visit(UcxOpenReply{.code = -4,
                       .text = "the node's UCX process cannot be reached now",
                       .life = 3,
                       .worker = "worker",
                       .offsets = sizes(),
                       .sizes = u64s(),
                       .addresses = u64s(),
                       .keys = keys()});
    visit(UcxGet{.keys = keys(), .versions = u64s(), .max_sizes = sizes(), .timeout_ms = 250});
    visit(UcxGetReply{.status = codes(),
                      .sizes = sizes(),
                      .versions = u64s(),
                      .crcs = u32s(),
                      .reasons = small(),
                      .offsets = u64s(),
                      .life = 3});
    visit(UcxDone{.requests = u64s()});
    visit(UcxPut{.keys = keys(),
                 .sizes = sizes(),
                 .pins = small(),
                 .replicas = small(),
                 .ttl_ms = u32s(),
                 .flags = small(),
                 .parents = keys(),
                 .crcs = u32s(),
                 .addresses = u64s(),
                 .key_of = u32s(),
                 .worker = "worker",
                 .memory_keys = keys(),
                 .fetch_ms = 100,
                 .timeout_ms = 250});
    visit(UcxReady{.worker = "worker", .library = "libucp.so.0, 1.13.1"});
    visit(UcxGrow{.ready_bytes = 1 << 20});
    visit(UcxSlice{.offset = 1 << 20,
                   .size = 4096,
                   .address = 0x7f0000000000,
                   .key = "key",
                   .text = "no more"});
    visit(UcxPull{.offsets = sizes(),
                  .sizes = sizes(),
                  .addresses = u64s(),
                  .key_of = u32s(),
                  .worker = "worker",
                  .memory_keys = keys()});
    visit(UcxPulled{.status = codes(), .crcs = u32s()});
}

template <class Visit>
void link_messages(Visit&& visit) {
    visit(Claim{.tenant = "default",
                .ns = "llama-3-70b",
                .epoch = 1,
                .claim_ids = u64s(),
                .keys = keys(),
                .sizes = sizes(),
                .flags = small(),
                .pins = small(),
                .replicas = small(),
                .timeout_ms = 250});
    visit(ClaimReply{.claim_ids = u64s(), .status = codes(), .versions = u64s()});
    visit(Abandon{.claim_ids = u64s()});
    visit(Announce{.seq = 9,
                   .phase = AnnouncePhase::kEnd,
                   .tenant = "default",
                   .ns = "llama-3-70b",
                   .epoch = 1,
                   .keys = keys(),
                   .versions = u64s(),
                   .sizes = sizes(),
                   .pins = small(),
                   .replicas = small(),
                   .ttl_ms = u64s()});
    visit(AnnounceReply{.seq = 9, .status = codes()});
    visit(Withdraw{.seq = 10,
                   .tenant = "default",
                   .ns = "llama-3-70b",
                   .epoch = 1,
                   .keys = keys(),
                   .versions = u64s(),
                   .reasons = small()});
    visit(Ops{.first_seq = 1000,
              .kinds = small(),
              .tenants = names(),
              .namespaces = names(),
              .epochs = u32s(),
              .keys = keys(),
              .versions = u64s(),
              .args = u64s()});
    visit(OpsAck{.seq = 1002});
    visit(Copy{.copy_id = 5,
               .tenant = "default",
               .ns = "llama-3-70b",
               .epoch = 1,
               .key = "llama/0",
               .version = 0x20000000007,
               .target_endpoint = "tcp://10.0.0.2:7001",
               .target_node = "node-b"});
    visit(CopyDone{.copy_id = 5, .code = -3});
    visit(Heartbeat{.request = "protobuf"});
    visit(HeartbeatReply{.reply = "another"});
    ucx_samples(visit);
}

// Messages with the fields that they got after minor0.txt was committed.
template <class Visit>
void added_fields(Visit&& visit) {
    visit(Lookup{.keys = keys(), .wait_ms = 30'000, .timeout_ms = 250});
    visit(NodesReply{.indexes = std::span<const uint32_t>(kNodeIndexes),
                     .ids = names(),
                     .nodes_id = 8,
                     .restarting = std::span<const uint8_t>(kMarks),
                     .numas = names(),
                     .racks = names(),
                     .rdma_domains = names()});
    visit(Reserve{.keys = keys(), .sizes = sizes(), .spares = u64s(), .spare_size = 4096});
    visit(ReserveReply{.status = codes(),
                       .generations = u64s(),
                       .offsets = sizes(),
                       .spare_generation = 9,
                       .spare_offset = 8192,
                       .spare_ms = 30'000});
    visit(Put{.keys = keys(), .sizes = sizes(), .crcs_behind = true, .trace = counting<24>(7)});
    visit(Put{
        .keys = keys(), .sizes = sizes(), .crcs = u32s(), .spares = u64s(), .spare_size = 4096});
    visit(StatusReply{
        .status = codes(), .spare_generation = 9, .spare_offset = 8192, .spare_ms = 30'000});
    visit(Get{.keys = keys(), .trace = counting<24>(8)});
    visit(Commit{.generations = u64s(), .trace = counting<24>(9)});
    visit(SlotReady{.slot = 5, .writes_ended_below = 12});
    visit(GetReply{.status = codes(), .hot = std::span<const uint8_t>(kMarks)});
    visit(UcxGetReply{.status = codes(), .hot = std::span<const uint8_t>(kMarks)});
    visit(Announce{.keys = keys(), .versions = u64s(), .copies = small()});
    visit(UcxPut{.keys = keys(),
                 .sizes = sizes(),
                 .key_of = u32s(),
                 .piece_addresses = u64s(),
                 .piece_sizes = u64s(),
                 .piece_keys = u32s()});
    visit(UcxPull{.offsets = sizes(),
                  .sizes = sizes(),
                  .key_of = u32s(),
                  .piece_addresses = u64s(),
                  .piece_sizes = u64s(),
                  .piece_keys = u32s()});
    visit(ClaimReply{.claim_ids = u64s(), .status = codes(), .versions = u64s(), .flags = small()});
    visit(Hello{.version_min = 0x10000,
                .version_max = 0x10000,
                .tenant = "default",
                .slot_plus_one = 6,
                .slot_device = 28,
                .slot_inode = 4711,
                .mapped_epoch = 12,
                .host_identity = 0xC0FFEE,
                .attach_cause = 2,
                .claims = "exp=1893456000+verbs=read"});
    visit(Welcome{.version = 0x10000,
                  .node_id = "node-a",
                  .node_epoch = 3,
                  .host_identity = 0xC0FFEE,
                  .attach_cause = 5});
}

template <class Visit>
void all_messages(Visit&& visit) {
    session_messages(visit);
    master_messages(visit);
    node_messages(visit);
    link_messages(visit);
}

// Decodes `body` as a message of frame type `type` and encodes it again; false when it was refused.
inline bool reencode(uint16_t type, std::span<const uint8_t> body, std::vector<uint8_t>* out) {
    bool accepted = false;
    all_messages([&]<class M>(const M&) {
        if (static_cast<uint16_t>(M::kType) == type) {
            M message;
            accepted = decode_message(body, &message).ok();
            if (accepted) {
                out->clear();
                encode_message(message, *out);
            }
        }
    });
    return accepted;
}

}  // namespace kvstore::samples
