// When a node asks for another replica of what many read.
#include "node/hot_reads.h"

#include <gtest/gtest.h>

#include "base/limits.h"

namespace kvstore {
namespace {

class HotReadsTest : public testing::Test {
  protected:
    HotReadsTest() { hot_.set_policy({.reads_per_s = 50, .replicas = 3}); }
    // Reads of one second, evenly spread; the replicas that were asked for.
    std::vector<uint8_t> second(uint32_t reads, const Hash128& hash, Version version = 1) {
        std::vector<uint8_t> asked;
        for (uint32_t i = 0; i < reads; ++i) {
            last_ = hot_.note(hash, version, now_ms_ + uint64_t{1000} * i / reads);
            if (last_.replicas != 0) {
                asked.push_back(last_.replicas);
            }
        }
        now_ms_ += 1000;
        return asked;
    }
    const Hash128 key_{1, 1};
    const Hash128 same_place_{1 + HotReads::kEntries, 2};
    HotReads hot_;
    HotReads::Verdict last_;
    uint64_t now_ms_ = 1'000'000;
};

TEST_F(HotReadsTest, WhatIsReadSeldomIsNotHot) {
    for (int i = 0; i < 10; ++i) {
        EXPECT_TRUE(second(49, key_).empty());
        EXPECT_FALSE(last_.is_hot);
    }
}

TEST_F(HotReadsTest, AsksForOneMoreAtATimeUpToTheLimit) {
    std::vector<uint8_t> asked;
    for (int i = 0; i < 10; ++i) {
        const std::vector<uint8_t> now = second(200, key_);
        asked.insert(asked.end(), now.begin(), now.end());
        EXPECT_TRUE(last_.is_hot);
    }
    ASSERT_GE(asked.size(), 3u);
    EXPECT_LE(asked.size(), 5u);  // seconds apart
    EXPECT_EQ(asked[0], 2);
    EXPECT_EQ(asked[1], 3);
    EXPECT_EQ(asked[2], 3);
}

TEST_F(HotReadsTest, CoolsDown) {
    second(200, key_);
    EXPECT_TRUE(last_.is_hot);
    second(20, key_);  // fewer than asked for, but not few
    second(20, key_);
    EXPECT_TRUE(last_.is_hot);
    second(5, key_);
    second(5, key_);
    EXPECT_FALSE(last_.is_hot);
    now_ms_ += 60'000;
    second(100, key_);
    EXPECT_TRUE(last_.is_hot);
    now_ms_ += 60'000;
    second(1, key_);
    EXPECT_FALSE(last_.is_hot);
}

TEST_F(HotReadsTest, ANewVersionBeginsAnew) {
    second(200, key_);
    EXPECT_TRUE(last_.is_hot);
    EXPECT_TRUE(second(10, key_, 2).empty());
    EXPECT_FALSE(last_.is_hot);
}

TEST_F(HotReadsTest, WhatIsReadSeldomDisplacesNothing) {
    second(200, key_);
    EXPECT_FALSE(hot_.note(same_place_, 1, now_ms_ - 10).is_hot);
    second(60, key_);
    EXPECT_TRUE(last_.is_hot);
    now_ms_ += 5000;  // nobody reads it any more
    EXPECT_EQ(second(60, same_place_).size(), 1u);
}

TEST_F(HotReadsTest, CanBeSwitchedOff) {
    hot_.set_policy({.reads_per_s = 0});
    EXPECT_TRUE(second(1000, key_).empty());
    EXPECT_FALSE(last_.is_hot);
}

}  // namespace
}  // namespace kvstore
