// Creating the domains, finding a tenant's, and what they tell together.
#include "node/domains.h"

#include <algorithm>
#include <map>

namespace kvstore {
namespace {

bool contains(const std::vector<std::string>& names, std::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

// A sentence of one domain among those of others.
std::string of_domain(const Domain& domain, const std::string& sentence) {
    const bool named = !sentence.empty() && !domain.options.name.empty();
    return named ? "domain " + domain.options.name + ": " + sentence : sentence;
}

void append(std::string* sentences, const std::string& more) {
    *sentences += (sentences->empty() || more.empty() ? "" : "; ") + more;
}

bool lives_in(const std::vector<DomainOptions>& all, size_t which, std::string_view tenant) {
    const auto listed = std::ranges::find_if(
        all, [&](const DomainOptions& domain) { return contains(domain.tenants, tenant); });
    return listed == all.end() ? all[which].others
                               : listed == all.begin() + static_cast<ptrdiff_t>(which);
}

BlockStore::Options store_options(const NodeOptions& options, const std::vector<DomainOptions>& all,
                                  size_t which) {
    BlockStore::Options store;
    const uint64_t bytes = all[which].segment_bytes;
    store.size_bytes = bytes == 0 ? options.segment_bytes : bytes;
    store.index_entries = options.index_entries;
    store.node_id = options.node_id;
    store.node_epoch = options.node_epoch;
    store.secret = options.hash_secret;
    store.client_cap_bytes = options.client_cap_bytes;
    store.lease_cap_bytes = options.lease_cap_bytes;
    store.pin_cap_bytes = options.pin_cap_bytes;
    store.reservation_ms = options.reservation_ms;
    store.allow_cold_restart = options.allow_cold_restart;
    store.tiered = !options.nvme_dirs.empty();
    store.generation_first = static_cast<uint32_t>(which + 1);
    store.generation_step = static_cast<uint32_t>(all.size());
    store.keeps = [all, which](std::string_view tenant) { return lives_in(all, which, tenant); };
    return store;
}

// Adds up what is countable.
void add(BlockStore::Stats& sum, const BlockStore::Stats& one) {
    using Stats = BlockStore::Stats;
    static constexpr uint64_t Stats::* kCounted[] = {
        &Stats::capacity_bytes,
        &Stats::segment_bytes,
        &Stats::used_bytes,
        &Stats::requested_bytes,
        &Stats::objects,
        &Stats::object_bytes,
        &Stats::index_capacity,
        &Stats::index_max,
        &Stats::index_used,
        &Stats::reservations,
        &Stats::spares,
        &Stats::reserved_bytes,
        &Stats::quarantined,
        &Stats::quarantined_bytes,
        &Stats::deferred,
        &Stats::deferred_bytes,
        &Stats::leases,
        &Stats::leased_bytes,
        &Stats::soft_pinned_bytes,
        &Stats::hard_pinned_bytes,
        &Stats::tombstones,
        &Stats::unwritten,
        &Stats::unwritten_bytes,
        &Stats::reserves,
        &Stats::publishes,
        &Stats::aborts,
        &Stats::evictions,
        &Stats::index_evictions,
        &Stats::evicted_bytes,
        &Stats::prefetch_used,
        &Stats::prefetch_wasted,
        &Stats::evicted_unwritten,
        &Stats::expirations,
        &Stats::removals,
        &Stats::replaced,
        &Stats::flushed,
        &Stats::no_space,
        &Stats::reclaims,
        &Stats::touches,
    };
    static_assert(sizeof(Stats) == sizeof kCounted / sizeof kCounted[0] * sizeof(uint64_t) +
                                       sizeof(Stats::growth_error));
    for (uint64_t Stats::* const member : kCounted) {
        sum.*member += one.*member;
    }
}

}  // namespace

Result<std::unique_ptr<Domains>> Domains::create(const NodeOptions& options,
                                                 std::vector<std::unique_ptr<StoreFiles>> files) {
    const std::vector<DomainOptions> all =
        options.domains.empty() ? std::vector<DomainOptions>(1) : options.domains;
    if (!files.empty() && files.size() != all.size()) {
        return {Code::kInvalidArgument, "domains: each needs files of its own"};
    }
    files.resize(all.size());
    std::unique_ptr<Domains> domains(new Domains);
    for (size_t i = 0; i < all.size(); ++i) {
        BlockStore::Options store = store_options(options, all, i);
        store.sampler = domains->sampler_;
        auto created = files[i] == nullptr ? BlockStore::create(store)
                                           : BlockStore::create(store, std::move(files[i]));
        if (!created.ok()) {
            const std::string where = all[i].name.empty() ? "" : "domain " + all[i].name + ": ";
            return {created.code(), where + created.status().message()};
        }
        domains->domains_.push_back(std::make_unique<Domain>(all[i], std::move(*created)));
    }
    domains->set_access(options.shm_read, options.shm_write);
    return domains;
}

const Domain* Domains::find(std::string_view tenant) const {
    const Domain* others = nullptr;
    for (const auto& domain : domains_) {
        if (contains(domain->options.tenants, tenant)) {
            return domain.get();
        }
        if (domain->options.others) {
            others = domain.get();
        }
    }
    return others;
}

Domain& Domains::of(std::string_view tenant) const {
    const Domain* const found = find(tenant);
    return found == nullptr ? *domains_.front() : const_cast<Domain&>(*found);
}

bool Domains::has_memory_for(std::string_view tenant) const { return find(tenant) != nullptr; }

Domain& Domains::at(Generation generation) const {
    return *domains_[((generation & kMaxCounter) - 1) % domains_.size()];
}

MapAccess Domains::access(std::string_view tenant) const {
    const Domain* const domain = find(tenant);
    if (domain == nullptr || domain->options.is_private) {
        return MapAccess::kNone;
    }
    const MutexLock lock(mutex_);
    return contains(writers_, tenant)   ? MapAccess::kWrite
           : contains(readers_, tenant) ? MapAccess::kRead
                                        : MapAccess::kNone;
}

void Domains::set_access(std::vector<std::string> readers, std::vector<std::string> writers) {
    const MutexLock lock(mutex_);
    readers_ = std::move(readers);
    writers_ = std::move(writers);
}

uint64_t Domains::segment_bytes() const {
    uint64_t sum = 0;
    for (const auto& domain : domains_) {
        sum += domain->store->segment_bytes();
    }
    return sum;
}

// What all that have kept objects have applied needs no repetition.
BlockStore::Beginning Domains::beginning() const {
    BlockStore::Beginning all;
    for (const auto& domain : domains_) {
        const BlockStore::Beginning& one = domain->store->beginning();
        if (one.warm) {
            all.applied_seq =
                all.warm ? std::min(all.applied_seq, one.applied_seq) : one.applied_seq;
            all.warm = true;
        }
        append(&all.why_cold, of_domain(*domain, one.why_cold));
        append(&all.restart_loses, of_domain(*domain, one.restart_loses));
        all.objects += one.objects;
        all.object_bytes += one.object_bytes;
        all.dropped += one.dropped;
        all.quarantined += one.quarantined;
        all.deferred += one.deferred;
        all.took_us += one.took_us;
        all.namespaces.insert(all.namespaces.end(), one.namespaces.begin(), one.namespaces.end());
    }
    return all;
}

BlockStore::Stats Domains::stats() const {
    BlockStore::Stats sum;
    for (const auto& domain : domains_) {
        const BlockStore::Stats one = domain->store->stats();
        add(sum, one);
        append(&sum.growth_error, of_domain(*domain, one.growth_error));
    }
    return sum;
}

Status Domains::prefault_status() const {
    for (const auto& domain : domains_) {
        const Status status = domain->store->prefault_status();
        if (!status.ok()) {
            return {status.code(), of_domain(*domain, status.message())};
        }
    }
    return {};
}

std::string Domains::damage() const {
    std::string found;
    for (const auto& domain : domains_) {
        const std::string what = domain->store->damage();
        append(&found, what.empty() ? what : what + "; " + domain->slots.holders());
    }
    return found;
}

std::vector<TenantCounters> Domains::client_counters() const {
    std::map<std::string, TenantCounters> by_tenant;
    for (const auto& domain : domains_) {
        for (const TenantCounters& one : domain->slots.counters()) {
            TenantCounters& sum = by_tenant[one.tenant];
            sum.tenant = one.tenant;
            sum.live_slots += one.live_slots;
            std::ranges::transform(sum.values, one.values, sum.values.begin(), std::plus<>());
        }
    }
    std::vector<TenantCounters> out;
    for (auto& [tenant, sum] : by_tenant) {
        out.push_back(std::move(sum));
    }
    return out;
}

}  // namespace kvstore
