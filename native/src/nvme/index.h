// Where each object of the NVMe tier lies: at most 40 bytes of memory an object, slack included.
//
// Open addressing with robin hood displacement in shards that grow and shrink by a tenth, so that
// the load stays above 0.8 and a growth copies one shard only. An entry has 32 bytes and keeps 64
// bits of the 128-bit hash, beside those that choose the shard: an entry says where to look, and
// the record there, with the whole hash and the key, says whether it is the object. Of two objects
// that agree in these bits only the later one is kept. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "base/types.h"

namespace kvstore {

struct NvmeEntry {
    Version version = 0;
    uint64_t unit = 0;          // place of the record: tier offset / kRecordAlign, below 2^40
    uint32_t length = 0;        // of the data
    uint32_t expires_at_s = 0;  // wall clock, rounded up; 0: never
    uint16_t ns_slot = 0;       // below 2^14
    uint8_t head_units = 0;     // of the record's head, in kRecordAlign; below 2^5
    Pin pin = Pin::kNone;
    uint8_t touches = 0;  // 0 to kMaxTouches
};

class NvmeIndex {
  public:
    static constexpr uint64_t kMaxUnit = uint64_t{1} << 40;
    static constexpr uint16_t kMaxNamespaceSlots = 1 << 14;
    static constexpr uint8_t kMaxTouches = 3;

    explicit NvmeIndex(size_t shards);  // rounded up to a power of two
    ~NvmeIndex();
    NvmeIndex(const NvmeIndex&) = delete;
    NvmeIndex& operator=(const NvmeIndex&) = delete;

    std::optional<NvmeEntry> find(const Hash128& hash) const;
    // Inserts, or replaces what is there. False: no memory.
    bool put(const Hash128& hash, const NvmeEntry& entry);
    bool erase(const Hash128& hash);
    void touch(const Hash128& hash);
    void set_pin(const Hash128& hash, Pin pin);

    // Erases the entries of one shard that `dead` names; for sweeps that pause between shards.
    void erase_if(size_t shard, const std::function<bool(const NvmeEntry&)>& dead);
    size_t shards() const { return shards_.size(); }
    uint64_t size() const { return size_; }
    uint64_t memory_bytes() const;  // what was asked of the system, empty slots included

  private:
    struct Slot {
        uint64_t tag;
        uint64_t version;  // 0: empty
        uint64_t packed;   // unit 40 | ns slot 14 | head units 5 | pin 2 | touches 2, from below
        uint32_t length;
        uint32_t expires_at_s;
    };
    static_assert(sizeof(Slot) == 32);
    struct Shard {
        Slot* slots = nullptr;
        uint32_t capacity = 0;
        uint32_t count = 0;
    };

    static Slot pack(uint64_t tag, const NvmeEntry& entry);
    static NvmeEntry unpack(const Slot& slot);
    static Slot* allocate(uint32_t* capacity);
    static void release(Slot* slots, uint32_t capacity);
    static size_t bytes_of(uint32_t capacity);
    static uint32_t displacement(const Shard& shard, uint32_t at);
    static void place(Shard& shard, Slot slot);
    static void erase_at(Shard& shard, uint32_t at);
    static bool resize(Shard& shard, uint32_t capacity);
    static void shrink(Shard& shard);
    Shard& shard_of(const Hash128& hash) { return shards_[hash.lo & (shards_.size() - 1)]; }
    const Shard& shard_of(const Hash128& hash) const {
        return shards_[hash.lo & (shards_.size() - 1)];
    }
    static uint32_t position(const Shard& shard, uint64_t tag);  // kNone when absent
    static constexpr uint32_t kNone = UINT32_MAX;

    std::vector<Shard> shards_;
    uint64_t size_ = 0;
};

}  // namespace kvstore
