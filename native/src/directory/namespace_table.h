// The master's namespaces: (tenant, name) with an epoch that a flush increments.
//
// An object belongs to one epoch of its namespace. A flush replaces the current epoch in O(1): what
// belongs to an older one is unreachable at once and swept later.
//
// A namespace exists from its first write, and goes once nothing is left of it: no object, no
// tombstone, nobody who holds the pointer. One that was flushed stays, for its epoch must not be
// used again while a node may still hold objects of it. A pointer to an epoch is good while its
// namespace is held, or an object or tombstone of that epoch is recorded.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "base/mutex.h"
#include "base/status.h"
#include "base/types.h"

namespace kvstore {

struct Namespace;

struct DirectoryEpoch {
    uint32_t ref = 0;  // position in the table; what an object's entry stores
    uint32_t epoch = 0;
    NamespaceId id = 0;
    TenantId tenant_id = 0;
    const Namespace* owner = nullptr;
    // Recorded objects, those of nodes that are down too, and their bytes, each object once.
    mutable std::atomic<uint64_t> objects{0};
    mutable std::atomic<uint64_t> bytes{0};
    mutable std::atomic<uint64_t> tombstones{0};
    bool is_current() const;
    bool is_empty() const { return objects.load() == 0 && tombstones.load() == 0; }
};

struct Namespace {
    uint64_t uid = 0;    // of this one; the next one of the same name has another
    NamespaceId id = 0;  // of its name, whatever its epoch
    std::string tenant;
    std::string name;
    std::atomic<const DirectoryEpoch*> current{nullptr};
    // The last one that the journal has: a later life of the master may know of no other.
    std::atomic<uint32_t> durable_epoch{0};
    // By lookups at the master; readers of a host's own memory ask nobody.
    mutable std::atomic<uint64_t> keys_looked_up{0};
    mutable std::atomic<uint64_t> keys_found{0};
    mutable std::atomic<uint64_t> handed_out{0};  // by the table
};
using NamespacePtr = std::shared_ptr<Namespace>;

inline bool DirectoryEpoch::is_current() const {
    return owner->current.load(std::memory_order_acquire) == this;
}

class NamespaceTable {
  public:
    static constexpr size_t kMaxNamespaces = 1u << 16;

    explicit NamespaceTable(const HashSecret& secret) : secret_(secret) {}
    // Finds or creates (at epoch 0). kInvalidArgument for a bad name, kTooLarge when the table is
    // full.
    Result<NamespacePtr> open(std::string_view tenant, std::string_view name);
    // The same, for what a client asks: kNoSpace when its tenant has as many as it may have.
    Result<NamespacePtr> open_for(std::string_view tenant, std::string_view name);
    NamespacePtr find(std::string_view tenant, std::string_view name) const;  // null when unknown
    // Makes `epoch` current when it is higher than the current one; returns the current epoch.
    const DirectoryEpoch* advance(Namespace& ns, uint32_t epoch);
    const DirectoryEpoch* at(uint32_t ref) const;
    std::vector<std::pair<NamespacePtr, uint32_t>> all() const;  // with the current epoch
    size_t size() const;
    void set_tenant_limit(size_t most) { tenant_limit_ = most; }

    // Two steps of forgetting. Between them the caller drops those of which something is recorded
    // elsewhere. What was given to anybody since the first step stays.
    struct Idle {
        uint64_t uid = 0;
        NamespaceId id = 0;
        uint32_t ref = 0;
        uint64_t handed_out = 0;
        std::string tenant{};
        std::string name{};
    };
    std::vector<Idle> idle(size_t most) const;
    std::vector<Idle> forget(const std::vector<Idle>& idle);  // those that went

  private:
    Result<NamespacePtr> open(std::string_view tenant, std::string_view name, size_t tenant_limit);
    const DirectoryEpoch* append(Namespace& ns, uint32_t epoch) KV_REQUIRES(mutex_);
    static bool is_idle(const NamespacePtr& ns);

    const HashSecret secret_;
    std::atomic<size_t> tenant_limit_{kMaxNamespaces};
    mutable RwLock mutex_;
    struct NameLess {
        using is_transparent = void;
        bool operator()(const auto& a, const auto& b) const {
            return std::pair<std::string_view, std::string_view>(a) <
                   std::pair<std::string_view, std::string_view>(b);
        }
    };
    std::map<std::pair<std::string, std::string>, NamespacePtr, NameLess> names_
        KV_GUARDED_BY(mutex_);
    std::map<std::string, size_t, std::less<>> by_tenant_ KV_GUARDED_BY(mutex_);
    std::deque<DirectoryEpoch> epochs_ KV_GUARDED_BY(mutex_);
    std::vector<uint32_t> free_refs_ KV_GUARDED_BY(mutex_);
    uint64_t next_uid_ KV_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvstore
