// Objects that the NVMe tier does not have yet: counted, and handed out in the order of publishing.
#include <algorithm>

#include "base/clock.h"
#include "base/mutex.h"
#include "store/store_state.h"

namespace kvstore {

void BlockStore::State::set_written(StoredObject& object, bool written) {
    if (object.written == written) {
        return;
    }
    object.written = written;
    if (written) {
        --totals.unwritten;
        totals.unwritten_bytes -= object.length;
    } else {
        ++totals.unwritten;
        totals.unwritten_bytes += object.length;
    }
}

void BlockStore::State::describe(EntryRef ref, Unwritten* out) {
    const StoredObject& object = objects[ref];
    const EntryFields fields = index->entry(ref);
    const ColdFields cold = index->cold(ref);
    *out = {make_hold(ref),
            namespaces[object.ns].ns,
            std::string(cold.key),
            fields.hash,
            cold.parent,
            fields.version,
            object.generation,
            segment->data() + object.offset,
            object.length,
            fields.crc,
            object.pin,
            ttl_ms(object),
            cold.put_wall_ms};
}

void BlockStore::take_unwritten(uint64_t keep_bytes, size_t max_objects, uint64_t max_bytes,
                                std::vector<Unwritten>* out) {
    out->clear();
    State& state = *state_;
    State::Lock lock(state);
    uint64_t taken = 0;
    const auto wanted = [&]() KV_REQUIRES(state.mutex) {
        return out->size() < max_objects && taken < max_bytes &&
               (state.totals.unwritten_bytes > keep_bytes + taken ||
                state.write_soon_bytes > taken);
    };
    while (!state.to_write.empty() && wanted()) {
        const Generation generation = state.to_write.front();
        state.to_write.pop_front();
        const EntryRef ref = state.by_generation.find(generation);
        if (ref == kNoEntry || state.objects[ref].written) {
            continue;
        }
        if (state.is_flushed(state.namespaces[state.objects[ref].ns].ns->id)) {
            continue;
        }
        state.describe(ref, &out->emplace_back());
        taken += out->back().length;
    }
    state.write_soon_bytes -= std::min(state.write_soon_bytes, taken);
    // What went another way leaves its number behind; do not let those pile up.
    if (state.to_write.size() <= 2 * state.totals.unwritten + 1024) {
        return;
    }
    std::erase_if(state.to_write, [&](Generation generation) KV_REQUIRES(state.mutex) {
        const EntryRef ref = state.by_generation.find(generation);
        return ref == kNoEntry || state.objects[ref].written;
    });
}

void BlockStore::put_back(std::span<const Unwritten> objects) {
    State::Lock lock(*state_);
    for (size_t i = objects.size(); i-- > 0;) {
        state_->to_write.push_front(objects[i].generation);
    }
}

std::vector<Generation> BlockStore::unwritten_hottest_first() {
    std::vector<std::pair<uint64_t, Generation>> found;
    {
        State::Lock lock(*state_);
        state_->drain_rings();
        for (EntryRef ref = 0; ref < state_->objects.size(); ++ref) {
            const StoredObject& object = state_->objects[ref];
            if (object.generation == 0 || object.written) {
                continue;
            }
            found.emplace_back(state_->evictor.stamp(ref), object.generation);
        }
    }
    std::ranges::sort(found, std::greater<>());
    std::vector<Generation> generations(found.size());
    std::ranges::transform(found, generations.begin(), [](const auto& one) { return one.second; });
    return generations;
}

bool BlockStore::describe_unwritten(Generation generation, Unwritten* out) {
    State::Lock lock(*state_);
    const EntryRef ref = state_->by_generation.find(generation);
    if (ref == kNoEntry || state_->objects[ref].written) {
        return false;
    }
    if (state_->is_flushed(state_->namespaces[state_->objects[ref].ns].ns->id)) {
        return false;
    }
    state_->describe(ref, out);
    return true;
}

void BlockStore::note_written(std::span<const Generation> generations) {
    State::Lock lock(*state_);
    for (const Generation generation : generations) {
        const EntryRef ref = state_->by_generation.find(generation);
        if (ref != kNoEntry) {
            state_->set_written(state_->objects[ref], true);
        }
    }
}

void BlockStore::note_prefetched(Generation generation) {
    State::Lock lock(*state_);
    const EntryRef ref = state_->by_generation.find(generation);
    if (ref != kNoEntry) {
        state_->objects[ref].prefetched = true;
    }
}

bool BlockStore::has_hash(NamespaceId ns, const Hash128& hash) {
    const MutexLock lock(state_->mutex);
    return state_->index->find_hash(ns, hash) != kNoEntry;
}

uint64_t BlockStore::free_bytes() {
    State::Lock lock(*state_);
    const ChunkAllocator::Stats blocks = state_->allocator.stats();
    return blocks.capacity_bytes - std::min(blocks.capacity_bytes, blocks.allocated_bytes);
}

Code BlockStore::note_lost_on_nvme(const NamespaceRef& ns, const Key& key) {
    State::Lock lock(*state_);
    const EntryRef ref = state_->find_valid(ns, key.key, key.hash);
    if (ref == kNoEntry || state_->index->entry(ref).version != key.version) {
        return Code::kNotFound;
    }
    StoredObject& object = state_->objects[ref];
    if (object.written) {
        state_->set_written(object, false);
        state_->to_write.push_back(object.generation);
    }
    return Code::kOk;
}

void BlockStore::note_miss_reason(const Hash128& hash, MissReason reason) {
    const MutexLock lock(state_->mutex);
    state_->history.note(hash, reason, wall_ms());
}

}  // namespace kvstore
