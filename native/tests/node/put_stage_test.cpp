// The stages of a put: the whole table of put_stage.h, and what can never happen in it.
#include "node/put_stage.h"

#include <gtest/gtest.h>

#include <array>
#include <set>
#include <vector>

namespace kvstore {
namespace {

using enum PutStage;

constexpr std::array kStages = {kClaiming,   kGranted,    kRefused, kFilled,
                                kPublishing, kAnnouncing, kAnswered};
constexpr std::array kEvents = {PutEvent::kCommitted, PutEvent::kGranted, PutEvent::kRefused,
                                PutEvent::kPublished, PutEvent::kQueued,  PutEvent::kLinkLost};

TEST(PutStageTest, TheTableIsTheHeaders) {
    constexpr PutStage kTable[kStages.size()][kEvents.size()] = {
        // committed   granted      refused      published    sent         link lost
        {kFilled, kGranted, kRefused, kClaiming, kClaiming, kRefused},    // kClaiming
        {kPublishing, kGranted, kGranted, kGranted, kGranted, kRefused},  // kGranted
        {kEnded, kRefused, kRefused, kRefused, kRefused, kRefused},       // kRefused
        {kFilled, kPublishing, kEnded, kFilled, kFilled, kEnded},         // kFilled
        {kPublishing, kPublishing, kPublishing, kAnnouncing, kPublishing,
         kPublishing},                                                            // kPublishing
        {kAnnouncing, kAnnouncing, kAnnouncing, kAnnouncing, kAnswered, kEnded},  // kAnnouncing
        {kAnswered, kAnswered, kAnswered, kAnswered, kAnswered, kEnded},          // kAnswered
    };
    for (size_t stage = 0; stage < kStages.size(); ++stage) {
        for (size_t event = 0; event < kEvents.size(); ++event) {
            EXPECT_EQ(next_stage(kStages[stage], kEvents[event]), kTable[stage][event])
                << "stage " << stage << ", event " << event;
        }
    }
}

// Walks every order of events from the beginning: (stage, committed, granted) for each.
struct Walk {
    PutStage stage = kClaiming;
    bool committed = false;
    bool granted = false;
    auto operator<=>(const Walk&) const = default;
};

std::set<Walk> all_walks() {
    std::set<Walk> seen;
    std::vector<Walk> open = {{}};
    while (!open.empty()) {
        const Walk at = open.back();
        open.pop_back();
        if (at.stage == kEnded || !seen.insert(at).second) {
            continue;
        }
        for (const PutEvent event : kEvents) {
            Walk next = at;
            next.stage = next_stage(at.stage, event);
            next.committed |= event == PutEvent::kCommitted;
            next.granted |= event == PutEvent::kGranted && next.stage != at.stage;
            open.push_back(next);
        }
    }
    return seen;
}

TEST(PutStageTest, NothingIsPublishedWithoutItsBytesAndItsClaim) {
    size_t published = 0;
    for (const Walk& walk : all_walks()) {
        if (walk.stage >= kPublishing) {
            EXPECT_TRUE(walk.committed && walk.granted);
            ++published;
        }
    }
    EXPECT_GT(published, 0u);
}

TEST(PutStageTest, ABlockIsNeverFreedUnderAWriterThatHasNotCommitted) {
    for (const Walk& walk : all_walks()) {
        for (const PutEvent event : kEvents) {
            if (next_stage(walk.stage, event) == kEnded) {
                EXPECT_TRUE(walk.committed || event == PutEvent::kCommitted);
            }
        }
    }
}

TEST(PutStageTest, NoDeadlineEndsAPublishOrWhatWasAnswered) {
    for (const PutStage stage : kStages) {
        EXPECT_EQ(may_end(stage), stage != kPublishing && stage != kAnswered);
    }
    EXPECT_EQ(next_stage(kPublishing, PutEvent::kLinkLost), kPublishing);
}

}  // namespace
}  // namespace kvstore
