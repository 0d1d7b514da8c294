// What the master's link brings to the node, and what the node's store has to tell the master.
#include <algorithm>
#include <utility>

#include "base/fault_point.h"
#include "base/mutex.h"
#include "node/node_block_port.h"

namespace kvstore {
void NodeBlockPort::on_link_down(uint64_t link) {
    for (const auto& domain : domains_.all()) {
        domain->flow->on_link_down(link);
    }
    copier_->drop_link(link);
}

void NodeBlockPort::on_claims(uint64_t link, std::span<const ClaimAnswer> results) {
    // A claim's id is the generation of its block. In runs, so that a batch stays one.
    for (size_t first = 0; first < results.size();) {
        Domain& domain = domains_.at(results[first].claim_id);
        size_t end = first + 1;
        while (end < results.size() && &domains_.at(results[end].claim_id) == &domain) {
            ++end;
        }
        domain.flow->on_claims(link, results.subspan(first, end - first));
        first = end;
    }
}

void NodeBlockPort::on_announced(uint64_t, const NamespaceRef& ns,
                                 std::span<const AnnounceResult> results) {
    domains_.of(ns).flow->on_announced(results);
    for (const AnnounceResult& result : results) {
        // Of the full announce: what the master does not take (removed, flushed, older than what
        // others have) must not be read here either.
        if (result.item->ticket == 0 && result.code != Code::kOk) {
            const std::string& key = result.item->key;
            const Hash128 hash = key_hash(options_.hash_secret, ns->id, key);
            remove(ns, {key, hash}, result.item->version);
        }
    }
}

// ---- operations ------------------------------------------------------------------------------

void NodeBlockPort::on_ops(std::span<const OpView> ops) {
    for (const OpView& op : ops) {
        apply(op);
    }
}

void NodeBlockPort::on_applied(uint64_t seq) {
    for (const auto& domain : domains_.all()) {
        domain->store->note_applied(seq);
    }
    fault_point("removal_applied");
    if (tier_ != nullptr) {
        tier_->note_applied(seq);  // acknowledges it once it is on disk
    } else {
        link_->acknowledge(seq);
    }
}

void NodeBlockPort::remove(const NamespaceRef& ns, const BlockStore::Key& key, Version version) {
    fault_point("remove");
    static_cast<void>(domains_.store_of(ns).remove_upto(ns, key, version));
    fault_point("removed");
    if (tier_ != nullptr) {
        tier_->remove(ns, key.hash, version);
    }
}

void NodeBlockPort::apply(const OpView& op) {
    if (op.kind == OpKind::kFlush) {
        const uint32_t next = std::max(static_cast<uint32_t>(op.arg), op.epoch + 1);
        const Result<NamespaceRef> ended = namespaces_.advance(op.tenant, op.ns, next);
        if (ended.ok() && *ended != nullptr) {
            domains_.store_of(*ended).flush(*ended);
            if (tier_ != nullptr) {
                tier_->flush((*ended)->id);
            }
        }
        return;
    }
    const Result<NamespaceRef> ns = namespaces_.at(op.tenant, op.ns, op.epoch);
    if (!ns.ok()) {
        return;  // no such name can exist, so there is nothing to do
    }
    const BlockStore::Key key{op.key, key_hash(options_.hash_secret, (*ns)->id, op.key)};
    if (op.kind == OpKind::kRemove) {
        remove(*ns, key, op.version);
    } else if (op.kind == OpKind::kPin && op.arg <= static_cast<uint64_t>(Pin::kHard)) {
        static_cast<void>(domains_.store_of(*ns).set_pin(*ns, key, static_cast<Pin>(op.arg)));
        if (tier_ != nullptr) {
            tier_->set_pin(*ns, key.hash, static_cast<Pin>(op.arg));
        }
    }
}

void NodeBlockPort::on_copy(CopyOrder job) { copier_->push(std::move(job)); }

// ---- announcements ---------------------------------------------------------------------------

// DRAM first. What is promoted meanwhile is still on NVMe, and what is demoted was listed already.
uint32_t NodeBlockPort::list_objects(uint32_t cursor, size_t limit,
                                     std::vector<AnnounceGroup>& out) {
    if (cursor == 0) {
        listed_domain_ = 0;
        listed_nvme_ = {};
    }
    if (cursor != kListNvme) {
        BlockStore& store = *domains_.all()[listed_domain_]->store;
        const uint32_t next = list_dram(store, cursor == kListNextDomain ? 0 : cursor, limit, out);
        if (next != 0) {
            return next;
        }
        if (++listed_domain_ < domains_.all().size()) {
            return kListNextDomain;
        }
    }
    return tier_ != nullptr && tier_->list(&listed_nvme_, limit, &out) ? kListNvme : 0;
}

uint32_t NodeBlockPort::list_dram(BlockStore& store, uint32_t cursor, size_t limit,
                                  std::vector<AnnounceGroup>& out) {
    std::vector<BlockStore::ObjectInfo> objects;
    const uint32_t next = store.list_objects(cursor, limit, objects);
    std::unordered_map<const NamespaceEpoch*, size_t> groups;
    for (BlockStore::ObjectInfo& object : objects) {
        const auto [at, added] = groups.emplace(object.ns.get(), out.size());
        if (added) {
            out.push_back({object.ns, {}});
        }
        out[at->second].items.push_back({0, std::move(object.key), object.version, object.length,
                                         object.pin, wishes_.wanted(object.version),
                                         object.ttl_ms});
    }
    return next;
}

void NodeBlockPort::on_withdrawn(std::span<const BlockStore::Withdrawn> items) {
    for (size_t first = 0; first < items.size();) {
        const NamespaceRef& ns = items[first].ns;
        std::vector<WithdrawItem> withdraws;
        size_t end = first;
        for (; end < items.size() && items[end].ns == ns; ++end) {
            const BlockStore::Withdrawn& item = items[end];
            const bool evicted =
                item.reason == MissReason::kEvicted || item.reason == MissReason::kIndexFull;
            if (evicted && tier_ != nullptr && tier_->has(ns->id, item.hash, item.version)) {
                continue;  // readable as before
            }
            wishes_.forget(item.version);
            if (item.reason == MissReason::kVersion) {
                // The announce of the new version replaces it at the master. Told before that, it
                // would make a moment in which nobody finds the key.
                const MutexLock lock(replaced_mutex_);
                replaced_.push_back(item);
            } else if (item.reason != MissReason::kRemoved && item.reason != MissReason::kFlushed) {
                // Removes and flushes come from the master: it knows.
                withdraws.push_back({item.key, item.version, item.reason});
            }
        }
        if (!withdraws.empty()) {
            link_->withdraw(ns, std::move(withdraws));
        }
        first = end;
    }
}

// For the case that the new version never came to be announced.
void NodeBlockPort::withdraw_replaced() {
    std::vector<BlockStore::Withdrawn> replaced;
    {
        const MutexLock lock(replaced_mutex_);
        replaced.swap(replaced_);
    }
    for (const BlockStore::Withdrawn& item : replaced) {
        link_->withdraw(item.ns, {{item.key, item.version, item.reason}});
    }
}

}  // namespace kvstore
