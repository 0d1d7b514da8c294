// Latencies and sizes in buckets that grow by about a quarter each; recording is one relaxed add.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace kvstore {

// Values below 8 have a bucket each; above, every power of two is divided in four, so a reported
// bound is at most 25 % above the value. Process-private (never placed in shared memory).
class Histogram {
  public:
    static constexpr size_t kBuckets = 8 + 4 * 40;  // up to 2^43; greater values count in the last

    struct Snapshot {
        std::array<uint64_t, kBuckets> counts{};
        uint64_t total = 0;
        uint64_t sum = 0;
        // Upper bound of the bucket that holds the quantile (0 to 1); 0 when nothing was recorded.
        uint64_t quantile(double q) const {
            if (total == 0) {
                return 0;
            }
            const double wanted = q * static_cast<double>(total);
            uint64_t seen = 0;
            for (size_t bucket = 0; bucket < kBuckets; ++bucket) {
                seen += counts[bucket];
                if (counts[bucket] != 0 && static_cast<double>(seen) >= wanted) {
                    return upper_bound(bucket);
                }
            }
            return upper_bound(kBuckets - 1);
        }
    };

    void record(uint64_t value) {
        counts_[bucket_of(value)].fetch_add(1, std::memory_order_relaxed);
        sum_.fetch_add(value, std::memory_order_relaxed);
    }
    Snapshot snapshot() const {
        Snapshot result;
        for (size_t bucket = 0; bucket < kBuckets; ++bucket) {
            result.counts[bucket] = counts_[bucket].load(std::memory_order_relaxed);
            result.total += result.counts[bucket];
        }
        result.sum = sum_.load(std::memory_order_relaxed);
        return result;
    }

    static constexpr size_t bucket_of(uint64_t value) {
        if (value < 8) {
            return static_cast<size_t>(value);
        }
        const auto top = static_cast<size_t>(std::bit_width(value)) - 1;  // 3 or more
        const size_t quarter = (value >> (top - 2)) & 3;
        const size_t bucket = 8 + 4 * (top - 3) + quarter;
        return bucket < kBuckets ? bucket : kBuckets - 1;
    }
    // The greatest value that counts in `bucket`.
    static constexpr uint64_t upper_bound(size_t bucket) {
        if (bucket < 8) {
            return bucket;
        }
        const size_t top = 3 + (bucket - 8) / 4;
        const size_t quarter = (bucket - 8) % 4;
        return ((4 + quarter + 1) << (top - 2)) - 1;
    }

  private:
    std::array<std::atomic<uint64_t>, kBuckets> counts_{};
    std::atomic<uint64_t> sum_{0};
};

}  // namespace kvstore
