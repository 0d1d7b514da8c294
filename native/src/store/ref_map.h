// A flat hash table from a 64-bit number to an entry number, four bytes a slot and no node per
// object.
//
// Open addressing at half load with linear probing; the numbers themselves stay with the entries
// (`KeyOf`). Erasing shifts the run back, so that there are no grave markers. Not thread-safe.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "base/status.h"

namespace kvstore {

template <class KeyOf>
class RefMap {
  public:
    static constexpr uint32_t kNone = UINT32_MAX;

    // `key_of(entry)` gives the number of an entry that is in the table.
    RefMap(uint32_t capacity, KeyOf key_of) : key_of_(std::move(key_of)) {
        size_t slots = 16;
        while (slots < size_t{capacity} * 2) {
            slots *= 2;
        }
        slots_.assign(slots, kNone);
        mask_ = slots - 1;
    }

    void insert(uint64_t key, uint32_t entry) {
        size_t at = home(key);
        while (slots_[at] != kNone) {
            at = (at + 1) & mask_;
        }
        slots_[at] = entry;
        ++size_;
    }

    uint32_t find(uint64_t key) const {
        const size_t at = slot_of(key);
        return at == kMissing ? kNone : slots_[at];
    }

    // Must be called while key_of(entry) still answers `key`.
    void erase(uint64_t key) {
        size_t hole = slot_of(key);
        KV_ASSERT(hole != kMissing);
        for (size_t at = (hole + 1) & mask_; slots_[at] != kNone; at = (at + 1) & mask_) {
            // An entry may move into the hole unless its home lies behind the hole.
            if (((at - home(key_of_(slots_[at]))) & mask_) < ((at - hole) & mask_)) {
                continue;
            }
            slots_[hole] = slots_[at];
            hole = at;
        }
        slots_[hole] = kNone;
        --size_;
    }

    size_t size() const { return size_; }

  private:
    static constexpr size_t kMissing = SIZE_MAX;
    size_t home(uint64_t key) const {
        key *= 0x9e3779b97f4a7c15ull;
        return static_cast<size_t>(key ^ (key >> 32)) & mask_;
    }
    size_t slot_of(uint64_t key) const {
        for (size_t at = home(key); slots_[at] != kNone; at = (at + 1) & mask_) {
            if (key_of_(slots_[at]) == key) {
                return at;
            }
        }
        return kMissing;
    }

    KeyOf key_of_;
    std::vector<uint32_t> slots_;
    size_t mask_ = 0;
    size_t size_ = 0;
};

}  // namespace kvstore
