// The robin hood shards. Entries of a run stand in the order of their homes, so that a search ends
// at the first entry that is nearer to its home than the sought one would be.
#include "nvme/index.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>

#include "base/status.h"

namespace kvstore {
namespace {

constexpr int kUnitBits = 40;
constexpr int kNamespaceBits = 14;
constexpr int kHeadBits = 5;
constexpr int kPinAt = kUnitBits + kNamespaceBits + kHeadBits;
constexpr int kTouchesAt = kPinAt + 2;

// Loads in percent. A shard grows above kFull to kAfterGrowth, and shrinks below kThin: 32 bytes
// are 39.3 at a load of 0.815, and 39.1 after a growth that pages round up by a sixteenth.
constexpr uint64_t kFull = 94;
constexpr uint64_t kAfterGrowth = 87;
constexpr uint64_t kThinPerMille = 815;
constexpr uint64_t kAfterShrink = 87;
constexpr uint32_t kMinCapacity = 4;

// Greater tables are mapped, so that their room goes back to the system and leaves no holes in the
// heap.
constexpr size_t kMappedBytes = 64 << 10;
constexpr size_t kPage = 4096;

uint32_t home(uint64_t tag, uint32_t capacity) {
    return static_cast<uint32_t>(((tag >> 32) * capacity) >> 32);
}

constexpr uint64_t low_bits(int bits) { return (uint64_t{1} << bits) - 1; }

}  // namespace

NvmeIndex::NvmeIndex(size_t shards) : shards_(std::bit_ceil(std::max<size_t>(shards, 1))) {}

NvmeIndex::~NvmeIndex() {
    for (const Shard& shard : shards_) {
        release(shard.slots, shard.capacity);
    }
}

NvmeIndex::Slot NvmeIndex::pack(uint64_t tag, const NvmeEntry& entry) {
    KV_ASSERT(entry.version != 0 && entry.unit < kMaxUnit && entry.ns_slot < kMaxNamespaceSlots &&
              entry.head_units <= low_bits(kHeadBits));
    return {.tag = tag,
            .version = entry.version,
            .packed = entry.unit | uint64_t{entry.ns_slot} << kUnitBits |
                      uint64_t{entry.head_units} << (kUnitBits + kNamespaceBits) |
                      static_cast<uint64_t>(entry.pin) << kPinAt |
                      uint64_t{std::min(entry.touches, kMaxTouches)} << kTouchesAt,
            .length = entry.length,
            .expires_at_s = entry.expires_at_s};
}

NvmeEntry NvmeIndex::unpack(const Slot& slot) {
    const auto bits = [&](int at, int count) { return slot.packed >> at & low_bits(count); };
    return {.version = slot.version,
            .unit = bits(0, kUnitBits),
            .length = slot.length,
            .expires_at_s = slot.expires_at_s,
            .ns_slot = static_cast<uint16_t>(bits(kUnitBits, kNamespaceBits)),
            .head_units = static_cast<uint8_t>(bits(kUnitBits + kNamespaceBits, kHeadBits)),
            .pin = static_cast<Pin>(bits(kPinAt, 2)),
            .touches = static_cast<uint8_t>(bits(kTouchesAt, 2))};
}

size_t NvmeIndex::bytes_of(uint32_t capacity) { return size_t{capacity} * sizeof(Slot); }

// Empty slots; `capacity` grows to what the pages have room for.
NvmeIndex::Slot* NvmeIndex::allocate(uint32_t* capacity) {
    size_t bytes = bytes_of(*capacity);
    if (bytes < kMappedBytes) {
        return static_cast<Slot*>(std::calloc(*capacity, sizeof(Slot)));
    }
    bytes = (bytes + kPage - 1) / kPage * kPage;
    *capacity = static_cast<uint32_t>(bytes / sizeof(Slot));
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? nullptr : static_cast<Slot*>(memory);
}

void NvmeIndex::release(Slot* slots, uint32_t capacity) {
    if (slots == nullptr) {
        return;
    }
    if (bytes_of(capacity) < kMappedBytes) {
        std::free(slots);
    } else {
        munmap(slots, bytes_of(capacity));
    }
}

uint32_t NvmeIndex::displacement(const Shard& shard, uint32_t at) {
    const uint32_t from = home(shard.slots[at].tag, shard.capacity);
    return at >= from ? at - from : at + shard.capacity - from;
}

uint32_t NvmeIndex::position(const Shard& shard, uint64_t tag) {
    if (shard.count == 0) {
        return kNone;
    }
    uint32_t at = home(tag, shard.capacity);
    for (uint32_t distance = 0; distance < shard.capacity; ++distance) {
        const Slot& slot = shard.slots[at];
        if (slot.version == 0) {
            return kNone;
        }
        if (slot.tag == tag) {
            return at;
        }
        if (displacement(shard, at) < distance) {
            return kNone;
        }
        if (++at == shard.capacity) {
            at = 0;
        }
    }
    return kNone;
}

// The tag is not there, and a slot is free.
void NvmeIndex::place(Shard& shard, Slot slot) {
    uint32_t at = home(slot.tag, shard.capacity);
    uint32_t distance = 0;
    while (shard.slots[at].version != 0) {
        const uint32_t other = displacement(shard, at);
        if (other < distance) {
            std::swap(slot, shard.slots[at]);
            distance = other;
        }
        ++distance;
        if (++at == shard.capacity) {
            at = 0;
        }
    }
    shard.slots[at] = slot;
    ++shard.count;
}

void NvmeIndex::erase_at(Shard& shard, uint32_t at) {
    while (true) {
        const uint32_t next = at + 1 == shard.capacity ? 0 : at + 1;
        if (shard.slots[next].version == 0 || displacement(shard, next) == 0) {
            break;
        }
        shard.slots[at] = shard.slots[next];
        at = next;
    }
    shard.slots[at] = {};
    --shard.count;
}

bool NvmeIndex::resize(Shard& shard, uint32_t capacity) {
    Shard next{.slots = nullptr, .capacity = capacity, .count = 0};
    next.slots = allocate(&next.capacity);
    if (next.slots == nullptr) {
        return false;
    }
    for (uint32_t i = 0; i < shard.capacity; ++i) {
        if (shard.slots[i].version != 0) {
            place(next, shard.slots[i]);
        }
    }
    release(shard.slots, shard.capacity);
    shard = next;
    return true;
}

void NvmeIndex::shrink(Shard& shard) {
    if (shard.count == 0) {
        release(shard.slots, shard.capacity);
        shard = {};
    } else if (uint64_t{shard.count} * 1000 < shard.capacity * kThinPerMille) {
        const auto capacity = static_cast<uint32_t>(uint64_t{shard.count} * 100 / kAfterShrink + 1);
        // Without memory for a smaller table the greater one stays.
        if (capacity >= kMinCapacity && capacity < shard.capacity) {
            resize(shard, capacity);
        }
    }
}

std::optional<NvmeEntry> NvmeIndex::find(const Hash128& hash) const {
    const Shard& shard = shard_of(hash);
    const uint32_t at = position(shard, hash.hi);
    if (at == kNone) {
        return std::nullopt;
    }
    return unpack(shard.slots[at]);
}

bool NvmeIndex::put(const Hash128& hash, const NvmeEntry& entry) {
    Shard& shard = shard_of(hash);
    const Slot slot = pack(hash.hi, entry);
    if (const uint32_t at = position(shard, hash.hi); at != kNone) {
        shard.slots[at] = slot;
        return true;
    }
    if (uint64_t{shard.count + 1} * 100 > shard.capacity * kFull) {
        const uint64_t wanted = uint64_t{shard.count + 1} * 100 / kAfterGrowth + 1;
        const auto capacity = static_cast<uint32_t>(std::max<uint64_t>(wanted, kMinCapacity));
        // A full table still takes entries while a slot is free.
        if (!resize(shard, capacity) && shard.count + 1 >= shard.capacity) {
            return false;
        }
    }
    place(shard, slot);
    ++size_;
    return true;
}

bool NvmeIndex::erase(const Hash128& hash) {
    Shard& shard = shard_of(hash);
    const uint32_t at = position(shard, hash.hi);
    if (at == kNone) {
        return false;
    }
    erase_at(shard, at);
    --size_;
    shrink(shard);
    return true;
}

void NvmeIndex::touch(const Hash128& hash) {
    Shard& shard = shard_of(hash);
    const uint32_t at = position(shard, hash.hi);
    if (at == kNone || shard.slots[at].packed >> kTouchesAt >= kMaxTouches) {
        return;
    }
    shard.slots[at].packed += uint64_t{1} << kTouchesAt;
}

void NvmeIndex::set_pin(const Hash128& hash, Pin pin) {
    Shard& shard = shard_of(hash);
    const uint32_t at = position(shard, hash.hi);
    if (at == kNone) {
        return;
    }
    shard.slots[at].packed &= ~(low_bits(2) << kPinAt);
    shard.slots[at].packed |= static_cast<uint64_t>(pin) << kPinAt;
}

void NvmeIndex::erase_if(size_t number, const std::function<bool(const NvmeEntry&)>& dead) {
    Shard& shard = shards_[number];
    for (uint32_t at = 0; at < shard.capacity;) {
        // Erasing moves the next entry here, so the place is looked at again.
        if (shard.slots[at].version != 0 && dead(unpack(shard.slots[at]))) {
            erase_at(shard, at);
            --size_;
        } else {
            ++at;
        }
    }
    shrink(shard);
}

uint64_t NvmeIndex::memory_bytes() const {
    constexpr uint64_t kHeapOverhead = 16;
    uint64_t bytes = shards_.size() * sizeof(Shard);
    for (const Shard& shard : shards_) {
        if (shard.slots != nullptr) {
            bytes += bytes_of(shard.capacity);
        }
        if (bytes_of(shard.capacity) < kMappedBytes) {
            bytes += kHeapOverhead;
        }
    }
    return bytes;
}

}  // namespace kvstore
