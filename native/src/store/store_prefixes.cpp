// Which chains are read most: every hit counts for the first object of its chain.
#include <algorithm>

#include "store/store_state.h"

namespace kvstore {

// The first object of the chain, as far as it is here. It is looked for once: each object on the
// way remembers it, and asks its parent again only when that one has gone.
EntryRef BlockStore::State::first_of(EntryRef ref) {
    const auto known = [this](EntryRef of) KV_REQUIRES(mutex) {
        const StoredObject& object = objects[of];
        const bool is_here =
            object.first != kNoEntry && objects[object.first].generation != 0 &&
            static_cast<uint32_t>(objects[object.first].generation) == object.first_generation;
        return is_here ? object.first : kNoEntry;
    };
    EntryRef first = ref;
    // A replaced key may close a circle, which a takeover then finds.
    for (size_t depth = 0; depth < limits::kMaxBatchKeys; ++depth) {
        if (const EntryRef found = known(first); found != kNoEntry) {
            first = found;
            break;
        }
        const EntryRef parent = parent_of(first);
        if (parent == kNoEntry) {
            break;
        }
        first = parent;
    }
    const auto generation = static_cast<uint32_t>(objects[first].generation);
    EntryRef at = ref;
    for (size_t depth = 0; depth <= limits::kMaxBatchKeys && at != kNoEntry; ++depth) {
        StoredObject& object = objects[at];
        if (object.first == first && object.first_generation == generation) {
            break;
        }
        object.first = first;
        object.first_generation = generation;
        at = at == first ? kNoEntry : parent_of(at);
    }
    return first;
}

void BlockStore::State::note_prefix(EntryRef ref) {
    prefixes.add(objects[first_of(ref)].generation, 1, static_cast<double>(objects[ref].length));
}

std::vector<BlockStore::PrefixUse> BlockStore::take_prefixes(size_t most) {
    std::vector<PrefixUse> found;
    State& state = *state_;
    State::Lock lock(state);
    for (const auto& [generation, count] : state.prefixes.items()) {
        const EntryRef ref = state.by_generation.find(generation);
        if (ref == kNoEntry) {
            continue;  // gone meanwhile, and its name with it
        }
        const NamespaceRef& ns = state.namespaces[state.objects[ref].ns].ns;
        if (!state.is_flushed(ns->id)) {
            found.push_back({ns, std::string(state.index->cold(ref).key),
                             static_cast<uint64_t>(count.uses),
                             static_cast<uint64_t>(count.bytes)});
        }
    }
    state.prefixes.clear();
    std::ranges::sort(found, std::greater<>(), &PrefixUse::uses);
    found.resize(std::min(found.size(), most));
    return found;
}

}  // namespace kvstore
