// A flat hash table from a 64-bit number to an entry number, four bytes a slot and no node per
// object.
//
// Open addressing at half load with linear probing; the numbers themselves stay with the entries
// (`KeyOf`). Erasing shifts the run back, so that there are no grave markers. Further entries get a
// table of their own: nothing is moved while somebody waits. Not thread-safe.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "base/growing_array.h"
#include "base/status.h"

namespace kvstore {

template <class KeyOf>
class RefMap {
  public:
    static constexpr uint32_t kNone = UINT32_MAX;

    // `key_of(entry)` gives the number of an entry that is in the table.
    explicit RefMap(KeyOf key_of) : key_of_(std::move(key_of)) {}

    // Takes entries below `capacity` from now on. False: the system grants no memory.
    [[nodiscard]] bool grow(uint32_t capacity) {
        const uint32_t before = tables_.empty() ? 0 : tables_.back().end;
        if (capacity <= before) {
            return true;
        }
        size_t slots = 16;
        while (slots < size_t{capacity - before} * 2) {
            slots *= 2;
        }
        Table table{capacity, slots - 1, GrowingArray<uint32_t>(slots)};
        if (!table.slots.grow(slots)) {
            return false;
        }
        tables_.push_back(std::move(table));
        return true;
    }

    void insert(uint64_t key, uint32_t entry) {
        Table& table = table_of(entry);
        size_t at = table.home(key);
        while (table.slots[at] != 0) {
            at = (at + 1) & table.mask;
        }
        table.slots[at] = entry + 1;
        ++size_;
    }

    uint32_t find(uint64_t key) const {
        for (const Table& table : tables_) {
            const size_t at = slot_of(table, key);
            if (at != kMissing) {
                return table.slots[at] - 1;
            }
        }
        return kNone;
    }

    // Must be called while key_of(entry) still answers `key`.
    void erase(uint64_t key, uint32_t entry) {
        Table& table = table_of(entry);
        size_t hole = slot_of(table, key);
        KV_ASSERT(hole != kMissing && table.slots[hole] == entry + 1);
        for (size_t at = (hole + 1) & table.mask; table.slots[at] != 0;
             at = (at + 1) & table.mask) {
            // An entry may move into the hole unless its home lies behind the hole.
            const size_t home = table.home(key_of_(table.slots[at] - 1));
            if (((at - home) & table.mask) < ((at - hole) & table.mask)) {
                continue;
            }
            table.slots[hole] = table.slots[at];
            hole = at;
        }
        table.slots[hole] = 0;
        --size_;
    }

    size_t size() const { return size_; }

  private:
    static constexpr size_t kMissing = SIZE_MAX;
    struct Table {
        uint32_t end;  // the first entry that is too large for it
        size_t mask;
        GrowingArray<uint32_t> slots;  // entry + 1; 0: free
        size_t home(uint64_t key) const {
            key *= 0x9e3779b97f4a7c15ull;
            return static_cast<size_t>(key ^ (key >> 32)) & mask;
        }
    };
    Table& table_of(uint32_t entry) {
        size_t i = 0;
        while (entry >= tables_[i].end) {
            ++i;
        }
        return tables_[i];
    }
    size_t slot_of(const Table& table, uint64_t key) const {
        for (size_t at = table.home(key); table.slots[at] != 0; at = (at + 1) & table.mask) {
            if (key_of_(table.slots[at] - 1) == key) {
                return at;
            }
        }
        return kMissing;
    }

    KeyOf key_of_;
    std::vector<Table> tables_;
    size_t size_ = 0;
};

}  // namespace kvstore
