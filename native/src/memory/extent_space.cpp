// Splitting, merging and finding of extents.
#include "memory/extent_space.h"

#include <algorithm>
#include <bit>
#include <string>

namespace kvstore {
namespace {

// How many extents of a bin are looked at; keeps every search O(1).
constexpr int kBinScan = 24;

}  // namespace

size_t ExtentSpace::bin_of(uint64_t bytes) {
    const auto exponent = static_cast<size_t>(std::bit_width(bytes) - 1);
    if (exponent < 4) {
        return static_cast<size_t>(bytes);
    }
    return exponent * 16 + (bytes >> (exponent - 4) & 15);
}

void ExtentSpace::grow(uint64_t capacity_bytes) {
    if (capacity_bytes <= capacity_bytes_) {
        return;
    }
    const uint64_t added = capacity_bytes - capacity_bytes_;
    owner_.resize((capacity_bytes + granule_bytes_ - 1) / granule_bytes_, kNone);
    if (last_ != kNone && !extents_[last_].used) {
        take_from_bin(last_);
        extents_[last_].bytes += added;
        put_in_bin(last_);
    } else {
        const Id id = new_extent(capacity_bytes_, added);
        link_after(last_, id);
        put_in_bin(id);
    }
    capacity_bytes_ = capacity_bytes;
}

ExtentSpace::Id ExtentSpace::take(uint64_t bytes) {
    KV_ASSERT(bytes >= granule_bytes_);
    const Id id = best_fit(bytes);
    if (id == kNone) {
        return kNone;
    }
    take_from_bin(id);
    return cut(id, bytes);
}

ExtentSpace::Id ExtentSpace::take_at(uint64_t offset, uint64_t bytes) {
    KV_ASSERT(bytes >= granule_bytes_ && last_ != kNone && !extents_[last_].used);
    KV_ASSERT(offset >= extents_[last_].offset && offset + bytes <= capacity_bytes_);
    Id id = last_;
    take_from_bin(id);
    if (const uint64_t before = offset - extents_[id].offset; before > 0) {
        const Id rest = new_extent(offset, extents_[id].bytes - before);
        extents_[id].bytes = before;
        link_after(id, rest);
        put_in_bin(id);
        id = rest;
    }
    return cut(id, bytes);
}

// Makes the first `bytes` of a free extent, which is in no bin, a used one.
ExtentSpace::Id ExtentSpace::cut(Id id, uint64_t bytes) {
    const uint64_t rest = extents_[id].bytes - bytes;
    if (rest > 0) {
        const Id tail = new_extent(extents_[id].offset + bytes, rest);
        extents_[id].bytes = bytes;
        link_after(id, tail);
        put_in_bin(tail);
    }
    extents_[id].used = true;
    claim_granules(id);
    return id;
}

void ExtentSpace::give_back(Id id) {
    KV_ASSERT(extents_[id].used);
    release_granules(id);
    extents_[id].used = false;
    const Id next = extents_[id].next;
    if (next != kNone && !extents_[next].used) {
        take_from_bin(next);
        extents_[id].bytes += extents_[next].bytes;
        unlink(next);
    }
    const Id prev = extents_[id].prev;
    if (prev != kNone && !extents_[prev].used) {
        take_from_bin(prev);
        extents_[prev].bytes += extents_[id].bytes;
        unlink(id);
        put_in_bin(prev);
    } else {
        put_in_bin(id);
    }
}

ExtentSpace::Id ExtentSpace::find(uint64_t offset) const {
    if (offset >= capacity_bytes_) {
        return kNone;
    }
    Id id = owner_[offset / granule_bytes_];
    // The extent that starts in this granule may start behind `offset`.
    while (id != kNone && extents_[id].offset > offset) {
        id = extents_[id].prev;
    }
    if (id == kNone || !extents_[id].used) {
        return kNone;
    }
    return offset - extents_[id].offset < extents_[id].bytes ? id : kNone;
}

uint64_t ExtentSpace::largest_free_bytes() const {
    for (size_t word = bin_bits_.size(); word-- > 0;) {
        if (bin_bits_[word] == 0) {
            continue;
        }
        const size_t bin = word * 64 + static_cast<size_t>(std::bit_width(bin_bits_[word]) - 1);
        uint64_t largest = 0;
        int left = kBinScan;
        for (Id id = bins_[bin]; id != kNone && left > 0; id = extents_[id].bin_next, --left) {
            largest = std::max(largest, extents_[id].bytes);
        }
        return largest;
    }
    return 0;
}

ExtentSpace::Id ExtentSpace::best_in_bin(size_t bin, uint64_t bytes) const {
    Id best = kNone;
    int left = kBinScan;
    for (Id id = bins_[bin]; id != kNone && left > 0; id = extents_[id].bin_next, --left) {
        const uint64_t size = extents_[id].bytes;
        if (size == bytes) {
            return id;
        }
        if (size > bytes && (best == kNone || size < extents_[best].bytes)) {
            best = id;
        }
    }
    return best;
}

ExtentSpace::Id ExtentSpace::best_fit(uint64_t bytes) const {
    const size_t bin = bin_of(bytes);
    if (const Id id = best_in_bin(bin, bytes); id != kNone) {
        return id;
    }
    size_t word = (bin + 1) / 64;
    if (word >= bin_bits_.size()) {
        return kNone;
    }
    uint64_t bits = bin_bits_[word] & (~uint64_t{0} << ((bin + 1) % 64));
    while (bits == 0) {
        if (++word == bin_bits_.size()) {
            return kNone;
        }
        bits = bin_bits_[word];
    }
    return best_in_bin(word * 64 + static_cast<size_t>(std::countr_zero(bits)), bytes);
}

ExtentSpace::Id ExtentSpace::new_extent(uint64_t offset, uint64_t bytes) {
    Id id = 0;
    if (vacant_.empty()) {
        id = id_limit();
        extents_.emplace_back();
    } else {
        id = vacant_.back();
        vacant_.pop_back();
    }
    extents_[id] = Extent{.offset = offset, .bytes = bytes};
    return id;
}

void ExtentSpace::link_after(Id left, Id id) {
    const Id right = left == kNone ? first_ : extents_[left].next;
    extents_[id].prev = left;
    extents_[id].next = right;
    (left == kNone ? first_ : extents_[left].next) = id;
    (right == kNone ? last_ : extents_[right].prev) = id;
}

void ExtentSpace::unlink(Id id) {
    const Id prev = extents_[id].prev;
    const Id next = extents_[id].next;
    (prev == kNone ? first_ : extents_[prev].next) = next;
    (next == kNone ? last_ : extents_[next].prev) = prev;
    extents_[id] = Extent{};
    vacant_.push_back(id);
}

void ExtentSpace::put_in_bin(Id id) {
    const size_t bin = bin_of(extents_[id].bytes);
    const Id head = bins_[bin];
    extents_[id].bin_prev = kNone;
    extents_[id].bin_next = head;
    if (head != kNone) {
        extents_[head].bin_prev = id;
    }
    bins_[bin] = id;
    bin_bits_[bin / 64] |= uint64_t{1} << (bin % 64);
}

void ExtentSpace::take_from_bin(Id id) {
    const size_t bin = bin_of(extents_[id].bytes);
    const Id prev = extents_[id].bin_prev;
    const Id next = extents_[id].bin_next;
    (prev == kNone ? bins_[bin] : extents_[prev].bin_next) = next;
    if (next != kNone) {
        extents_[next].bin_prev = prev;
    }
    extents_[id].bin_prev = kNone;
    extents_[id].bin_next = kNone;
    if (bins_[bin] == kNone) {
        bin_bits_[bin / 64] &= ~(uint64_t{1} << (bin % 64));
    }
}

void ExtentSpace::claim_granules(Id id) {
    const uint64_t offset = extents_[id].offset;
    const uint64_t end = offset + extents_[id].bytes;
    const uint64_t first = offset / granule_bytes_;
    const uint64_t last = (end - 1) / granule_bytes_;
    // In the last granule a neighbour that starts there keeps its entry (find() walks back).
    const bool keep_last = last != first && owner_[last] != kNone;
    const auto begin = owner_.begin();
    std::fill(begin + static_cast<ptrdiff_t>(first),
              begin + static_cast<ptrdiff_t>(keep_last ? last : last + 1), id);
}

void ExtentSpace::release_granules(Id id) {
    const uint64_t offset = extents_[id].offset;
    const uint64_t end = offset + extents_[id].bytes;
    const uint64_t first = offset / granule_bytes_;
    const uint64_t last = (end - 1) / granule_bytes_;
    for (uint64_t g = first; g <= last; ++g) {
        if (owner_[g] == id) {
            owner_[g] = kNone;
        }
    }
    // The granule this extent started in may also hold the tail of the one before it.
    const Id before = used_before(id);
    if (before == kNone) {
        return;
    }
    const uint64_t before_end = extents_[before].offset + extents_[before].bytes;
    if (before_end > first * granule_bytes_) {
        owner_[first] = before;
    }
}

ExtentSpace::Id ExtentSpace::used_before(Id id) const {
    Id prev = extents_[id].prev;
    while (prev != kNone && !extents_[prev].used) {
        prev = extents_[prev].prev;
    }
    return prev;
}

Status ExtentSpace::audit() const {
    uint64_t at_offset = 0;
    uint64_t count = 0;
    uint64_t free_count = 0;
    bool free_before = false;
    Id prev = kNone;
    for (Id id = first_; id != kNone; prev = id, id = extents_[id].next, ++count) {
        const Extent& extent = extents_[id];
        const std::string where = " at offset " + std::to_string(at_offset);
        if (extent.offset != at_offset) {
            return {Code::kInternal, "gap or overlap" + where};
        }
        if (extent.prev != prev) {
            return {Code::kInternal, "broken address links" + where};
        }
        if (!extent.used && free_before) {
            return {Code::kInternal, "unmerged free extents" + where};
        }
        if (extent.used &&
            (find(extent.offset) != id || find(extent.offset + extent.bytes - 1) != id)) {
            return {Code::kInternal, "the granule table misses an extent" + where};
        }
        if (!extent.used && find(extent.offset) != kNone) {
            return {Code::kInternal, "the granule table finds a free extent" + where};
        }
        free_before = !extent.used;
        free_count += free_before ? 1 : 0;
        at_offset += extent.bytes;
    }
    if (prev != last_ || at_offset != capacity_bytes_ || count != extent_count()) {
        return {Code::kInternal, "the extents do not add up to the capacity"};
    }
    for (size_t bin = 0; bin < kBins; ++bin) {
        if (((bin_bits_[bin / 64] >> (bin % 64) & 1) != 0) != (bins_[bin] != kNone)) {
            return {Code::kInternal, "bin bits disagree with bin " + std::to_string(bin)};
        }
        for (Id id = bins_[bin]; id != kNone; id = extents_[id].bin_next) {
            if (extents_[id].used || bin_of(extents_[id].bytes) != bin || free_count-- == 0) {
                return {Code::kInternal, "wrong extent in bin " + std::to_string(bin)};
            }
        }
    }
    return free_count == 0 ? Status() : Status(Code::kInternal, "free extents outside the bins");
}

}  // namespace kvstore
