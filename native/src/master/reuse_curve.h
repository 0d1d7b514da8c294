// Estimates the hit rate that the cluster would have with another size, from the uses of a sample
// of its objects.
//
// An LRU cache of S bytes finds an object exactly when the objects that were used since its last
// use, and itself, take at most S bytes: its reuse distance. How often each distance occurs is
// therefore the hit rate at every size at once. Distances are measured among the sampled keys and
// scaled by the sample's share, which shrinks above kMaxKeys keys (Source: SHARDS, see
// base/key_sample.h). Memory is fixed and taken at once; a use costs O(log kMaxKeys).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"

namespace kvstore {

// Thread-safe.
class ReuseCurve {
  public:
    static constexpr size_t kMaxKeys = 24'576;
    // Above it the sample is halved: the cost has a bound whatever the load.
    static constexpr uint64_t kMaxUsesPerS = 16'384;
    static constexpr size_t kRecordBytes = 16;

    // What a node tells of the uses since its last report. Little-endian records of kRecordBytes:
    // the hash, then size_bytes << 1 | hit.
    struct Report {
        uint32_t level = 0;  // of the sample
        std::span<const uint8_t> records{};
        // Of all keys.
        uint64_t hits = 0;
        uint64_t puts = 0;
        uint64_t lost = 0;  // hits of which only the number is known
    };
    struct Bucket {
        uint64_t upto_bytes = 0;  // of the distance
        double uses = 0;
    };
    struct Summary {
        std::vector<Bucket> buckets;  // ascending, without empty ones
        // In uses of all keys, weighed by age like the buckets.
        double cold = 0;  // first uses of a key, or further apart than the reach
        double hits = 0;  // real ones, at the size that there was
        double puts = 0;
        double lost = 0;
        uint32_t level = 0;
        uint64_t keys = 0;      // sampled ones that are followed now
        uint64_t uses = 0;      // sampled ones that were seen since the start
        uint64_t since_ms = 0;  // how long ago that was
        uint64_t memory_bytes = 0;
        uint64_t busy_us = 0;  // processor time since the start
    };

    // A use of this age counts half; 0: all count the same.
    explicit ReuseCurve(uint64_t half_life_ms);

    // The level that nodes sample at from now on. kInvalidArgument: not a report. What a sampled
    // key was found by before it was followed here (its node is older than this) is taken for a
    // reuse at `capacity_bytes`, the size of the cluster: it was within that.
    Result<uint32_t> note(const Report& report, uint64_t capacity_bytes, uint64_t now_ms);
    // Keys are forgotten when this many bytes were used since; 0: never.
    void set_reach(uint64_t bytes);
    Summary summary(uint64_t now_ms) const;

  private:
    struct Key {
        uint32_t id = 0;     // the hash's lower half: the upper one says that it is in the sample
        uint32_t units = 0;  // of kUnitBytes
        uint32_t place = 0;  // in the order of last uses
        uint8_t rarity = 0;
    };
    static_assert(sizeof(Key) == 16);
    static constexpr uint64_t kUnitBytes = 64;
    static constexpr size_t kPlaces = 2 * kMaxKeys;
    static constexpr size_t kTable = 65'536;
    static constexpr uint16_t kNoKey = UINT16_MAX;
    static constexpr size_t kSteps = 16;  // buckets from one power of two to the next
    static constexpr size_t kBuckets = 64 * kSteps;
    static_assert(kMaxKeys < kNoKey && 2 * kMaxKeys < kTable);

    void use(uint64_t hash, uint64_t size_bytes, bool hit, uint64_t capacity_bytes)
        KV_REQUIRES(mutex_);
    uint16_t& slot_of(uint32_t id) KV_REQUIRES(mutex_);
    uint64_t bytes_since(uint32_t place) const KV_REQUIRES(mutex_);
    void add_at(uint32_t place, uint64_t units) KV_REQUIRES(mutex_);
    void make_room() KV_REQUIRES(mutex_);
    void raise_level(uint32_t level) KV_REQUIRES(mutex_);
    // Leaves out what the sample has no more and what is beyond the reach; makes free places.
    void rebuild() KV_REQUIRES(mutex_);
    void keep_rate(uint64_t now_ms) KV_REQUIRES(mutex_);
    void age(uint64_t now_ms) KV_REQUIRES(mutex_);
    static size_t bucket_of(uint64_t distance);
    static uint64_t upper_bound(size_t bucket);

    const uint64_t half_life_ms_;
    mutable Mutex mutex_;
    uint32_t level_ KV_GUARDED_BY(mutex_) = 0;
    uint64_t reach_ KV_GUARDED_BY(mutex_) = 0;
    std::vector<Key> keys_ KV_GUARDED_BY(mutex_);
    std::vector<uint16_t> table_ KV_GUARDED_BY(mutex_);  // of keys by hash, linear probing
    // Fenwick tree: units of the keys by place.
    std::vector<uint64_t> tree_ KV_GUARDED_BY(mutex_);
    uint64_t tree_units_ KV_GUARDED_BY(mutex_) = 0;
    uint32_t next_place_ KV_GUARDED_BY(mutex_) = 0;
    std::vector<double> buckets_ KV_GUARDED_BY(mutex_);
    Summary totals_ KV_GUARDED_BY(mutex_);
    uint64_t began_ms_ KV_GUARDED_BY(mutex_) = 0;  // 0: no report yet
    uint64_t aged_ms_ KV_GUARDED_BY(mutex_) = 0;
    uint64_t second_ms_ KV_GUARDED_BY(mutex_) = 0;
    uint64_t second_uses_ KV_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvstore
