// What ends a fence, and what a wait for several of them hears.
#include "master/announce_fences.h"

#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <vector>

namespace kvstore {
namespace {

class AnnounceFencesTest : public testing::Test {
  protected:
    bool wait(const std::vector<LinkId>& links, std::optional<bool>* heard, size_t bytes = 1) {
        return fences_.wait(
            links, bytes, now_ms_, [heard](bool known) { *heard = known; },
            [this](LinkId link, uint64_t token) { tokens_[link] = token; });
    }

    AnnounceFences fences_;
    std::map<LinkId, uint64_t> tokens_;  // of the last Ping on each link
    uint64_t now_ms_ = 1000;
};

TEST_F(AnnounceFencesTest, AWaitEndsWithTheLastOfItsLinks) {
    std::optional<bool> heard;
    ASSERT_TRUE(wait({1, 2}, &heard));
    fences_.passed(1, tokens_[1]);
    fences_.passed(1, tokens_[1]);
    fences_.passed(1, tokens_[2]);
    EXPECT_FALSE(heard.has_value()) << "another link's answer, or one that came before";
    fences_.passed(2, tokens_[2]);
    EXPECT_EQ(heard, true);
}

TEST_F(AnnounceFencesTest, ALostLinkHasNothingMoreToSay) {
    std::optional<bool> heard;
    ASSERT_TRUE(wait({1, 2}, &heard));
    fences_.lost(2);
    EXPECT_FALSE(heard.has_value());
    fences_.passed(1, tokens_[1]);
    EXPECT_EQ(heard, true);
}

TEST_F(AnnounceFencesTest, WhoDoesNotAnswerInTimeLeavesItUnknown) {
    std::optional<bool> first;
    std::optional<bool> second;
    ASSERT_TRUE(wait({1, 2}, &first));
    fences_.passed(2, tokens_[2]);
    now_ms_ += 1;
    ASSERT_TRUE(wait({1}, &second));
    fences_.expire(1000 + AnnounceFences::kWaitMs - 1);
    EXPECT_FALSE(first.has_value());
    fences_.expire(1000 + AnnounceFences::kWaitMs);
    EXPECT_EQ(first, false);
    EXPECT_FALSE(second.has_value());
    fences_.end_all();
    EXPECT_EQ(second, false);
}

TEST_F(AnnounceFencesTest, TheBytesOfWhatWaitsAreBounded) {
    std::optional<bool> first;
    std::optional<bool> second;
    ASSERT_TRUE(wait({1}, &first, AnnounceFences::kMaxBytes));
    EXPECT_FALSE(wait({1}, &second));
    fences_.passed(1, tokens_[1]);
    EXPECT_TRUE(wait({1}, &second));
}

TEST_F(AnnounceFencesTest, WithoutLinksNobodyWaits) {
    std::optional<bool> heard;
    ASSERT_TRUE(wait({}, &heard));
    EXPECT_EQ(heard, true);
}

}  // namespace
}  // namespace kvstore
