// Namespaces by name and by reference: a map under a shared lock, and epochs that are only
// appended.
#include "directory/namespace_table.h"

#include "base/mutex.h"

namespace kvstore {

Result<Namespace*> NamespaceTable::open(std::string_view tenant, std::string_view name) {
    if (Namespace* known = find(tenant, name)) {
        return known;
    }
    if (!is_valid_name(tenant) || tenant.empty() || !is_valid_name(name)) {
        return Status(Code::kInvalidArgument, "bad tenant or namespace name");
    }
    const WriterLock lock(mutex_);
    std::pair<std::string, std::string> key(tenant, name);
    if (const auto at = names_.find(key); at != names_.end()) {
        return &at->second;
    }
    if (names_.size() >= kMaxNamespaces) {
        return Status(Code::kTooLarge, "too many namespaces");
    }
    Namespace& created = names_[key];
    created.tenant = std::move(key.first);
    created.name = std::move(key.second);
    created.current.store(append(created, 0), std::memory_order_release);
    return &created;
}

Namespace* NamespaceTable::find(std::string_view tenant, std::string_view name) const {
    const ReaderLock lock(mutex_);
    const auto at = names_.find(std::pair(tenant, name));
    return at == names_.end() ? nullptr : const_cast<Namespace*>(&at->second);
}

const DirectoryEpoch* NamespaceTable::advance(Namespace& ns, uint32_t epoch) {
    const WriterLock lock(mutex_);
    const DirectoryEpoch* current = ns.current.load(std::memory_order_acquire);
    if (epoch <= current->epoch) {
        return current;
    }
    const DirectoryEpoch* next = append(ns, epoch);
    ns.current.store(next, std::memory_order_release);
    return next;
}

const DirectoryEpoch* NamespaceTable::at(uint32_t ref) const {
    const ReaderLock lock(mutex_);
    return &epochs_[ref];
}

std::vector<std::pair<const Namespace*, uint32_t>> NamespaceTable::all() const {
    const ReaderLock lock(mutex_);
    std::vector<std::pair<const Namespace*, uint32_t>> out;
    for (const auto& [key, ns] : names_) {
        out.emplace_back(&ns, ns.current.load(std::memory_order_acquire)->epoch);
    }
    return out;
}

const DirectoryEpoch* NamespaceTable::append(Namespace& ns, uint32_t epoch) {
    DirectoryEpoch& added = epochs_.emplace_back();
    added.ref = static_cast<uint32_t>(epochs_.size() - 1);
    added.epoch = epoch;
    added.id = namespace_id(secret_, ns.tenant, ns.name, epoch);
    added.tenant_id = tenant_id(secret_, ns.tenant);
    added.owner = &ns;
    return &added;
}

}  // namespace kvstore
