// The memory of a node, divided by who may map it.
//
// Objects of tenants that share a domain lie in one segment with one index and one set of client
// slots; what a client maps is the domain of its tenant. Objects of a private domain lie in memory
// that is never handed out. Domains are fixed while the node lives; which tenants of a domain may
// map it, and how, is not.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/mutex.h"
#include "node/node_options.h"
#include "node/put_flow.h"
#include "node/served_slots.h"
#include "node/ucx_port.h"
#include "store/block_store.h"
#include "store/use_sampler.h"

namespace kvstore {

struct Domain {
    Domain(const DomainOptions& given, std::unique_ptr<BlockStore> blocks)
        : options(given), store(std::move(blocks)), slots(store->client_slots()) {}

    const DomainOptions options;
    const std::unique_ptr<BlockStore> store;
    ServedSlots slots;
    UcxPort ucx;
    std::unique_ptr<PutFlow> flow;  // set by the block port
};

enum class MapAccess : uint8_t { kNone, kRead, kWrite };

// Thread-safe.
class Domains {
  public:
    // `files` are of each of `options.domains`, in their order; none: anonymous memory.
    static Result<std::unique_ptr<Domains>> create(const NodeOptions& options,
                                                   std::vector<std::unique_ptr<StoreFiles>> files);

    // Where a tenant's objects lie. The first domain for a tenant without memory, of which nothing
    // may be stored there.
    Domain& of(std::string_view tenant) const;
    Domain& of(const NamespaceRef& ns) const { return of(ns->tenant); }
    BlockStore& store_of(const NamespaceRef& ns) const { return *of(ns).store; }
    bool has_memory_for(std::string_view tenant) const;
    // That drew the generation, in this life of the node.
    Domain& at(Generation generation) const;
    std::span<const std::unique_ptr<Domain>> all() const { return domains_; }
    BlockStore& store(size_t number) const { return *domains_[number]->store; }

    UseSampler& sampler() const { return *sampler_; }  // of all

    MapAccess access(std::string_view tenant) const;
    void set_access(std::vector<std::string> readers, std::vector<std::string> writers);

    uint64_t segment_bytes() const;  // of all
    BlockStore::Beginning beginning() const;
    BlockStore::Stats stats() const;
    Status prefault_status() const;
    std::string damage() const;  // and who had it mapped; empty: all are whole
    std::vector<TenantCounters> client_counters() const;

  private:
    Domains() = default;
    const Domain* find(std::string_view tenant) const;

    std::shared_ptr<UseSampler> sampler_ = std::make_shared<UseSampler>();
    std::vector<std::unique_ptr<Domain>> domains_;
    mutable Mutex mutex_;
    std::vector<std::string> readers_ KV_GUARDED_BY(mutex_);
    std::vector<std::string> writers_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
