// The life of a write in the block store: reserve, grant, publish, abort, quarantine.
#include <algorithm>

#include "base/checksum.h"
#include "base/clock.h"
#include "base/fault_point.h"
#include "base/mutex.h"
#include "index/protocol_steps.h"
#include "store/store_state.h"

namespace kvstore {
namespace {

constexpr size_t kReservesPerLock = 64;  // others wait for no more than these
constexpr uint64_t kMaxTtlMs = uint64_t{1} << 52;

}  // namespace

BlockStore::Reserved BlockStore::reserve(const Owner& owner, const NamespaceRef& ns,
                                         const ReserveItem& item) {
    State::Lock lock(*state_);
    return state_->reserve(owner, ns, item);
}

std::vector<BlockStore::Reserved> BlockStore::reserve_all(const Owner& owner,
                                                          const NamespaceRef& ns,
                                                          std::span<const ReserveItem> items) {
    std::vector<Reserved> all;
    all.reserve(items.size());
    while (all.size() < items.size()) {
        State::Lock lock(*state_);
        const size_t end = std::min(items.size(), all.size() + kReservesPerLock);
        while (all.size() < end) {
            all.push_back(state_->reserve(owner, ns, items[all.size()]));
        }
    }
    return all;
}

BlockStore::Reserved BlockStore::State::reserve(const Owner& owner, const NamespaceRef& ns,
                                                const ReserveItem& item) {
    Reserved reply;
    const auto refuse = [&reply](Code code, std::string message = {}) {
        reply.code = code;
        reply.message = std::move(message);
        return reply;
    };
    ++totals.reserves;
    const auto size = [&item] { return std::to_string(item.size_bytes) + " bytes"; };
    if (!is_valid_key(item.key) || item.parent.size() > limits::kMaxKeyBytes) {
        return refuse(Code::kInvalidArgument, "not a key");
    }
    if (is_flushed(ns->id)) {
        return refuse(Code::kRemoved);
    }
    if (item.size_bytes > segment->size() || item.size_bytes > limits::kMaxObjectBytes) {
        return refuse(Code::kTooLarge,
                      size() + " do not fit segment_size " + std::to_string(segment->size()));
    }
    if (const EntryRef here = find_valid(ns, item.key, item.hash);
        here != kNoEntry && !item.force) {
        note_exists(owner.session, here);
        return refuse(Code::kAlreadyExists);
    }
    if (item.pin == Pin::kHard && !item.is_copy && !has_pin_room(ns->tenant_id, item.size_bytes)) {
        ++totals.no_space;
        return refuse(Code::kNoSpace, size() + " more would exceed pin_cap_bytes " +
                                          std::to_string(options.pin_cap_bytes) +
                                          " of hard-pinned objects of tenant " + ns->tenant);
    }
    if (item.spare != 0) {
        return assign_spare(owner, ns, item);
    }
    if (!reservations.has_room(owner, item.size_bytes)) {
        return no_room(item.size_bytes);
    }
    const auto offset = obtain_block(item.size_bytes, item.lossless);
    if (!offset) {
        ++totals.no_space;
        return refuse(Code::kNoSpace, "nothing evictable makes room for " + size() +
                                          " in segment_size " + std::to_string(segment->size()));
    }
    const Generation generation = draw_generation();
    if (!add_reservation(generation, reservation_of(owner, ns, item, *offset))) {
        const Status grown = index->growth_status();
        return refuse(Code::kNoSpace,
                      grown.ok() ? "too many writes are in progress" : grown.message());
    }
    return block_of(generation, *offset);
}

BlockStore::Reserved BlockStore::State::no_room(uint64_t size_bytes) {
    ++totals.no_space;
    Reserved refused;
    refused.code = Code::kNoSpace;
    refused.message = std::to_string(size_bytes) + " bytes more would exceed client_cap_bytes " +
                      std::to_string(options.client_cap_bytes) + " of unpublished data";
    return refused;
}

// Written down before its writer hears of it: a later life must not give the block to another one.
bool BlockStore::State::add_reservation(Generation generation, Reservation reservation) {
    Ledger& ledger = index->ledger();
    if (ledger.has_room_for_writes()) {
        reservation.line = ledger.add_block(BlockUse::kReserved, generation, reservation.offset,
                                            reservation.size_bytes, reservation.owner.slot);
    }
    if (reservation.line == Ledger::kNoLine) {
        allocator.free(reservation.offset);
        ++totals.no_space;
        return false;
    }
    reservations.add(generation, std::move(reservation));
    return true;
}

Generation BlockStore::State::draw_generation() {
    KV_ASSERT(generation_counter < kMaxCounter / options.generation_step);
    const Generation drawn =
        steps::draw_generation(steps::RealMemory{}, options.node_epoch, generation_counter);
    const uint64_t counter = drawn & kMaxCounter;
    return pack_epoch(options.node_epoch,
                      (counter - 1) * options.generation_step + options.generation_first);
}

BlockStore::Reserved BlockStore::State::block_of(Generation generation, uint64_t offset) const {
    return {Code::kOk, generation, offset, segment->data() + offset, {}};
}

Reservation BlockStore::State::reservation_of(const Owner& owner, const NamespaceRef& ns,
                                              const ReserveItem& item, uint64_t offset) const {
    Reservation reservation;
    reservation.owner = owner;
    reservation.ns = ns;
    reservation.key = item.key;
    reservation.hash = item.hash;
    reservation.parent =
        item.parent.empty() ? item.parent_hash : key_hash(options.secret, ns->id, item.parent);
    reservation.put_wall_ms = item.put_wall_ms;
    reservation.offset = offset;
    reservation.size_bytes = item.size_bytes;
    reservation.ttl_ms = std::min(item.ttl_ms, kMaxTtlMs);
    reservation.deadline_ms = now() + options.reservation_ms;
    reservation.pin = item.pin;
    return reservation;
}

BlockStore::Reserved BlockStore::reserve_spare(const Owner& owner, uint64_t size_bytes) {
    State::Lock lock(*state_);
    return state_->reserve_spare(owner, size_bytes);
}

BlockStore::Reserved BlockStore::State::reserve_spare(const Owner& owner, uint64_t size_bytes) {
    Reserved none;
    none.code = Code::kNoSpace;
    const uint64_t cap = segment->size() / kSpareShare;
    const uint64_t used = reservations.spare_bytes();
    if (owner.slot < 0 || used > cap || size_bytes > cap - used) {
        return none;
    }
    const auto offset = obtain_block(size_bytes, false);
    if (!offset) {
        return none;
    }
    ReserveItem nothing;
    nothing.size_bytes = size_bytes;
    Reservation reservation = reservation_of(owner, nullptr, nothing, *offset);
    reservation.spare = true;
    const Generation generation = draw_generation();
    if (!add_reservation(generation, std::move(reservation))) {
        return none;
    }
    return block_of(generation, *offset);
}

// Whoever names a spare has to be the process that it was given to, on whatever session.
BlockStore::Reserved BlockStore::State::assign_spare(const Owner& owner, const NamespaceRef& ns,
                                                     const ReserveItem& item) {
    reservations.quarantine_expired(now());
    const Reservation* spare = reservations.find(item.spare);
    if (spare == nullptr || !spare->spare || spare->quarantined ||
        spare->owner.slot != owner.slot || spare->size_bytes != item.size_bytes) {
        Reserved expired;
        expired.code = Code::kExpired;
        return expired;
    }
    if (!reservations.has_room(owner, item.size_bytes)) {
        return no_room(item.size_bytes);
    }
    const uint64_t offset = spare->offset;
    reservations.assign(item.spare, reservation_of(owner, ns, item, offset));
    return block_of(item.spare, offset);
}

// Whether any memory came free. A spare that its client has taken to write into stays.
bool BlockStore::State::revoke_spares(uint64_t deadline_ms) {
    bool any = false;
    for (const auto& [generation, slot] : reservations.spares_due(deadline_ms)) {
        any |= revoke_spare(generation, slot);
    }
    return any;
}

bool BlockStore::State::revoke_spare(Generation generation, int slot) {
    if (slot < 0 || !slots->revoke_spare(static_cast<uint32_t>(slot), generation)) {
        return false;
    }
    drop_reservation(generation);
    return true;
}

Code BlockStore::grant(Generation generation, Version version) {
    State::Lock lock(*state_);
    return state_->grant(generation, version);
}

Code BlockStore::State::grant(Generation generation, Version version) {
    reservations.quarantine_expired(now());
    Reservation* reservation = reservations.find(generation);
    if (reservation == nullptr || reservation->spare || version == 0) {
        return Code::kInvalidArgument;
    }
    reservation->version = version;
    if (reservation->quarantined) {
        return Code::kExpired;
    }
    return check_version(*reservation, version);
}

Code BlockStore::State::check_version(const Reservation& reservation, Version version) const {
    const bool removed =
        is_flushed(reservation.ns->id) || tombstones.removed_upto(reservation.hash) >= version;
    return removed ? Code::kRemoved : Code::kOk;
}

std::vector<BlockStore::Published> BlockStore::publish(const Owner& owner,
                                                       std::span<const PublishItem> items) {
    std::vector<Published> results;
    results.reserve(items.size());
    std::vector<EntryRef> published;
    State::Lock lock(*state_);
    state_->apply_exists();
    for (const PublishItem& item : items) {
        EntryRef ref = kNoEntry;
        results.push_back(state_->publish(owner, item, &ref));
        if (ref != kNoEntry) {
            published.push_back(ref);
        }
    }
    state_->stamp_batch(published);
    return results;
}

BlockStore::Published BlockStore::State::publish(const Owner& owner, const PublishItem& item,
                                                 EntryRef* published) {
    reservations.quarantine_expired(now());
    const Reservation* reservation = reservations.find(item.generation);
    if (reservation == nullptr || reservation->spare ||
        reservation->owner.session != owner.session || reservation->owner.slot != owner.slot) {
        return {Code::kInvalidArgument, 0, nullptr};
    }
    if (!steps::may_publish(steps::RealMemory{}, !reservation->quarantined)) {
        return {Code::kExpired, 0, nullptr};
    }
    const Version version = item.version != 0 ? item.version : reservation->version;
    if (version == 0) {
        return {Code::kInvalidArgument, 0, nullptr};
    }

    const auto refuse = [&](Code code) KV_REQUIRES(mutex) {
        drop_reservation(item.generation);
        return Published{code, 0, nullptr};
    };
    const Code removed = check_version(*reservation, version);
    if (removed != Code::kOk) {
        return refuse(removed);
    }
    const EntryRef old = index->find(reservation->ns->id, reservation->hash, reservation->key);
    if (old != kNoEntry && index->entry(old).version >= version) {
        return refuse(Code::kAlreadyExists);
    }
    const Identity identity{reservation->ns->tenant_id, reservation->ns->id, reservation->hash,
                            version, reservation->size_bytes};
    const uint32_t sealed_crc = seal_checksum(item.data_crc, identity);
    const auto inserted = insert(*reservation, item.generation, version, sealed_crc, old);
    if (!inserted.ok()) {
        return refuse(Code::kNoSpace);
    }
    *published = *inserted;
    fault_point("entry_inserted");  // two records own the block
    index->ledger().drop_block(reservations.take(item.generation).line);
    ++totals.publishes;
    return {Code::kOk, sealed_crc, make_hold(*inserted)};
}

// The new entry goes in before the old one goes out, so that a reader meets one or the other; only
// when the index is full does the old one make the room.
Result<EntryRef> BlockStore::State::insert(const Reservation& reservation, Generation generation,
                                           Version version, uint32_t sealed_crc, EntryRef old) {
    Index::NewEntry entry;
    entry.identity = {reservation.ns->tenant_id, reservation.ns->id, reservation.hash, version,
                      reservation.size_bytes};
    entry.offset = reservation.offset;
    entry.crc = sealed_crc;
    entry.expires_at_ms = reservation.ttl_ms == 0 ? 0 : now() + reservation.ttl_ms;
    entry.gen = generation;
    entry.key = reservation.key;
    entry.parent = reservation.parent;
    entry.put_wall_ms = reservation.put_wall_ms != 0 ? reservation.put_wall_ms : wall_ms();
    // A pin is durable policy: a new version does not take it away.
    entry.pin = old == kNoEntry ? reservation.pin : std::max(reservation.pin, objects[old].pin);
    Result<EntryRef> inserted = index->insert(entry);
    while (!inserted.ok()) {
        if (grow_index(reservation.hash, false)) {
            inserted = index->insert(entry);
            continue;
        }
        if (old != kNoEntry) {
            withdraw(std::exchange(old, kNoEntry), MissReason::kVersion);
            ++totals.replaced;
        } else if (!evict_for_index(reservation.hash)) {
            return Code::kNoSpace;
        }
        inserted = index->insert(entry);
    }
    fault_point("entry_replacing");  // two entries of one key
    adopt(*inserted, reservation, generation, entry.expires_at_ms);
    set_pin(*inserted, entry.pin);
    if (old != kNoEntry) {
        withdraw(old, MissReason::kVersion);
        ++totals.replaced;
    }
    return *inserted;
}

void BlockStore::State::adopt(EntryRef ref, const Reservation& reservation, Generation generation,
                              uint64_t expires_at_ms) {
    StoredObject object;
    object.generation = generation;
    object.offset = reservation.offset;
    object.length = reservation.size_bytes;
    object.expires_at_ms = expires_at_ms;
    object.ns = use_namespace(reservation.ns);
    if (!(reservation.parent == Hash128{})) {
        link_parent(&object, index->find_hash(reservation.ns->id, reservation.parent));
    }
    enter(ref, object);
}

void BlockStore::State::link_parent(StoredObject* object, EntryRef parent) const {
    object->parent = parent;
    if (parent == kNoEntry) {
        return;
    }
    object->parent_generation = static_cast<uint32_t>(objects[parent].generation);
}

// Into all tables; the entry is in the index already.
void BlockStore::State::enter(EntryRef ref, const StoredObject& object) {
    KV_ASSERT(objects[ref].generation == 0);
    objects[ref] = object;
    objects[ref].rarity = UseSampler::rarity(index->entry(ref).hash);
    by_generation.insert(object.generation, ref);
    by_offset.insert(object.offset, ref);
    evictor.add(ref, allocator.block_bytes(object.offset), false);
    evictor.touch(ref);
    ++totals.objects;
    totals.object_bytes += object.length;
    if (options.tiered) {
        ++totals.unwritten;
        totals.unwritten_bytes += object.length;
        to_write.push_back(object.generation);
    }
    if (object.expires_at_ms != 0) {
        expiries.push_back({object.expires_at_ms, object.generation});
        std::push_heap(expiries.begin(), expiries.end(), std::greater<>());
    }
}

// A chain must lose its tail before its head, so stamps are written from the last item to the
// first, and from each item on to its ancestors, which are then all newer than what follows them.
void BlockStore::State::stamp_batch(std::span<const EntryRef> published) {
    const uint64_t begin = evictor.clock();
    for (size_t i = published.size(); i-- > 0;) {
        EntryRef ref = published[i];
        // A later item of the batch may have replaced this one.
        if (objects[ref].generation == 0) {
            continue;
        }
        for (size_t depth = 0; depth < limits::kMaxBatchKeys; ++depth) {
            if (evictor.stamp(ref) > begin) {
                break;  // its ancestors were stamped too
            }
            evictor.touch(ref);
            ref = parent_of(ref);
            if (ref == kNoEntry) {
                break;
            }
        }
    }
}

bool BlockStore::give_back_spare(const Owner& owner, Generation generation) {
    State::Lock lock(*state_);
    const Reservation* reservation = state_->reservations.find(generation);
    return reservation != nullptr && reservation->spare &&
           state_->abort(owner, generation) == Code::kOk;
}

Code BlockStore::abort(const Owner& owner, Generation generation) {
    State::Lock lock(*state_);
    return state_->abort(owner, generation);
}

Code BlockStore::State::abort(const Owner& owner, Generation generation) {
    const Reservation* reservation = reservations.find(generation);
    if (reservation == nullptr) {
        return Code::kInvalidArgument;
    }
    // A slot is one process, and a process knows of all its copies; without one the session is all.
    const bool own = reservation->owner.slot == owner.slot &&
                     (owner.slot >= 0 || reservation->owner.session == owner.session);
    if (!own) {
        return Code::kInvalidArgument;
    }
    end_reservation(generation, true, true);
    ++totals.aborts;
    return Code::kOk;
}

void BlockStore::end_earlier_writes(int slot, uint32_t node_epoch) {
    State::Lock lock(*state_);
    for (const Generation generation : state_->reservations.of_slot(slot)) {
        if (epoch_of(generation) < std::min(node_epoch, state_->options.node_epoch)) {
            state_->end_reservation(generation, true, true);
        }
    }
}

// The block was never readable, so no hazard can rightly name it: it is free at once.
void BlockStore::State::drop_reservation(Generation generation) {
    const Reservation over = reservations.take(generation);
    index->ledger().drop_block(over.line);
    allocator.free(over.offset);
}

void BlockStore::State::end_reservation(Generation generation, bool writer_said_stopped,
                                        bool writer_lock_held) {
    if (steps::may_reuse_reservation(steps::RealMemory{}, writer_said_stopped, writer_lock_held,
                                     false)) {
        drop_reservation(generation);
    } else {
        reservations.quarantine(generation);
    }
}

void BlockStore::on_session_closed(uint64_t session) {
    State::Lock lock(*state_);
    state_->session_closed(session);
}

void BlockStore::State::session_closed(uint64_t session) {
    for (const Generation generation : reservations.of_session(session)) {
        const Reservation& reservation = *reservations.find(generation);
        if (reservation.spare && revoke_spare(generation, reservation.owner.slot)) {
            continue;
        }
        // Without a slot the node itself was the writer, and it has stopped.
        const bool node_writes = reservation.owner.slot < 0;
        end_reservation(generation, node_writes, true);
    }
    end_leases(leases.take_session(session));
    release_holds(socket_holds.end_session(session));
}

void BlockStore::on_slot_dead(int slot) {
    State::Lock lock(*state_);
    state_->slot_dead(slot);
}

void BlockStore::State::slot_dead(int slot) {
    if (slot < 0) {
        return;
    }
    for (const Generation generation : reservations.of_slot(slot)) {
        end_reservation(generation, false, false);
    }
    release_holds(socket_holds.end_slot(slot));
}

}  // namespace kvstore
