// What a reclaim does with an object: the table, the share, and the room that the moves need.
#include "nvme/reclaim_plan.h"

#include <gtest/gtest.h>

#include "nvme/file_io.h"
#include "nvme/format.h"

namespace kvstore {
namespace {

using Fate = ReclaimPlan::Fate;
constexpr uint64_t kFileBytes = 1 << 20;

TEST(ReclaimPlanTest, EachKindOfObjectHasItsFate) {
    struct Case {
        const char* what;
        ReclaimPlan::Facts facts;
        Fate fate;
    };
    const Case cases[] = {
        {"read often enough", {true, false, Pin::kNone, 2, 4096}, Fate::kMove},
        {"read more often", {true, false, Pin::kNone, 3, 4096}, Fate::kMove},
        {"read too rarely", {true, false, Pin::kNone, 1, 4096}, Fate::kDropCold},
        {"soft pins do not count", {true, false, Pin::kSoft, 1, 4096}, Fate::kDropCold},
        {"hard pins do", {true, false, Pin::kHard, 0, 4096}, Fate::kMove},
        {"hot, but more than the share", {true, false, Pin::kNone, 3, 600'000}, Fate::kDropCold},
        {"pinned, and more than the share", {true, false, Pin::kHard, 0, 600'000}, Fate::kMove},
        {"expired", {false, false, Pin::kNone, 3, 4096}, Fate::kDropExpired},
        {"expired and pinned", {false, false, Pin::kHard, 3, 4096}, Fate::kDropExpired},
        {"flushed", {false, true, Pin::kNone, 3, 4096}, Fate::kForget},
        {"flushed and pinned", {false, true, Pin::kHard, 3, 4096}, Fate::kForget},
    };
    for (const Case& one : cases) {
        ReclaimPlan plan({.min_touches = 2, .readmit_share = 0.5}, kFileBytes);
        EXPECT_EQ(plan.decide(one.facts), one.fate) << one.what;
    }
}

// Ten objects of a tenth of the file each.
TEST(ReclaimPlanTest, TheShareBoundsWhatMoves) {
    struct Case {
        double share;
        int moved;
    };
    for (const Case& one : {Case{0, 0}, Case{0.25, 2}, Case{0.5, 5}, Case{1, 9}}) {
        ReclaimPlan plan(NvmePolicy{.min_touches = 0, .readmit_share = one.share}, kFileBytes);
        int moved = 0;
        for (int i = 0; i < 10; ++i) {
            const Fate fate = plan.decide({.is_live = true, .record_bytes = kFileBytes / 10});
            moved += fate == Fate::kMove ? 1 : 0;
        }
        EXPECT_EQ(moved, one.moved) << one.share;
    }
}

TEST(ReclaimPlanTest, PinnedObjectsUseUpTheShare) {
    ReclaimPlan plan({.min_touches = 0, .readmit_share = 0.5}, kFileBytes);
    const ReclaimPlan::Facts pinned{.is_live = true, .pin = Pin::kHard, .record_bytes = 500'000};
    EXPECT_EQ(plan.decide(pinned), Fate::kMove);
    EXPECT_EQ(plan.decide({.is_live = true, .record_bytes = 100'000}), Fate::kDropCold);
    EXPECT_EQ(plan.decide({.is_live = true, .record_bytes = 20'000}), Fate::kMove) << "it fits";
}

TEST(ReclaimPlanTest, PoliciesAreClamped) {
    EXPECT_EQ((NvmePolicy{.min_touches = 200, .readmit_share = 7}.clamped().min_touches),
              NvmeIndex::kMaxTouches);
    EXPECT_EQ((NvmePolicy{.min_touches = 0, .readmit_share = 7}.clamped().readmit_share), 1.0);
    EXPECT_EQ((NvmePolicy{.min_touches = 0, .readmit_share = -1}.clamped().readmit_share), 0.0);
}

TEST(ReclaimPlanTest, MovesAreInTheOrderOfTheFileWithTheRoomThatIsLeftToFind) {
    ReclaimPlan plan({}, kFileBytes);
    EXPECT_TRUE(plan.finish().empty());
    const auto add = [&plan](uint64_t offset, uint64_t bytes) {
        ManifestRow row;
        row.offset = offset;
        plan.add_move(row, offset + 1, bytes);
    };
    add(8192, 100);
    add(4096, 4000);
    add(65536, 1000);
    const std::span<const ReclaimPlan::Move> moves = plan.finish();
    ASSERT_EQ(moves.size(), 3u);
    const uint64_t overhead = 2 * kMaxRecordHeadBytes + 2 * kIoAlign;
    const uint64_t largest = 4000;
    EXPECT_EQ(moves[0].row.offset, 4096u);
    EXPECT_EQ(moves[0].ns, 4097u);
    EXPECT_EQ(moves[0].room_needed, 5100 + largest + overhead);
    EXPECT_EQ(moves[1].row.offset, 8192u);
    EXPECT_EQ(moves[1].room_needed, 1100 + largest + overhead);
    EXPECT_EQ(moves[2].row.offset, 65536u);
    EXPECT_EQ(moves[2].room_needed, 1000 + largest + overhead);
}

}  // namespace
}  // namespace kvstore
