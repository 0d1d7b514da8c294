// Creating a node, and its owner's calls.
#include "node/node_core.h"

#include <sys/un.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <iterator>

#include "node/node_block_port.h"

namespace kvstore {
namespace {

Status check_options(const NodeOptions& options) {
    if (options.node_id.empty() || !is_valid_name(options.node_id)) {
        return {Code::kInvalidArgument, "node_id: a name of 1 to 255 bytes is needed"};
    }
    if (options.node_epoch == 0 || options.node_epoch > kMaxEpoch) {
        return {Code::kInvalidArgument, "node_epoch: out of range"};
    }
    for (const std::string& text : {options.tcp_endpoint, options.unix_endpoint}) {
        if (text.empty()) {
            continue;
        }
        const Result<Endpoint> endpoint = Endpoint::parse(text);
        if (!endpoint.ok()) {
            return endpoint.status();
        }
        if (endpoint->is_unix() && endpoint->path.size() >= sizeof(sockaddr_un::sun_path)) {
            return {Code::kInvalidArgument,
                    "unix_endpoint: " + endpoint->path + " is longer than the system's " +
                        std::to_string(sizeof(sockaddr_un::sun_path) - 1) + " bytes"};
        }
    }
    return {};
}

NvmeTier::Options nvme_options(const NodeOptions& options) {
    NvmeTier::Options nvme;
    for (size_t i = 0; i < options.nvme_dirs.size(); ++i) {
        NvmeOptions& log = nvme.devices.emplace_back();
        log.directory = options.nvme_dirs[i];
        log.size_bytes = options.nvme_bytes / options.nvme_dirs.size();
        log.node_id = options.node_id;
        log.cluster_check = cluster_check(options.hash_secret);
        log.discard_foreign = options.discard_foreign_nvme;
        log.keep_free = options.nvme_keep_free;
        log.catalog = i < options.nvme_catalogs.size() ? options.nvme_catalogs[i] : nullptr;
        log.on_progress = options.on_nvme_progress;
    }
    nvme.tunables = options.nvme;
    return nvme;
}

}  // namespace

struct NodeCore::Impl {
    Impl(const NodeOptions& options, std::unique_ptr<Domains> memory,
         std::unique_ptr<NvmeTier> tier)
        : domains(std::move(memory)),
          nvme(std::move(tier)),
          service(options, *domains, nvme.get()) {}
    std::unique_ptr<Domains> domains;
    std::unique_ptr<NvmeTier> nvme;
    NodeBlockPort service;
};

Result<std::unique_ptr<NodeCore>> NodeCore::create(const NodeOptions& options,
                                                   std::vector<std::unique_ptr<StoreFiles>> files) {
    const Status checked = check_options(options);
    if (!checked.ok()) {
        return checked;
    }
    Result<std::unique_ptr<Domains>> domains = Domains::create(options, std::move(files));
    if (!domains.ok()) {
        return domains.status();
    }
    std::unique_ptr<NvmeTier> nvme;
    if (!options.nvme_dirs.empty()) {
        auto opened = NvmeTier::open(nvme_options(options), **domains);
        if (!opened.ok()) {
            return opened.status();
        }
        nvme = std::move(*opened);
    }
    return std::unique_ptr<NodeCore>(
        new NodeCore(std::make_unique<Impl>(options, std::move(*domains), std::move(nvme))));
}

NodeCore::NodeCore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
NodeCore::~NodeCore() { stop(); }

Result<NodeEndpoints> NodeCore::start() { return impl_->service.start(); }

void NodeCore::set_session(uint64_t session_id, const std::vector<std::string>& master_endpoints) {
    impl_->service.link().set_session(session_id, master_endpoints);
}

void NodeCore::set_principals(std::vector<Principal> principals) {
    impl_->service.set_principals(std::move(principals));
}

void NodeCore::set_credentials(std::string principal, std::string token) {
    impl_->service.set_credentials(std::move(principal), std::move(token));
}

void NodeCore::set_tunables(NodeTunables tunables) {
    impl_->service.set_tunables(std::move(tunables));
}

void NodeCore::set_draining(bool draining) { impl_->service.set_draining(draining); }

LinkState NodeCore::link_state() const { return impl_->service.link().state(); }

bool NodeCore::wait_link(LinkState state, uint32_t timeout_ms) {
    return impl_->service.link().wait_state(state, timeout_ms);
}

Result<std::string> NodeCore::heartbeat(std::string_view request, uint32_t timeout_ms) {
    const auto promise = std::make_shared<std::promise<Result<std::string>>>();
    std::future<Result<std::string>> answer = promise->get_future();
    impl_->service.link().heartbeat(
        request, [promise](Result<std::string> heard) { promise->set_value(std::move(heard)); });
    if (answer.wait_for(std::chrono::milliseconds(timeout_ms)) != std::future_status::ready) {
        return Status(Code::kUnavailable, "no answer over the link in time");
    }
    return answer.get();
}

NodeStats NodeCore::stats() const {
    NodeStats stats;
    impl_->service.fill(stats);
    return stats;
}

std::string NodeCore::damage() { return impl_->domains->damage(); }

std::vector<std::string> NodeCore::take_lost_clients() {
    std::vector<std::string> lost;
    for (const auto& domain : impl_->domains->all()) {
        std::ranges::move(domain->slots.take_lost(), std::back_inserter(lost));
    }
    return lost;
}

std::vector<Refusal> NodeCore::take_refusals() { return impl_->service.take_refusals(); }

std::vector<FinishedSpan> NodeCore::take_spans() { return impl_->service.take_spans(); }

std::vector<SessionView> NodeCore::sessions() const { return impl_->service.sessions(); }

size_t NodeCore::end_sessions(std::span<const uint64_t> ids, std::string_view reason) {
    return impl_->service.end_sessions(ids, reason);
}

std::vector<TenantCounters> NodeCore::client_counters() const {
    return impl_->domains->client_counters();
}

UseSampler::Taken NodeCore::take_uses(uint32_t level) {
    return impl_->domains->sampler().take(level);
}

std::vector<BlockStore::PrefixUse> NodeCore::take_prefixes() {
    std::vector<BlockStore::PrefixUse> found;
    for (const auto& domain : impl_->domains->all()) {
        std::ranges::move(domain->store->take_prefixes(limits::kMaxPrefixes),
                          std::back_inserter(found));
    }
    std::ranges::sort(found, std::greater<>(), &BlockStore::PrefixUse::uses);
    found.resize(std::min(found.size(), limits::kMaxPrefixes));
    return found;
}

Domains& NodeCore::domains() { return *impl_->domains; }

NvmeTier* NodeCore::nvme() { return impl_->nvme.get(); }

Status NodeCore::adopt_ucx(size_t domain, Fd socket) {
    return impl_->service.adopt_ucx(domain, std::move(socket));
}
void NodeCore::ucx_ended(size_t domain) { impl_->service.ucx_ended(domain); }
void NodeCore::stop() { impl_->service.stop(); }

}  // namespace kvstore
