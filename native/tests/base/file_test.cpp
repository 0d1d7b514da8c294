// Descriptors, mappings and how regions are created.
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/temp_dir.h"

namespace kvstore {
namespace {

bool is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

TEST(Fd, ClosesOnceAndMoves) {
    int raw = -1;
    {
        Fd first(open("/dev/null", O_RDONLY | O_CLOEXEC));
        raw = first.get();
        Fd second(std::move(first));
        EXPECT_FALSE(first.valid());
        Fd third;
        third = std::move(second);
        EXPECT_EQ(third.get(), raw);
        EXPECT_TRUE(is_open(raw));
        Fd& same = third;
        third = std::move(same);
        EXPECT_TRUE(is_open(raw));
    }
    EXPECT_FALSE(is_open(raw));
    Fd kept(open("/dev/null", O_RDONLY | O_CLOEXEC));
    raw = kept.release();
    kept.reset();
    EXPECT_TRUE(is_open(raw));
    ::close(raw);
}

TEST(Region, FileIsPrivateAndClosedOnExec) {
    const TempDir dir;
    const auto fd = create_region(dir.path(), "index");
    ASSERT_TRUE(fd.ok()) << fd.status().to_string();
    struct stat info{};
    ASSERT_EQ(fstat(fd.value().get(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0600u);
    EXPECT_EQ(fcntl(fd.value().get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

TEST(Region, StaleFileGetsANewInode) {
    const TempDir dir;
    const auto old_fd = create_region(dir.path(), "segment");
    ASSERT_TRUE(old_fd.ok());
    ASSERT_EQ(ftruncate(old_fd.value().get(), 4096), 0);
    const auto new_fd = create_region(dir.path(), "segment");
    ASSERT_TRUE(new_fd.ok());
    struct stat old_info{};
    struct stat new_info{};
    ASSERT_EQ(fstat(old_fd.value().get(), &old_info), 0);
    ASSERT_EQ(fstat(new_fd.value().get(), &new_info), 0);
    EXPECT_NE(old_info.st_ino, new_info.st_ino);
    EXPECT_EQ(old_info.st_size, 4096);  // whoever maps it keeps its pages
    EXPECT_EQ(new_info.st_size, 0);
}

TEST(Region, NeverFollowsALink) {
    const TempDir dir;
    const std::string target = dir.path() + "/target";
    std::ofstream(target) << "precious";
    std::filesystem::create_symlink(target, dir.path() + "/segment");
    const auto fd = create_region(dir.path(), "segment");
    EXPECT_EQ(fd.code(), Code::kIoError);
    EXPECT_NE(fd.status().message().find(dir.path() + "/segment"), std::string::npos);
    EXPECT_EQ(std::filesystem::file_size(target), 8u);
    std::filesystem::create_symlink(dir.path() + "/nowhere", dir.path() + "/dangling");
    EXPECT_EQ(create_region(dir.path(), "dangling").code(), Code::kIoError);
    EXPECT_FALSE(std::filesystem::exists(dir.path() + "/nowhere"));
}

TEST(Region, RefusesWhatIsNoFileName) {
    const TempDir dir;
    for (const char* name : {"", ".", "..", "a/b", "../up"}) {
        EXPECT_EQ(create_region(dir.path(), name).code(), Code::kInvalidArgument) << name;
    }
    EXPECT_EQ(create_region(dir.path() + "/missing", "index").code(), Code::kIoError);
}

TEST(Region, MemfdLeavesNothing) {
    const auto fd = create_region("", "index");
    ASSERT_TRUE(fd.ok()) << fd.status().to_string();
    EXPECT_EQ(fcntl(fd.value().get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    struct stat info{};
    ASSERT_EQ(fstat(fd.value().get(), &info), 0);
    EXPECT_EQ(info.st_nlink, 0u);
}

TEST(Mapping, SharesBytesAndMoves) {
    const auto fd = create_region("", "region");
    ASSERT_TRUE(fd.ok());
    ASSERT_EQ(ftruncate(fd.value().get(), 3 * 4096), 0);
    auto writable = Mapping::map(fd.value().get(), 3 * 4096, true);
    auto readable = Mapping::map(fd.value().get(), 4096, false, 8192);
    ASSERT_TRUE(writable.ok() && readable.ok());
    writable->data()[8192] = 42;
    EXPECT_EQ(readable->data()[0], 42);
    EXPECT_EQ(readable->size(), 4096u);
    Mapping moved(std::move(*writable));
    EXPECT_EQ(writable->data(), nullptr);
    EXPECT_EQ(moved.data()[8192], 42);
    EXPECT_EQ(Mapping::map(fd.value().get(), 0, true).code(), Code::kIoError);
    EXPECT_EQ(Mapping::map(-1, 4096, true).code(), Code::kIoError);
}

// A child sees what is read-only, and has no access to what its parent may write.
TEST(Mapping, WritableOnesDoNotReachAForkedChild) {
    const auto fd = create_region("", "region");
    ASSERT_TRUE(fd.ok());
    ASSERT_EQ(ftruncate(fd.value().get(), 4096), 0);
    const auto writable = Mapping::map(fd.value().get(), 4096, true);
    const auto readable = Mapping::map(fd.value().get(), 4096, false);
    ASSERT_TRUE(writable.ok() && readable.ok());
    writable.value().data()[0] = 42;
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        const Fd memory(open("/proc/self/mem", O_RDONLY | O_CLOEXEC));
        char byte = 0;
        const auto at = reinterpret_cast<uintptr_t>(writable.value().data());
        const bool absent = pread(memory.get(), &byte, 1, static_cast<off_t>(at)) < 0;
        _exit(absent && readable.value().data()[0] == 42 ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
}

TEST(ErrnoStatus, NamesCallPathAndReason) {
    errno = ENOENT;
    const Status missing = errno_status("open", "/some/file");
    EXPECT_EQ(missing.code(), Code::kIoError);
    EXPECT_EQ(missing.message(), "open(/some/file): No such file or directory");
    errno = ENOSPC;
    EXPECT_EQ(errno_status("fallocate", "/some/file").code(), Code::kNoSpace);
}

}  // namespace
}  // namespace kvstore
