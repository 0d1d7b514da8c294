// What a read does next with an object, as a table: which replica, another lookup, or which miss.
#include "client/remote_reads.h"

#include <gtest/gtest.h>

#include <random>

namespace kvstore {
namespace {

constexpr auto kNone = MissReason::kNone;
constexpr auto kVersion = MissReason::kVersion;
constexpr auto kRemoved = MissReason::kRemoved;
constexpr auto kNodeDown = MissReason::kNodeDown;
constexpr auto kRestarting = MissReason::kRestarting;
constexpr auto kUnavailable = MissReason::kUnavailable;
constexpr auto kEvicted = MissReason::kEvicted;

ReadJob job_of(uint8_t replicas) {
    ReadJob job;
    job.placement.version = 7;
    job.placement.count = replicas;
    return job;
}

TEST(NextStep, TakesTheNearestReplicaThatWasNotTried) {
    struct Row {
        const char* what;
        uint8_t replicas;
        uint32_t tried;
        ReplicaScores scores;
        int replica;
    };
    const Row rows[] = {
        {"the only one", 1, 0b000, {5}, 0},
        {"the highest score", 3, 0b000, {5, 200, 17}, 1},
        {"the first of equals", 3, 0b000, {17, 17, 17}, 0},
        {"not one that was tried", 3, 0b010, {5, 200, 17}, 2},
        {"not one that is down", 3, 0b010, {5, 200, 0}, 0},
        {"a node that failed lately before none", 2, 0b001, {17, 1}, 1},
        {"nothing beyond the count", 1, 0b000, {5, 200}, 0},
    };
    for (const Row& row : rows) {
        ReadJob job = job_of(row.replicas);
        job.tried = row.tried;
        const NextStep want{.kind = NextStep::kTry, .replica = row.replica};
        EXPECT_EQ(next_step(job, row.scores, false), want) << row.what;
    }
}

TEST(BreakTie, OfTwoEqualsTheLessBusyOneIsRead) {
    ReadJob job = job_of(4);
    const ReplicaLoads loads{500, 0, 100, 0};
    std::array<int, 4> chosen{};
    std::mt19937_64 random(1);
    for (int i = 0; i < 3000; ++i) {
        ReplicaScores scores{8, 4, 8, 8};
        break_tie(job, loads, random(), &scores);
        ++chosen[static_cast<size_t>(next_step(job, scores, false).replica)];
    }
    EXPECT_EQ(chosen[0], 0) << "the busiest of three";
    EXPECT_EQ(chosen[1], 0) << "idle, and farther";
    EXPECT_NEAR(chosen[2], 1000, 150);
    EXPECT_NEAR(chosen[3], 2000, 150);
    // One that was tried, or is down, is no equal.
    job.tried = 0b1000;
    ReplicaScores scores{0, 4, 8, 8};
    break_tie(job, loads, 1, &scores);
    EXPECT_EQ(scores, (ReplicaScores{0, 4, 8, 8}));
    ReplicaScores none{};
    break_tie(job, loads, 1, &none);
    EXPECT_EQ(none, ReplicaScores{});
}

TEST(NextStep, AllReplicasOfTheLargestObjectAreTriedOnce) {
    ReadJob job = job_of(limits::kMaxReplicas);
    ReplicaScores scores;
    scores.fill(3);
    for (int left = static_cast<int>(limits::kMaxReplicas); left > 0; --left) {
        EXPECT_EQ(job.replicas_left(), left);
        const NextStep step = next_step(job, scores, false);
        ASSERT_EQ(step.kind, NextStep::kTry);
        ASSERT_EQ(job.tried >> step.replica & 1, 0u);
        job.tried |= 1u << step.replica;
    }
    job.last = kEvicted;
    EXPECT_EQ(next_step(job, scores, false), (NextStep{.reason = kEvicted}));
}

TEST(NextStep, DecidesWhatFollowsTheLastReplica) {
    const NextStep again{.kind = NextStep::kAskAgain};
    const NextStep newer{.kind = NextStep::kTry, .replica = 1, .newer = true};
    const auto miss = [](MissReason reason) { return NextStep{.reason = reason}; };
    struct Row {
        const char* what;
        bool remembered;
        bool repeated;
        bool newer;
        MissReason unasked;
        MissReason last;
        NextStep want;
    };
    const Row rows[] = {
        {"gone everywhere", false, false, false, kNone, kEvicted, miss(kEvicted)},
        {"all nodes down", false, false, false, kNone, kNodeDown, miss(kNodeDown)},
        {"remembered, outdated", true, false, false, kNone, kEvicted, again},
        {"remembered, node down", true, false, false, kNone, kNodeDown, again},
        {"all nodes restart", false, false, false, kNone, kRestarting, miss(kRestarting)},
        {"remembered, node restarts", true, false, false, kNone, kRestarting, again},
        {"replaced meanwhile", false, false, false, kNone, kVersion, again},
        {"replaced, said as removed", false, false, false, kNone, kRemoved, again},
        {"the master repeats itself", false, true, false, kNone, kVersion, newer},
        {"a newer one was not there either", false, true, true, kNone, kVersion, miss(kVersion)},
        {"removed, says the master twice", false, true, false, kNone, kRemoved, miss(kRemoved)},
        {"gone, after a second lookup", false, true, false, kNone, kEvicted, miss(kEvicted)},
        {"no master: absence proves nothing", false, false, false, kUnavailable, kEvicted,
         miss(kUnavailable)},
        {"no master: nor does another version", false, false, false, kUnavailable, kVersion,
         miss(kUnavailable)},
        {"no master, but the nodes are down", false, false, false, kUnavailable, kNodeDown,
         miss(kNodeDown)},
        {"rebuilding", false, false, false, MissReason::kRebuilding, kEvicted,
         miss(MissReason::kRebuilding)},
    };
    for (const Row& row : rows) {
        ReadJob job = job_of(2);
        job.tried = 0b11;
        job.remembered = row.remembered;
        job.repeated = row.repeated;
        job.newer = row.newer;
        job.unasked = row.unasked;
        job.last = row.last;
        EXPECT_EQ(next_step(job, {5, 17}, false), row.want) << row.what;
    }
}

TEST(NextStep, WithEveryNodeDownThereIsNoNewerVersionToAskFor) {
    ReadJob job = job_of(2);
    job.tried = 0b11;
    job.repeated = true;
    job.last = kVersion;
    EXPECT_EQ(next_step(job, {0, 0}, false), (NextStep{.reason = kVersion}));
}

TEST(NextStep, AnExpiredDeadlineLeavesNoReplica) {
    ReadJob job = job_of(2);
    EXPECT_EQ(next_step(job, {5, 17}, true), (NextStep{.reason = kUnavailable}));
    job.unasked = MissReason::kRebuilding;
    EXPECT_EQ(next_step(job, {5, 17}, true), (NextStep{.reason = MissReason::kRebuilding}));
    job = job_of(2);
    job.repeated = true;
    job.last = kVersion;
    EXPECT_EQ(next_step(job, {5, 17}, true), (NextStep{.reason = kUnavailable}));
    job.remembered = true;
    EXPECT_EQ(next_step(job, {5, 17}, true), (NextStep{.kind = NextStep::kAskAgain}));
}

// Each answer of the caller's is one of few: whatever they are, an object is done after few steps.
TEST(NextStep, EndsWhateverTheReplicasSay) {
    for (const MissReason last : {kVersion, kRemoved, kEvicted, kNodeDown}) {
        for (int bits = 0; bits < 8; ++bits) {
            ReadJob job = job_of(3);
            job.remembered = (bits & 1) != 0;
            job.repeated = (bits & 2) != 0;
            job.unasked = (bits & 4) != 0 ? kUnavailable : kNone;
            int steps = 0;
            for (NextStep step = next_step(job, {4, 5, 6}, false); step.kind == NextStep::kTry;
                 step = next_step(job, {4, 5, 6}, false)) {
                ASSERT_LE(++steps, 6);
                if (step.newer && !job.newer) {
                    job.newer = true;
                    job.tried = 0;
                }
                job.tried |= 1u << step.replica;
                job.last = last;
            }
            EXPECT_GE(steps, 3);
        }
    }
}

}  // namespace
}  // namespace kvstore
