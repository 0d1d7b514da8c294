// A loss of power at any moment: what was written and not synced is gone, in part or as a whole.
// What was acknowledged is there, and no older version of anything.
#include <gtest/gtest.h>

#include <fstream>

#include "nvme_fixture.h"

namespace kvstore {
namespace {

// Remembers what unsynced writes replaced.
class PowerLossIo : public FileIo {
  public:
    int open(const std::string& path, int flags) override {
        const std::lock_guard lock(mutex_);
        const int fd = FileIo::open(path, flags);
        if (fd >= 0) paths_[fd] = path;
        return fd;
    }
    int64_t write(int fd, const void* from, size_t size, uint64_t offset) override {
        const std::lock_guard lock(mutex_);
        Write one{.offset = offset, .before = std::vector<uint8_t>(size)};
        std::ifstream file(paths_[fd], std::ios::binary);
        file.seekg(static_cast<std::streamoff>(offset));
        file.read(reinterpret_cast<char*>(one.before.data()), static_cast<std::streamsize>(size));
        unsynced_[paths_[fd]].push_back(std::move(one));
        return FileIo::write(fd, from, size, offset);
    }
    int sync(int fd) override {
        std::unique_lock lock(mutex_);
        released_.wait(lock, [&] { return paths_[fd] != held_; });
        const int result = FileIo::sync(fd);
        if (result >= 0) unsynced_[paths_[fd]].clear();
        return result;
    }
    // Syncs of this file wait until another is named.
    void hold_syncs_of(const std::string& path) {
        const std::lock_guard lock(mutex_);
        held_ = path;
        released_.notify_all();
    }
    // The folder as it would be found; each file keeps as many of its unsynced writes as `keep`
    // says of their number.
    void lose_power(const std::string& from, const std::string& to,
                    const std::function<size_t(size_t)>& keep) {
        const std::lock_guard lock(mutex_);
        copy_folder(from, to);
        for (const auto& [path, writes] : unsynced_) {
            const auto copy = std::filesystem::path(to) / std::filesystem::path(path).filename();
            if (!std::filesystem::exists(copy)) continue;
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
    std::condition_variable released_;
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
    // What the next life would find.
    std::unique_ptr<NvmeTester> after_a_loss(bool all_lost = true) {
        io_.lose_power(nvme_.options.directory, dir_.path() + "/lost", [&](size_t writes) {
            return all_lost ? 0 : static_cast<size_t>(random_() % (writes + 1));
        });
        auto next = std::make_unique<NvmeTester>(dir_.path() + "/lost");
        next->options.catalog = nullptr;
        EXPECT_TRUE(next->open().ok());
        EXPECT_EQ(next->log->state(), NvmeState::kActive);
        return next;
    }

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
    nvme_.log->remove(nvme_.ns.ns, nvme_.hash("removed"), 1);
    ASSERT_TRUE(nvme_.log->sync_removals().ok());
    const auto next = after_a_loss();
    EXPECT_EQ(next->check("kept"), 1u);
    EXPECT_EQ(next->check("removed"), 0u);
    nvme_.log->flush_namespace(nvme_.ns.ns);
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
        if (n % 10 != 0) continue;
        const auto next = after_a_loss(n % 20 == 0);
        for (int i = 0; i < 10; ++i) {
            ASSERT_EQ(next->check("pinned" + std::to_string(i)), 1u) << i << " at " << n;
        }
    }
    EXPECT_GT(nvme_.log->counters().readmitted_objects, 30u);
}

// A segment without live objects goes before older ones. What took the place of its objects must be
// durable by then: else that is gone, and what they had replaced is back.
TEST_F(NvmePowerLossTest, WhatADeadSegmentHidDoesNotComeBack) {
    nvme_.options.flush_after_ms = 60'000;
    ASSERT_TRUE(nvme_.reopen().ok());
    const uint64_t in_segment =
        (nvme_.log->segment_bytes() - kSegmentHeaderBytes) / record_bytes(3, 10000);
    const auto fill_segment = [&](char prefix, Version version) {
        ASSERT_TRUE(nvme_.put("k", version, 10000).ok());
        for (uint64_t n = 10; n < in_segment + 9; ++n) {
            ASSERT_TRUE(nvme_.put(prefix + std::to_string(n), 1, 10000).ok());
        }
    };
    const auto segment_of = [&](const std::string& key) {
        return nvme_.log->find(nvme_.ns.ns, nvme_.hash(key))->segment;
    };
    fill_segment('a', 1);
    fill_segment('b', 2);
    ASSERT_NE(segment_of("a10"), segment_of("b10"));
    ASSERT_EQ(segment_of("k"), segment_of("b" + std::to_string(in_segment + 8)));
    ASSERT_TRUE(nvme_.log->sync().ok());
    // Maintenance finds that room is wanted, and a segment that has just become dead.
    const uint32_t second = segment_of("b10");
    io_.hold_syncs_of(segment_file(nvme_.options.directory, second));
    EXPECT_TRUE(nvme_.put("k", 3, 10000).ok());
    EXPECT_NE(segment_of("k"), second);
    for (uint64_t n = 10; n < in_segment + 9; ++n) {
        nvme_.log->remove(nvme_.ns.ns, nvme_.hash("b" + std::to_string(n)), 1);
    }
    io_.hold_syncs_of("");
    const Deadline deadline = Deadline::after_ms(30'000);
    while (nvme_.log->counters().segments_reclaimed == 0 && !deadline.expired()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_EQ(nvme_.check("a10"), 1u) << "the older segment is still there";
    EXPECT_EQ(after_a_loss()->check("k"), 3u);
}

// An object that is overwritten and removed all the time, beside pinned ones that keep the segments
// of its older versions: they are dead in younger segments first.
TEST_F(NvmePowerLossTest, NoVersionComesBackThatIsOlderThanADurableOne) {
    Version version = 0;
    Version durable = 0;
    for (int round = 0; round < 60; ++round) {
        // One segment that keeps a live object, and some that do not.
        ASSERT_TRUE(nvme_.put("live" + std::to_string(round), 1, 1000, Pin::kHard).ok());
        for (int i = 0; i < 20 + round % 40; ++i) {
            ASSERT_TRUE(nvme_.put("k", ++version, 10000).ok());
            if (i % 7 == 3) nvme_.log->remove(nvme_.ns.ns, nvme_.hash("k"), version);
            if (i == 5) {
                ASSERT_TRUE(nvme_.log->sync().ok());
                durable = version;
            }
        }
        const auto next = after_a_loss(round % 2 == 0);
        const Version found = next->check("k");
        ASSERT_TRUE(found == 0 || found >= durable) << found << " but " << durable << " was synced";
    }
    EXPECT_GT(nvme_.log->counters().segments_reclaimed, 30u);
}

}  // namespace
}  // namespace kvstore
