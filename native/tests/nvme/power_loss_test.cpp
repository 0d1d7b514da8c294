// A loss of power at any moment: what was written and not synced is gone, in part or as a whole.
// What was acknowledged is there, and no older version of anything.
#include <gtest/gtest.h>

#include <fstream>

#include "tests/nvme/fixture.h"

namespace kvstore {
namespace {

// Remembers what unsynced writes replaced.
class PowerLossIo : public FileIo {
  public:
    int open(const std::string& path, int flags) override {
        const std::lock_guard lock(mutex_);
        const int fd = FileIo::open(path, flags);
        if (fd >= 0) {
            paths_[fd] = path;
        }
        return fd;
    }
    int64_t write(int fd, std::span<const iovec> parts, uint64_t offset) override {
        const std::lock_guard lock(mutex_);
        size_t size = 0;
        for (const iovec& part : parts) {
            size += part.iov_len;
        }
        Write one{.offset = offset, .before = std::vector<uint8_t>(size)};
        std::ifstream file(paths_[fd], std::ios::binary);
        file.seekg(static_cast<std::streamoff>(offset));
        file.read(reinterpret_cast<char*>(one.before.data()), static_cast<std::streamsize>(size));
        unsynced_[paths_[fd]].push_back(std::move(one));
        return FileIo::write(fd, parts, offset);
    }
    int sync(int fd) override {
        std::unique_lock lock(mutex_);
        if (paths_[fd] == held_) {
            is_held_ = true;
            changed_.notify_all();
        }
        changed_.wait(lock, [&] { return paths_[fd] != held_; });
        const int result = FileIo::sync(fd);
        if (result >= 0) {
            unsynced_[paths_[fd]].clear();
        }
        return result;
    }
    // Syncs of this file wait until another is named.
    void hold_syncs_of(const std::string& path) {
        const std::lock_guard lock(mutex_);
        held_ = path;
        is_held_ = false;
        changed_.notify_all();
    }
    void await_held() {
        std::unique_lock lock(mutex_);
        EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(30), [&] { return is_held_; }));
    }
    // The folder as it would be found; each file keeps as many of its unsynced writes as `keep`
    // says of their number.
    void lose_power(const std::string& from, const std::string& to,
                    const std::function<size_t(size_t)>& keep) {
        const std::lock_guard lock(mutex_);
        copy_folder(from, to);
        for (const auto& [path, writes] : unsynced_) {
            const auto copy = std::filesystem::path(to) / std::filesystem::path(path).filename();
            if (!std::filesystem::exists(copy)) {
                continue;
            }
            std::fstream file(copy, std::ios::in | std::ios::out | std::ios::binary);
            const size_t kept = keep(writes.size());
            for (size_t i = writes.size(); i-- > kept;) {
                file.seekp(static_cast<std::streamoff>(writes[i].offset));
                file.write(reinterpret_cast<const char*>(writes[i].before.data()),
                           static_cast<std::streamsize>(writes[i].before.size()));
            }
        }
    }

  private:
    struct Write {
        uint64_t offset;
        std::vector<uint8_t> before;
    };
    std::mutex mutex_;
    std::condition_variable changed_;
    bool is_held_ = false;
    std::string held_;
    std::map<int, std::string> paths_;
    std::map<std::string, std::vector<Write>> unsynced_;
};

class NvmePowerLossTest : public testing::Test {
  protected:
    void SetUp() override {
        nvme_.options.io = &io_;
        ASSERT_TRUE(nvme_.open().ok());
    }
    enum class Kept { kNothing, kSome, kAll };
    // What the next life would find; of what was written and not synced, so much is kept.
    std::unique_ptr<NvmeTester> after_a_loss(Kept unsynced = Kept::kNothing) {
        io_.lose_power(nvme_.options.directory, dir_.path() + "/lost", [&](size_t writes) {
            if (unsynced == Kept::kSome) {
                return static_cast<size_t>(random_() % (writes + 1));
            }
            return unsynced == Kept::kAll ? writes : 0;
        });
        auto next = std::make_unique<NvmeTester>(dir_.path() + "/lost");
        next->options.catalog = nullptr;
        EXPECT_TRUE(next->open().ok());
        EXPECT_EQ(next->log->state(), NvmeState::kActive);
        return next;
    }

    // k and the objects of 'a' fill the first log file, a newer k and those of 'b' the second. All
    // is durable, nothing is written by itself.
    void fill_two_files() {
        nvme_.options.flush_after_ms = 60'000;
        ASSERT_TRUE(nvme_.reopen().ok());
        for (const char prefix : {'a', 'b'}) {
            ASSERT_TRUE(nvme_.put("k", prefix == 'a' ? 1 : 2, 10000).ok());
            for (uint64_t n = 10; n < last_; ++n) {
                ASSERT_TRUE(nvme_.put(prefix + std::to_string(n), 1, 10000).ok());
            }
        }
        ASSERT_EQ(file_of("a10"), file_of("a" + std::to_string(last_ - 1)));
        ASSERT_NE(file_of("a10"), file_of("k"));
        ASSERT_EQ(file_of("k"), file_of("b" + std::to_string(last_ - 1)));
        ASSERT_TRUE(nvme_.log->sync().ok());
        const Deadline deadline = Deadline::after_ms(30'000);
        while (nvme_.catalog.list()->empty() && !deadline.expired()) {
            std::this_thread::yield();
        }
        ASSERT_FALSE(nvme_.catalog.list()->empty()) << "the first one is sealed";
    }
    uint32_t file_of(const std::string& key) {
        const auto found = nvme_.log->find(nvme_.ns.id, nvme_.hash(key));
        return found ? found->file : UINT32_MAX;
    }
    void remove_all(char prefix) {
        for (uint64_t n = 10; n < last_; ++n) {
            nvme_.log->remove(nvme_.ns.id, nvme_.hash(prefix + std::to_string(n)), 1);
        }
    }
    void await_reclaim() {
        const Deadline deadline = Deadline::after_ms(30'000);
        while (nvme_.log->counters().log_files_reclaimed == 0 && !deadline.expired()) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        EXPECT_GT(nvme_.log->counters().log_files_reclaimed, 0u);
    }
    void TearDown() override { io_.hold_syncs_of(""); }

    // With k: as many as a log file of 256 KiB holds.
    const uint64_t last_ = 9 + ((256 << 10) - kLogFileHeaderBytes) / record_bytes(3, 10000);

    TempDir dir_{true};
    PowerLossIo io_;
    NvmeTester nvme_{dir_.path() + "/nvme"};
    std::mt19937_64 random_{15};
};

TEST_F(NvmePowerLossTest, WhatWasAcknowledgedIsDurable) {
    nvme_.options.flush_after_ms = 60'000;
    ASSERT_TRUE(nvme_.reopen().ok());
    ASSERT_TRUE(nvme_.put("kept", 1, 5000).ok());
    ASSERT_TRUE(nvme_.put("removed", 1, 5000).ok());
    ASSERT_TRUE(nvme_.log->sync().ok());
    ASSERT_TRUE(nvme_.put("late", 1, 5000).ok());
    {
        const auto next = after_a_loss();
        EXPECT_EQ(next->check("kept"), 1u);
        EXPECT_EQ(next->check("removed"), 1u);
        EXPECT_EQ(next->check("late"), 0u) << "nothing was lost";
    }
    nvme_.log->remove(nvme_.ns.id, nvme_.hash("removed"), 1);
    ASSERT_TRUE(nvme_.log->sync_removals().ok());
    const auto next = after_a_loss();
    EXPECT_EQ(next->check("kept"), 1u);
    EXPECT_EQ(next->check("removed"), 0u);
    nvme_.log->flush_namespace(nvme_.ns.id);
    ASSERT_TRUE(nvme_.log->sync_removals().ok());
    EXPECT_EQ(after_a_loss()->check("kept"), 0u);
}

// Pinned objects move from reclaim to reclaim.
TEST_F(NvmePowerLossTest, WhatAReclaimMovesIsNeverInNoPlace) {
    for (int i = 0; i < 10; ++i) {
        ASSERT_TRUE(nvme_.put("pinned" + std::to_string(i), 1, 10000, Pin::kHard).ok());
    }
    ASSERT_TRUE(nvme_.log->sync().ok());
    for (uint64_t n = 0; n < 400; ++n) {
        ASSERT_TRUE(nvme_.put("k" + std::to_string(n), 1, 10000).ok());
        if (n % 10 != 0) {
            continue;
        }
        const auto next = after_a_loss(n % 20 == 0 ? Kept::kNothing : Kept::kSome);
        for (int i = 0; i < 10; ++i) {
            ASSERT_EQ(next->check("pinned" + std::to_string(i)), 1u) << i << " at " << n;
        }
    }
    EXPECT_GT(nvme_.log->counters().readmitted_objects, 30u);
}

// A log file without live objects goes before older ones. What took the place of its objects must
// be durable by then: else that is gone, and what they had replaced is back.
TEST_F(NvmePowerLossTest, WhatADeadLogFileHidDoesNotComeBack) {
    fill_two_files();
    // Maintenance finds that room is wanted, and a log file that has just become dead.
    io_.hold_syncs_of(log_file_path(nvme_.options.directory, file_of("b10")));
    EXPECT_TRUE(nvme_.put("k", 3, 10000).ok());
    EXPECT_NE(file_of("k"), file_of("b10"));
    remove_all('b');
    io_.hold_syncs_of("");
    await_reclaim();
    EXPECT_EQ(nvme_.check("a10"), 1u) << "the older log file is still there";
    EXPECT_EQ(after_a_loss()->check("k"), 3u);
}

// The same with removes that come when the journal has just been written.
TEST_F(NvmePowerLossTest, WhatARemovedObjectHidDoesNotComeBack) {
    fill_two_files();
    const uint32_t second = file_of("b10");
    io_.hold_syncs_of(log_file_path(nvme_.options.directory, second));
    EXPECT_TRUE(nvme_.put("c", 1, 10000).ok());
    io_.await_held();
    nvme_.log->remove(nvme_.ns.id, nvme_.hash("b10"), 1);
    io_.hold_syncs_of(nvme_.options.directory + "/removals-1.kvs");
    io_.await_held();
    nvme_.log->remove(nvme_.ns.id, nvme_.hash("k"), 2);
    remove_all('b');
    io_.hold_syncs_of(log_file_path(nvme_.options.directory, second));
    io_.await_held();  // its header is erased
    EXPECT_EQ(nvme_.check("a10"), 1u) << "the older log file is still there";
    EXPECT_EQ(after_a_loss(Kept::kAll)->check("k"), 0u);
}

// A remove of what a reclaim has just dropped, before and after its log file's header is durable.
TEST_F(NvmePowerLossTest, WhatAReclaimDroppedAndARemoveNamedDoesNotComeBack) {
    nvme_.close();
    nvme_.options.size_bytes = 2 << 20;
    ASSERT_TRUE(nvme_.open().ok());
    fill_two_files();
    io_.hold_syncs_of(log_file_path(nvme_.options.directory, file_of("a10")));
    // Without waiting for the room that only the held reclaim can make.
    const Deadline deadline = Deadline::after_ms(30'000);
    for (int i = 0; file_of("a10") != UINT32_MAX && !deadline.expired(); ++i) {
        const std::string key = "x" + std::to_string(i);
        const auto data = test_data(nvme_.hash(key), 1, 10000);
        nvme_.log->append(nvme_.object(key, 1, data), data).ok();
        nvme_.log->await_space(10000, 5);
    }
    io_.await_held();
    EXPECT_FALSE(nvme_.log->remove(nvme_.ns.id, nvme_.hash("a10"), 1));
    EXPECT_TRUE(nvme_.log->sync_removals().ok());
    EXPECT_EQ(after_a_loss()->check("a10"), 0u);
    io_.hold_syncs_of("");
    await_reclaim();
    EXPECT_FALSE(nvme_.log->remove(nvme_.ns.id, nvme_.hash("a11"), 1));
    EXPECT_TRUE(nvme_.log->sync_removals().ok());
    EXPECT_EQ(after_a_loss()->check("a11"), 0u);
}

// An object that is overwritten and removed all the time, beside pinned ones that keep the log
// files of its older versions: they are dead in younger log files first.
TEST_F(NvmePowerLossTest, NoVersionComesBackThatIsOlderThanADurableOne) {
    Version version = 0;
    Version durable = 0;
    for (int round = 0; round < 60; ++round) {
        // One log file that keeps a live object, and some that do not.
        ASSERT_TRUE(nvme_.put("live" + std::to_string(round), 1, 1000, Pin::kHard).ok());
        for (int i = 0; i < 20 + round % 40; ++i) {
            ASSERT_TRUE(nvme_.put("k", ++version, 10000).ok());
            if (i % 7 == 3) {
                nvme_.log->remove(nvme_.ns.id, nvme_.hash("k"), version);
            }
            if (i == 5) {
                ASSERT_TRUE(nvme_.log->sync().ok());
                durable = version;
            }
        }
        const auto next = after_a_loss(round % 2 == 0 ? Kept::kNothing : Kept::kSome);
        const Version found = next->check("k");
        ASSERT_TRUE(found == 0 || found >= durable) << found << " but " << durable << " was synced";
    }
    EXPECT_GT(nvme_.log->counters().log_files_reclaimed, 30u);
}

}  // namespace
}  // namespace kvstore
