// Namespaces by name and by reference: a map under a shared lock, and epochs that are only
// appended.
#include "directory/namespace_table.h"

#include "base/fence.h"
#include "base/mutex.h"

namespace kvstore {

Result<NamespacePtr> NamespaceTable::open(std::string_view tenant, std::string_view name) {
    return open(tenant, name, kMaxNamespaces);
}

Result<NamespacePtr> NamespaceTable::open_for(std::string_view tenant, std::string_view name) {
    return open(tenant, name, tenant_limit_);
}

Result<NamespacePtr> NamespaceTable::open(std::string_view tenant, std::string_view name,
                                          size_t tenant_limit) {
    if (NamespacePtr known = find(tenant, name)) {
        return known;
    }
    if (!is_valid_name(tenant) || tenant.empty() || !is_valid_name(name)) {
        return Status(Code::kInvalidArgument, "bad tenant or namespace name");
    }
    const WriterLock lock(mutex_);
    std::pair<std::string, std::string> key(tenant, name);
    if (const auto at = names_.find(key); at != names_.end()) {
        ++at->second->handed_out;
        return at->second;
    }
    if (names_.size() >= kMaxNamespaces) {
        return Status(Code::kTooLarge, "too many namespaces");
    }
    size_t& held = by_tenant_[key.first];
    if (held >= tenant_limit) {
        return Status(Code::kNoSpace, "tenant " + key.first + " has " + std::to_string(held) +
                                          " namespaces, as many as tenant_namespaces allows");
    }
    ++held;
    auto created = std::make_shared<Namespace>();
    created->uid = ++next_uid_;
    created->id = namespace_id(secret_, tenant, name, 0);
    created->tenant = key.first;
    created->name = key.second;
    created->handed_out = 1;
    created->current.store(append(*created, 0), std::memory_order_release);
    names_.emplace(std::move(key), created);
    return created;
}

NamespacePtr NamespaceTable::find(std::string_view tenant, std::string_view name) const {
    const ReaderLock lock(mutex_);
    const auto at = names_.find(std::pair(tenant, name));
    if (at == names_.end()) {
        return nullptr;
    }
    // In this order: whoever does not see it counted sees it held, see idle().
    NamespacePtr found = at->second;
    found->handed_out.fetch_add(1);
    return found;
}

// Nobody holds it but the table: whoever gets it from now on is counted.
bool NamespaceTable::is_idle(const NamespacePtr& ns) {
    if (ns.use_count() != 1) {
        return false;
    }
    full_fence();  // what the last holder did before it let go is seen
    const DirectoryEpoch* current = ns->current.load();
    return current->epoch == 0 && current->is_empty();
}

std::vector<NamespaceTable::Idle> NamespaceTable::idle(size_t most) const {
    std::vector<Idle> out;
    const ReaderLock lock(mutex_);
    for (auto at = names_.begin(); at != names_.end() && out.size() < most; ++at) {
        const NamespacePtr& ns = at->second;
        const uint64_t handed_out = ns->handed_out.load();
        if (is_idle(ns)) {
            out.push_back({.uid = ns->uid,
                           .id = ns->id,
                           .ref = ns->current.load()->ref,
                           .handed_out = handed_out,
                           .tenant = ns->tenant,
                           .name = ns->name});
        }
    }
    return out;
}

std::vector<NamespaceTable::Idle> NamespaceTable::forget(const std::vector<Idle>& idle) {
    std::vector<Idle> gone;
    const WriterLock lock(mutex_);
    for (const Idle& one : idle) {
        const auto at =
            names_.find(std::pair<std::string_view, std::string_view>(one.tenant, one.name));
        if (at == names_.end() || at->second->uid != one.uid ||
            at->second->handed_out != one.handed_out || !is_idle(at->second)) {
            continue;
        }
        epochs_[one.ref].owner = nullptr;
        free_refs_.push_back(one.ref);
        names_.erase(at);
        const auto held = by_tenant_.find(one.tenant);
        if (--held->second == 0) {
            by_tenant_.erase(held);
        }
        gone.push_back(one);
    }
    return gone;
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

std::vector<std::pair<NamespacePtr, uint32_t>> NamespaceTable::all() const {
    const ReaderLock lock(mutex_);
    std::vector<std::pair<NamespacePtr, uint32_t>> out;
    for (const auto& [key, ns] : names_) {
        out.emplace_back(ns, ns->current.load(std::memory_order_acquire)->epoch);
    }
    return out;
}

size_t NamespaceTable::size() const {
    const ReaderLock lock(mutex_);
    return names_.size();
}

const DirectoryEpoch* NamespaceTable::append(Namespace& ns, uint32_t epoch) {
    uint32_t ref = static_cast<uint32_t>(epochs_.size());
    if (free_refs_.empty()) {
        epochs_.emplace_back();
    } else {
        ref = free_refs_.back();
        free_refs_.pop_back();
    }
    DirectoryEpoch& added = epochs_[ref];
    added.ref = ref;
    added.epoch = epoch;
    added.id = namespace_id(secret_, ns.tenant, ns.name, epoch);
    added.tenant_id = tenant_id(secret_, ns.tenant);
    added.owner = &ns;
    added.bytes = 0;
    return &added;
}

}  // namespace kvstore
