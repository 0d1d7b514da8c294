// Opening and closing what a client's paths share.
#include "client/client_context.h"

#include <algorithm>

namespace kvstore {
namespace {

constexpr uint64_t kUcxFrom = 16u << 10;  // below, the bytes may as well come with the answer

Status check_options(const ClientOptions& options) {
    if (options.masters.empty()) {
        return {Code::kInvalidArgument, "no master address given"};
    }
    if (!is_valid_name(options.tenant) || options.tenant.empty()) {
        return {Code::kInvalidArgument, "tenant must be 1 to 255 bytes of plain UTF-8"};
    }
    if (!is_valid_name(options.ns)) {
        return {Code::kInvalidArgument, "namespace must be at most 255 bytes of plain UTF-8"};
    }
    if (options.timeout_ms == 0 || options.timeout_ms > limits::kMaxTimeoutMs) {
        return {Code::kInvalidArgument,
                "timeout_ms must be 1 to " + std::to_string(limits::kMaxTimeoutMs)};
    }
    return {};
}

Result<std::vector<Endpoint>> parse_all(const std::vector<std::string>& texts) {
    std::vector<Endpoint> endpoints;
    for (const std::string& text : texts) {
        Result<Endpoint> endpoint = Endpoint::parse(text);
        if (!endpoint.ok()) {
            return endpoint.status();
        }
        endpoints.push_back(std::move(*endpoint));
    }
    return endpoints;
}

}  // namespace

Result<std::unique_ptr<ClientContext>> ClientContext::open(ClientOptions options) {
    if (Status status = check_options(options); !status.ok()) {
        return status;
    }
    Result<std::vector<Endpoint>> endpoints = parse_all(options.masters);
    if (!endpoints.ok()) {
        return endpoints.status();
    }
    std::unique_ptr<ClientContext> context(new ClientContext(std::move(options)));
    const ClientOptions& given = context->options_;
    HelloParams hello;
    hello.role = Role::kClient;
    hello.tenant = given.tenant;
    hello.ns = given.ns;
    hello.principal = given.principal;
    hello.token = given.token;
    hello.client_name = given.client_name;
    hello.poll_us = given.poll_us;
    hello.tls = given.tls;
    hello.features |= context->ucx_.wanted() ? kFeatureUcx : 0;
    const Deadline deadline = context->deadline();
    context->master_ = std::make_unique<MasterClient>(std::move(*endpoints), hello);
    if (Status status = context->master_->open(deadline); !status.ok()) {
        return status;
    }
    hello.cluster_id = context->master_->cluster_id();
    context->secret_ = context->master_->hash_secret();
    context->tenant_id_ = tenant_id(context->secret_, given.tenant);
    context->set_namespace(namespace_id(context->secret_, given.tenant, given.ns,
                                        context->master_->namespace_epoch()));
    context->nodes_ = std::make_unique<PeerTable>(*context->master_, hello, given.transport,
                                                  given.on_unattached, given.locality.numa);
    if (Status status = context->nodes_->refresh(deadline); !status.ok()) {
        return status;
    }
    return context;
}

Deadline ClientContext::deadline(uint32_t timeout_ms) const {
    return Deadline::after_ms(timeout_ms != 0 ? timeout_ms : options_.timeout_ms);
}

Nearness ClientContext::nearness(const PeerNode& peer) const {
    const bool no_ucx =
        options_.transport == Transport::kTcp || options_.transport == Transport::kShm;
    const bool by_ucx = ucx_.wanted() && !no_ucx && peer.ucx_breaker().ready();
    return nearness_of(options_.locality, peer.info()->locality, nodes_->on_this_host(peer),
                       by_ucx);
}

void ClientContext::nearest_first(Placement* placement) const {
    if (placement->count < 2) {
        return;
    }
    std::array<std::pair<int, uint32_t>, limits::kMaxReplicas> scored;
    const auto end = scored.begin() + placement->count;
    for (size_t i = 0; i < placement->count; ++i) {
        const std::shared_ptr<PeerNode> peer = nodes_->at(placement->nodes[i]);
        const int score = peer == nullptr ? 0 : read_score(peer->read_way(), nearness(*peer));
        scored[i] = {score, placement->nodes[i]};
    }
    std::stable_sort(scored.begin(), end,
                     [](const auto& one, const auto& other) { return one.first > other.first; });
    std::transform(scored.begin(), end, placement->nodes.begin(),
                   [](const auto& one) { return one.second; });
}

bool ClientContext::is_apart(const PeerNode& peer) const {
    return ucx_.wanted() && options_.transport == Transport::kAuto &&
           compare_fabrics(options_.locality.rdma_domain, peer.info()->locality.rdma_domain) ==
               Fabrics::kApart;
}

ClientUcx::Lease ClientContext::ucx_lane(PeerNode& peer, uint64_t bytes) {
    const bool only = options_.transport == Transport::kUcx;
    const bool usable =
        only || (options_.transport == Transport::kAuto && bytes >= kUcxFrom && !is_apart(peer));
    if (!ucx_.wanted() || !usable || !peer.ucx_breaker().allow()) {
        return {};
    }
    return ucx_.take();
}

Status ClientContext::check_open() const {
    if (in_forked_child()) {
        return {Code::kClosed,
                "this process was forked from the one that opened the store: open a new one"};
    }
    return closed() ? Status(Code::kClosed, "the store is closed") : Status();
}

void ClientContext::shutdown() {
    closed_.store(true, std::memory_order_release);
    master_->shutdown();
    nodes_->shutdown();
    devices_.release();
}

void CallTally::count(ClientCounts* counts, ClientSlot* slot) const {
    for (size_t i = 0; i < values.size(); ++i) {
        if (values[i] != 0) {
            (*counts)[i].fetch_add(values[i], std::memory_order_relaxed);
            if (slot != nullptr && i < kSharedCounterCount) {
                slot->add_counter(static_cast<uint32_t>(i), values[i]);
            }
        }
    }
}

uint64_t ClientContext::counter(ClientCounter which) const {
    return (*counters_)[static_cast<size_t>(which)].load(std::memory_order_relaxed);
}

}  // namespace kvstore
