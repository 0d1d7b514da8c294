// The block store's accounts: statistics, and the audit that every block has exactly one owner.
#include <algorithm>

#include "store/store_state.h"

namespace kvstore {
namespace {

Status broken(const std::string& what) { return {Code::kInternal, what}; }

}  // namespace

BlockStore::Stats BlockStore::stats() {
    State::Lock lock(*state_);
    return state_->collect_stats();
}

BlockStore::Stats BlockStore::State::collect_stats() {
    deferred.settle();
    use_ready_memory();
    const ChunkAllocator::Stats blocks = allocator.stats();
    Stats stats = totals;
    stats.capacity_bytes = segment->ready_bytes();
    stats.segment_bytes = segment->size();
    stats.used_bytes = blocks.allocated_bytes;
    stats.requested_bytes = blocks.requested_bytes;
    stats.index_capacity = index->capacity();
    stats.index_max = index->max_capacity();
    stats.index_used = index->size();
    // Who has to grow asks again; who no longer has to does not.
    const bool needs_room = !no_growth.empty() && now() < no_growth_until_ms + kGrowAgainMs;
    stats.growth_error = needs_room ? no_growth : index->growth_status().message();
    stats.reservations = reservations.active() - reservations.spares();
    stats.spares = reservations.spares();
    stats.reserved_bytes = reservations.active_bytes();
    stats.quarantined = reservations.quarantined();
    stats.quarantined_bytes = reservations.quarantined_bytes();
    stats.deferred = deferred.size();
    stats.deferred_bytes = deferred.bytes();
    stats.leases = leases.size();
    stats.leased_bytes = leases.bytes();
    stats.tombstones = tombstones.size();
    return stats;
}

Status BlockStore::audit() {
    State::Lock lock(*state_);
    return state_->audit();
}

Status BlockStore::State::audit() {
    deferred.settle();
    std::unordered_map<uint64_t, uint64_t> blocks;  // offset → exact bytes
    if (Status status = allocator.audit(); !status.ok()) {
        return status;
    }
    if (Status status = index->audit(); !status.ok()) {
        return status;
    }
    if (Status status = audit_objects(&blocks); !status.ok()) {
        return status;
    }
    for (const auto& [generation, reservation] : reservations.all()) {
        if (!blocks.emplace(reservation.offset, reservation.size_bytes).second) {
            return broken("a reservation shares its block");
        }
    }
    for (const auto& [generation, block] : deferred.all()) {
        if (!blocks.emplace(block.offset, block.length).second) {
            return broken("a deferred block has another owner");
        }
    }
    // What a later life would need: a record for every block that no entry owns.
    const size_t records = reservations.all().size() + deferred.size() + socket_holds.recorded();
    if (records != index->ledger().lines_in_use()) {
        return broken("the ledger's records differ");
    }
    if (Status status = audit_blocks(blocks); !status.ok()) {
        return status;
    }
    return audit_counts();
}

Status BlockStore::State::audit_objects(std::unordered_map<uint64_t, uint64_t>* blocks) {
    uint64_t seen = 0;
    uint64_t bytes = 0;
    Stats pins;
    uint64_t unwritten = 0;
    uint64_t unwritten_bytes = 0;
    for (EntryRef ref = 0; ref < index->capacity(); ++ref) {
        const StoredObject& object = objects[ref];
        const EntryFields fields = index->entry(ref);
        const std::string name = "entry " + std::to_string(ref);
        if (fields.gen != object.generation) {
            return broken(name + ": generations differ");
        }
        if (object.generation == 0) {
            if (evictor.contains(ref)) {
                return broken(name + ": evictable but empty");
            }
            continue;
        }
        ++seen;
        bytes += object.length;
        unwritten += options.tiered && !object.written ? 1 : 0;
        unwritten_bytes += options.tiered && !object.written ? object.length : 0;
        if (object.pin == Pin::kSoft) {
            pins.soft_pinned_bytes += object.length;
        }
        if (object.pin == Pin::kHard) {
            pins.hard_pinned_bytes += object.length;
        }
        if (fields.offset != object.offset || fields.length != object.length ||
            fields.expires_at_ms != object.expires_at_ms || index->cold(ref).pin != object.pin) {
            return broken(name + ": index and private state differ");
        }
        if (by_generation.find(object.generation) != ref || by_offset.find(object.offset) != ref) {
            return broken(name + ": not found by its numbers");
        }
        const bool evictable = object.leases == 0 && object.pin != Pin::kHard;
        if (evictor.contains(ref) != evictable) {
            return broken(name + ": protection is wrong");
        }
        if (!blocks->emplace(object.offset, object.length).second) {
            return broken(name + ": shares its block");
        }
    }
    if (seen != totals.objects || bytes != totals.object_bytes || seen != by_generation.size() ||
        seen != by_offset.size() || seen != index->size()) {
        return broken("object counts differ");
    }
    if (unwritten != totals.unwritten || unwritten_bytes != totals.unwritten_bytes) {
        return broken("counts of objects that NVMe lacks differ");
    }
    if (pins.soft_pinned_bytes != totals.soft_pinned_bytes ||
        pins.hard_pinned_bytes != totals.hard_pinned_bytes) {
        return broken("pinned bytes differ");
    }
    return evictor.consistent() ? Status() : broken("the evictor's groups are broken");
}

Status BlockStore::State::audit_blocks(const std::unordered_map<uint64_t, uint64_t>& blocks) const {
    const ChunkAllocator::Stats stats = allocator.stats();
    if (stats.live_blocks != blocks.size()) {
        return broken(std::to_string(stats.live_blocks) + " live blocks, " +
                      std::to_string(blocks.size()) + " owned");
    }
    std::vector<std::pair<uint64_t, uint64_t>> extents;  // offset, rounded bytes
    uint64_t rounded_sum = 0;
    for (const auto& [offset, length] : blocks) {
        const uint64_t rounded = allocator.block_bytes(offset);
        if (rounded < std::max<uint64_t>(length, 1)) {
            return broken("a block is too short");
        }
        rounded_sum += rounded;
        extents.emplace_back(offset, rounded);
    }
    if (rounded_sum != stats.allocated_bytes) {
        return broken("allocated bytes differ");
    }
    std::ranges::sort(extents);
    uint64_t end = 0;
    for (const auto& [offset, rounded] : extents) {
        if (offset < end) {
            return broken("blocks overlap at " + std::to_string(offset));
        }
        end = offset + rounded;
    }
    return end <= segment->ready_bytes() ? Status() : broken("a block is not pre-faulted");
}

Status BlockStore::State::audit_counts() const {
    if (!reservations.consistent()) {
        return broken("reservation sums differ");
    }
    std::unordered_map<Generation, uint32_t> leased;
    for (const auto& [id, lease] : leases.all()) {
        for (const LeaseTable::Item& item : lease.items) {
            ++leased[item.generation];
        }
    }
    std::vector<uint64_t> in_namespace(namespaces.size(), 0);
    for (EntryRef ref = 0; ref < objects.size(); ++ref) {
        const StoredObject& object = objects[ref];
        if (object.generation == 0) {
            continue;
        }
        const auto it = leased.find(object.generation);
        if (object.leases != (it == leased.end() ? 0 : it->second)) {
            return broken("lease counts differ");
        }
        ++in_namespace[object.ns];
    }
    for (size_t i = 0; i < namespaces.size(); ++i) {
        if (namespaces[i].objects != in_namespace[i]) {
            return broken("namespace counts differ");
        }
    }
    return {};
}

}  // namespace kvstore
