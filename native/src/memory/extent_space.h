// The address space of an allocator as a chain of used and free extents. Private to kv_alloc.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/status.h"

namespace kvstore {

// Every byte of [0, capacity) belongs to exactly one extent; neighbours are linked in address order
// and two free ones never touch. Free extents hang in bins by size (sixteen a power of two). A
// table with one entry per granule finds the used extent over an address; since a used extent is at
// least a granule long, at most one starts in each granule.
class ExtentSpace {
  public:
    using Id = uint32_t;
    static constexpr Id kNone = UINT32_MAX;

    struct Extent {
        uint64_t offset = 0;
        uint64_t bytes = 0;  // 0: the id is not in use
        Id prev = kNone;
        Id next = kNone;
        Id bin_prev = kNone;  // of free extents
        Id bin_next = kNone;
        bool used = false;
    };

    explicit ExtentSpace(uint64_t granule_bytes) : granule_bytes_(granule_bytes) {
        bins_.fill(kNone);
    }
    void grow(uint64_t capacity_bytes);

    // A used extent of exactly `bytes` (at least a granule), cut from a closely fitting free one.
    Id take(uint64_t bytes);
    // The used extent [offset, offset + bytes), of at least a granule, behind everything that is
    // used so far.
    Id take_at(uint64_t offset, uint64_t bytes);
    void give_back(Id id);
    // The used extent that contains `offset`, or kNone.
    Id find(uint64_t offset) const;
    // Size of a free extent that is the largest, or nearly so.
    uint64_t largest_free_bytes() const;

    const Extent& at(Id id) const { return extents_[id]; }
    // Ids lie in [0, id_limit()); those with bytes == 0 are vacant.
    Id id_limit() const { return static_cast<Id>(extents_.size()); }
    Id first() const { return first_; }
    uint64_t capacity_bytes() const { return capacity_bytes_; }
    uint64_t granule_bytes() const { return granule_bytes_; }
    uint64_t extent_count() const { return extents_.size() - vacant_.size(); }
    Status audit() const;

  private:
    static constexpr size_t kBins = 1024;

    static size_t bin_of(uint64_t bytes);
    Id cut(Id id, uint64_t bytes);
    Id best_in_bin(size_t bin, uint64_t bytes) const;
    Id best_fit(uint64_t bytes) const;
    Id new_extent(uint64_t offset, uint64_t bytes);
    void link_after(Id left, Id id);
    void unlink(Id id);
    void put_in_bin(Id id);
    void take_from_bin(Id id);
    void claim_granules(Id id);
    void release_granules(Id id);
    Id used_before(Id id) const;

    uint64_t granule_bytes_;
    uint64_t capacity_bytes_ = 0;
    Id first_ = kNone;
    Id last_ = kNone;
    std::vector<Extent> extents_;
    std::vector<Id> vacant_;
    std::vector<Id> owner_;  // per granule: who starts in it, else who covers its first byte
    std::array<Id, kBins> bins_;
    std::array<uint64_t, kBins / 64> bin_bits_{};
};

}  // namespace kvstore
