// Open addressing with backward-shift deletion over entries in blocks, and the keys' size classes.
#include "directory/object_table.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <type_traits>

namespace kvstore {

size_t ObjectEntry::replica_count() const {
    size_t count = 0;
    while (count < replicas.size() && !replicas[count].empty()) {
        ++count;
    }
    return count;
}

int ObjectEntry::find_replica(NodeNumber node) const {
    for (size_t i = 0; i < replicas.size() && !replicas[i].empty(); ++i) {
        if (replicas[i].node() == node) {
            return static_cast<int>(i);
        }
    }
    return -1;
}

void ObjectEntry::erase_replica(size_t position) {
    std::copy(replicas.begin() + static_cast<std::ptrdiff_t>(position) + 1, replicas.end(),
              replicas.begin() + static_cast<std::ptrdiff_t>(position));
    replicas.back() = Replica();
}

ObjectTable::ObjectTable() : slots_(64, Slot{0, 0}), mask_(63) {}
ObjectTable::~ObjectTable() = default;

uint32_t ObjectTable::prefetch_entry(uint32_t hash) const {
    for (uint32_t i = hash & mask_;; i = (i + 1) & mask_) {
        if (slots_[i].number_plus_one == 0) {
            return kNone;
        }
        if (slots_[i].hash == hash) {
            const uint32_t number = slots_[i].number_plus_one - 1;
            __builtin_prefetch(&at(number));
            return number;
        }
    }
}

uint32_t ObjectTable::find(uint32_t hash, uint32_t ns, std::string_view key) const {
    for (uint32_t i = hash & mask_;; i = (i + 1) & mask_) {
        const Slot slot = slots_[i];
        if (slot.number_plus_one == 0) {
            return kNone;
        }
        if (slot.hash == hash) {
            const ObjectEntry& entry = at(slot.number_plus_one - 1);
            if (entry.ns == ns && entry.key() == key) {
                return slot.number_plus_one - 1;
            }
        }
    }
}

uint32_t ObjectTable::insert(const KeyHash& hash, uint32_t ns, std::string_view key) {
    KV_ASSERT(!key.empty() && key.size() <= limits::kMaxKeyBytes);
    if ((count_ + 1) * uint64_t{4} > slots_.size() * uint64_t{3}) {
        grow();
    }
    uint32_t number = free_head_;
    if (number != kNone) {
        free_head_ = at(number).hash;
    } else {
        KV_ASSERT(used_ < kNone - 1);
        number = used_++;
        if (number >> kBlockBits == blocks_.size()) {
            static_assert(std::is_trivially_destructible_v<ObjectEntry>);
            char* memory = memory_->take((kBlockMask + 1) * sizeof(ObjectEntry));
            blocks_.push_back(new (memory) ObjectEntry[kBlockMask + 1]);
        }
    }
    ObjectEntry& entry = at(number);
    entry = ObjectEntry();
    char* data = allocate_key(key.size());
    std::memcpy(data, key.data(), key.size());
    entry.key_data = data;
    entry.key_bytes = static_cast<uint16_t>(key.size());
    entry.ns = ns;
    entry.hash = hash.index;
    entry.set_check(hash);
    uint32_t i = hash.index & mask_;
    while (slots_[i].number_plus_one != 0) {
        i = (i + 1) & mask_;
    }
    slots_[i] = {hash.index, number + 1};
    ++count_;
    return number;
}

void ObjectTable::erase(uint32_t number) {
    ObjectEntry& entry = at(number);
    uint32_t hole = entry.hash & mask_;
    while (slots_[hole].number_plus_one != number + 1) {
        KV_ASSERT(slots_[hole].number_plus_one != 0);
        hole = (hole + 1) & mask_;
    }
    // What probed past the hole moves back into it, so that no search ends early.
    for (uint32_t i = (hole + 1) & mask_; slots_[i].number_plus_one != 0; i = (i + 1) & mask_) {
        const uint32_t home = slots_[i].hash & mask_;
        if (((i - home) & mask_) >= ((i - hole) & mask_)) {
            slots_[hole] = slots_[i];
            hole = i;
        }
    }
    slots_[hole] = {0, 0};
    free_key(entry.key_data, entry.key_bytes);
    entry = ObjectEntry();
    entry.hash = free_head_;
    free_head_ = number;
    --count_;
}

void ObjectTable::grow() {
    std::vector<Slot, TableAllocator<Slot>> larger(slots_.size() * 2, Slot{0, 0});
    const auto mask = static_cast<uint32_t>(larger.size() - 1);
    for (const Slot slot : slots_) {
        if (slot.number_plus_one != 0) {
            uint32_t i = slot.hash & mask;
            while (larger[i].number_plus_one != 0) {
                i = (i + 1) & mask;
            }
            larger[i] = slot;
        }
    }
    slots_ = std::move(larger);
    mask_ = mask;
}

char* ObjectTable::allocate_key(size_t bytes) {
    const size_t c = (bytes - 1) / 8;
    if (free_keys_[c] != nullptr) {
        char* data = free_keys_[c];
        std::memcpy(&free_keys_[c], data, sizeof(char*));
        return data;
    }
    const size_t step = (c + 1) * 8;
    if (chunk_next_[c] == nullptr || chunk_next_[c] + step > chunk_end_[c]) {
        static_assert(kKeysPerChunk * 8 % TableMemory::kAlign == 0);
        chunk_next_[c] = memory_->take(step * kKeysPerChunk);
        chunk_end_[c] = chunk_next_[c] + step * kKeysPerChunk;
    }
    char* data = chunk_next_[c];
    chunk_next_[c] += step;
    return data;
}

void ObjectTable::free_key(const char* data, size_t bytes) {
    const size_t c = (bytes - 1) / 8;
    char* slot = const_cast<char*>(data);
    std::memcpy(slot, &free_keys_[c], sizeof(char*));
    free_keys_[c] = slot;
}

uint64_t ObjectTable::memory_bytes() const {
    return sizeof(*this) + slots_.capacity() * sizeof(Slot) +
           blocks_.capacity() * sizeof(blocks_[0]);
}

}  // namespace kvstore
