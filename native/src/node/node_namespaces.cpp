// Opening and advancing a node's namespaces.
#include "node/node_namespaces.h"

#include <algorithm>

namespace kvstore {

Result<std::shared_ptr<NamespaceCell>> NodeNamespaces::open(std::string_view tenant,
                                                            std::string_view name) {
    if (tenant.empty() || !is_valid_name(tenant) || !is_valid_name(name)) {
        return {Code::kInvalidArgument, "not a tenant or namespace name"};
    }
    const MutexLock lock(mutex_);
    const Name full{tenant, name};
    const auto found = cells_.find(full);
    if (found != cells_.end()) {
        return found->second;
    }
    if (cells_.size() >= look_at_) {
        forget_unused();
    }
    if (cells_.size() >= kMaxNamespaces) {
        return {Code::kOverloaded, "too many namespaces"};
    }
    auto cell = std::make_shared<NamespaceCell>(make_namespace(secret_, tenant, name, 0));
    cells_.emplace(full, cell);
    return cell;
}

// Nobody can get a cell meanwhile: that takes the mutex, too.
void NodeNamespaces::forget_unused() {
    std::erase_if(cells_, [](const auto& entry) {
        const std::shared_ptr<NamespaceCell>& cell = entry.second;
        return cell.use_count() == 1 && cell->current()->epoch == 0;
    });
    look_at_ = std::min(kMaxNamespaces, std::max<size_t>(1024, 2 * cells_.size()));
}

size_t NodeNamespaces::size() const {
    const MutexLock lock(mutex_);
    return cells_.size();
}

Result<NamespaceRef> NodeNamespaces::at(std::string_view tenant, std::string_view name,
                                        uint32_t epoch) {
    const Result<std::shared_ptr<NamespaceCell>> cell = open(tenant, name);
    if (!cell.ok()) {
        return cell.status();
    }
    NamespaceRef current = (*cell)->current();
    return current->epoch == epoch ? current : make_namespace(secret_, tenant, name, epoch);
}

Result<NamespaceRef> NodeNamespaces::advance(std::string_view tenant, std::string_view name,
                                             uint32_t epoch) {
    const Result<std::shared_ptr<NamespaceCell>> cell = open(tenant, name);
    if (!cell.ok()) {
        return cell.status();
    }
    const MutexLock lock((*cell)->mutex_);
    if ((*cell)->current_->epoch >= epoch) {
        return NamespaceRef();
    }
    return std::exchange((*cell)->current_, make_namespace(secret_, tenant, name, epoch));
}

}  // namespace kvstore
