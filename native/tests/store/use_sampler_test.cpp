// Which uses a store reports, and how many.
#include "store/use_sampler.h"

#include <gtest/gtest.h>

#include "tests/store/store_harness.h"

namespace kvstore {
namespace {

Hash128 hash(uint64_t bits) { return {bits, 0}; }

TEST(UseSampler, ReportsNothingBeforeSomebodyAsks) {
    UseSampler sampler;
    sampler.put(hash(1), 4096);
    sampler.hit(hash(1), 4096);
    const UseSampler::Taken first = sampler.take(0);
    EXPECT_TRUE(first.uses.empty());
    EXPECT_EQ(first.hits + first.puts, 0u);
    sampler.hit(hash(1), 4096);
    sampler.put(hash(2), 8192);
    sampler.lose_hits(3);
    const UseSampler::Taken second = sampler.take(0);
    ASSERT_EQ(second.uses.size(), 2u);
    EXPECT_TRUE(second.uses[0].hit);
    EXPECT_EQ(second.uses[1].size_bytes, 8192u);
    EXPECT_EQ(second.hits, 1u);
    EXPECT_EQ(second.puts, 1u);
    EXPECT_EQ(second.lost, 3u);
    EXPECT_TRUE(sampler.take(0).uses.empty());
}

TEST(UseSampler, CountsAllAndKeepsTheSample) {
    UseSampler sampler;
    sampler.take(8);
    sampler.hit(hash(UINT64_MAX), 1);       // rarity 0
    sampler.hit(hash(UINT64_MAX >> 1), 1);  // rarity 8
    const UseSampler::Taken taken = sampler.take(0);
    EXPECT_EQ(taken.hits, 2u);
    EXPECT_EQ(taken.level, 8u);
    ASSERT_EQ(taken.uses.size(), 1u);
    EXPECT_EQ(taken.uses[0].hash, UINT64_MAX >> 1);
}

TEST(UseSampler, HalvesTheSampleInABurst) {
    UseSampler sampler;
    sampler.take(0);
    constexpr uint64_t kUses = 4 * UseSampler::kMaxUses;
    for (uint64_t i = 0; i < kUses; ++i) {
        sampler.put(hash(i * 0x9e3779b97f4a7c15ull), 1);
    }
    const UseSampler::Taken taken = sampler.take(0);
    EXPECT_EQ(taken.puts, kUses);
    EXPECT_LT(taken.uses.size(), UseSampler::kMaxUses);
    EXPECT_GE(taken.level, 2 * kHalfSample);
    EXPECT_NEAR(static_cast<double>(taken.uses.size()),
                static_cast<double>(kUses) * sample_share(taken.level), 600);
    for (const UseSampler::Use& use : taken.uses) {
        EXPECT_GE(key_rarity(use.hash), taken.level);
    }
}

TEST(UseSampler, AKeyThatIsAlwaysInTheSampleDoesNotFillIt) {
    UseSampler sampler;
    sampler.take(0);
    for (size_t i = 0; i < 3 * UseSampler::kMaxUses; ++i) {
        sampler.hit(hash(0), 1);
    }
    const UseSampler::Taken taken = sampler.take(0);
    EXPECT_LT(taken.uses.size(), UseSampler::kMaxUses);
    EXPECT_EQ(taken.hits, 3 * UseSampler::kMaxUses);
    EXPECT_EQ(taken.level, 0u);  // the other keys have not lost their place
}

TEST(UseSampler, AReadIsAUseAndWhatOnlyLooksIsNone) {
    StoreHarness harness(1 << 20);
    ASSERT_EQ(harness.put("k", 5000), Code::kOk);
    UseSampler& sampler = harness.store->sampler();
    sampler.take(0);
    EXPECT_TRUE(harness.get("k"));
    EXPECT_TRUE(harness.has("k"));
    EXPECT_EQ(harness.miss("other"), MissReason::kAbsent);
    const BlockStore::Key key = harness.key("k");
    EXPECT_EQ(harness.store->lease_acquire(harness.owner, harness.ns, {&key, 1}, 1, 1000).length,
              1u);
    // The recency of an object that was put again is refreshed; the put itself is counted by the
    // node, which also knows of those that only the master refuses.
    EXPECT_EQ(harness.put("k", 5000), Code::kAlreadyExists);
    harness.store->tick();
    const UseSampler::Taken taken = sampler.take(0);
    EXPECT_EQ(taken.hits, 1u);
    EXPECT_EQ(taken.puts, 0u);
    ASSERT_EQ(taken.uses.size(), 1u);
    EXPECT_EQ(taken.uses[0].hash, key.hash.lo);
    EXPECT_EQ(taken.uses[0].size_bytes, 5000u);
}

}  // namespace
}  // namespace kvstore
