// Turns of full announces: how many go on at once, who is next, who passes it on.
#include "master/announce_turns.h"

#include <gtest/gtest.h>

#include <map>

namespace kvstore {
namespace {

class AnnounceTurnsTest : public testing::Test {
  protected:
    void frame(LinkId link, bool is_last = false) {
        turns_.answer(link, now_ms_, is_last, [this, link] { ++answered_[link]; });
    }
    // The first links have their turn.
    void fill() {
        for (LinkId link = 1; link <= AnnounceTurns::kAtOnce; ++link) {
            frame(link);
            ASSERT_EQ(answered_[link], 1);
        }
    }

    AnnounceTurns turns_;
    std::map<LinkId, int> answered_;
    uint64_t now_ms_ = 1'000;
    const LinkId late_ = AnnounceTurns::kAtOnce + 1;
};

TEST_F(AnnounceTurnsTest, WhoWaitsIsAnsweredInItsTurn) {
    fill();
    frame(late_);
    frame(late_);
    frame(late_ + 1);
    frame(1);
    EXPECT_EQ(answered_[1], 2);
    EXPECT_EQ(answered_[late_], 0);
    frame(1, true);
    EXPECT_EQ(answered_[1], 3);
    EXPECT_EQ(answered_[late_], 2);
    EXPECT_EQ(answered_[late_ + 1], 0);
    frame(late_, true);
    EXPECT_EQ(answered_[late_], 3);
    EXPECT_EQ(answered_[late_ + 1], 1);
}

TEST_F(AnnounceTurnsTest, WhatWasSentAtOnceTakesNoTurn) {
    fill();
    for (LinkId link = late_; link < late_ + 3; ++link) {
        frame(link);
        frame(link, true);  // it had little to say
    }
    frame(late_ + 3);
    turns_.lost(1, now_ms_);
    EXPECT_EQ(answered_[late_], 2);
    EXPECT_EQ(answered_[late_ + 2], 2);
    EXPECT_EQ(answered_[late_ + 3], 1);
}

TEST_F(AnnounceTurnsTest, ALostLinkWaitsForNothing) {
    fill();
    frame(late_);
    turns_.lost(late_, now_ms_);
    frame(late_ + 1);
    turns_.lost(1, now_ms_);
    EXPECT_EQ(answered_[late_], 0);
    EXPECT_EQ(answered_[late_ + 1], 1);
}

TEST_F(AnnounceTurnsTest, WhoSendsNothingPassesItsTurnOn) {
    fill();
    frame(late_);
    now_ms_ += AnnounceTurns::kIdleMs - 1;
    frame(1);
    turns_.expire(now_ms_);
    EXPECT_EQ(answered_[late_], 0);
    turns_.expire(now_ms_ + 1);
    EXPECT_EQ(answered_[late_], 1);
    for (LinkId link = late_ + 1; link < late_ + AnnounceTurns::kAtOnce - 1; ++link) {
        frame(link);
    }
    frame(2);  // it has none any more
    EXPECT_EQ(answered_[2], 1);
    turns_.lost(late_, now_ms_);
    EXPECT_EQ(answered_[2], 2);
    frame(1);
    EXPECT_EQ(answered_[1], 3);
}

}  // namespace
}  // namespace kvstore
