// The states of the log's files: which changes are legal, what is counted, which file comes next.
#include "nvme/log_files.h"

#include <gtest/gtest.h>

#include <array>
#include <random>
#include <set>
#include <utility>

namespace kvstore {
namespace {

using S = LogFileState;
constexpr std::array kStates = {S::kFree,   S::kPrepared,   S::kHead,     S::kSealing,
                                S::kSealed, S::kReclaiming, S::kRecovered};

uint32_t make_head(LogFiles& files) {
    const uint32_t file = files.prepare().value();
    files.header_written(file);
    files.begin_head(file);
    return file;
}

uint32_t make_sealed(LogFiles& files) {
    const uint32_t file = make_head(files);
    files.end_head(file);
    files.seal(file);
    return file;
}

TEST(LogFilesTest, OnlyTheArrowsOfThePictureAreLegal) {
    const std::set<std::pair<S, S>> legal = {
        {S::kFree, S::kPrepared},     {S::kFree, S::kRecovered},  {S::kPrepared, S::kHead},
        {S::kPrepared, S::kFree},     {S::kHead, S::kSealing},    {S::kSealing, S::kSealed},
        {S::kSealed, S::kReclaiming}, {S::kReclaiming, S::kFree}, {S::kReclaiming, S::kSealed},
        {S::kRecovered, S::kFree},    {S::kRecovered, S::kHead},  {S::kRecovered, S::kSealed},
    };
    for (const S from : kStates) {
        for (const S to : kStates) {
            EXPECT_EQ(LogFiles::is_legal(from, to), legal.contains({from, to}))
                << static_cast<int>(from) << " to " << static_cast<int>(to);
        }
    }
}

TEST(LogFilesTest, AFileGoesRoundAndGetsANewPlaceInTheOrder) {
    LogFiles files(1);
    EXPECT_EQ(files.newest_seq(), 0u);
    EXPECT_EQ(files.oldest_seq(), 1u) << "no file has one: the next";
    for (uint64_t round = 1; round <= 3; ++round) {
        EXPECT_EQ(files.free_or_ready(), 1u);
        ASSERT_EQ(files.prepare(), 0u);
        EXPECT_EQ(files[0].seq(), round);
        EXPECT_EQ(files.free_or_ready(), 0u) << "not ready before its header is written";
        EXPECT_EQ(files.next_ready(), std::nullopt);
        EXPECT_EQ(files.prepare(), std::nullopt);
        files.header_written(0);
        EXPECT_EQ(files.free_or_ready(), 1u);
        EXPECT_EQ(files.ready(), 1u);
        ASSERT_EQ(files.next_ready(), 0u);
        EXPECT_EQ(files.oldest(), std::nullopt) << "no records yet";
        files.begin_head(0);
        EXPECT_EQ(files.ready(), 0u);
        ASSERT_NE(files[0].manifest(), nullptr);
        EXPECT_EQ(files[0].manifest()->seq(), round);
        EXPECT_EQ(files.oldest(), 0u);
        files.end_head(0);
        ASSERT_NE(files[0].manifest(), nullptr) << "needed until it is sealed";
        EXPECT_EQ(files.sealed_without_objects(), std::nullopt);
        files.seal(0);
        EXPECT_EQ(files[0].manifest(), nullptr);
        EXPECT_EQ(files.sealed_without_objects(), 0u);
        files.begin_reclaim(0);
        files.stop_reclaim(0);
        EXPECT_EQ(files[0].state(), S::kSealed);
        EXPECT_EQ(files[0].seq(), round);
        files.begin_reclaim(0);
        EXPECT_EQ(files.oldest_seq(), round);
        files.release(0);
        EXPECT_EQ(files[0].seq(), 0u);
        EXPECT_EQ(files.newest_seq(), round);
    }
}

TEST(LogFilesTest, AFailedHeaderGivesTheFileBack) {
    LogFiles files(2);
    ASSERT_EQ(files.prepare(), 0u);
    files.header_failed(0);
    EXPECT_EQ(files[0].state(), S::kFree);
    EXPECT_EQ(files.free_or_ready(), 2u);
    ASSERT_EQ(files.prepare(), 0u);
    EXPECT_EQ(files[0].seq(), 2u) << "a seq is never used twice";
}

TEST(LogFilesTest, ReadyFilesBecomeHeadsInTheirOrder) {
    LogFiles files(3);
    for (uint32_t file = 0; file < 3; ++file) {
        ASSERT_EQ(files.prepare(), file);
        files.header_written(file);
    }
    EXPECT_DEATH(files.begin_head(1), "invariant failed");
    for (uint32_t file = 0; file < 3; ++file) {
        ASSERT_EQ(files.next_ready(), file);
        files.begin_head(file);
        files.end_head(file);
    }
}

TEST(LogFilesTest, TheOldestWithRecordsIsFound) {
    LogFiles files(4);
    const uint32_t first = make_sealed(files);
    const uint32_t second = make_sealed(files);
    const uint32_t head = make_head(files);
    ASSERT_TRUE(files.prepare().has_value());
    files[second].live_objects = 1;
    EXPECT_EQ(files.oldest(), first);
    EXPECT_EQ(files.sealed_without_objects(), first);
    EXPECT_EQ(files.oldest(files[first].seq() + 1), second);
    EXPECT_EQ(files.oldest(files[second].seq() + 1), head);
    EXPECT_EQ(files.oldest(files[head].seq() + 1), std::nullopt) << "a prepared one has none";
    files.begin_reclaim(first);
    EXPECT_EQ(files.oldest(), first) << "it has its records until it is free";
    EXPECT_EQ(files.sealed_without_objects(), std::nullopt);
    files.release(first);
    EXPECT_EQ(files.oldest(), second);
    EXPECT_EQ(files.oldest_seq(), files[second].seq());
}

TEST(LogFilesTest, RecoveredFilesAreFreedContinuedOrSealed) {
    LogFiles files(4);
    files.recover(2, 7);
    files.recover(0, 9);
    files.recover(3, 8);
    EXPECT_EQ(files.recovered(), (std::vector<uint32_t>{2, 3, 0}));
    EXPECT_EQ(files.newest_seq(), 9u);
    EXPECT_EQ(files.free_or_ready(), 1u);
    files[2].live_objects = 1;
    EXPECT_DEATH(files.discard_recovered(2), "invariant failed");
    files.discard_recovered(0);
    EXPECT_EQ(files.free_or_ready(), 2u);
    files.continue_head(3, Manifest(8));
    EXPECT_EQ(files[3].manifest()->seq(), 8u);
    files.seal_recovered();
    EXPECT_EQ(files[2].state(), S::kSealed);
    EXPECT_EQ(files[3].state(), S::kHead);
    ASSERT_EQ(files.prepare(), 0u);
    EXPECT_EQ(files[0].seq(), 10u);
}

TEST(LogFilesTest, IllegalChangesAreRefused) {
    LogFiles files(2);
    EXPECT_DEATH(files.end_head(0), "invariant failed");
    EXPECT_DEATH(files.seal(0), "invariant failed");
    EXPECT_DEATH(files.release(0), "invariant failed");
    EXPECT_DEATH(files.header_written(0), "invariant failed");
    const uint32_t sealed = make_sealed(files);
    EXPECT_DEATH(files.seal(sealed), "invariant failed");
    EXPECT_DEATH(files.stop_reclaim(sealed), "invariant failed");
    EXPECT_DEATH(files.release(sealed), "invariant failed") << "only a reclaim frees it";
    EXPECT_DEATH(files.recover(sealed, 5), "invariant failed");
    EXPECT_DEATH(files.continue_head(sealed, Manifest(5)), "invariant failed");
}

// The counts after random walks are what counting says.
TEST(LogFilesTest, CountsMatchTheStates) {
    LogFiles files(6);
    std::mt19937 random(20);
    std::vector<bool> is_ready(files.count());
    for (int step = 0; step < 5000; ++step) {
        const auto file = static_cast<uint32_t>(random() % files.count());
        const bool coin = random() % 2 == 0;
        switch (files[file].state()) {
            case S::kFree:
                files.prepare();
                break;
            case S::kPrepared:
                if (is_ready[file]) {
                    if (files.next_ready() == file) {
                        files.begin_head(file);
                        is_ready[file] = false;
                    }
                } else if (coin) {
                    files.header_written(file);
                    is_ready[file] = true;
                } else {
                    files.header_failed(file);
                }
                break;
            case S::kHead:
                files.end_head(file);
                break;
            case S::kSealing:
                files.seal(file);
                break;
            case S::kSealed:
                files.begin_reclaim(file);
                break;
            default:
                coin ? files.release(file) : files.stop_reclaim(file);
        }
        uint64_t expected = 0;
        std::set<uint64_t> seqs;
        for (uint32_t one = 0; one < files.count(); ++one) {
            const bool is_free = files[one].state() == S::kFree;
            expected += is_free || is_ready[one] ? 1 : 0;
            EXPECT_EQ(files[one].seq() == 0, is_free);
            EXPECT_TRUE(is_free || seqs.insert(files[one].seq()).second);
        }
        ASSERT_EQ(files.free_or_ready(), expected) << "step " << step;
    }
}

}  // namespace
}  // namespace kvstore
