// Full disks, failing calls and a folder that disappears: the tier becomes read-only or off and
// says why, no byte is wrong, and the next open finds what was acknowledged.
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <fstream>
#include <set>

#include "tests/nvme/fixture.h"

namespace kvstore {
namespace {

std::string name(uint64_t number) { return "k" + std::to_string(number); }

// What a run of the workload below was told.
struct Told {
    bool opened = false;
    bool synced = false;
    bool removals_synced = false;
    std::set<std::string> acknowledged;  // put, and not removed
    std::set<std::string> removed;
};

constexpr uint64_t kPuts = 90;

// Small log files, so that the workload seals and reclaims some.
std::unique_ptr<NvmeTester> small_tester(const std::string& path) {
    auto nvme = std::make_unique<NvmeTester>(path, 512 << 10);
    nvme->options.log_file_bytes = 64 << 10;
    return nvme;
}

Told run_workload(NvmeTester& nvme) {
    Told told;
    told.opened = nvme.open().ok();
    if (!told.opened) {
        return told;
    }
    for (uint64_t n = 0; n < kPuts; ++n) {
        if (nvme.put(name(n), n + 1, 3000 + n * 100).ok()) {
            told.acknowledged.insert(name(n));
        }
        if (n == kPuts / 2) {
            nvme.log->sync().ok();
        }
    }
    for (uint64_t n = 0; n < kPuts; n += 5) {
        if (nvme.log->remove(nvme.ns.id, nvme.hash(name(n)), n + 1)) {
            told.removed.insert(name(n));
        }
        told.acknowledged.erase(name(n));
    }
    told.removals_synced = nvme.log->sync_removals().ok();
    told.synced = nvme.log->sync().ok();
    for (uint64_t n = 0; n < kPuts; ++n) {
        const Version version = nvme.check(name(n));
        EXPECT_TRUE(version == 0 || version == n + 1);
        EXPECT_FALSE(told.removed.contains(name(n)) && version != 0);
    }
    return told;
}

class NvmeFaultSweep : public testing::TestWithParam<int64_t> {};

// The Nth call fails (or all from it on), for every N of the workload.
TEST_P(NvmeFaultSweep, EveryCallMayFail) {
    int64_t calls = 0;
    {
        TempDir dir(true);
        const auto nvme = small_tester(dir.path());
        run_workload(*nvme);
        EXPECT_GT(nvme->log->counters().log_files_reclaimed, 1u);
        nvme->close();
        calls = nvme->io.calls;
    }
    ASSERT_GT(calls, 40);
    uint64_t degraded = 0;
    uint64_t refused = 0;
    for (int64_t n = 1; n <= calls + 2; n += n < 20 ? 1 : kSlowdown) {
        SCOPED_TRACE("call " + std::to_string(n) + " of " + std::to_string(calls));
        TempDir dir(true);
        const auto tester = small_tester(dir.path());
        NvmeTester& nvme = *tester;
        nvme.io.fail_from = n;
        nvme.io.fail_count = GetParam();
        nvme.io.error = n % 2 == 0 ? EIO : ENOSPC;
        const Told told = run_workload(nvme);
        if (!told.opened) {
            ++refused;
        } else if (nvme.log->state() == NvmeState::kActive) {
            EXPECT_TRUE(told.synced && told.removals_synced);
            EXPECT_TRUE(nvme.log->error().ok());
        } else {
            ++degraded;
            EXPECT_FALSE(nvme.log->error().ok());
            EXPECT_FALSE(nvme.log->error().message().empty());
            EXPECT_FALSE(nvme.put("after", 1, 100).ok());
        }
        nvme.close();
        nvme.io.fail_from = 0;
        ASSERT_TRUE(nvme.open().ok());
        EXPECT_EQ(nvme.log->state(), NvmeState::kActive);
        std::vector<Version> found;
        for (uint64_t i = 0; i < kPuts; ++i) {
            found.push_back(nvme.check(name(i)));
        }
        EXPECT_TRUE(nvme.put("new", 1, 1000).ok());
        EXPECT_EQ(nvme.check("new"), 1u);
        // This life reclaims too, and reports drops late: all are reported once it is closed.
        nvme.close();
        std::set<std::string> dropped;
        for (const NvmeDropped& one : nvme.dropped) {
            dropped.insert(one.key);
        }
        for (uint64_t i = 0; i < kPuts; ++i) {
            EXPECT_TRUE(found[i] == 0 || found[i] == i + 1);
            if (told.removals_synced && told.removed.contains(name(i))) {
                EXPECT_EQ(found[i], 0u) << name(i) << ": a removed object came back";
            }
            if (told.synced && told.acknowledged.contains(name(i)) && !dropped.contains(name(i))) {
                EXPECT_EQ(found[i], i + 1) << name(i) << ": a durable object is lost";
            }
        }
        if (HasFailure()) {
            return;
        }
    }
    EXPECT_GT(degraded, 5u);
    EXPECT_GT(refused, 2u);
}
INSTANTIATE_TEST_SUITE_P(OneOrAll, NvmeFaultSweep, testing::Values(1, INT64_MAX / 2));

TEST(NvmeFaultTest, AFailedWriteMakesItReadOnlyAndReadsGoOn) {
    TempDir dir;
    NvmeTester nvme(dir.path());
    ASSERT_TRUE(nvme.open().ok());
    ASSERT_TRUE(nvme.put("old", 1, 5000).ok());
    ASSERT_TRUE(nvme.log->sync().ok());
    nvme.io.error = ENOSPC;
    nvme.io.fail_writes = true;
    ASSERT_TRUE(nvme.put("lost", 1, 5000).ok());
    EXPECT_EQ(nvme.log->sync().code(), Code::kNoSpace);
    EXPECT_EQ(nvme.log->state(), NvmeState::kReadOnly);
    EXPECT_EQ(nvme.check("old"), 1u);
    EXPECT_EQ(nvme.check("lost"), 0u);
    EXPECT_EQ(nvme.put("more", 1, 10).code(), Code::kNoSpace);
    EXPECT_EQ(nvme.log->sync_removals().code(), Code::kNoSpace) << "nothing is durable any more";
    EXPECT_GT(nvme.log->counters().io_errors, 0u);
    nvme.io.fail_writes = false;
    nvme.close();
    ASSERT_EQ(nvme.dropped.size(), 1u);
    EXPECT_EQ(nvme.dropped[0].key, "lost");
    EXPECT_EQ(nvme.dropped[0].reason, NvmeDropped::Reason::kWriteFailed);
    ASSERT_TRUE(nvme.open().ok());
    EXPECT_EQ(nvme.check("old"), 1u);
    EXPECT_EQ(nvme.check("lost"), 0u);
    EXPECT_TRUE(nvme.put("more", 1, 10).ok());
}

// What was written behind it is not found again, and the kernel tells of a failed sync only once.
TEST(NvmeFaultTest, SyncIsNotOkAgainAfterAFailure) {
    for (const bool write : {true, false}) {
        TempDir dir;
        NvmeTester nvme(dir.path());
        ASSERT_TRUE(nvme.open().ok());
        std::atomic<bool>& failing = write ? nvme.io.fail_writes : nvme.io.fail_syncs;
        failing = true;
        ASSERT_TRUE(nvme.put("k", 1, 5000).ok());
        if (write) {
            // Its buffer is written without being asked for.
            const Deadline deadline = Deadline::after_ms(30'000);
            while (nvme.log->counters().dropped_objects == 0 && !deadline.expired()) {
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
            }
        } else {
            EXPECT_EQ(nvme.log->sync().code(), Code::kIoError);
        }
        failing = false;
        EXPECT_EQ(nvme.log->sync().code(), Code::kIoError);
        EXPECT_EQ(nvme.log->sync().code(), Code::kIoError);
        ASSERT_TRUE(nvme.reopen().ok());
        EXPECT_TRUE(nvme.log->sync().ok());
    }
}

TEST(NvmeFaultTest, ReadsThatKeepFailingTurnItOff) {
    for (const auto way : {NvmeReadEngine::Way::kAuto, NvmeReadEngine::Way::kPool}) {
        TempDir dir;
        NvmeTester nvme(dir.path());
        nvme.options.reads.way = way;
        ASSERT_TRUE(nvme.open().ok());
        for (uint64_t n = 0; n < 20; ++n) {
            ASSERT_TRUE(nvme.put(name(n), 1, 5000).ok());
        }
        ASSERT_TRUE(nvme.log->sync().ok());
        nvme.io.fail_reads = true;
        EXPECT_EQ(nvme.get(name(0)).result.status.code(), Code::kIoError);
        EXPECT_EQ(nvme.log->state(), NvmeState::kActive) << "one bad block is no bad disk";
        EXPECT_EQ(nvme.get(name(0)).result.status.code(), Code::kNotFound) << "dropped";
        for (uint64_t n = 1; n < 10; ++n) {
            EXPECT_FALSE(nvme.get(name(n)).result.status.ok());
        }
        EXPECT_EQ(nvme.log->state(), NvmeState::kOff);
        nvme.io.fail_reads = false;
        EXPECT_FALSE(nvme.get(name(15)).result.status.ok());
        EXPECT_FALSE(nvme.log->find(nvme.ns.id, nvme.hash(name(15))));
        ASSERT_TRUE(nvme.reopen().ok());
        EXPECT_EQ(nvme.check(name(15)), 1u);
    }
}

TEST(NvmeFaultTest, DamageIsFoundByTheReadAndDropped) {
    TempDir dir;
    NvmeTester nvme(dir.path());
    ASSERT_TRUE(nvme.open().ok());
    ASSERT_TRUE(nvme.put("k", 1, 5000).ok());
    ASSERT_TRUE(nvme.put("k", 2, 5000).ok());
    ASSERT_TRUE(nvme.log->sync().ok());
    const NvmeFound found = *nvme.log->find(nvme.ns.id, nvme.hash("k"));
    {
        std::fstream file(log_file_path(dir.path(), found.file),
                          std::ios::in | std::ios::out | std::ios::binary);
        file.seekp(static_cast<std::streamoff>(found.offset + 3000));
        file.put('!');
    }
    EXPECT_EQ(nvme.get("k").result.status.code(), Code::kChecksumMismatch);
    EXPECT_EQ(nvme.get("k").result.status.code(), Code::kNotFound);
    EXPECT_EQ(nvme.log->counters().checksum_errors, 1u);
    ASSERT_EQ(nvme.dropped.size(), 1u);
    EXPECT_EQ(nvme.dropped[0].reason, NvmeDropped::Reason::kChecksum);
    ASSERT_TRUE(nvme.log->sync_removals().ok());
    ASSERT_TRUE(nvme.reopen().ok());
    EXPECT_EQ(nvme.check("k"), 0u) << "the older version must not take its place";
}

TEST(NvmeFaultTest, ARemovedFolderTurnsItOff) {
    TempDir dir;
    NvmeTester nvme(dir.path() + "/nvme");
    ASSERT_TRUE(nvme.open().ok());
    ASSERT_TRUE(nvme.put("k", 1, 5000).ok());
    std::filesystem::remove_all(dir.path() + "/nvme");
    const Deadline deadline = Deadline::after_ms(30'000);
    while (nvme.log->state() != NvmeState::kOff && !deadline.expired()) {
        nvme.check("k");
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    EXPECT_EQ(nvme.log->state(), NvmeState::kOff);
    EXPECT_NE(nvme.log->error().message().find("nvme_dir"), std::string::npos);
    EXPECT_FALSE(nvme.put("k", 2, 10).ok());
    EXPECT_EQ(nvme.check("k"), 0u);
    ASSERT_TRUE(nvme.reopen().ok());
    EXPECT_TRUE(nvme.put("k", 2, 10).ok());
}

// A file system of its own, as large as asked.
class SmallDisk {
  public:
    explicit SmallDisk(uint64_t bytes) {
        mounted_ = mount("tmpfs", dir_.path().c_str(), "tmpfs", 0,
                         ("size=" + std::to_string(bytes)).c_str()) == 0;
    }
    ~SmallDisk() {
        if (mounted_) {
            umount2(dir_.path().c_str(), MNT_DETACH);
        }
    }
    bool mounted() const { return mounted_; }
    const std::string& path() const { return dir_.path(); }

  private:
    TempDir dir_;
    bool mounted_ = false;
};

TEST(NvmeFaultTest, ADiskThatIsTooSmallIsSaidAtTheStart) {
    SmallDisk disk(700 << 10);
    if (!disk.mounted()) {
        GTEST_SKIP() << "mounting needs root; the sweep has ENOSPC too";
    }
    NvmeTester nvme(disk.path());
    ASSERT_TRUE(nvme.open().ok());
    EXPECT_EQ(nvme.log->state(), NvmeState::kReadOnly);
    EXPECT_EQ(nvme.log->error().code(), Code::kNoSpace);
    EXPECT_NE(nvme.log->error().message().find("nvme_size"), std::string::npos);
    EXPECT_EQ(nvme.put("k", 1, 10).code(), Code::kNoSpace);
}

TEST(NvmeFaultTest, NothingIsAllocatedThatWouldFillTheDisk) {
    const TempDir dir;
    NvmeTester nvme(dir.path());
    nvme.options.keep_free = 0.05;
    nvme.io.total_bytes = 10 << 20;
    nvme.io.free_bytes = 5 << 18;  // 1.25 MiB: enough for the tier, not for what stays free
    ASSERT_TRUE(nvme.open().ok());
    EXPECT_EQ(nvme.log->state(), NvmeState::kReadOnly);
    EXPECT_EQ(nvme.log->error().code(), Code::kNoSpace);
    EXPECT_NE(nvme.log->error().message().find("nvme_keep_free"), std::string::npos);
    EXPECT_FALSE(std::filesystem::exists(dir.path() + "/segment-0.kvs"));
    nvme.io.free_bytes = 7 << 18;
    ASSERT_TRUE(nvme.reopen().ok());
    EXPECT_EQ(nvme.log->state(), NvmeState::kActive);
    ASSERT_TRUE(nvme.put("k", 1, 5000).ok());
    nvme.io.free_bytes = 1;  // others have filled it since: the tier has what it needs
    ASSERT_TRUE(nvme.reopen().ok());
    EXPECT_EQ(nvme.log->state(), NvmeState::kActive);
}

TEST(NvmeFaultTest, ADiskThatFillsUpMakesItReadOnly) {
    SmallDisk disk(3 << 19);
    if (!disk.mounted()) {
        GTEST_SKIP() << "mounting needs root; the sweep has ENOSPC too";
    }
    NvmeTester nvme(disk.path());
    ASSERT_TRUE(nvme.open().ok());
    ASSERT_TRUE(nvme.put("k", 1, 5000).ok());
    ASSERT_TRUE(nvme.put("other", 1, 5000).ok());
    ASSERT_TRUE(nvme.log->sync().ok());
    // The log files have their blocks; the journal of 1 MiB finds none.
    nvme.log->remove(nvme.ns.id, nvme.hash("k"), 1);
    EXPECT_EQ(nvme.log->sync_removals().code(), Code::kNoSpace);
    EXPECT_EQ(nvme.log->state(), NvmeState::kReadOnly);
    EXPECT_EQ(nvme.check("k"), 0u);
    EXPECT_EQ(nvme.check("other"), 1u);
}

}  // namespace
}  // namespace kvstore
