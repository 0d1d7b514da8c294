// Space: the oldest log file goes, what is hot or pinned stays, and the owner is told of the rest.
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>

#include <atomic>
#include <optional>
#include <set>
#include <thread>

#include "tests/nvme/fixture.h"

namespace kvstore {
namespace {

std::string name(uint64_t number) { return "k" + std::to_string(number); }

TEST(NvmeReclaimTest, TheOldestGoAndTheOwnerIsToldOfEach) {
    TempDir dir;
    NvmeTester nvme(dir.path());
    ASSERT_TRUE(nvme.open().ok());
    constexpr uint64_t kObjects = 400;  // 4 MiB into 1 MiB
    for (uint64_t n = 0; n < kObjects; ++n) {
        ASSERT_TRUE(nvme.put(name(n), n + 1, 10000).ok());
    }
    nvme.settle();
    std::set<std::string> told;
    std::set<std::string> live;
    for (const auto& one : nvme.list()) {
        live.insert(one.first);
    }
    {
        const std::lock_guard lock(nvme.mutex);
        for (const NvmeDropped& one : nvme.dropped) {
            EXPECT_EQ(one.reason, NvmeDropped::Reason::kReclaimed);
            EXPECT_EQ(one.ns, nvme.ns.id);
            EXPECT_EQ(one.hash, nvme.hash(one.key));
            EXPECT_EQ(name(one.version - 1), one.key);
            EXPECT_TRUE(told.insert(one.key).second) << "told twice";
        }
    }
    EXPECT_GT(live.size(), 22u) << "a full log file, and the head";
    uint64_t absent = 0;
    for (uint64_t n = 0; n < kObjects; ++n) {
        const bool is_live = nvme.check(name(n)) == n + 1;
        if (!is_live) {
            ++absent;
        }
        EXPECT_TRUE(is_live || n + live.size() / 2 < kObjects) << "the newest stay";
    }
    const NvmeCounters counters = nvme.log->counters();
    EXPECT_EQ(absent, counters.dropped_objects);
    EXPECT_EQ(counters.objects, kObjects - absent);
    EXPECT_EQ(counters.bytes_live, counters.objects * 10000);
    EXPECT_GT(counters.log_files_reclaimed, 8u);
    EXPECT_EQ(counters.readmitted_objects, 0u);
}

TEST(NvmeReclaimTest, WhatIsReadOrPinnedStays) {
    for (const bool catalog : {true, false}) {
        TempDir dir;
        NvmeTester nvme(dir.path(), 2 << 20);
        if (!catalog) {
            nvme.options.catalog = nullptr;
        }
        ASSERT_TRUE(nvme.open().ok());
        nvme.log->set_policy({.min_touches = 1, .readmit_share = 0.5});
        ASSERT_TRUE(nvme.put("pinned", 1, 20000, Pin::kHard).ok());
        ASSERT_TRUE(nvme.put("pinned later", 1, 20000).ok());
        ASSERT_TRUE(nvme.log->set_pin(nvme.ns.id, nvme.hash("pinned later"), Pin::kHard).ok());
        ASSERT_TRUE(nvme.put("hot", 1, 20000).ok());
        ASSERT_TRUE(nvme.put("cold", 1, 20000).ok());
        for (uint64_t n = 0; n < 800; ++n) {
            ASSERT_TRUE(nvme.put(name(n), n + 1, 10000).ok());
            EXPECT_TRUE(n % 8 != 0 || nvme.check("hot") == 1) << n;
        }
        EXPECT_EQ(nvme.check("pinned"), 1u);
        EXPECT_EQ(nvme.check("pinned later"), 1u);
        EXPECT_EQ(nvme.check("cold"), 0u);
        EXPECT_EQ(nvme.list().at("pinned later").pin, Pin::kHard);
        EXPECT_GT(nvme.log->counters().readmitted_objects, 6u);
        ASSERT_TRUE(nvme.reopen().ok());
        EXPECT_EQ(nvme.check("pinned"), 1u);
        EXPECT_EQ(nvme.check("pinned later"), 1u);
        EXPECT_EQ(nvme.check("hot"), 1u);
        EXPECT_EQ(nvme.log->counters().checksum_errors, 0u);
    }
}

// Everything is hot: the share keeps room for what is new.
TEST(NvmeReclaimTest, TheShareBoundsWhatIsReadmitted) {
    TempDir dir;
    NvmeTester nvme(dir.path(), 2 << 20);
    ASSERT_TRUE(nvme.open().ok());
    nvme.log->set_policy({.min_touches = 0, .readmit_share = 0.25});
    for (uint64_t n = 0; n < 800; ++n) {
        ASSERT_TRUE(nvme.put(name(n), n + 1, 10000).ok());
    }
    const NvmeCounters counters = nvme.log->counters();
    EXPECT_GT(counters.readmitted_bytes, 0u);
    EXPECT_LE(counters.readmitted_bytes,
              counters.log_files_reclaimed * nvme.log->log_file_bytes() / 4);
}

TEST(NvmeReclaimTest, PinsAreBoundedAndNeverStopTheLog) {
    TempDir dir;
    NvmeTester nvme(dir.path());
    ASSERT_TRUE(nvme.open().ok());
    uint64_t pinned = 0;
    while (nvme.put("p" + std::to_string(pinned), 1, 10000, Pin::kHard).ok()) {
        ++pinned;
    }
    EXPECT_EQ(pinned, (512u << 10) * 45 / 100 / record_bytes(2, 10000));
    EXPECT_EQ(nvme.put("one more", 1, 10000, Pin::kHard).code(), Code::kNoSpace);
    ASSERT_TRUE(nvme.put("soft", 1, 10000).ok());
    EXPECT_EQ(nvme.log->set_pin(nvme.ns.id, nvme.hash("soft"), Pin::kHard).code(), Code::kNoSpace);
    for (uint64_t n = 0; n < 300; ++n) {
        ASSERT_TRUE(nvme.put(name(n), n + 1, 10000).ok()) << n;
    }
    uint64_t kept = 0;
    for (uint64_t n = 0; n < pinned; ++n) {
        kept += nvme.check("p" + std::to_string(n));
    }
    EXPECT_EQ(kept, pinned);
    // Room comes back.
    ASSERT_TRUE(nvme.log->set_pin(nvme.ns.id, nvme.hash("p0"), Pin::kNone).ok());
    EXPECT_TRUE(nvme.put("one more", 1, 10000, Pin::kHard).ok());
}

TEST(NvmeReclaimTest, ReadsUnderWayKeepTheirLogFile) {
    TempDir dir;
    NvmeTester nvme(dir.path());
    ASSERT_TRUE(nvme.open().ok());
    std::atomic<bool> stop{false};
    std::atomic<uint64_t> good{0};
    std::atomic<uint64_t> newest{1};
    std::vector<std::thread> readers;
    for (int t = 0; t < 3; ++t) {
        readers.emplace_back([&, t] {
            std::mt19937_64 random(static_cast<uint64_t>(t));
            while (!stop) {
                std::vector<std::string> keys;
                // Old ones: their log files are the next to go.
                for (int i = 0; i < 4; ++i) {
                    keys.push_back(name(newest - std::min<uint64_t>(newest, random() % 80)));
                }
                const auto got = nvme.get_all(keys, 20000);
                for (size_t i = 0; i < got.size(); ++i) {
                    if (!got[i].result.status.ok()) {
                        continue;
                    }
                    ++good;
                    EXPECT_EQ(got[i].data,
                              test_data(nvme.hash(keys[i]), got[i].result.identity.version, 10000));
                }
            }
        });
    }
    // The readers must have had their turn, on a busy machine too.
    const Deadline deadline = Deadline::after_ms(30'000);
    for (uint64_t n = 1; n < 1500 || (good <= 100 && !deadline.expired()); ++n) {
        EXPECT_TRUE(nvme.put(name(n), n, 10000).ok());
        newest = n;
    }
    stop = true;
    for (std::thread& reader : readers) {
        reader.join();
    }
    EXPECT_GT(good, 100u);
    EXPECT_EQ(nvme.log->counters().checksum_errors, 0u);
}

// The same with a read that is held up: its log file is emptied, but not reused before it is done.
TEST(NvmeReclaimTest, AHeldUpReadStillGetsItsBytes) {
    TempDir dir;
    NvmeTester nvme(dir.path());
    nvme.options.reads.way = NvmeReadEngine::Way::kPool;
    ASSERT_TRUE(nvme.open().ok());
    ASSERT_TRUE(nvme.put("k", 1, 10000).ok());
    ASSERT_TRUE(nvme.log->sync().ok());
    nvme.log->set_policy({.min_touches = 3, .readmit_share = 0.5});
    nvme.io.hold_reads = true;
    std::thread reader([&] {
        const auto got = nvme.get("k");
        EXPECT_TRUE(got.result.status.ok()) << got.result.status.to_string();
        EXPECT_EQ(got.data, test_data(nvme.hash("k"), 1, 10000));
    });
    Deadline deadline = Deadline::after_ms(30'000);
    while (nvme.io.held == 0 && !deadline.expired()) {
        std::this_thread::yield();
    }
    uint64_t n = 0;
    const auto dropped = [&] {
        const std::lock_guard lock(nvme.mutex);
        return !nvme.dropped.empty();
    };
    // Appends go on until the only log file that can be reused is the one that is being read.
    for (deadline = Deadline::after_ms(30'000); !dropped() && !deadline.expired(); ++n) {
        const auto data = test_data(nvme.hash(name(n)), n + 1, 10000);
        nvme.log->append(nvme.object(name(n), n + 1, data), data).ok();
        if (!nvme.log->await_space(10000, 20)) {
            continue;
        }
    }
    EXPECT_TRUE(dropped());
    for (int i = 0; i < 10; ++i, ++n) {
        const auto data = test_data(nvme.hash(name(n)), n + 1, 10000);
        nvme.log->append(nvme.object(name(n), n + 1, data), data).ok();
        nvme.log->await_space(10000, 20);
    }
    EXPECT_EQ(nvme.log->counters().log_files_reclaimed, 0u);
    nvme.io.hold_reads = false;
    nvme.io.hold_reads.notify_all();
    reader.join();
    for (int i = 0; i < 50; ++i, ++n) {
        ASSERT_TRUE(nvme.put(name(n), n + 1, 10000).ok());
    }
    EXPECT_GT(nvme.log->counters().log_files_reclaimed, 0u);
}

// Bytes whose first reader waits in the fault that they cause, until they are released: an append
// that is held up while it copies. One at a time.
class HeldBytes {
  public:
    explicit HeldBytes(const std::vector<uint8_t>& bytes) : size_(bytes.size()) {
        memory_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        std::memcpy(memory_, bytes.data(), size_);
        held_ = true;
        waiting_ = false;
        struct sigaction action{};
        action.sa_handler = [](int) {
            waiting_ = true;
            while (held_) {
                sched_yield();
            }
        };
        sigaction(SIGSEGV, &action, &before_);
        mprotect(memory_, size_, PROT_NONE);
    }
    ~HeldBytes() {
        release();
        sigaction(SIGSEGV, &before_, nullptr);
        munmap(memory_, size_);
    }
    std::span<const uint8_t> bytes() const { return {static_cast<uint8_t*>(memory_), size_}; }
    static void await() {
        while (!waiting_) {
            sched_yield();
        }
    }
    void release() {
        mprotect(memory_, size_, PROT_READ);
        held_ = false;
    }

  private:
    static inline std::atomic<bool> held_{false};
    static inline std::atomic<bool> waiting_{false};
    size_t size_;
    void* memory_;
    struct sigaction before_{};
};

// A log whose first log file is all but full, and an append of (held, version) that has its room
// there and does not come on.
class NvmeOrderTest : public testing::Test {
  protected:
    void begin(const std::string& held, Version version) {
        ASSERT_TRUE(nvme_.open().ok());
        ASSERT_TRUE(nvme_.put("early", 1, 10000).ok());
        first_ = file_of("early");
        for (int i = 0; i < 20; ++i) {
            ASSERT_TRUE(nvme_.put(name(number_++), 1, 10000).ok());
        }
        ASSERT_TRUE(nvme_.log->sync().ok());
        const auto data = test_data(nvme_.hash(held), version, 10000);
        object_ = nvme_.object(held_ = held, version, data);
        object_.key = held_;
        bytes_.emplace(data);
        appender_ =
            std::thread([this] { appended_ = nvme_.log->append(object_, bytes_->bytes()); });
        HeldBytes::await();
    }
    void fill_until_file(uint32_t other_than) {
        std::string key;
        do {
            key = name(number_++);
            ASSERT_TRUE(nvme_.put(key, 1, 10000).ok());
        } while (file_of(key) == other_than);
    }
    void release() {
        bytes_->release();
        appender_.join();
    }
    uint32_t file_of(const std::string& key) {
        const auto found = nvme_.log->find(nvme_.ns.id, nvme_.hash(key));
        return found ? found->file : UINT32_MAX;
    }
    // What a crash at this moment would find.
    Version version_after_a_crash(const std::string& key) {
        copy_folder(nvme_.options.directory, dir_.path() + "/crashed");
        NvmeTester crashed(dir_.path() + "/crashed");
        crashed.options.catalog = nullptr;
        EXPECT_TRUE(crashed.open().ok());
        return crashed.check(key);
    }

    TempDir dir_;
    NvmeTester nvme_{dir_.path() + "/nvme"};
    uint64_t number_ = 0;
    uint32_t first_ = 0;
    std::string held_;
    NvmeObject object_;
    std::optional<HeldBytes> bytes_;
    std::thread appender_;
    Status appended_;
};

// A remove that comes while the bytes are being copied wins.
TEST_F(NvmeOrderTest, AnAppendUnderWayDoesNotOutliveARemove) {
    begin("k", 2);
    nvme_.log->remove(nvme_.ns.id, nvme_.hash("k"), 2);
    release();
    EXPECT_EQ(appended_.code(), Code::kRemoved);
    EXPECT_EQ(file_of("k"), UINT32_MAX);
    ASSERT_TRUE(nvme_.log->sync().ok());
    EXPECT_EQ(version_after_a_crash("k"), 0u);
}

// The newer version lies in front of the older one, and its log file goes first.
TEST_F(NvmeOrderTest, AnOlderVersionThatLiesBehindTheNewestDoesNotComeBack) {
    begin("k", 2);
    fill_until_file(first_);
    ASSERT_TRUE(nvme_.put("k", 1, 10000).ok());
    EXPECT_NE(file_of("k"), first_);
    release();
    ASSERT_TRUE(appended_.ok()) << appended_.to_string();
    EXPECT_EQ(file_of("k"), first_);
    for (int i = 0; i < 200 && nvme_.log->counters().log_files_reclaimed == 0; ++i) {
        ASSERT_TRUE(nvme_.put(name(number_++), 1, 10000).ok());
    }
    EXPECT_EQ(file_of("k"), UINT32_MAX) << "reclaimed";
    EXPECT_EQ(version_after_a_crash("k"), 0u);
}

// The log file of the newest version is sealed before that of an older one.
TEST_F(NvmeOrderTest, ALogFileThatIsSealedBeforeAnOlderOneDoesNotGoBeforeIt) {
    begin("held", 1);
    fill_until_file(first_);
    ASSERT_TRUE(nvme_.put("early", 2, 10000).ok());
    const uint32_t second = file_of("early");
    EXPECT_NE(second, first_);
    fill_until_file(second);
    // Two of four log files are in use, one is the head: the reclaim wants more to be free.
    EXPECT_FALSE(nvme_.log->await_space(200'000, 300));
    EXPECT_EQ(nvme_.log->counters().log_files_reclaimed, 0u);
    EXPECT_EQ(nvme_.check("early"), 2u);
    EXPECT_EQ(version_after_a_crash("early"), 2u);
    release();
    ASSERT_TRUE(appended_.ok()) << appended_.to_string();
    for (int i = 0; i < 200; ++i) {
        ASSERT_TRUE(nvme_.put(name(number_++), 1, 10000).ok());
    }
    EXPECT_GT(nvme_.log->counters().log_files_reclaimed, 2u);
}

// What a reclaim dropped and a remove then named must not come back, nor what was removed while it
// was being moved.
TEST(NvmeReclaimTest, RemovedObjectsStayRemovedAcrossReclaims) {
    TempDir dir;
    NvmeTester nvme(dir.path());
    nvme.options.policy = {.min_touches = 0, .readmit_share = 0.6};
    ASSERT_TRUE(nvme.open().ok());
    std::mt19937_64 random(5);
    std::map<std::string, Version> removed;
    for (uint64_t n = 1; n <= 600; ++n) {
        ASSERT_TRUE(nvme.put(name(n % 100), n, 8000).ok());
        removed.erase(name(n % 100));
        const std::string victim = name(random() % 100);
        if (n % 3 == 0) {
            nvme.log->remove(nvme.ns.id, nvme.hash(victim), n);
            removed[victim] = n;
        }
        if (n % 120 == 0) {
            ASSERT_TRUE(nvme.log->sync_removals().ok());
            ASSERT_TRUE(nvme.reopen().ok());
        }
        for (const auto& one : removed) {
            ASSERT_EQ(nvme.check(one.first), 0u) << n;
        }
    }
}

}  // namespace
}  // namespace kvstore
