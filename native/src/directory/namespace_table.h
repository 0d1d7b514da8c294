// The master's namespaces: (tenant, name) with an epoch that a flush increments.
//
// An object belongs to one epoch of its namespace. A flush replaces the current epoch in O(1): what
// belongs to an older one is unreachable at once and swept later. Nothing is ever freed, so that a
// pointer to a namespace or to one of its epochs stays good for the table's life.
#pragma once

#include <atomic>
#include <deque>
#include <map>
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
    bool is_current() const;
};

struct Namespace {
    std::string tenant;
    std::string name;
    std::atomic<const DirectoryEpoch*> current{nullptr};
    // The last one that the journal has: a later life of the master may know of no other.
    std::atomic<uint32_t> durable_epoch{0};
    // By lookups at the master; readers of a host's own memory ask nobody.
    mutable std::atomic<uint64_t> keys_looked_up{0};
    mutable std::atomic<uint64_t> keys_found{0};
};

inline bool DirectoryEpoch::is_current() const {
    return owner->current.load(std::memory_order_acquire) == this;
}

class NamespaceTable {
  public:
    static constexpr size_t kMaxNamespaces = 1u << 16;

    explicit NamespaceTable(const HashSecret& secret) : secret_(secret) {}
    // Finds or creates (at epoch 0). kInvalidArgument for a bad name, kTooLarge when the table is
    // full.
    Result<Namespace*> open(std::string_view tenant, std::string_view name);
    Namespace* find(std::string_view tenant, std::string_view name) const;  // nullptr when unknown
    // Makes `epoch` current when it is higher than the current one; returns the current epoch.
    const DirectoryEpoch* advance(Namespace& ns, uint32_t epoch);
    const DirectoryEpoch* at(uint32_t ref) const;
    std::vector<std::pair<const Namespace*, uint32_t>> all() const;  // with the current epoch

  private:
    const DirectoryEpoch* append(Namespace& ns, uint32_t epoch) KV_REQUIRES(mutex_);

    const HashSecret secret_;
    mutable RwLock mutex_;
    struct NameLess {
        using is_transparent = void;
        bool operator()(const auto& a, const auto& b) const {
            return std::pair<std::string_view, std::string_view>(a) <
                   std::pair<std::string_view, std::string_view>(b);
        }
    };
    std::map<std::pair<std::string, std::string>, Namespace, NameLess> names_ KV_GUARDED_BY(mutex_);
    std::deque<DirectoryEpoch> epochs_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
