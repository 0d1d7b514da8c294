// Pauses after wrong proofs: whom they concern, how they grow, and that the table is bounded.
#include "net/failed_proofs.h"

#include <gtest/gtest.h>

namespace kvstore::testing {
namespace {

class FailedProofsTest : public ::testing::Test {
  protected:
    uint64_t fail(std::string_view who = "engine", std::string_view where = "a") {
        return proofs_.failed(who, where, now_ms_);
    }
    uint64_t wait(std::string_view who = "engine", std::string_view where = "a") {
        return proofs_.refuse_ms(who, where, now_ms_);
    }
    void fail_freely() {
        for (uint32_t i = 0; i < FailedProofs::kFree; ++i) {
            EXPECT_EQ(fail(), 0u);
            EXPECT_EQ(wait(), 0u);
        }
    }
    FailedProofs proofs_;
    uint64_t now_ms_ = 1'000'000;
};

TEST_F(FailedProofsTest, PausesDoubleUpToTheLongest) {
    fail_freely();
    uint64_t wanted = FailedProofs::kFirstPauseMs;
    for (int i = 0; i < 40; ++i) {
        EXPECT_EQ(fail(), wanted);
        EXPECT_EQ(wait(), wanted);
        now_ms_ += wanted - 1;
        EXPECT_EQ(wait(), 1u);
        ++now_ms_;
        EXPECT_EQ(wait(), 0u);
        wanted = std::min(2 * wanted, FailedProofs::kLongestPauseMs);
    }
    EXPECT_EQ(proofs_.stats().pauses, 40u);
    EXPECT_EQ(proofs_.stats().refused, 80u);
}

TEST_F(FailedProofsTest, NobodyElseWaits) {
    fail_freely();
    EXPECT_NE(fail(), 0u);
    EXPECT_EQ(wait("engine", "b"), 0u) << "the right secret from another address";
    EXPECT_EQ(wait("other", "a"), 0u);
    EXPECT_EQ(wait("unheard", "of"), 0u);
}

TEST_F(FailedProofsTest, ARightProofAndTimeForget) {
    fail_freely();
    proofs_.passed("engine", "a");
    EXPECT_FALSE(proofs_.any());
    fail_freely();
    now_ms_ += FailedProofs::kForgottenMs + 1;
    fail_freely();
    EXPECT_NE(fail(), 0u);
    proofs_.clear();
    EXPECT_EQ(wait(), 0u);
    EXPECT_EQ(proofs_.stats().tracked, 0u);
}

TEST_F(FailedProofsTest, ManyNamesDisplaceThoseOfTheirOwnNetwork) {
    fail_freely();
    EXPECT_NE(fail(), 0u);
    for (size_t i = 0; i < 3 * FailedProofs::kMostTracked; ++i) {
        fail("name-" + std::to_string(i), "flooder");
    }
    EXPECT_EQ(proofs_.stats().tracked, FailedProofs::kMostTracked);
    EXPECT_NE(wait(), 0u) << "another network's entry stays";
}

}  // namespace
}  // namespace kvstore::testing
