// Rates of prefixes: the truth of a skewed stream, ageing, and the bounds of memory and time.
#include "master/hot_prefixes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>
#include <string>

#include "base/limits.h"

namespace kvstore {
namespace {

constexpr uint64_t kHalfLifeMs = 120'000;
constexpr uint64_t kLimitBytes = 256u << 10;

HotPrefixes::Name named(const std::string& key, const std::string& tenant = "t") {
    return {tenant, "n", key};
}

void note(HotPrefixes& hot, const HotPrefixes::Name& name, uint64_t uses, uint64_t bytes,
          uint64_t now_ms) {
    const HotPrefixes::Use use{name, uses, bytes};
    ASSERT_TRUE(hot.note({&use, 1}, now_ms).ok());
}

TEST(HotPrefixes, FindsTheMostReadOnesOfASkewedStream) {
    constexpr size_t kKeys = 20'000;
    constexpr size_t kReads = 400'000;
    HotPrefixes hot(kHalfLifeMs);
    std::mt19937_64 random(7);  // NOLINT: the same in every run
    std::vector<double> weights;
    for (size_t i = 0; i < kKeys; ++i) {
        weights.push_back(1 / std::pow(static_cast<double>(i + 1), 1.1));
    }
    std::discrete_distribution<size_t> zipf(weights.begin(), weights.end());
    std::map<size_t, uint64_t> truth;
    for (size_t i = 0; i < kReads; ++i) {
        const size_t key = zipf(random);
        ++truth[key];
        note(hot, named("k" + std::to_string(key)), 1, 100, 1 + i / 10'000 * 1000);
    }
    const HotPrefixes::Summary summary = hot.summary(40'001);
    ASSERT_GE(summary.rows.size(), 10u);
    for (size_t i = 0; i < 10; ++i) {
        const HotPrefixes::Row& row = summary.rows[i];
        EXPECT_EQ(row.name.key, "k" + std::to_string(i));
        const double rate = static_cast<double>(truth[i]) / 45;
        EXPECT_LE(row.uses_per_s, rate * 1.05);
        EXPECT_GE(row.uses_per_s, rate * 0.95 - 2.0 * kReads / HotPrefixes::kMaxPrefixes / 45);
        // Bytes go with the uses that are left.
        EXPECT_NEAR(row.bytes_per_s, row.uses_per_s * 100, row.uses_per_s);
    }
    EXPECT_LE(summary.memory_bytes, kLimitBytes);
}

TEST(HotPrefixes, ASteadyRateIsTheRate) {
    HotPrefixes hot(kHalfLifeMs);
    uint64_t now_ms = 5;
    for (int round = 1; round <= 240; ++round) {
        now_ms += 5000;
        note(hot, named("a"), 150, 15'000, now_ms);
        if (round == 2 || round == 240) {  // soon after the start, and in the long run
            const HotPrefixes::Summary summary = hot.summary(now_ms);
            ASSERT_EQ(summary.rows.size(), 1u);
            EXPECT_NEAR(summary.rows[0].uses_per_s, 30, 1);
            EXPECT_NEAR(summary.rows[0].bytes_per_s, 3000, 100);
        }
    }
    // Nothing more comes: half of it is left after the half-life.
    EXPECT_NEAR(hot.summary(now_ms + kHalfLifeMs).rows[0].uses_per_s, 15, 1);
    note(hot, named("b"), 1, 1, now_ms + 20 * kHalfLifeMs);
    EXPECT_EQ(hot.summary(now_ms + 20 * kHalfLifeMs).rows.size(), 1u);  // forgotten
}

TEST(HotPrefixes, NamesOfTenantsAndNamespacesAreApart) {
    HotPrefixes hot(kHalfLifeMs);
    note(hot, {"a", "bc", "k"}, 3, 1, 1);
    note(hot, {"ab", "c", "k"}, 2, 1, 1);
    note(hot, {"a", "b", "ck"}, 1, 1, 1);
    const HotPrefixes::Summary summary = hot.summary(1);
    ASSERT_EQ(summary.rows.size(), 3u);
    EXPECT_EQ(summary.rows[0].name, (HotPrefixes::Name{"a", "bc", "k"}));
    EXPECT_EQ(summary.rows[2].name, (HotPrefixes::Name{"a", "b", "ck"}));
}

TEST(HotPrefixes, AReportThatCannotBeIsRefusedAsAWhole) {
    HotPrefixes hot(kHalfLifeMs);
    const HotPrefixes::Use good{named("k"), 1, 1};
    std::vector<HotPrefixes::Use> report(limits::kMaxPrefixes + 1, good);
    EXPECT_EQ(hot.note(report, 1).code(), Code::kInvalidArgument);
    const std::vector<HotPrefixes::Name> wrong = {
        {"", "n", "k"},
        {"t", "n", ""},
        {"t", "a\nb", "k"},
        {std::string(limits::kMaxNameBytes + 1, 't'), "n", "k"},
        {"t", "n", std::string(limits::kMaxKeyBytes + 1, 'k')},
    };
    for (const HotPrefixes::Name& name : wrong) {
        report = {good, {name, 1, 1}};
        EXPECT_EQ(hot.note(report, 1).code(), Code::kInvalidArgument);
    }
    EXPECT_TRUE(hot.summary(1).rows.empty());
    report.assign(limits::kMaxPrefixes, good);
    EXPECT_TRUE(hot.note(report, 1).ok());
    EXPECT_EQ(hot.summary(1).rows.size(), 1u);
}

TEST(HotPrefixes, MemoryIsBoundedWhateverNamesCome) {
    for (const size_t length : {1ul, 40ul, limits::kMaxKeyBytes - 8}) {
        HotPrefixes hot(kHalfLifeMs);
        uint64_t most = 0;
        for (int i = 0; i < 20'000; ++i) {
            HotPrefixes::Name name = named(std::to_string(i) + std::string(length, 'x'));
            name.tenant = name.ns = std::string(std::min(length, limits::kMaxNameBytes), 'y');
            note(hot, name, 1 + static_cast<uint64_t>(i % 3), 1, 1 + static_cast<uint64_t>(i));
            note(hot, named("hot"), 2, 2, 1 + static_cast<uint64_t>(i));
            if (i % 97 == 0) {
                most = std::max(most, hot.summary(1 + static_cast<uint64_t>(i)).memory_bytes);
            }
        }
        EXPECT_LE(most, kLimitBytes) << length;
        const HotPrefixes::Summary summary = hot.summary(20'001);
        ASSERT_FALSE(summary.rows.empty());
        EXPECT_EQ(summary.rows[0].name.key, "hot");
        RecordProperty("ns_a_report", std::to_string(summary.busy_us * 1000 / 40'000));
    }
}

}  // namespace
}  // namespace kvstore
