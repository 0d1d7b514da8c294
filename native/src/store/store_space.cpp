// Room for blocks: waiting for pre-faulting, eviction, withdrawal.
#include <algorithm>

#include "base/clock.h"
#include "base/fault_point.h"
#include "base/mutex.h"
#include "store/store_state.h"

namespace kvstore {
namespace {

constexpr uint64_t kUntouchable = UINT64_MAX;      // what reclaim_plan must not evict
constexpr uint64_t kSoftHeat = uint64_t{1} << 62;  // soft pins are hotter than everything else
constexpr uint64_t kNoDeadline = UINT64_MAX;
constexpr uint32_t kEvictionsPerBalance = 32;
constexpr uint64_t kUnbalancedAges = 4;

}  // namespace

std::optional<uint64_t> BlockStore::State::try_allocate(uint64_t size_bytes) {
    use_ready_memory();
    return allocator.allocate(size_bytes);
}

void BlockStore::State::use_ready_memory() {
    const uint64_t ready = segment->ready_bytes();
    if (ready == allocator.stats().capacity_bytes) {
        return;
    }
    index->ledger().note_ready(ready);
    allocator.grow(ready);
}

// From the cheapest to the dearest: free memory, expired and flushed objects, memory that is about
// to be ready, spares of clients that are idle, other objects, and last of all every spare.
std::optional<uint64_t> BlockStore::State::obtain_block(uint64_t size_bytes, bool lossless) {
    if (const auto offset = try_allocate(size_bytes)) {
        return offset;
    }
    end_leases(leases.take_expired(now()));
    expire_objects(SIZE_MAX);
    sweep_flushed(UINT32_MAX);
    deferred.settle();
    deferred.recheck();
    if (const auto offset = try_allocate(size_bytes)) {
        return offset;
    }
    if (const auto offset = wait_for_prefault(size_bytes)) {
        return offset;
    }
    // They were granted with a full reservation_ms to go.
    const bool revoked = revoke_spares(now() + options.reservation_ms - kSpareIdleMs);
    if (const auto offset = revoked ? try_allocate(size_bytes) : std::nullopt) {
        return offset;
    }
    if (const auto offset = evict_for(size_bytes, lossless)) {
        return offset;
    }
    if (!revoke_spares(kNoDeadline)) {
        return std::nullopt;
    }
    // What is left to evict may lie beside one of them.
    const auto offset = try_allocate(size_bytes);
    return offset ? offset : evict_for(size_bytes, lossless);
}

std::optional<uint64_t> BlockStore::State::wait_for_prefault(uint64_t size_bytes) {
    const Deadline deadline = Deadline::after_ms(options.prefault_wait_ms);
    while (segment->ready_bytes() < segment->size() && !deadline.expired()) {
        const uint64_t more = segment->ready_bytes() + 1;
        mutex.unlock();
        const bool grown = segment->wait_ready(more, static_cast<uint32_t>(deadline.left_ms()));
        mutex.lock();
        if (const auto offset = try_allocate(size_bytes)) {
            return offset;
        }
        if (!grown) {
            break;
        }
    }
    return std::nullopt;
}

std::optional<uint64_t> BlockStore::State::evict_for(uint64_t size_bytes, bool lossless) {
    apply_exists();
    drain_rings();
    deferred.scan_hazards();
    // Every round evicts something, so this ends.
    while (lossless ? evict_lossless(size_bytes) : evict_some(size_bytes)) {
        deferred.settle();
        if (const auto offset = allocator.allocate(size_bytes)) {
            return offset;
        }
    }
    return std::nullopt;
}

bool BlockStore::State::is_blocked(EntryRef ref) const {
    return objects[ref].holds > 0 || deferred.has_hazard(objects[ref].generation);
}

// Evicts one object of the same class, or the coldest chunk (or run of chunks) where no such object
// is left; soft pins only when nothing else helps.
bool BlockStore::State::evict_some(uint64_t size_bytes) {
    const auto same_class = [this](uint64_t a, uint64_t b)
                                KV_REQUIRES(mutex) { return allocator.same_class(a, b); };
    const auto blocked = [this](uint32_t ref) KV_REQUIRES(mutex) { return is_blocked(ref); };
    for (const bool soft : {false, true}) {
        if (evictor.size(soft) == 0) {
            continue;
        }
        std::optional<uint32_t> victim;
        if (!soft) {
            victim = coldest_written(size_bytes, false);
        }
        if (!victim) {
            victim = evictor.coldest(size_bytes, soft, same_class, blocked);
        }
        if (victim) {
            if (is_unbalanced(size_bytes, *victim) && evict_plan(size_bytes, false)) {
                return true;
            }
            evict(*victim);
            return true;
        }
        if (evict_plan(size_bytes, soft)) {
            return true;
        }
    }
    return false;
}

// Objects that NVMe has go first. Where it is behind with cold ones, it is asked to hurry.
std::optional<uint32_t> BlockStore::State::coldest_written(uint64_t size_bytes, bool thorough) {
    if (!options.tiered || totals.unwritten == totals.objects) {
        return std::nullopt;
    }
    const auto same_class = [this](uint64_t a, uint64_t b)
                                KV_REQUIRES(mutex) { return allocator.same_class(a, b); };
    bool behind = false;
    const auto blocked = [&](uint32_t ref) KV_REQUIRES(mutex) {
        behind |= !objects[ref].written;
        return !objects[ref].written || is_blocked(ref);
    };
    const auto victim = evictor.coldest(size_bytes, false, same_class, blocked, thorough);
    if (behind) {
        write_soon_bytes = std::min(write_soon_bytes + size_bytes, totals.unwritten_bytes);
    }
    return victim;
}

bool BlockStore::State::evict_lossless(uint64_t size_bytes) {
    const auto victim = coldest_written(size_bytes, true);
    if (victim) {
        evict(*victim);
    }
    return victim.has_value();
}

// A size that came late would churn in the few chunks it got, beside chunks of much colder blocks.
// Now and then the ages are compared, and a whole cold chunk changes sides.
bool BlockStore::State::is_unbalanced(uint64_t size_bytes, EntryRef victim) {
    if (++evictions_since_balance < kEvictionsPerBalance) {
        return false;
    }
    evictions_since_balance = 0;
    const auto same_class = [this](uint64_t a, uint64_t b)
                                KV_REQUIRES(mutex) { return allocator.same_class(a, b); };
    const uint64_t elsewhere = evictor.coldest_elsewhere(size_bytes, false, same_class);
    if (elsewhere == UINT64_MAX) {
        return false;
    }
    const uint64_t own_age = evictor.clock() - evictor.stamp(victim);
    const uint64_t other_age = evictor.clock() - elsewhere;
    return other_age / kUnbalancedAges > own_age;
}

bool BlockStore::State::evict_plan(uint64_t size_bytes, bool soft_too) {
    const auto heat = [&](uint64_t offset) KV_REQUIRES(mutex) {
        const EntryRef ref = by_offset.find(offset);
        if (ref == kNoEntry || !evictor.contains(ref) || is_blocked(ref)) {
            return kUntouchable;
        }
        if (!evictor.is_soft(ref)) {
            return evictor.stamp(ref);
        }
        return soft_too ? evictor.stamp(ref) + kSoftHeat : kUntouchable;
    };
    const std::vector<uint64_t> plan = allocator.reclaim_plan(size_bytes, heat);
    for (const uint64_t offset : plan) {
        const EntryRef ref = by_offset.find(offset);
        KV_ASSERT(ref != kNoEntry);
        evict(ref);
    }
    if (!plan.empty()) {
        ++totals.reclaims;
    }
    return !plan.empty();
}

// Where its file system is out of room, that is not asked for every object: it costs some files
// read.
bool BlockStore::State::grow_index(const Hash128& hash, bool taking_over) {
    constexpr uint64_t kUnit = 2u << 20;  // also of a hugetlbfs
    if (index->growth_entries() == 0 || index->has_free_entry(hash) || now() < no_growth_until_ms) {
        return false;
    }
    const uint64_t growth = index->growth_bytes();
    // The old index is still there while a new one takes over.
    const bool restarts = !directory.empty() && !taking_over;
    const uint64_t restart = restarts ? index->memory_bytes() + growth : 0;
    const uint64_t segment_left = segment->size() - segment->ready_bytes();
    Segment::Options room;
    room.directory = directory;
    room.size_bytes = (growth + restart + segment_left + kUnit - 1) / kUnit * kUnit;
    if (Segment::has_room(room).ok() && grow_tables(index->capacity() + index->growth_entries()) &&
        index->grow().ok()) {
        no_growth.clear();
        if (sweep_left > 0) {
            sweep_left = objects.size();  // the round is a longer one now
        }
        return true;
    }
    no_growth_until_ms = now() + kGrowAgainMs;
    no_growth =
        (directory.empty() ? "memory" : "segment_dir " + directory) +
        " has no room for the index to grow by " + in_mebibytes(growth) +
        (restarts ? ", and for another of " + in_mebibytes(restart) + " at a restart" : "") +
        ": free room there; until then, small objects are evicted for want of entries";
    return false;
}

bool BlockStore::State::grow_tables(uint64_t entries) {
    const auto capacity = static_cast<uint32_t>(entries);
    return objects.grow(entries) && by_generation.grow(capacity) && by_offset.grow(capacity) &&
           evictor.grow(entries);
}

// The key's buckets are full: the coldest of those entries goes.
bool BlockStore::State::evict_for_index(const Hash128& hash) {
    apply_exists();
    drain_rings();
    deferred.scan_hazards();
    std::vector<EntryRef> refs;
    index->candidates(hash, &refs);
    EntryRef victim = kNoEntry;
    const auto colder = [this](EntryRef a, EntryRef b) KV_REQUIRES(mutex) {
        return std::pair(evictor.is_soft(a), evictor.stamp(a)) <
               std::pair(evictor.is_soft(b), evictor.stamp(b));
    };
    for (const EntryRef ref : refs) {
        if (!evictor.contains(ref) || is_blocked(ref)) {
            continue;
        }
        if (victim == kNoEntry || colder(ref, victim)) {
            victim = ref;
        }
    }
    if (victim == kNoEntry) {
        return false;
    }
    ++totals.index_evictions;
    evict(victim, MissReason::kIndexFull);
    return true;
}

void BlockStore::State::evict(EntryRef ref, MissReason reason) {
    KV_ASSERT(evictor.contains(ref) && objects[ref].holds == 0);
    fault_point("evict");
    ++totals.evictions;
    totals.evicted_bytes += objects[ref].length;
    if (options.tiered && !objects[ref].written) {
        ++totals.evicted_unwritten;
    }
    withdraw(ref, reason);
}

void BlockStore::State::withdraw(EntryRef ref, MissReason reason, bool tell) {
    const StoredObject& object = objects[ref];
    KV_ASSERT(object.generation != 0);
    const EntryFields fields = index->entry(ref);
    if (reason != MissReason::kVersion) {
        history.note(fields.hash, reason, wall_ms());
    }
    if (tell && on_withdraw) {
        withdrawn.push_back({namespaces[object.ns].ns, std::string(index->cold(ref).key),
                             fields.hash, fields.version, reason});
    }
    Ledger& ledger = index->ledger();
    const Ledger::Line line =
        ledger.add_block(BlockUse::kDeferred, object.generation, object.offset, object.length, -1);
    if (line == Ledger::kNoLine) {
        index->forbid_keeping();
    }
    fault_point("withdraw_noted");  // entry and ledger own the block
    index->invalidate(ref);
    fault_point("withdraw_invalidated");
    index->release(ref);
    const Generation generation = object.generation;
    const DeferredBlocks::Block block{object.offset, object.length, object.holds, line};
    leave(ref);
    deferred.withdraw(generation, block);
}

// Out of all tables; the entry has left the index already.
void BlockStore::State::leave(EntryRef ref) {
    StoredObject& object = objects[ref];
    evictor.remove(ref);
    by_generation.erase(object.generation, ref);
    by_offset.erase(object.offset, ref);
    count_pin(object, false);
    leave_namespace(object.ns);
    --totals.objects;
    totals.object_bytes -= object.length;
    if (options.tiered) {
        set_written(object, true);
    }
    if (object.prefetched) {
        ++totals.prefetch_wasted;
    }
    object = StoredObject{};
}

void BlockStore::State::expire_objects(size_t max) {
    constexpr uint64_t kHeldRetryMs = 100;
    const uint64_t time = now();
    std::vector<Expiry> again;
    for (size_t i = 0; i < max && !expiries.empty() && expiries.front().at_ms <= time; ++i) {
        const Expiry due = expiries.front();
        std::pop_heap(expiries.begin(), expiries.end(), std::greater<>());
        expiries.pop_back();
        const EntryRef ref = by_generation.find(due.generation);
        if (ref == kNoEntry) {
            continue;
        }
        if (objects[ref].holds > 0) {
            again.push_back({time + kHeldRetryMs, due.generation});
            continue;
        }
        withdraw(ref, MissReason::kExpired);
        ++totals.expirations;
    }
    for (const Expiry& expiry : again) {
        expiries.push_back(expiry);
        std::push_heap(expiries.begin(), expiries.end(), std::greater<>());
    }
    // Objects that went another way leave their lines behind; do not let those pile up.
    if (expiries.size() <= 2 * totals.objects + 1024) {
        return;
    }
    std::erase_if(expiries, [this](const Expiry& e) KV_REQUIRES(mutex) {
        return by_generation.find(e.generation) == kNoEntry;
    });
    std::make_heap(expiries.begin(), expiries.end(), std::greater<>());
}

void BlockStore::State::sweep_flushed(uint32_t max) {
    for (uint32_t i = 0; i < max && sweep_left > 0; ++i, --sweep_left) {
        const EntryRef ref = sweep_at;
        sweep_at = static_cast<EntryRef>((sweep_at + 1) % objects.size());
        const StoredObject& object = objects[ref];
        if (object.generation == 0 || !is_flushed(namespaces[object.ns].ns->id)) {
            continue;
        }
        withdraw(ref, MissReason::kFlushed);
        ++totals.flushed;
    }
}

// Whoever comes first delivers for all, so that the order stays; a callback that calls the store
// again only adds to the queue.
void BlockStore::State::deliver() {
    if (delivering) {
        return;
    }
    delivering = true;
    while (!withdrawn.empty()) {
        std::vector<Withdrawn> batch;
        batch.swap(withdrawn);
        const WithdrawFn fn = on_withdraw;
        if (!fn) {
            break;
        }
        mutex.unlock();
        fn(batch);
        mutex.lock();
    }
    delivering = false;
    delivered.notify_all();
}

}  // namespace kvstore
