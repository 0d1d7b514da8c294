// What masters and clients may ask of published objects: remove, flush, pins, leases; and the tick.
#include <algorithm>
#include <iterator>

#include "base/clock.h"
#include "base/mutation.h"
#include "base/mutex.h"
#include "store/store_state.h"

namespace kvstore {

Code BlockStore::unpublish(Generation generation) {
    State::Lock lock(*state_);
    const EntryRef ref = state_->by_generation.find(generation);
    if (ref == kNoEntry) {
        return Code::kNotFound;
    }
    state_->withdraw(ref, MissReason::kAbsent, false);
    return Code::kOk;
}

Code BlockStore::remove_upto(const NamespaceRef& ns, const Key& key, Version version) {
    State::Lock lock(*state_);
    state_->tombstones.note(key.hash, version, state_->now());
    if (state_->is_flushed(ns->id)) {
        return Code::kNotFound;
    }
    const EntryRef ref = state_->index->find(ns->id, key.hash, key.key);
    if (ref == kNoEntry || state_->index->entry(ref).version > version) {
        return Code::kNotFound;
    }
    state_->withdraw(ref, MissReason::kRemoved);
    ++state_->totals.removals;
    return Code::kOk;
}

void BlockStore::refuse_upto(const Hash128& hash, Version version) {
    State::Lock lock(*state_);
    state_->tombstones.note(hash, version, state_->now());
}

void BlockStore::flush(const NamespaceRef& old_ns) {
    State& state = *state_;
    State::Lock lock(state);
    if (!state.flushed_ids.insert(old_ns->id).second) {
        return;
    }
    // Before the flush is acknowledged: a later life must not bring these objects back.
    const NamespaceRef next =
        make_namespace(state.options.secret, old_ns->tenant, old_ns->name, old_ns->epoch + 1);
    if (!state.note_namespace(*next).ok()) {
        state.index->forbid_keeping();
    }
    state.flushed_order.push_back(old_ns->id);
    state.index->bump_flush_counter();
    ++state.flush_counter;
    if (state.namespace_places.contains(old_ns->id)) {
        state.sweep_left = state.objects.size();
    }
    // An id may be forgotten once its objects are swept and no reservation can still name it.
    while (state.flushed_order.size() > State::kMaxFlushedIds) {
        state.flushed_ids.erase(state.flushed_order.front());
        state.flushed_order.pop_front();
    }
}

Code BlockStore::set_pin(const NamespaceRef& ns, const Key& key, Pin pin) {
    State::Lock lock(*state_);
    const EntryRef ref = state_->find_valid(ns, key.key, key.hash);
    if (ref == kNoEntry) {
        return Code::kNotFound;
    }
    const StoredObject& object = state_->objects[ref];
    if (pin == Pin::kHard && object.pin != Pin::kHard &&
        !state_->has_pin_room(ns->tenant_id, object.length)) {
        state_->set_pin(ref, Pin::kSoft);
        return Code::kNoSpace;
    }
    state_->set_pin(ref, pin);
    return Code::kOk;
}

bool BlockStore::State::has_pin_room(TenantId tenant, uint64_t bytes) const {
    const auto pinned = hard_pinned.find(tenant);
    const uint64_t used =
        (pinned == hard_pinned.end() ? 0 : pinned->second) + reservations.hard_pinned_bytes(tenant);
    return used <= options.pin_cap_bytes && bytes <= options.pin_cap_bytes - used;
}

void BlockStore::State::count_pin(const StoredObject& object, bool add) {
    if (object.pin == Pin::kNone) {
        return;
    }
    uint64_t& bytes =
        object.pin == Pin::kSoft ? totals.soft_pinned_bytes : totals.hard_pinned_bytes;
    bytes = add ? bytes + object.length : bytes - object.length;
    if (object.pin == Pin::kHard) {
        uint64_t& of_tenant = hard_pinned[namespaces[object.ns].ns->tenant_id];
        of_tenant = add ? of_tenant + object.length : of_tenant - object.length;
        if (of_tenant == 0) {
            hard_pinned.erase(namespaces[object.ns].ns->tenant_id);
        }
    }
}

void BlockStore::State::set_pin(EntryRef ref, Pin pin) {
    StoredObject& object = objects[ref];
    count_pin(object, false);
    object.pin = pin;
    count_pin(object, true);
    index->set_pin(ref, pin);
    update_evictable(ref);
}

void BlockStore::State::update_evictable(EntryRef ref) {
    const StoredObject& object = objects[ref];
    const bool wanted = object.leases == 0 && object.pin != Pin::kHard;
    const bool soft = object.pin == Pin::kSoft;
    if (evictor.contains(ref)) {
        if (wanted && evictor.is_soft(ref) == soft) {
            return;
        }
        evictor.remove(ref);
    }
    if (wanted) {
        evictor.add(ref, allocator.block_bytes(object.offset), soft);
    }
}

uint32_t BlockStore::State::use_namespace(const NamespaceRef& ns) {
    const auto [it, added] = namespace_places.try_emplace(ns->id, 0);
    if (added) {
        if (free_namespaces.empty()) {
            free_namespaces.push_back(static_cast<uint32_t>(namespaces.size()));
            namespaces.emplace_back();
        }
        it->second = free_namespaces.back();
        free_namespaces.pop_back();
        namespaces[it->second] = {ns, 0};
        // At worst the next life does not know whose these objects are, and drops them.
        (void)note_namespace(*ns);
    }
    ++namespaces[it->second].objects;
    return it->second;
}

Status BlockStore::State::note_namespace(const NamespaceEpoch& ns) {
    if (!noted_namespaces.insert(ns.id).second) {
        return {};
    }
    return index->ledger().note_namespace(ns.tenant, ns.name, ns.epoch, ns.tenant_id, ns.id);
}

void BlockStore::State::leave_namespace(uint32_t place) {
    NamespaceUse& use = namespaces[place];
    KV_ASSERT(use.objects > 0);
    if (--use.objects > 0) {
        return;
    }
    namespace_places.erase(use.ns->id);
    use.ns.reset();
    free_namespaces.push_back(place);
}

BlockStore::LeaseGrant BlockStore::lease_acquire(const Owner& owner, const NamespaceRef& ns,
                                                 std::span<const Key> keys, uint32_t stride,
                                                 uint32_t lease_ms) {
    State& state = *state_;
    State::Lock lock(state);
    const uint64_t now = state.now();
    state.end_leases(state.leases.take_expired(now));
    if (state.leases.full(ns->tenant_id) || keys.empty() || keys.size() > limits::kMaxBatchKeys) {
        return {};
    }
    const uint64_t room = state.leases.room_bytes(ns->tenant_id);
    LeaseTable::Lease lease{owner.session, ns->tenant_id, 0, 0, {}};
    std::vector<EntryRef> refs;
    uint64_t whole_pages_bytes = 0;
    stride = std::max<uint32_t>(stride, 1);
    size_t whole_pages_keys = 0;
    for (const Key& key : keys) {
        const EntryRef ref = state.find_valid(ns, key.key, key.hash);
        if (ref == kNoEntry) {
            break;
        }
        if (key.version != 0 && state.index->entry(ref).version != key.version) {
            break;
        }
        const StoredObject& object = state.objects[ref];
        if (object.length > room - lease.bytes) {
            break;
        }
        lease.bytes += object.length;
        lease.items.push_back({ref, object.generation});
        refs.push_back(ref);
        if (refs.size() % stride != 0) {
            continue;
        }
        whole_pages_keys = refs.size();
        whole_pages_bytes = lease.bytes;
    }
    if (whole_pages_keys == 0) {
        return {};
    }
    lease.items.resize(whole_pages_keys);
    refs.resize(whole_pages_keys);
    lease.bytes = whole_pages_bytes;
    lease.deadline_ms = now + std::min(lease_ms, limits::kMaxLeaseMs);
    for (const EntryRef ref : refs) {
        ++state.objects[ref].leases;
        state.update_evictable(ref);
    }
    state.touch_reversed(refs);
    return {state.leases.add(std::move(lease)), static_cast<uint32_t>(whole_pages_keys)};
}

void BlockStore::State::end_leases(std::span<const LeaseTable::Lease> leases_over) {
    for (const LeaseTable::Lease& lease : leases_over) {
        for (const LeaseTable::Item& item : lease.items) {
            StoredObject& object = objects[item.entry];
            if (object.generation != item.generation) {
                continue;  // removed meanwhile
            }
            KV_ASSERT(object.leases > 0);
            if (--object.leases == 0) {
                update_evictable(item.entry);
            }
        }
    }
}

Code BlockStore::lease_renew(const Owner& owner, uint64_t lease_id, uint32_t lease_ms) {
    State::Lock lock(*state_);
    const uint64_t now = state_->now();
    const uint64_t deadline = now + std::min(lease_ms, limits::kMaxLeaseMs);
    return state_->leases.renew(owner.session, lease_id, deadline, now) ? Code::kOk
                                                                        : Code::kExpired;
}

Code BlockStore::lease_release(const Owner& owner, uint64_t lease_id) {
    State::Lock lock(*state_);
    const auto lease = state_->leases.take(owner.session, lease_id);
    if (!lease) {
        return Code::kExpired;
    }
    state_->end_leases({&*lease, 1});
    return Code::kOk;
}

void BlockStore::set_on_withdraw(WithdrawFn fn) {
    MutexLock lock(state_->mutex);
    state_->delivered.wait(state_->mutex,
                           [this]() KV_REQUIRES(state_->mutex) { return !state_->delivering; });
    state_->on_withdraw = std::move(fn);
}

// A request that was in progress when its client died may have reserved after collect_dead() had
// spoken, so the owners of what is reserved or held by socket are asked again.
void BlockStore::State::reap_slots() {
    std::vector<int> owners = reservations.slots();
    std::ranges::copy(socket_holds.slots(), std::back_inserter(owners));
    std::ranges::sort(owners);
    owners.erase(std::unique(owners.begin(), owners.end()), owners.end());
    for (const int slot : owners) {
        if (!is_alive(slot)) {
            slot_dead(slot);
        }
    }
}

bool BlockStore::State::is_alive(int slot) const {
    if (slot < 0) {
        return false;
    }
    return options.slot_alive ? options.slot_alive(slot)
                              : slots->is_alive(static_cast<uint32_t>(slot));
}

void BlockStore::set_limits(uint32_t reservation_ms, uint64_t client_cap_bytes) {
    State& state = *state_;
    State::Lock lock(state);
    Options& options = state.options;
    options.client_cap_bytes = client_cap_bytes != 0 ? client_cap_bytes : state.segment->size() / 2;
    state.reservations.set_client_cap(options.client_cap_bytes);
    if (reservation_ms < options.reservation_ms) {
        state.reservations.shorten_deadlines();
    }
    options.reservation_ms = reservation_ms;
    // As at the start: a claim granted before a remove must not outlive the tombstone.
    state.tombstones.keep_at_least(2 * uint64_t{reservation_ms});
}

void BlockStore::set_pin_cap(uint64_t bytes) {
    State& state = *state_;
    State::Lock lock(state);
    state.options.pin_cap_bytes = bytes != 0 ? bytes : state.segment->size() / 2;
}

// Only mutations do so.
void BlockStore::State::drop_quarantined() {
    std::vector<Generation> over;
    for (const auto& [generation, reservation] : reservations.all()) {
        if (reservation.quarantined) {
            over.push_back(generation);
        }
    }
    for (const Generation generation : over) {
        drop_reservation(generation);
    }
}

void BlockStore::tick() {
    // System calls, one a slot: before the mutex is taken.
    const std::vector<uint32_t> dead = state_->slots->collect_dead();
    {
        State& state = *state_;
        State::Lock lock(state);
        for (const uint32_t slot : dead) {
            state.slot_dead(static_cast<int>(slot));
        }
        state.reap_slots();
        state.use_ready_memory();
        state.apply_exists();
        state.drain_rings();
        state.uses.note(state.evictor.clock(), wall_ms());
        state.reservations.quarantine_expired(state.now());
        state.revoke_spares(state.now());
        if (!KV_GUARD("quarantine", true)) {
            state.drop_quarantined();
        }
        state.end_leases(state.leases.take_expired(state.now()));
        state.expire_objects(State::kExpiriesPerTick);
        state.sweep_flushed(State::kSweepPerTick);
        state.tombstones.forget_old(state.now());
        state.deferred.settle();
        state.deferred.recheck();
    }
    // Only now may the numbers go to other processes.
    for (const uint32_t slot : dead) {
        state_->slots->free_slot(slot);
    }
}

}  // namespace kvstore
