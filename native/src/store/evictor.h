// Chooses what to evict: LRU by sampled stamps, one group per block size.
//
// Stamps come from a logical clock, so the order of touches is exact. A choice looks at a random
// sample of the group plus a pool of the coldest members that earlier samples met, which comes
// close to exact LRU at the cost of one stored number per touch (Source: Redis 3.0, approximated
// LRU). Only evictable entries are members; leased, held and hard-pinned ones are taken out by the
// owner. Private to the node and not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "base/growing_array.h"
#include "index/ledger.h"

namespace kvstore {

class Evictor {
  public:
    // `stamps`: one a possible entry, zeros, kept by the caller for as long as this lives.
    Evictor(Recency stamps, uint64_t seed);
    // Takes entries below `entries` from now on. False: the system grants no memory.
    [[nodiscard]] bool grow(size_t entries) { return places_.grow(entries); }

    // Makes an entry evictable. Soft entries are a rank of their own, which the caller asks last.
    void add(uint32_t entry, uint64_t block_bytes, bool soft);
    // The entry is gone or protected; nothing happens when it is no member.
    void remove(uint32_t entry);
    bool contains(uint32_t entry) const { return places_[entry].group != nullptr; }
    bool is_soft(uint32_t entry) const { return contains(entry) && places_[entry].group->soft; }

    void touch(uint32_t entry) { stamps_[entry] = ++clock_; }
    uint64_t stamp(uint32_t entry) const { return stamps_[entry]; }
    uint64_t clock() const { return clock_; }

    // About the coldest member of the groups whose blocks serve `size_bytes`, skipping what
    // `blocked` names; unless `thorough`, only among the coldest ones that are known.
    // `same_class(block_bytes, size_bytes)` tells which groups these are.
    using Blocked = std::function<bool(uint32_t entry)>;
    using SameClass = std::function<bool(uint64_t block_bytes, uint64_t size_bytes)>;
    std::optional<uint32_t> coldest(uint64_t size_bytes, bool soft, const SameClass& same_class,
                                    const Blocked& blocked, bool thorough = true);
    // A small stamp from all groups of a rank but the one that serves `size_bytes`; UINT64_MAX:
    // none.
    uint64_t coldest_elsewhere(uint64_t size_bytes, bool soft, const SameClass& same_class);

    size_t size(bool soft) const { return sizes_[soft ? 1 : 0]; }
    // Members, groups and places agree. For audits.
    bool consistent() const;

  private:
    // Chosen on a recorded request trace: half of either loses up to 0.004 of prefix hits, since
    // blocks of a chain then leave in too loose an order; twice of either gains 0.0007.
    static constexpr size_t kSample = 32;
    static constexpr size_t kPool = 256;
    static constexpr size_t kExact = 64;  // smaller groups are looked at as a whole
    struct Candidate {
        uint64_t stamp;
        uint32_t entry;
    };
    struct Group {
        uint64_t block_bytes = 0;
        bool soft = false;
        std::vector<uint32_t> members;
        std::vector<Candidate> pool;  // ascending stamps; entries are checked again when taken
    };
    struct Place {
        Group* group = nullptr;
        uint32_t position = 0;
    };
    using GroupMap = std::map<std::pair<bool, uint64_t>, Group>;

    GroupMap::iterator group_for(uint64_t size_bytes, bool soft, const SameClass& same_class);
    void sample_into_pool(Group& group);
    void offer(Group& group, uint32_t entry);
    bool is_current(const Group& group, const Candidate& candidate) const;
    uint64_t random();

    Recency stamps_;
    GrowingArray<Place> places_;
    GroupMap groups_;
    size_t sizes_[2] = {0, 0};
    uint64_t clock_ = 0;
    uint64_t random_state_;
};

}  // namespace kvstore
