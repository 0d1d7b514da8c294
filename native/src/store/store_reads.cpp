// Reads of the block store: find with a held token, holds by socket, recency, the full listing.
#include <algorithm>

#include "base/clock.h"
#include "base/mutation.h"
#include "store/store_state.h"

namespace kvstore {

// The object under the key, if it may be read now. One that has expired is withdrawn on the way,
// but not while it is held: its announce may still be on the way (BlockStore::Published::hold).
EntryRef BlockStore::State::find_valid(const NamespaceRef& ns, std::string_view key,
                                       const Hash128& hash) {
    if (is_flushed(ns->id)) {
        return kNoEntry;
    }
    const EntryRef ref = index->find(ns->id, hash, key);
    if (ref == kNoEntry) {
        return kNoEntry;
    }
    const StoredObject& object = objects[ref];
    KV_ASSERT(object.generation != 0);
    if (object.expires_at_ms == 0 || object.expires_at_ms > now()) {
        return ref;
    }
    if (object.holds > 0) {
        history.note(hash, MissReason::kExpired, wall_ms());
        return kNoEntry;
    }
    withdraw(ref, MissReason::kExpired);
    ++totals.expirations;
    return kNoEntry;
}

EntryRef BlockStore::State::parent_of(EntryRef ref) const {
    const StoredObject& object = objects[ref];
    if (object.parent == kNoEntry) {
        return kNoEntry;
    }
    const Generation parent = objects[object.parent].generation;
    const bool same = parent != 0 && static_cast<uint32_t>(parent) == object.parent_generation;
    return same ? object.parent : kNoEntry;
}

uint64_t BlockStore::State::ttl_ms(const StoredObject& object) const {
    if (object.expires_at_ms == 0) {
        return 0;
    }
    const uint64_t time = now();
    return object.expires_at_ms > time ? object.expires_at_ms - time : 1;
}

BlockStore::Found BlockStore::State::find(const NamespaceRef& ns, const Key& key, EntryRef* ref) {
    Found found;
    *ref = find_valid(ns, key.key, key.hash);
    if (*ref == kNoEntry) {
        found.reason = miss_reason(ns, key);
        return found;
    }
    const EntryFields fields = index->entry(*ref);
    if (key.version != 0 && key.version != fields.version) {
        *ref = kNoEntry;
        found.reason = MissReason::kVersion;
        return found;
    }
    const StoredObject& object = objects[*ref];
    found.data = segment->data() + object.offset;
    found.length = object.length;
    found.version = fields.version;
    found.generation = object.generation;
    found.sealed_crc = fields.crc;
    found.ttl_ms = ttl_ms(object);
    found.pin = object.pin;
    found.hold = make_hold(*ref);
    return found;
}

MissReason BlockStore::State::miss_reason(const NamespaceRef& ns, const Key& key) const {
    if (is_flushed(ns->id)) {
        return MissReason::kFlushed;
    }
    const MissReason known = history.reason(key.hash);
    if (known != MissReason::kNone) {
        return known;
    }
    if (tombstones.has(key.hash)) {
        return MissReason::kRemoved;
    }
    if (ns->epoch == 0) {
        return MissReason::kAbsent;
    }
    // The previous epoch may have had it: then the flush took it, swept already or not.
    const NamespaceId before = namespace_id(options.secret, ns->tenant, ns->name, ns->epoch - 1);
    const Hash128 hash = key_hash(options.secret, before, key.key);
    const bool flushed = history.reason(hash) == MissReason::kFlushed ||
                         index->find(before, hash, key.key) != kNoEntry;
    return flushed ? MissReason::kFlushed : MissReason::kAbsent;
}

BlockStore::HoldToken BlockStore::State::make_hold(EntryRef ref) {
    auto record = std::make_shared<HoldRecord>();
    record->generation = objects[ref].generation;
    record->ref = ref;
    record->state = shared_from_this();
    ++objects[ref].holds;
    return record;
}

void BlockStore::State::drop_hold(Generation generation, EntryRef ref) {
    Lock lock(*this);
    release_hold(generation, ref);
}

// The object is still where it was, or its block waits among the deferred ones.
void BlockStore::State::release_hold(Generation generation, EntryRef ref) {
    if (objects[ref].generation != generation) {
        deferred.release_hold(generation);
        return;
    }
    KV_ASSERT(objects[ref].holds > 0);
    --objects[ref].holds;
}

void BlockStore::State::release_holds(std::span<const SocketHolds::Ended> ended) {
    for (const SocketHolds::Ended& hold : ended) {
        release_hold(hold.generation, hold.ref);
    }
}

void BlockStore::State::touch_reversed(std::span<const EntryRef> refs) {
    for (size_t i = refs.size(); i-- > 0;) {
        if (refs[i] == kNoEntry || objects[refs[i]].generation == 0) {
            continue;
        }
        touch(refs[i]);
    }
}

void BlockStore::State::hit_reversed(std::span<const EntryRef> refs) {
    touch_reversed(refs);
    for (size_t i = refs.size(); i-- > 0;) {
        if (refs[i] != kNoEntry && objects[refs[i]].generation != 0) {
            note_hit(refs[i]);
        }
    }
}

void BlockStore::State::touch(EntryRef ref) {
    evictor.touch(ref);
    ++totals.touches;
    if (!objects[ref].prefetched) {
        return;
    }
    objects[ref].prefetched = false;
    ++totals.prefetch_used;
}

// The keys of one put batch arrive one by one, head first, and their touches have to be written
// tail first: they are collected until the batch ends.
void BlockStore::State::note_exists(uint64_t session, EntryRef ref) {
    if (session != exists_session || exists_batch.size() >= limits::kMaxBatchKeys) {
        apply_exists();
    }
    exists_session = session;
    exists_batch.push_back(ref);
}

void BlockStore::State::apply_exists() {
    touch_reversed(exists_batch);
    exists_batch.clear();
}

void BlockStore::State::note_hit(EntryRef ref) {
    if (sampler->count_hit(objects[ref].rarity)) {
        sampler->keep_hit(index->entry(ref).hash, objects[ref].length);
    }
    note_prefix(ref);
}

void BlockStore::State::drain_rings() {
    sampler->lose_hits(slots->drain_touches([this](uint32_t ref) KV_REQUIRES(mutex) {
        // Clients write the rings: only numbers of live objects count.
        if (ref < objects.size() && objects[ref].generation != 0) {
            touch(ref);
            note_hit(ref);
        }
    }));
}

UseSampler& BlockStore::sampler() { return *state_->sampler; }

BlockStore::Found BlockStore::find(const NamespaceRef& ns, const Key& key, bool touch) {
    State::Lock lock(*state_);
    EntryRef ref = kNoEntry;
    Found found = state_->find(ns, key, &ref);
    if (touch) {
        state_->hit_reversed({&ref, 1});
    }
    return found;
}

std::vector<BlockStore::Found> BlockStore::find(const NamespaceRef& ns, std::span<const Key> keys,
                                                bool touch) {
    std::vector<Found> found(keys.size());
    std::vector<EntryRef> refs(keys.size(), kNoEntry);
    State::Lock lock(*state_);
    for (size_t i = 0; i < keys.size(); ++i) {
        found[i] = state_->find(ns, keys[i], &refs[i]);
    }
    if (touch) {
        state_->hit_reversed(refs);
    }
    return found;
}

bool BlockStore::contains(const NamespaceRef& ns, const Key& key) {
    State::Lock lock(*state_);
    const EntryRef ref = state_->find_valid(ns, key.key, key.hash);
    return ref != kNoEntry &&
           (key.version == 0 || state_->index->entry(ref).version == key.version);
}

std::string BlockStore::parent_key(Generation generation) {
    State::Lock lock(*state_);
    const EntryRef ref = state_->by_generation.find(generation);
    const EntryRef parent = ref == kNoEntry ? kNoEntry : state_->parent_of(ref);
    return parent == kNoEntry ? std::string() : std::string(state_->index->cold(parent).key);
}

Code BlockStore::hold(const Owner& owner, Generation generation) {
    State::Lock lock(*state_);
    const EntryRef ref = state_->by_generation.find(generation);
    if (ref == kNoEntry) {
        return Code::kNotFound;
    }
    StoredObject& object = state_->objects[ref];
    const auto added =
        state_->socket_holds.add(owner, {generation, ref, object.offset, object.length});
    if (added == SocketHolds::Added::kNew) {
        ++object.holds;
    }
    return added == SocketHolds::Added::kFull ? Code::kOverloaded : Code::kOk;
}

Code BlockStore::unhold(const Owner& owner, Generation generation) {
    State::Lock lock(*state_);
    if (!state_->socket_holds.contains(owner.session, generation)) {
        return Code::kNotFound;
    }
    if (const auto ended = state_->socket_holds.release(owner.session, generation)) {
        state_->release_hold(ended->generation, ended->ref);
    }
    return Code::kOk;
}

BlockStore::Explained BlockStore::explain(const NamespaceRef& ns, const Key& key) {
    State::Lock lock(*state_);
    const EntryRef ref = state_->find_valid(ns, key.key, key.hash);
    Explained known;
    if (ref == kNoEntry) {
        known.reason = state_->miss_reason(ns, key);
        known.gone_wall_ms = state_->history.time_ms(key.hash);
        return known;
    }
    state_->drain_rings();
    known.here = true;
    known.version = state_->index->entry(ref).version;
    known.length = state_->objects[ref].length;
    known.put_wall_ms = state_->index->cold(ref).put_wall_ms;
    known.used_wall_ms = state_->uses.time_ms(state_->evictor.stamp(ref));
    return known;
}

uint32_t BlockStore::list_objects(uint32_t cursor, size_t max, std::vector<ObjectInfo>& out) {
    out.clear();
    State& state = *state_;
    State::Lock lock(state);
    for (size_t ref = cursor; ref < state.objects.size(); ++ref) {
        if (out.size() >= max) {
            return static_cast<uint32_t>(ref);
        }
        const StoredObject& object = state.objects[ref];
        if (object.generation == 0) {
            continue;
        }
        if (object.expires_at_ms != 0 && object.expires_at_ms <= state.now()) {
            continue;
        }
        const NamespaceRef& ns = state.namespaces[object.ns].ns;
        if (state.is_flushed(ns->id)) {
            continue;
        }
        const EntryFields fields = state.index->entry(static_cast<EntryRef>(ref));
        const ColdFields cold = state.index->cold(static_cast<EntryRef>(ref));
        out.push_back({ns, std::string(cold.key), fields.hash, fields.version, object.generation,
                       object.length, fields.crc, object.pin, state.ttl_ms(object)});
    }
    return 0;
}

void BlockStore::for_each_object(const std::function<void(std::span<const ObjectInfo>)>& fn) {
    constexpr size_t kBatch = 512;
    std::vector<ObjectInfo> batch;
    uint32_t cursor = 0;
    do {
        cursor = list_objects(cursor, kBatch, batch);
        if (!batch.empty()) {
            fn(batch);
        }
    } while (cursor != 0);
}

}  // namespace kvstore
