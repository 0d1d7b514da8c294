// Segments: anonymous and named, pre-faulted, refused where there is no room.
#include "memory/segment.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "tests/temp_dir.h"

namespace kvstore {
namespace {

constexpr uint64_t kMiB = 1u << 20;
constexpr uint32_t kPatience = 60'000;  // ms; the tests wait for conditions, this only ends a hang

Segment::Options options(const std::string& directory, uint64_t size_bytes) {
    return {
        .directory = directory, .name = "segment", .size_bytes = size_bytes, .slice_bytes = kMiB};
}

bool all_resident(const Segment& segment, uint64_t bytes) {
    std::vector<unsigned char> pages((bytes + 4095) / 4096);
    if (mincore(segment.data(), bytes, pages.data()) != 0) {
        return false;
    }
    for (const unsigned char page : pages) {
        if ((page & 1) == 0) {
            return false;
        }
    }
    return true;
}

bool mentions(const Status& status, const std::string& text) {
    return status.message().find(text) != std::string::npos;
}

TEST(Segment, AnonymousOneIsReadySliceBySlice) {
    const auto created = Segment::create(options("", 20 * kMiB + 12'288));
    ASSERT_TRUE(created.ok()) << created.status().to_string();
    Segment& segment = *created.value();
    EXPECT_GE(segment.ready_bytes(), kMiB);
    EXPECT_TRUE(all_resident(segment, kMiB));
    EXPECT_TRUE(segment.wait_ready(UINT64_MAX, kPatience));
    EXPECT_EQ(segment.ready_bytes(), segment.size());
    EXPECT_EQ(segment.size(), 20 * kMiB + 12'288);
    EXPECT_TRUE(all_resident(segment, segment.size()));
    EXPECT_TRUE(segment.prefault_status().ok());
    std::memset(segment.data(), 0x5a, segment.size());
    segment.remove_file();
}

TEST(Segment, AnonymousOneCannotBeShortened) {
    const auto created = Segment::create(options("", kMiB));
    ASSERT_TRUE(created.ok());
    EXPECT_NE(ftruncate(created.value()->fd(), 4096), 0);
    EXPECT_NE(ftruncate(created.value()->fd(), 2 * kMiB), 0);
}

TEST(Segment, SmallerThanASlice) {
    const auto created = Segment::create(options("", 100));
    ASSERT_TRUE(created.ok()) << created.status().to_string();
    EXPECT_EQ(created.value()->ready_bytes(), 100u);
    EXPECT_TRUE(created.value()->wait_ready(100, 0));
}

TEST(Segment, NamedOneIsVisibleToOthersAndStays) {
    const TempDir dir(true);
    const std::string path = dir.path() + "/segment";
    {
        const auto created = Segment::create(options(dir.path(), 4 * kMiB));
        ASSERT_TRUE(created.ok()) << created.status().to_string();
        ASSERT_TRUE(created.value()->wait_ready(4 * kMiB, kPatience));
        std::memcpy(created.value()->data() + 3 * kMiB, "payload", 7);
    }
    std::ifstream file(path);
    char text[7];
    file.seekg(3 * kMiB).read(text, sizeof(text));
    EXPECT_EQ(std::string(text, 7), "payload");
    struct stat info{};
    ASSERT_EQ(stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0600u);
    EXPECT_EQ(static_cast<uint64_t>(info.st_blocks) * 512, 4 * kMiB);
}

TEST(Segment, RemovesOnlyItsOwnFile) {
    const TempDir dir(true);
    const std::string path = dir.path() + "/segment";
    auto first = Segment::create(options(dir.path(), kMiB));
    ASSERT_TRUE(first.ok());
    auto second = Segment::create(options(dir.path(), kMiB));
    ASSERT_TRUE(second.ok());
    first.value()->remove_file();
    EXPECT_TRUE(std::filesystem::exists(path));
    second.value()->remove_file();
    EXPECT_FALSE(std::filesystem::exists(path));
    second.value()->remove_file();
}

TEST(Segment, StopsInTheMiddle) {
    const TempDir dir(true);
    const auto start = std::chrono::steady_clock::now();
    {
        auto created = Segment::create(options(dir.path(), 256 * kMiB));
        ASSERT_TRUE(created.ok()) << created.status().to_string();
        created.value()->remove_file();
    }
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
    EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(Segment, WorksOnAnOrdinaryFileSystem) {
    const TempDir dir;
    const auto created = Segment::create(options(dir.path(), 2 * kMiB));
    ASSERT_TRUE(created.ok()) << created.status().to_string();
    EXPECT_TRUE(created.value()->wait_ready(2 * kMiB, kPatience));
}

TEST(Segment, NamesTheSettingWhenThereIsNoRoom) {
    const TempDir dir(true);
    const auto named = Segment::create(options(dir.path(), 1ull << 50));
    EXPECT_EQ(named.code(), Code::kNoSpace);
    EXPECT_TRUE(mentions(named.status(), "segment_size")) << named.status().message();
    EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
    const auto anonymous = Segment::create(options("", 1ull << 50));
    EXPECT_EQ(anonymous.code(), Code::kNoSpace);
    EXPECT_TRUE(mentions(anonymous.status(), "segment_size")) << anonymous.status().message();
}

TEST(Segment, WhatWillLieBesideItCounts) {
    const TempDir dir(true);
    Segment::Options wanted = options(dir.path(), 2 * kMiB);
    EXPECT_TRUE(Segment::has_room(wanted).ok());
    wanted.beside_bytes = 1ull << 50;
    EXPECT_EQ(Segment::has_room(wanted).code(), Code::kNoSpace);
    const auto created = Segment::create(wanted);
    EXPECT_EQ(created.code(), Code::kNoSpace);
    EXPECT_TRUE(mentions(created.status(), "restart")) << created.status().message();
}

TEST(Segment, RefusesBadSettings) {
    EXPECT_EQ(Segment::create(options("", 0)).code(), Code::kInvalidArgument);
    const TempDir dir;
    const auto missing = Segment::create(options(dir.path() + "/missing", kMiB));
    EXPECT_EQ(missing.code(), Code::kIoError);
    EXPECT_TRUE(mentions(missing.status(), "segment_dir")) << missing.status().message();
}

TEST(Segment, DoesNotFollowALink) {
    const TempDir dir(true);
    const std::string target = dir.path() + "/target";
    std::ofstream(target) << "precious";
    std::filesystem::create_symlink(target, dir.path() + "/segment");
    EXPECT_EQ(Segment::create(options(dir.path(), kMiB)).code(), Code::kIoError);
    EXPECT_EQ(std::filesystem::file_size(target), 8u);
}

// Needs the right to mount: a bounded tmpfs, as operators make for a node.
class MountedSegment : public testing::Test {
  protected:
    void SetUp() override {
        if (mount("none", dir_.path().c_str(), "tmpfs", MS_NOSUID | MS_NODEV, "size=8m") != 0) {
            GTEST_SKIP() << "mounting a tmpfs takes CAP_SYS_ADMIN";
        }
        mounted_ = true;
    }
    void TearDown() override {
        if (mounted_) {
            umount2(dir_.path().c_str(), MNT_DETACH);
        }
    }
    TempDir dir_;
    bool mounted_ = false;
};

TEST_F(MountedSegment, ShortageIsFoundAtTheStart) {
    const auto created = Segment::create(options(dir_.path(), 9 * kMiB));
    EXPECT_EQ(created.code(), Code::kNoSpace);
    EXPECT_TRUE(mentions(created.status(), "segment_size 9.0 MiB does not fit segment_dir " +
                                               dir_.path() + ", which has 8.0 MiB left"))
        << created.status().message();
    EXPECT_TRUE(std::filesystem::is_empty(dir_.path()));
}

TEST_F(MountedSegment, LateShortageStopsGrowthAndKillsNothing) {
    // Several of these pass the check at the start, but the mount holds only one of them.
    std::vector<std::unique_ptr<Segment>> segments;
    for (int i = 0; i < 4; ++i) {
        Segment::Options wanted = options(dir_.path(), 7 * kMiB);
        wanted.name += std::to_string(i);
        wanted.slice_bytes = 64 << 10;
        auto created = Segment::create(wanted);
        if (!created.ok()) {
            EXPECT_EQ(created.code(), Code::kNoSpace) << created.status().to_string();
            continue;
        }
        segments.push_back(std::move(created.value()));
    }
    for (const auto& segment : segments) {
        if (segment->wait_ready(7 * kMiB, kPatience)) {
            continue;
        }
        EXPECT_EQ(segment->prefault_status().code(), Code::kNoSpace);
        EXPECT_TRUE(mentions(segment->prefault_status(), "segment_size"));
        std::memset(segment->data(), 1, segment->ready_bytes());
    }
}

}  // namespace
}  // namespace kvstore
