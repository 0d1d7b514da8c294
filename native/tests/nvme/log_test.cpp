// The NVMe log: what is appended is read back, whatever lies between; against a model, with
// reopens.
#include "nvme/log.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/nvme/fixture.h"

namespace kvstore {
namespace {

TEST(NvmeLogTest, ObjectsAreReadableAtOnceAndAfterTheirBufferIsOnDisk) {
    TempDir dir;
    NvmeTester nvme(dir.path());
    ASSERT_TRUE(nvme.open().ok());
    const std::vector<size_t> sizes = {0, 1, 63, 64, 65, 4096, 65536, 100000, 200000};
    for (size_t i = 0; i < sizes.size(); ++i) {
        ASSERT_TRUE(nvme.put("k" + std::to_string(i), 10 + i, sizes[i]).ok());
        EXPECT_EQ(nvme.check("k" + std::to_string(i)), 10 + i);
    }
    ASSERT_TRUE(nvme.log->sync().ok());
    for (size_t i = 0; i < sizes.size(); ++i) {
        EXPECT_EQ(nvme.check("k" + std::to_string(i)), 10 + i);
        const auto found = nvme.log->find(nvme.ns.id, nvme.hash("k" + std::to_string(i)));
        ASSERT_TRUE(found);
        EXPECT_EQ(found->length, sizes[i]);
    }
    EXPECT_EQ(nvme.log->counters().objects, sizes.size());
    EXPECT_EQ(nvme.log->state(), NvmeState::kActive);
}

TEST(NvmeLogTest, RefusalsAreTyped) {
    TempDir dir;
    NvmeTester nvme(dir.path());
    ASSERT_TRUE(nvme.open().ok());
    ASSERT_TRUE(nvme.put("k", 5, 100).ok());
    EXPECT_EQ(nvme.put("k", 5, 100).code(), Code::kAlreadyExists);
    EXPECT_EQ(nvme.put("k", 4, 100).code(), Code::kAlreadyExists);
    EXPECT_EQ(nvme.put("big", 1, nvme.log->max_object_bytes() + 1).code(), Code::kTooLarge);
    EXPECT_TRUE(nvme.put("most", 1, nvme.log->max_object_bytes()).ok());
    EXPECT_EQ(nvme.put("", 1, 1).code(), Code::kInvalidArgument);
    EXPECT_EQ(nvme.put("zero", 0, 1).code(), Code::kInvalidArgument);
    const auto data = test_data(nvme.hash("x"), 1, 10);
    NvmeObject wrong = nvme.object("x", 1, data);
    wrong.sealed_crc ^= 1;
    EXPECT_EQ(nvme.log->append(wrong, data).code(), Code::kChecksumMismatch);
    EXPECT_FALSE(nvme.log->find(nvme.ns.id, nvme.hash("x")));
    NvmeObject foreign = nvme.object("x", 1, data);
    foreign.identity.ns = 99;
    EXPECT_EQ(nvme.log->append(foreign, data).code(), Code::kInvalidArgument);
    EXPECT_EQ(nvme.get("absent").result.status.code(), Code::kNotFound);
    EXPECT_EQ(nvme.get_all({"k"}, 99).front().result.status.code(), Code::kBufferTooSmall);
    // A hash that is there under another key.
    std::vector<uint8_t> to(100);
    NvmeRead other{.ns = nvme.ns.id,
                   .hash = nvme.hash("k"),
                   .version = 0,
                   .key = "not k",
                   .to = to.data(),
                   .capacity = 100,
                   .tag = 0};
    Code code = Code::kOk;
    nvme.log->read({&other, 1}, [&](uint64_t, const NvmeReadResult& r) { code = r.status.code(); });
    EXPECT_EQ(code, Code::kNotFound);
    EXPECT_EQ(nvme.check("k"), 5u);
    EXPECT_EQ(nvme.check("most"), 1u);
}

TEST(NvmeLogTest, ASecondOwnerIsRefusedAndTheNextLifeIsNot) {
    TempDir dir;
    NvmeTester first(dir.path());
    NvmeTester second(dir.path());
    ASSERT_TRUE(first.open().ok());
    EXPECT_EQ(second.open().code(), Code::kUnavailable);
    // The refused one must not have dropped the owner's lock.
    EXPECT_EQ(second.open().code(), Code::kUnavailable);
    first.close();
    EXPECT_TRUE(second.open().ok());
}

TEST(NvmeLogTest, ForeignFoldersAreRefusedOrDiscarded) {
    TempDir dir;
    NvmeTester nvme(dir.path());
    ASSERT_TRUE(nvme.open().ok());
    ASSERT_TRUE(nvme.put("k", 1, 100).ok());
    nvme.close();
    nvme.options.node_id = "node-b";
    EXPECT_EQ(nvme.open().code(), Code::kInvalidArgument);
    nvme.options.node_id = "node-a";
    nvme.options.cluster_check = 78;
    EXPECT_EQ(nvme.open().code(), Code::kInvalidArgument);
    nvme.options.cluster_check = 77;
    nvme.options.log_file_bytes = 128 << 10;
    EXPECT_EQ(nvme.open().code(), Code::kInvalidArgument);
    nvme.options.log_file_bytes = 0;  // as it is there
    ASSERT_TRUE(nvme.open().ok());
    EXPECT_EQ(nvme.log->log_file_bytes(), 256u << 10);
    EXPECT_EQ(nvme.check("k"), 1u);
    nvme.close();
    nvme.options.node_id = "node-b";
    nvme.options.discard_foreign = true;
    ASSERT_TRUE(nvme.open().ok());
    EXPECT_EQ(nvme.check("k"), 0u);
    EXPECT_EQ(nvme.log->counters().objects, 0u);
}

TEST(NvmeLogTest, ExpiredAndFlushedObjectsAreGoneAlsoAfterAReopen) {
    TempDir dir;
    NvmeTester nvme(dir.path());
    std::atomic<uint64_t> now{1'000'000};
    nvme.options.wall_ms = [&] { return now.load(); };
    ASSERT_TRUE(nvme.open().ok());
    ASSERT_TRUE(nvme.put("soon", 1, 100, Pin::kNone, 1'000'500).ok());
    ASSERT_TRUE(nvme.put("later", 1, 100, Pin::kNone, 9'000'000).ok());
    EXPECT_EQ(nvme.list().at("soon").ttl_ms, 500u);
    EXPECT_EQ(nvme.check("soon"), 1u);
    now = 1'000'500;
    EXPECT_EQ(nvme.check("soon"), 0u) << "exact, although the index counts in seconds";
    now = 1'001'000;
    EXPECT_FALSE(nvme.log->find(nvme.ns.id, nvme.hash("soon")));
    EXPECT_EQ(nvme.list().size(), 1u);
    ASSERT_TRUE(nvme.reopen().ok());
    EXPECT_EQ(nvme.check("soon"), 0u);
    EXPECT_EQ(nvme.check("later"), 1u);
    const NamespaceEpoch other = test_namespace("other");
    ASSERT_TRUE(nvme.log->register_namespace(other).ok());
    nvme.log->flush_namespace(nvme.ns.id);
    EXPECT_EQ(nvme.check("later"), 0u);
    EXPECT_EQ(nvme.put("later", 2, 10).code(), Code::kRemoved);
    EXPECT_EQ(nvme.log->counters().objects, 0u);
    ASSERT_TRUE(nvme.log->sync_removals().ok());
    ASSERT_TRUE(nvme.reopen().ok());
    EXPECT_EQ(nvme.check("later"), 0u);
    EXPECT_EQ(nvme.list().size(), 0u);
}

TEST(NvmeLogTest, AnExpiredVersionStillHidesAnOlderOne) {
    TempDir dir;
    NvmeTester nvme(dir.path());
    std::atomic<uint64_t> now{1'000'000};
    nvme.options.wall_ms = [&] { return now.load(); };
    ASSERT_TRUE(nvme.open().ok());
    ASSERT_TRUE(nvme.put("k", 1, 100).ok());
    ASSERT_TRUE(nvme.put("k", 2, 100, Pin::kNone, 1'000'500).ok());
    now = 2'000'000;
    ASSERT_TRUE(nvme.reopen().ok());
    EXPECT_EQ(nvme.check("k"), 0u);
}

TEST(NvmeLogTest, LivesThatWriteLittleCostNoLogFileEach) {
    TempDir dir;
    NvmeTester nvme(dir.path());
    for (Version life = 1; life <= 40; ++life) {
        ASSERT_TRUE(nvme.open().ok());
        ASSERT_TRUE(nvme.put("k" + std::to_string(life), life, 100 + life).ok());
        nvme.close();
    }
    ASSERT_TRUE(nvme.open().ok());
    for (Version life = 1; life <= 40; ++life) {
        EXPECT_EQ(nvme.check("k" + std::to_string(life)), life);
    }
    EXPECT_GE(nvme.log->counters().free_log_files, 3u);
}

TEST(NvmeLogTest, ListingNamesEverythingLive) {
    TempDir dir;
    NvmeTester nvme(dir.path(), 4 << 20);
    ASSERT_TRUE(nvme.open().ok());
    const NamespaceEpoch other = test_namespace("other", 7);
    for (Version version = 1; version <= 300; ++version) {
        ASSERT_TRUE(nvme.put("k" + std::to_string(version % 200), version, 5000, Pin::kSoft).ok());
    }
    nvme.log->remove(nvme.ns.id, nvme.hash("k7"), UINT64_MAX);
    for (int life = 0; life < 2; ++life) {
        const auto all = nvme.list();
        EXPECT_EQ(all.size(), 199u);
        const NvmeListed& one = all.at("k3");
        EXPECT_EQ(one.identity.version, 203u);
        EXPECT_EQ(one.identity.length, 5000u);
        EXPECT_EQ(one.ns.name, "space");
        EXPECT_EQ(one.ns.tenant, "tenant");
        EXPECT_EQ(one.ns.epoch, 1u);
        EXPECT_EQ(one.identity.tenant, nvme.ns.tenant_id);
        EXPECT_EQ(one.pin, Pin::kSoft);
        EXPECT_EQ(one.put_wall_ms, 1203u);
        EXPECT_EQ(one.ttl_ms, 0u);
        EXPECT_EQ(one.parent, (Hash128{203, 5}));
        ASSERT_TRUE(nvme.log->sync_removals().ok());
        ASSERT_TRUE(nvme.reopen().ok());
    }
}

// Larger than a bounce buffer of the reads, and than all but two of the write buffers.
TEST(NvmeLogTest, LargeObjectsAreReadInSteps) {
    for (const bool short_reads : {false, true}) {
        TempDir dir;
        NvmeTester nvme(dir.path(), 48 << 20);
        nvme.options.log_file_bytes = 8 << 20;
        nvme.options.buffer_bytes = 1 << 20;
        nvme.options.buffers = 8;
        nvme.io.short_reads = short_reads;
        ASSERT_TRUE(nvme.open().ok());
        EXPECT_GT(nvme.log->max_object_bytes(), 5u << 20);
        const std::vector<std::string> keys = {"a", "b", "c"};
        for (const std::string& key : keys) {
            ASSERT_TRUE(nvme.put(key, 3, nvme.log->max_object_bytes() - key[0]).ok());
        }
        for (int turn = 0; turn < 2; ++turn) {
            const auto got = nvme.get_all(keys, 8 << 20);
            for (size_t i = 0; i < keys.size(); ++i) {
                ASSERT_TRUE(got[i].result.status.ok()) << got[i].result.status.to_string();
                EXPECT_TRUE(got[i].data == test_data(nvme.hash(keys[i]), 3, got[i].data.size()));
            }
            ASSERT_TRUE(nvme.reopen().ok());
        }
    }
}

TEST(NvmeLogTest, ABufferDoesNotWaitForeverToFill) {
    TempDir dir;
    NvmeTester nvme(dir.path());
    ASSERT_TRUE(nvme.open().ok());
    ASSERT_TRUE(nvme.put("k", 1, 100).ok());
    const Deadline deadline = Deadline::after_ms(30'000);
    while (nvme.log->counters().bytes_written == 0 && !deadline.expired()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_EQ(nvme.log->counters().bytes_written, kIoAlign);
    EXPECT_EQ(nvme.check("k"), 1u);
}

TEST(NvmeLogTest, TheWayOfReadingCanBeForced) {
    TempDir dir;
    NvmeTester nvme(dir.path());
    nvme.options.reads.way = NvmeReadEngine::Way::kPool;
    ASSERT_TRUE(nvme.open().ok());
    EXPECT_STREQ(nvme.log->read_way(), "pread");
    nvme.close();
    nvme.options.reads.way = NvmeReadEngine::Way::kRing;
    const Status status = nvme.open();
    if (!status.ok()) {
        GTEST_SKIP() << "this kernel offers no io_uring: " << status.to_string();
    }
    EXPECT_STREQ(nvme.log->read_way(), "io_uring");
}

// More reads at once than the depth and than the queue: every one is answered, once.
TEST(NvmeLogTest, ReadsBeyondTheQueueAreRefused) {
    for (const auto way : {NvmeReadEngine::Way::kAuto, NvmeReadEngine::Way::kPool}) {
        TempDir dir;
        NvmeTester nvme(dir.path());
        nvme.options.reads.way = way;
        nvme.options.reads.depth = 2;
        nvme.options.max_queued_reads = 8;
        ASSERT_TRUE(nvme.open().ok());
        ASSERT_TRUE(nvme.put("k", 1, 20000).ok());
        ASSERT_TRUE(nvme.log->sync().ok());
        const auto got = nvme.get_all(std::vector<std::string>(500, "k"), 20000);
        uint64_t ok = 0;
        for (const auto& one : got) {
            const Code code = one.result.status.code();
            ok += code == Code::kOk ? 1 : 0;
            EXPECT_TRUE(code == Code::kOk || code == Code::kOverloaded);
        }
        EXPECT_GE(ok, 8u);
        EXPECT_EQ(nvme.log->counters().reads, ok);
        EXPECT_EQ(nvme.log->counters().overloaded, 500 - ok);
    }
}

// Both ways, with and without a catalog, short reads and writes included.
struct Way {
    NvmeReadEngine::Way way;
    bool catalog;
    bool short_io;
};
class NvmeModelTest : public testing::TestWithParam<Way> {};

TEST_P(NvmeModelTest, AgreesWithAMapThroughReopens) {
    const uint64_t seed = 20240611 + static_cast<uint64_t>(GetParam().way);
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    TempDir dir;
    NvmeTester nvme(dir.path(), 8 << 20);
    nvme.options.reads.way = GetParam().way;
    if (!GetParam().catalog) {
        nvme.options.catalog = nullptr;
    }
    nvme.io.short_writes = nvme.io.short_reads = GetParam().short_io;
    ASSERT_TRUE(nvme.open().ok());
    std::map<std::string, Version> model;
    std::map<std::string, Version> removed;
    Version version = 0;
    for (int step = 0; step < 1500 / kSlowdown; ++step) {
        const std::string key = "key" + std::to_string(random() % 60);
        const uint64_t action = random() % 100;
        if (action < 55) {
            ++version;
            // Pinned: nothing is given up.
            ASSERT_TRUE(nvme.put(key, version, random() % 40000, Pin::kHard).ok()) << step;
            model[key] = version;
        } else if (action < 70) {
            nvme.log->remove(nvme.ns.id, nvme.hash(key), version);
            model.erase(key);
        } else if (action < 97) {
            EXPECT_EQ(nvme.check(key), model.contains(key) ? model[key] : 0) << key << " " << step;
        } else {
            ASSERT_TRUE(nvme.log->sync_removals().ok());
            ASSERT_TRUE(nvme.reopen().ok());
            EXPECT_EQ(nvme.log->counters().objects, model.size());
            EXPECT_EQ(nvme.list().size(), model.size());
        }
    }
    for (int i = 0; i < 60; ++i) {
        const std::string key = "key" + std::to_string(i);
        EXPECT_EQ(nvme.check(key), model.contains(key) ? model[key] : 0) << key;
    }
    const NvmeCounters counters = nvme.log->counters();
    EXPECT_EQ(counters.checksum_errors + counters.io_errors + counters.catalog_errors, 0u);
    EXPECT_EQ(counters.damaged_records + counters.damaged_log_files, 0u);
    EXPECT_EQ(nvme.log->state(), NvmeState::kActive);
    for (const NvmeDropped& one : nvme.dropped) {
        ADD_FAILURE() << one.key << " dropped, reason " << static_cast<int>(one.reason);
    }
}

INSTANTIATE_TEST_SUITE_P(Ways, NvmeModelTest,
                         testing::Values(Way{NvmeReadEngine::Way::kAuto, true, false},
                                         Way{NvmeReadEngine::Way::kPool, true, false},
                                         Way{NvmeReadEngine::Way::kAuto, false, true},
                                         Way{NvmeReadEngine::Way::kPool, true, true}));

TEST(NvmeLogTest, SeveralThreadsAppendFindReadAndRemove) {
    TempDir dir;
    NvmeTester nvme(dir.path(), 4 << 20);
    ASSERT_TRUE(nvme.open().ok());
    std::vector<std::thread> threads;
    std::atomic<uint64_t> ok{0};
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&, t] {
            std::mt19937_64 random(static_cast<uint64_t>(t));
            for (Version version = 1; version <= 150; ++version) {
                const std::string key =
                    "t" + std::to_string(t) + "-" + std::to_string(random() % 20);
                ASSERT_TRUE(nvme.put(key, version, random() % 30000).ok());
                if (nvme.check(key) == version) {
                    ++ok;
                }
                if (random() % 4 == 0) {
                    nvme.log->remove(nvme.ns.id, nvme.hash(key), version);
                    EXPECT_EQ(nvme.check(key), 0u);
                }
                nvme.check("t" + std::to_string((t + 1) % 4) + "-" + std::to_string(random() % 20));
            }
        });
    }
    std::thread lister([&] {
        for (int i = 0; i < 20; ++i) {
            nvme.list();
        }
    });
    for (std::thread& thread : threads) {
        thread.join();
    }
    lister.join();
    // A reclaim may take one before it is read; it is rare, and never wrong bytes.
    EXPECT_GT(ok, 500u);
    EXPECT_EQ(nvme.log->counters().checksum_errors, 0u);
    EXPECT_TRUE(nvme.log->sync().ok());
    EXPECT_TRUE(nvme.log->sync_removals().ok());
}

// A head across two buffers is read from both, while appends go on in the second.
TEST(NvmeLogTest, ASplitHeadIsReadWhileItsBufferFills) {
    TempDir dir;
    NvmeTester nvme(dir.path());
    nvme.options.flush_after_ms = 60'000;
    ASSERT_TRUE(nvme.open().ok());
    const uint64_t names = record_head_bytes(nvme.ns.tenant.size() + nvme.ns.name.size());
    const std::string split(1000, 's');
    ASSERT_TRUE(nvme.put("k", 1, (64 << 10) - kRecordAlign - names - record_head_bytes(1)).ok());
    ASSERT_TRUE(nvme.put(split, 1, 100).ok());
    const uint64_t second = kLogFileHeaderBytes + (64 << 10);
    ASSERT_EQ(nvme.log->find(nvme.ns.id, nvme.hash(split))->offset, second - kRecordAlign);
    std::atomic<bool> stop{false};
    std::thread reader([&] {
        while (!stop) {
            EXPECT_TRUE(nvme.get_all({split}, 100).front().result.status.ok());
        }
    });
    for (int i = 0; i < 250; ++i) {
        ASSERT_TRUE(nvme.put("k" + std::to_string(i), 1, 20).ok());
        std::this_thread::yield();
    }
    stop = true;
    reader.join();
    EXPECT_LE(nvme.log->counters().bytes_written, kIoAlign * 16) << "the first buffer only";
}

TEST(NvmeLogTest, AppendsAreRefusedWhenBuffersAreInFlight) {
    TempDir dir;
    NvmeTester nvme(dir.path());
    ASSERT_TRUE(nvme.open().ok());
    // More at once than there are buffers, without waiting.
    uint64_t refused = 0;
    for (Version version = 1; version < 200 && refused == 0; ++version) {
        const auto one = test_data(nvme.hash("k"), version, 60000);
        if (nvme.log->append(nvme.object("k", version, one), one).code() == Code::kOverloaded) {
            ++refused;
        }
    }
    EXPECT_GT(refused, 0u);
    EXPECT_GT(nvme.log->counters().overloaded, 0u);
    EXPECT_TRUE(nvme.log->await_space(60000, 10000));
}

}  // namespace
}  // namespace kvstore
