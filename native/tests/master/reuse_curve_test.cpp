// Hit rates from sampled reuse distances, beside caches that are simulated exactly.
#include "master/reuse_curve.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <list>
#include <random>
#include <unordered_map>

#include "base/key_sample.h"
#include "base/little_endian.h"

namespace kvstore {
namespace {

uint64_t hash_of(uint64_t id) {
    uint64_t z = (id + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

uint64_t size_of(uint64_t id) { return 4096 * (1 + id % 4); }

// An LRU cache of bytes.
class ExactCache {
  public:
    explicit ExactCache(uint64_t capacity) : capacity_(capacity) {}
    void use(uint64_t id) {
        ++uses_;
        const auto at = places_.find(id);
        if (at != places_.end()) {
            ++hits_;
            order_.splice(order_.begin(), order_, at->second);
            return;
        }
        order_.push_front(id);
        places_[id] = order_.begin();
        bytes_ += size_of(id);
        while (bytes_ > capacity_) {
            bytes_ -= size_of(order_.back());
            places_.erase(order_.back());
            order_.pop_back();
        }
    }
    double hit_rate() const { return static_cast<double>(hits_) / static_cast<double>(uses_); }
    uint64_t capacity() const { return capacity_; }

  private:
    const uint64_t capacity_;
    uint64_t bytes_ = 0;
    uint64_t hits_ = 0;
    uint64_t uses_ = 0;
    std::list<uint64_t> order_;
    std::unordered_map<uint64_t, std::list<uint64_t>::iterator> places_;
};

// What a node would report of these uses.
class Reporter {
  public:
    explicit Reporter(ReuseCurve& curve) : curve_(curve) {}
    void use(uint64_t id, bool hit = false) {
        const uint64_t hash = hash_of(id);
        ++(hit ? hits_ : puts_);
        if (key_rarity(hash) >= level_) {
            append_word(records_, hash);
            append_word(records_, size_of(id) << 1 | (hit ? 1 : 0));
        }
        if (records_.size() >= 1000 * ReuseCurve::kRecordBytes) {
            send(0);
        }
    }
    void send(uint64_t now_ms, uint64_t capacity_bytes = 0) {
        const Result<uint32_t> level =
            curve_.note({level_, records_, hits_, puts_, 0}, capacity_bytes, now_ms);
        ASSERT_TRUE(level.ok());
        level_ = *level;
        records_.clear();
        hits_ = puts_ = 0;
    }
    uint32_t level() const { return level_; }

  private:
    ReuseCurve& curve_;
    uint32_t level_ = 0;
    uint64_t hits_ = 0;
    uint64_t puts_ = 0;
    std::vector<uint8_t> records_;
};

double uses_upto(const ReuseCurve::Summary& summary, uint64_t bytes) {
    double uses = 0;
    for (const ReuseCurve::Bucket& bucket : summary.buckets) {
        uses += bucket.upto_bytes <= bytes ? bucket.uses : 0;
    }
    return uses;
}

double seen(const ReuseCurve::Summary& summary) {
    return summary.cold + uses_upto(summary, UINT64_MAX);
}

// Keys of a skewed popularity, some of them new.
std::vector<uint64_t> workload(uint64_t seed, size_t uses, double keys) {
    std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
    std::mt19937_64 draw(seed);
    std::uniform_real_distribution<double> uniform(0, 1);
    std::vector<uint64_t> ids;
    for (size_t i = 0; i < uses; ++i) {
        ids.push_back(static_cast<uint64_t>(keys * std::pow(uniform(draw), 2)));
    }
    return ids;
}

void compare(const std::vector<uint64_t>& ids, double keys, double tolerance) {
    ReuseCurve curve(0);
    Reporter reporter(curve);
    std::vector<ExactCache> caches;
    for (const double share : {0.02, 0.1, 0.3, 0.7}) {
        caches.emplace_back(static_cast<uint64_t>(keys * share) * 10'240);
    }
    for (const uint64_t id : ids) {
        reporter.use(id);
        for (ExactCache& cache : caches) {
            cache.use(id);
        }
    }
    reporter.send(0);
    const ReuseCurve::Summary summary = curve.summary(0);
    EXPECT_LE(summary.memory_bytes, 1'000'000u);
    EXPECT_LE(summary.keys, ReuseCurve::kMaxKeys);
    for (const ExactCache& cache : caches) {
        const double missing = summary.puts - seen(summary);
        const double found = (uses_upto(summary, cache.capacity()) + missing) / summary.puts;
        EXPECT_NEAR(found, cache.hit_rate(), tolerance) << cache.capacity();
    }
}

TEST(ReuseCurve, IsExactWhileTheSampleIsEverything) {
    compare(workload(1, 200'000, 20'000), 20'000, 0.02);  // of that the buckets' width
}

TEST(ReuseCurve, IsCloseWithASampleOfTheKeys) {
    compare(workload(2, 600'000, 250'000), 250'000, 0.02);
}

TEST(ReuseCurve, LevelsDivideTheKeysAsTheySay) {
    constexpr size_t kKeys = 400'000;
    for (const uint32_t level : {0u, 1u, 3u, 7u, 8u, 13u, 24u, 37u}) {
        size_t in = 0;
        for (uint64_t id = 0; id < kKeys; ++id) {
            in += key_rarity(hash_of(id)) >= level ? 1 : 0;
        }
        const double expected = sample_share(level) * kKeys;
        EXPECT_NEAR(static_cast<double>(in), expected, 5 * std::sqrt(expected) + 1) << level;
    }
    EXPECT_EQ(key_rarity(0), kMaxSampleLevel);
    EXPECT_EQ(key_rarity(UINT64_MAX), 0);
}

TEST(ReuseCurve, ANodeThatThinsItsReportThinsTheSample) {
    ReuseCurve curve(0);
    Reporter reporter(curve);
    for (uint64_t id = 0; id < 5000; ++id) {
        reporter.use(id);
    }
    reporter.send(0);
    EXPECT_EQ(
        curve.note({.level = 16, .records = {}, .hits = 0, .puts = 0, .lost = 0}, 0, 0).value(),
        16u);
    EXPECT_NEAR(static_cast<double>(curve.summary(0).keys), 1250, 200);
}

TEST(ReuseCurve, AHitOnAnUnknownKeyIsWithinTheSizeOfToday) {
    ReuseCurve curve(0);
    Reporter reporter(curve);
    for (uint64_t id = 0; id < 100; ++id) {
        reporter.use(id, true);
    }
    constexpr uint64_t kToday = 1ull << 30;
    reporter.send(0, kToday);
    const ReuseCurve::Summary summary = curve.summary(0);
    EXPECT_EQ(summary.cold, 0);
    EXPECT_EQ(uses_upto(summary, kToday * 9 / 10), 0);
    EXPECT_EQ(uses_upto(summary, kToday * 11 / 10), 100);
}

TEST(ReuseCurve, ForgetsWhatIsBeyondItsReach) {
    ReuseCurve curve(0);
    curve.set_reach(uint64_t{10'000} * 10'240);
    Reporter reporter(curve);
    for (uint64_t id = 0; id < 200'000; ++id) {
        reporter.use(id);
    }
    reporter.send(0);
    EXPECT_LT(reporter.level(), 16u);  // or it had followed all 200,000
    // Of so many keys a few have the same id.
    EXPECT_NEAR(curve.summary(0).cold, seen(curve.summary(0)), 50);
}

TEST(ReuseCurve, OldUsesCountLess) {
    ReuseCurve curve(1000);
    Reporter reporter(curve);
    for (uint64_t id = 0; id < 64; ++id) {
        reporter.use(id);
        reporter.use(id);
    }
    reporter.send(1);
    EXPECT_EQ(curve.summary(1).puts, 128);
    reporter.send(2001);
    const ReuseCurve::Summary summary = curve.summary(2001);
    EXPECT_NEAR(summary.puts, 32, 1e-6);
    EXPECT_NEAR(summary.cold, 16, 1e-6);
    EXPECT_NEAR(seen(summary), 32, 1e-6);
}

TEST(ReuseCurve, BoundsTheUsesThatItFollowsInASecond) {
    ReuseCurve curve(0);
    Reporter reporter(curve);
    for (uint64_t second = 1; second < 12; ++second) {
        for (uint64_t use = 0; use < 100'000; ++use) {
            reporter.use(use % 1000);
        }
        reporter.send(second * 1000);
    }
    const uint64_t before = curve.summary(0).uses;
    for (uint64_t use = 0; use < 100'000; ++use) {
        reporter.use(use % 1000);
    }
    reporter.send(12'000);
    EXPECT_LE(curve.summary(0).uses - before, ReuseCurve::kMaxUsesPerS);
}

TEST(ReuseCurve, RefusesWhatIsNoReport) {
    ReuseCurve curve(0);
    const std::vector<uint8_t> odd(ReuseCurve::kRecordBytes + 1);
    EXPECT_EQ(curve.note({0, odd, 0, 0, 0}, 0, 0).code(), Code::kInvalidArgument);
    EXPECT_EQ(curve.note({256, {}, 0, 0, 0}, 0, 0).code(), Code::kInvalidArgument);
    // Any bytes are uses of some key: sizes are bounded, nothing else can be wrong.
    const std::vector<uint8_t> ones(64 * ReuseCurve::kRecordBytes, 0xff);
    EXPECT_TRUE(curve.note({255, ones, UINT64_MAX, UINT64_MAX, 1}, UINT64_MAX, UINT64_MAX).ok());
    EXPECT_TRUE(curve.note({0, ones, 0, 0, 0}, 0, 0).ok());  // time does not go back, either
    static_cast<void>(curve.summary(0));
}

}  // namespace
}  // namespace kvstore
