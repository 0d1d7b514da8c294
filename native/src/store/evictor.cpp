// Sampled LRU: groups of interchangeable blocks, each with a pool of its coldest known members.
#include "store/evictor.h"

#include <algorithm>
#include <array>

#include "base/status.h"

namespace kvstore {

Evictor::Evictor(Recency stamps, uint64_t seed)
    : stamps_(stamps), places_(stamps.size()), random_state_(seed) {}

// splitmix64: small, fast, and good enough to pick samples.
uint64_t Evictor::random() {
    uint64_t z = (random_state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

void Evictor::add(uint32_t entry, uint64_t block_bytes, bool soft) {
    KV_ASSERT(entry < places_.size() && !contains(entry));
    Group& group = groups_[{soft, block_bytes}];
    group.block_bytes = block_bytes;
    group.soft = soft;
    places_[entry] = {&group, static_cast<uint32_t>(group.members.size())};
    group.members.push_back(entry);
    ++sizes_[soft ? 1 : 0];
}

void Evictor::remove(uint32_t entry) {
    KV_ASSERT(entry < places_.size());
    Group* group = places_[entry].group;
    if (group == nullptr) {
        return;
    }
    const uint32_t position = places_[entry].position;
    const uint32_t last = group->members.back();
    group->members[position] = last;
    places_[last].position = position;
    group->members.pop_back();
    places_[entry] = {};
    --sizes_[group->soft ? 1 : 0];
    if (group->members.empty()) {
        groups_.erase({group->soft, group->block_bytes});
    }
}

bool Evictor::is_current(const Group& group, const Candidate& candidate) const {
    return places_[candidate.entry].group == &group && stamps_[candidate.entry] == candidate.stamp;
}

void Evictor::offer(Group& group, uint32_t entry) {
    auto& pool = group.pool;
    const Candidate candidate{stamps_[entry], entry};
    if (pool.size() == kPool && candidate.stamp >= pool.back().stamp) {
        return;
    }
    const auto at =
        std::lower_bound(pool.begin(), pool.end(), candidate,
                         [](const Candidate& a, const Candidate& b) { return a.stamp < b.stamp; });
    if (at != pool.end() && at->stamp == candidate.stamp && at->entry == entry) {
        return;
    }
    pool.insert(at, candidate);
    if (pool.size() > kPool) {
        pool.pop_back();
    }
}

void Evictor::sample_into_pool(Group& group) {
    const size_t count = group.members.size();
    if (count <= kExact) {
        for (const uint32_t entry : group.members) {
            offer(group, entry);
        }
        return;
    }
    // Three passes, so that the cache misses of one member overlap with those of the others.
    std::array<const uint32_t*, kSample> sample;
    for (const uint32_t*& member : sample) {
        member = &group.members[random() % count];
        __builtin_prefetch(member);
    }
    for (const uint32_t* member : sample) {
        __builtin_prefetch(&stamps_[*member]);
    }
    for (const uint32_t* member : sample) {
        offer(group, *member);
    }
}

// Rounded sizes grow with the size, so the group is the first whose blocks are large enough, if the
// allocator serves both from one class.
Evictor::GroupMap::iterator Evictor::group_for(uint64_t size_bytes, bool soft,
                                               const SameClass& same_class) {
    const auto it = groups_.lower_bound({soft, size_bytes});
    if (it == groups_.end() || it->first.first != soft) {
        return groups_.end();
    }
    return same_class(it->second.block_bytes, size_bytes) ? it : groups_.end();
}

std::optional<uint32_t> Evictor::coldest(uint64_t size_bytes, bool soft,
                                         const SameClass& same_class, const Blocked& blocked,
                                         bool thorough) {
    const auto it = group_for(size_bytes, soft, same_class);
    if (it == groups_.end()) {
        return std::nullopt;
    }
    Group& group = it->second;
    sample_into_pool(group);
    // Candidates that were touched since have old, cold stamps: they come to the front by
    // themselves.
    for (size_t i = 0; i < group.pool.size();) {
        const Candidate candidate = group.pool[i];
        const bool current = is_current(group, candidate);
        if (current && blocked(candidate.entry)) {
            ++i;
            continue;
        }
        group.pool.erase(group.pool.begin() + static_cast<std::ptrdiff_t>(i));
        if (current) {
            return candidate.entry;
        }
    }
    if (!thorough) {
        return std::nullopt;
    }
    // Everything that the pool knows is blocked: look at all members before giving up.
    std::optional<uint32_t> best;
    for (const uint32_t entry : group.members) {
        if ((!best || stamps_[entry] < stamps_[*best]) && !blocked(entry)) {
            best = entry;
        }
    }
    return best;
}

uint64_t Evictor::coldest_elsewhere(uint64_t size_bytes, bool soft, const SameClass& same_class) {
    constexpr size_t kGroups = 64;
    constexpr size_t kLooks = 4;
    uint64_t best = UINT64_MAX;
    const auto own = group_for(size_bytes, soft, same_class);
    size_t seen = 0;
    for (auto it = groups_.lower_bound({soft, 0}); it != groups_.end() && seen < kGroups; ++it) {
        if (it->first.first != soft) {
            break;
        }
        if (it == own) {
            continue;
        }
        ++seen;
        const auto& members = it->second.members;
        for (size_t i = 0; i < kLooks; ++i) {
            best = std::min(best, stamps_[members[random() % members.size()]]);
        }
    }
    return best;
}

bool Evictor::consistent() const {
    size_t counted[2] = {0, 0};
    for (const auto& [name, group] : groups_) {
        if (group.members.empty() || group.soft != name.first) {
            return false;
        }
        counted[group.soft ? 1 : 0] += group.members.size();
        for (size_t i = 0; i < group.members.size(); ++i) {
            const Place& place = places_[group.members[i]];
            if (place.group != &group || place.position != i) {
                return false;
            }
        }
    }
    return counted[0] == sizes_[0] && counted[1] == sizes_[1];
}

}  // namespace kvstore
