// Reuse distances of sampled keys: a Fenwick tree over the order of their last uses.
#include "master/reuse_curve.h"

#include <time.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>

#include "base/key_sample.h"
#include "base/limits.h"
#include "base/little_endian.h"

namespace kvstore {
namespace {

uint64_t thread_us() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1'000'000 +
           static_cast<uint64_t>(now.tv_nsec) / 1000;
}

}  // namespace

ReuseCurve::ReuseCurve(uint64_t half_life_ms)
    : half_life_ms_(half_life_ms), table_(kTable, kNoKey), tree_(kPlaces + 1), buckets_(kBuckets) {
    keys_.reserve(kMaxKeys);
}

Result<uint32_t> ReuseCurve::note(const Report& report, uint64_t capacity_bytes, uint64_t now_ms) {
    if (report.records.size() % kRecordBytes != 0 || report.level > kMaxSampleLevel) {
        return Status(Code::kInvalidArgument,
                      "uses: expected whole records of " + std::to_string(kRecordBytes) +
                          " bytes and a level of at most " + std::to_string(kMaxSampleLevel));
    }
    const uint64_t started_us = thread_us();
    const MutexLock lock(mutex_);
    if (began_ms_ == 0) {
        began_ms_ = aged_ms_ = second_ms_ = std::max<uint64_t>(now_ms, 1);
    }
    age(now_ms);
    keep_rate(now_ms);
    if (report.level > level_) {
        raise_level(report.level);
    }
    totals_.hits += static_cast<double>(report.hits);
    totals_.puts += static_cast<double>(report.puts);
    totals_.lost += static_cast<double>(report.lost);
    for (std::span<const uint8_t> left = report.records; !left.empty();) {
        const auto hash = take_word<uint64_t>(left);
        const auto size_and_hit = take_word<uint64_t>(left);
        const uint64_t size_bytes = std::min(size_and_hit >> 1, limits::kMaxObjectBytes);
        if (key_rarity(hash) >= level_) {
            use(hash, size_bytes, (size_and_hit & 1) != 0, capacity_bytes);
        }
    }
    totals_.busy_us += thread_us() - started_us;
    return level_;
}

void ReuseCurve::set_reach(uint64_t bytes) {
    const MutexLock lock(mutex_);
    reach_ = bytes;
}

void ReuseCurve::use(uint64_t hash, uint64_t size_bytes, bool hit, uint64_t capacity_bytes) {
    ++totals_.uses;
    ++second_uses_;
    if (next_place_ == kPlaces) {
        rebuild();
    }
    const auto id = static_cast<uint32_t>(hash);
    const uint8_t rarity = key_rarity(hash);
    if (slot_of(id) == kNoKey && keys_.size() == kMaxKeys) {
        make_room();
        if (rarity < level_ || keys_.size() == kMaxKeys) {
            return;
        }
    }
    const double weight = 1 / sample_share(level_);
    uint16_t& slot = slot_of(id);
    if (slot == kNoKey) {
        slot = static_cast<uint16_t>(keys_.size());
        keys_.push_back({.id = id, .units = 0, .place = 0, .rarity = rarity});
        if (hit && capacity_bytes != 0) {
            buckets_[bucket_of(capacity_bytes)] += weight;
        } else {
            totals_.cold += weight;
        }
    } else {
        const Key& known = keys_[slot];
        const double between = static_cast<double>(bytes_since(known.place)) * weight;
        buckets_[bucket_of(static_cast<uint64_t>(between) + size_bytes)] += weight;
        add_at(known.place, 0 - uint64_t{known.units});
        tree_units_ -= known.units;
    }
    Key& key = keys_[slot];
    key.units = static_cast<uint32_t>(
        std::min<uint64_t>((size_bytes + kUnitBytes - 1) / kUnitBytes, UINT32_MAX));
    key.place = next_place_++;
    add_at(key.place, key.units);
    tree_units_ += key.units;
}

uint16_t& ReuseCurve::slot_of(uint32_t id) {
    size_t at = id % kTable;
    while (table_[at] != kNoKey && keys_[table_[at]].id != id) {
        at = (at + 1) % kTable;
    }
    return table_[at];
}

uint64_t ReuseCurve::bytes_since(uint32_t place) const {
    uint64_t upto = 0;
    for (size_t i = place + 1; i > 0; i &= i - 1) {
        upto += tree_[i];
    }
    return (tree_units_ - upto) * kUnitBytes;
}

void ReuseCurve::add_at(uint32_t place, uint64_t units) {
    for (size_t i = place + 1; i <= kPlaces; i += i & (~i + 1)) {
        tree_[i] += units;  // wraps: what is taken away was added before
    }
}

// Some more than is asked for: the next key is not to do all this again.
void ReuseCurve::make_room() {
    rebuild();  // what is beyond the reach goes first
    while (keys_.size() > kMaxKeys - kMaxKeys / 16 && level_ < kMaxSampleLevel) {
        raise_level(level_ + 1);
    }
}

void ReuseCurve::raise_level(uint32_t level) {
    level_ = std::min(level, kMaxSampleLevel);
    rebuild();
}

void ReuseCurve::rebuild() {
    std::erase_if(keys_,
                  [this](const Key& key) KV_REQUIRES(mutex_) { return key.rarity < level_; });
    std::ranges::sort(keys_, {}, &Key::place);
    if (reach_ != 0) {
        const double limit = static_cast<double>(reach_) * sample_share(level_);
        uint64_t bytes = 0;
        size_t first = keys_.size();
        while (first > 0 && static_cast<double>(bytes) <= limit) {
            bytes += keys_[--first].units * kUnitBytes;
        }
        keys_.erase(keys_.begin(), keys_.begin() + static_cast<std::ptrdiff_t>(first));
    }
    std::ranges::fill(table_, kNoKey);
    std::ranges::fill(tree_, 0);
    tree_units_ = 0;
    next_place_ = 0;
    for (Key& key : keys_) {
        slot_of(key.id) = static_cast<uint16_t>(next_place_);
        key.place = next_place_++;
        add_at(key.place, key.units);
        tree_units_ += key.units;
    }
}

void ReuseCurve::keep_rate(uint64_t now_ms) {
    const uint64_t passed_ms = now_ms - std::min(now_ms, second_ms_);
    if (passed_ms < 1000) {
        return;
    }
    if (second_uses_ > kMaxUsesPerS * passed_ms / 1000) {
        raise_level(level_ + kHalfSample);
    }
    second_ms_ = now_ms;
    second_uses_ = 0;
}

void ReuseCurve::age(uint64_t now_ms) {
    const uint64_t passed_ms = now_ms - std::min(now_ms, aged_ms_);
    if (half_life_ms_ == 0 || passed_ms < half_life_ms_ / 64) {
        return;
    }
    const double left =
        std::exp2(-static_cast<double>(passed_ms) / static_cast<double>(half_life_ms_));
    for (double* value : {&totals_.cold, &totals_.hits, &totals_.puts, &totals_.lost}) {
        *value *= left;
    }
    for (double& uses : buckets_) {
        uses *= left;
    }
    aged_ms_ = now_ms;
}

size_t ReuseCurve::bucket_of(uint64_t distance) {
    if (distance < kSteps) {
        return static_cast<size_t>(distance);
    }
    const auto top = static_cast<size_t>(std::bit_width(distance)) - 1;
    constexpr size_t kStepBits = std::bit_width(kSteps) - 1;
    return (top - kStepBits + 1) * kSteps + ((distance >> (top - kStepBits)) & (kSteps - 1));
}

uint64_t ReuseCurve::upper_bound(size_t bucket) {
    if (bucket < kSteps) {
        return bucket;
    }
    const size_t shift = bucket / kSteps - 1;
    return ((uint64_t{kSteps} + bucket % kSteps + 1) << shift) - 1;
}

ReuseCurve::Summary ReuseCurve::summary(uint64_t now_ms) const {
    const MutexLock lock(mutex_);
    Summary summary = totals_;
    summary.level = level_;
    summary.keys = keys_.size();
    summary.since_ms = began_ms_ == 0 ? 0 : now_ms - std::min(now_ms, began_ms_);
    summary.memory_bytes =
        sizeof(*this) + keys_.capacity() * sizeof(Key) + table_.capacity() * sizeof(uint16_t) +
        tree_.capacity() * sizeof(uint64_t) + buckets_.capacity() * sizeof(double);
    for (size_t bucket = 0; bucket < kBuckets; ++bucket) {
        if (buckets_[bucket] > 0) {
            summary.buckets.push_back({upper_bound(bucket), buckets_[bucket]});
        }
    }
    return summary;
}

}  // namespace kvstore
