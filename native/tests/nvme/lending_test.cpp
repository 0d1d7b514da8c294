// Large objects that are written from where they lie: their memory is kept exactly as long as it is
// needed, and what is read is right or a miss.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <functional>

#include "base/bus_guard.h"
#include "base/file.h"
#include "tests/nvme/fixture.h"

namespace kvstore {
namespace {

constexpr size_t kLarge = 256 << 10;

std::string name(uint64_t number) { return "k" + std::to_string(number); }

// Memory of its own for each object, which is spoilt as soon as it was given back.
class Lender {
  public:
    std::shared_ptr<const void> lend(std::span<const uint8_t> data, size_t shift = 0) {
        auto memory = std::make_shared<AlignedBuffer>(data.size() + shift);
        std::memcpy(memory->data() + shift, data.data(), data.size());
        ++lent;
        last = {memory->data() + shift, data.size()};
        return std::shared_ptr<const void>(memory->data(), [this, memory](const void*) {
            std::memset(memory->data(), 0xEE, memory->size());
            --lent;
        });
    }
    std::atomic<int> lent{0};
    std::span<const uint8_t> last;
};

class LendingTest : public testing::Test {
  protected:
    LendingTest() : nvme_(dir_.path(), 32 << 20) {
        nvme_.options.log_file_bytes = 4 << 20;
        nvme_.options.buffer_bytes = 512 << 10;
        nvme_.most_bytes = 2 << 20;
    }
    ~LendingTest() override {
        release_writes();
        nvme_.close();
    }
    void SetUp() override { ASSERT_TRUE(nvme_.open().ok()); }

    Status try_put(const std::string& key, Version version, size_t size, size_t shift = 0) {
        const std::vector<uint8_t> data = test_data(nvme_.hash(key), version, size);
        const NvmeObject object = nvme_.object(key, version, data);
        const std::shared_ptr<const void> hold = lender_.lend(data, shift);
        return nvme_.log->append(object, lender_.last, hold);
    }
    Status put(const std::string& key, Version version, size_t size) {
        for (int tries = 0; tries < 1000; ++tries) {
            Status status = try_put(key, version, size);
            if (status.code() != Code::kOverloaded) {
                return status;
            }
            nvme_.log->await_space(size, 100);
        }
        return Code::kOverloaded;
    }
    void release_writes() {
        nvme_.io.hold_writes = false;
        nvme_.io.hold_writes.notify_all();
    }
    bool nothing_is_lent() {
        return eventually([this] { return lender_.lent == 0; });
    }
    static bool eventually(const std::function<bool()>& condition) {
        const Deadline deadline = Deadline::after_ms(30'000);
        while (!condition() && !deadline.expired()) {
            usleep(1000);
        }
        return condition();
    }

    TempDir dir_{true};
    Lender lender_;
    NvmeTester nvme_;
};

TEST_F(LendingTest, ObjectsOfEverySizeAreFoundBetweenOthers) {
    const std::vector<size_t> sizes = {128 << 10,          (128 << 10) + 1,   (128 << 10) + 64,
                                       (128 << 10) + 4095, (132 << 10) - 1,   kLarge,
                                       kLarge + 4032,      1 << 20,           (1 << 20) + 123,
                                       (1 << 20) - 4096,   (100 << 10) + 100, 64};
    for (uint64_t n = 0; n < sizes.size(); ++n) {
        ASSERT_TRUE(put(name(n), n + 1, sizes[n]).ok()) << sizes[n];
        EXPECT_EQ(nvme_.check(name(n)), n + 1) << sizes[n];
        ASSERT_TRUE(nvme_.put("copied" + name(n), n + 1, 100 + n * 5000).ok());
    }
    const auto all_are_there = [&] {
        for (uint64_t n = 0; n < sizes.size(); ++n) {
            EXPECT_EQ(nvme_.check(name(n)), n + 1) << sizes[n];
            EXPECT_EQ(nvme_.check("copied" + name(n)), n + 1);
        }
    };
    all_are_there();
    ASSERT_TRUE(nvme_.log->sync().ok());
    EXPECT_TRUE(nothing_is_lent());
    all_are_there();
    ASSERT_TRUE(nvme_.reopen().ok());  // by manifests
    all_are_there();
    nvme_.options.catalog = nullptr;
    ASSERT_TRUE(nvme_.reopen().ok());  // by a scan, which has to get over the pads
    all_are_there();
    EXPECT_EQ(nvme_.log->counters().damaged_records, 0u);
}

TEST_F(LendingTest, MemoryIsKeptUntilItIsWrittenAndNoLonger) {
    nvme_.io.hold_writes = true;
    ASSERT_TRUE(put("a", 1, kLarge).ok());
    ASSERT_TRUE(eventually([&] { return nvme_.io.held > 0; }));
    EXPECT_EQ(lender_.lent, 1);
    EXPECT_EQ(nvme_.check("a"), 1u);
    EXPECT_EQ(nvme_.log->counters().bytes_written, 0u);
    release_writes();
    EXPECT_TRUE(nothing_is_lent());
    EXPECT_EQ(nvme_.check("a"), 1u);
}

TEST_F(LendingTest, WhatIsSmallOrUnalignedIsCopied) {
    nvme_.io.hold_writes = true;
    ASSERT_TRUE(try_put("small", 1, (128 << 10) - 1).ok());
    ASSERT_TRUE(try_put("unaligned", 1, kLarge, 64).ok());
    EXPECT_EQ(lender_.lent, 0);
    EXPECT_EQ(nvme_.check("small"), 1u);
    EXPECT_EQ(nvme_.check("unaligned"), 1u);
}

TEST_F(LendingTest, OnlySoMuchIsLentAtOnce) {
    nvme_.io.hold_writes = true;
    uint64_t taken = 0;
    while (try_put(name(taken), 1, kLarge).ok()) {
        ASSERT_LT(++taken, 100u);
    }
    EXPECT_EQ(taken, 8u);  // as much as four buffers
    EXPECT_EQ(lender_.lent, 8);
    EXPECT_FALSE(nvme_.log->await_space(kLarge, 20));
    release_writes();
    EXPECT_TRUE(nvme_.log->await_space(kLarge, 30'000));
    EXPECT_TRUE(nothing_is_lent());
    for (uint64_t n = 0; n < taken; ++n) {
        EXPECT_EQ(nvme_.check(name(n)), 1u);
    }
}

TEST_F(LendingTest, ShortWritesGoOnInTheMiddleOfAnObject) {
    nvme_.io.short_writes = true;
    for (uint64_t n = 0; n < 8; ++n) {
        ASSERT_TRUE(put(name(n), 1, kLarge + n * 1000).ok());
    }
    ASSERT_TRUE(nvme_.log->sync().ok());
    ASSERT_TRUE(nvme_.reopen().ok());
    for (uint64_t n = 0; n < 8; ++n) {
        EXPECT_EQ(nvme_.check(name(n)), 1u);
    }
}

TEST_F(LendingTest, AFailedWriteDropsTheObjectAndGivesItsMemoryBack) {
    nvme_.io.fail_writes = true;
    ASSERT_TRUE(put("a", 1, kLarge).ok());
    EXPECT_TRUE(nothing_is_lent());
    EXPECT_EQ(nvme_.log->state(), NvmeState::kReadOnly);
    EXPECT_EQ(nvme_.check("a"), 0u);
    ASSERT_TRUE(eventually([&] {
        const std::lock_guard lock(nvme_.mutex);
        return nvme_.dropped.size() == 1;
    }));
    EXPECT_EQ(nvme_.dropped.front().reason, NvmeDropped::Reason::kWriteFailed);
}

TEST_F(LendingTest, ReclaimMovesAndDropsThem) {
    for (uint64_t n = 0; n < 100; ++n) {
        ASSERT_TRUE(put(name(n), n + 1, kLarge + n * 777).ok());
        if (n >= 3) {
            nvme_.check(name(n - 3));  // wrong bytes are an error there
        }
    }
    ASSERT_TRUE(nvme_.log->sync().ok());
    EXPECT_GT(nvme_.log->counters().log_files_reclaimed, 0u);
    EXPECT_TRUE(nothing_is_lent());
    uint64_t found = 0;
    for (uint64_t n = 0; n < 100; ++n) {
        found += nvme_.check(name(n)) != 0 ? 1 : 0;
    }
    EXPECT_GT(found, 50u);
}

// Whoever has the segment mapped can cut it. What was lent is lost then, and nothing else.
TEST_F(LendingTest, AFileThatIsCutUnderAWriteCostsItsObjectAlone) {
    const Fd fd(memfd_create("lent", 0));
    ASSERT_EQ(ftruncate(fd.get(), kLarge), 0);
    auto* memory = static_cast<uint8_t*>(
        mmap(nullptr, kLarge, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0));
    ASSERT_NE(memory, MAP_FAILED);
    BusGuard::Watch* watch = BusGuard::watch(memory, kLarge, fd.get(), true);
    const std::vector<uint8_t> data = test_data(nvme_.hash("cut"), 1, kLarge);
    std::memcpy(memory, data.data(), kLarge);
    nvme_.io.hold_writes = true;
    ASSERT_TRUE(nvme_.log
                    ->append(nvme_.object("cut", 1, data), {memory, kLarge},
                             std::shared_ptr<const void>(memory, [](const void*) {}))
                    .ok());
    ASSERT_TRUE(eventually([&] { return nvme_.io.held > 0; }));
    ASSERT_EQ(ftruncate(fd.get(), 4096), 0);
    release_writes();
    ASSERT_TRUE(put("whole", 1, kLarge).ok());
    EXPECT_TRUE(nvme_.log->sync().ok());
    EXPECT_EQ(nvme_.log->state(), NvmeState::kActive);
    EXPECT_TRUE(BusGuard::torn(*watch));
    EXPECT_EQ(nvme_.get("cut").result.status.code(), Code::kChecksumMismatch);
    EXPECT_EQ(nvme_.check("whole"), 1u);
    nvme_.close();
    BusGuard::end(watch);
    munmap(memory, kLarge);
}

}  // namespace
}  // namespace kvstore
