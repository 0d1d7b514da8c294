// The namespaces that a node has heard of, each with its current incarnation (epoch).
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "store/block_store.h"

namespace kvstore {

// One (tenant, name); sessions keep it, so that a flush reaches them all at once. Thread-safe.
class NamespaceCell {
  public:
    explicit NamespaceCell(NamespaceRef ns) : current_(std::move(ns)) {}
    NamespaceRef current() const {
        const MutexLock lock(mutex_);
        return current_;
    }

  private:
    friend class NodeNamespaces;
    mutable Mutex mutex_;
    NamespaceRef current_ KV_GUARDED_BY(mutex_);
};

// Thread-safe. One that was never flushed and that nobody holds is forgotten when there are many:
// it begins at epoch 0 again. The others stay: their epochs are what a flush has left behind.
class NodeNamespaces {
  public:
    static constexpr size_t kMaxNamespaces = 1u << 16;
    explicit NodeNamespaces(const HashSecret& secret) : secret_(secret) {}

    // kInvalidArgument for a bad name, kOverloaded when the table is full.
    Result<std::shared_ptr<NamespaceCell>> open(std::string_view tenant, std::string_view name);
    // The incarnation `epoch` of a namespace: the current one when it is that.
    Result<NamespaceRef> at(std::string_view tenant, std::string_view name, uint32_t epoch);
    // Makes `epoch` current when it is higher. Returns the incarnation that ended, or null.
    Result<NamespaceRef> advance(std::string_view tenant, std::string_view name, uint32_t epoch);

    size_t size() const;

  private:
    void forget_unused() KV_REQUIRES(mutex_);

    using Name = std::pair<std::string, std::string>;
    const HashSecret secret_;
    mutable Mutex mutex_;
    size_t look_at_ KV_GUARDED_BY(mutex_) = 1024;  // cells, for those that can be forgotten
    std::map<Name, std::shared_ptr<NamespaceCell>> cells_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
