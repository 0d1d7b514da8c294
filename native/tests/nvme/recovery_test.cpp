// Recovery from cut, damaged, truncated and half-written files: what was whole is there, nothing
// else is, and no byte is wrong.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "tests/nvme/fixture.h"
#include "tests/waiting.h"

namespace kvstore {
namespace {

struct Placed {
    uint32_t file;
    uint64_t offset;
    uint64_t end;
};

void overwrite(const std::string& path, uint64_t offset, const std::vector<uint8_t>& bytes) {
    const Fd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
    ASSERT_EQ(pwrite(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)),
              static_cast<ssize_t>(bytes.size()));
}

// A folder with objects in several small log files, written once for all tests, and what is where.
class NvmeRecoveryTest : public ::testing::Test {
  protected:
    static constexpr uint64_t kLogFileBytes = 64 << 10;
    static constexpr int kObjects = 60;

    void SetUp() override {
        source_ = dir_.path() + "/source";
        work_ = dir_.path() + "/work";
        NvmeTester nvme(source_);
        adjust(nvme);
        std::mt19937_64 random(11);
        ASSERT_TRUE(nvme.open().ok());
        for (int i = 0; i < kObjects; ++i) {
            ASSERT_TRUE(nvme.put(key(i), version(i), random() % 6000).ok());
            ASSERT_TRUE(i % 7 != 0 || nvme.log->sync().ok());  // pads in between
        }
        ASSERT_TRUE(nvme.put("removed", 1, 500).ok());
        ASSERT_TRUE(nvme.log->sync().ok());
        ASSERT_TRUE(nvme.log->remove(nvme.ns.id, nvme.hash("removed"), 1));
        ASSERT_TRUE(nvme.log->sync_removals().ok());
        for (int i = 0; i < kObjects; ++i) {
            const auto found = nvme.log->find(nvme.ns.id, nvme.hash(key(i)));
            ASSERT_TRUE(found);
            places_.push_back({found->file, found->offset,
                               found->offset + record_bytes(key(i).size(), found->length)});
        }
        // Files are sealed behind the writes.
        ASSERT_TRUE(testing::eventually([&] { return nvme.catalog.list()->size() >= 2; }));
        nvme.close();
        const std::vector<uint64_t> sealed = *nvme.catalog.list();
        for (const uint64_t seq : sealed) {
            catalog_[seq] = *nvme.catalog.load(seq);
        }
    }
    static std::string key(int i) { return "key-" + std::to_string(i); }
    static Version version(int i) { return static_cast<Version>(100 + i); }
    static void adjust(NvmeTester& nvme) { nvme.options.log_file_bytes = kLogFileBytes; }

    // A fresh copy, to be damaged and opened.
    std::unique_ptr<NvmeTester> copy(bool with_catalog) {
        copy_folder(source_, work_);
        auto nvme = std::make_unique<NvmeTester>(work_);
        adjust(*nvme);
        if (with_catalog) {
            for (const auto& [seq, row] : catalog_) {
                nvme->catalog.save(seq, row).ok();
            }
        }
        return nvme;
    }
    // Whole records in front of the cut are there, nothing behind it is.
    void expect_cut(NvmeTester& nvme, uint32_t file, uint64_t cut) {
        ASSERT_TRUE(nvme.open().ok());
        uint64_t expected = 0;
        for (int i = 0; i < kObjects; ++i) {
            const Placed& place = places_[static_cast<size_t>(i)];
            const bool there = place.file != file || place.end <= cut;
            expected += there ? 1 : 0;
            ASSERT_EQ(nvme.check(key(i)), there ? version(i) : 0)
                << key(i) << " cut at " << cut << " of log file " << file;
        }
        ASSERT_EQ(nvme.log->counters().objects, expected);
        ASSERT_EQ(nvme.log->counters().recovered_objects, expected) << "before any read";
        ASSERT_EQ(nvme.check("removed"), 0u);
        ASSERT_EQ(nvme.log->state(), NvmeState::kActive);
    }
    std::vector<uint64_t> boundaries(uint32_t file) const {
        std::vector<uint64_t> at = {kLogFileHeaderBytes};
        for (const Placed& place : places_) {
            if (place.file != file) {
                continue;
            }
            at.push_back(place.offset);
            at.push_back(place.end);
        }
        std::sort(at.begin(), at.end());
        at.erase(std::unique(at.begin(), at.end()), at.end());
        return at;
    }
    uint32_t last_file() const { return places_.back().file; }

    TempDir dir_{true};
    std::string source_;
    std::string work_;
    std::vector<Placed> places_;
    std::map<uint64_t, std::vector<uint8_t>> catalog_;
};

TEST_F(NvmeRecoveryTest, TheFixtureSpansSealedLogFilesAndAnOpenOne) {
    EXPECT_GE(last_file(), 2u);
    EXPECT_GE(catalog_.size(), 2u);
    for (const bool with_catalog : {true, false}) {
        auto nvme = copy(with_catalog);
        expect_cut(*nvme, UINT32_MAX, 0);
        EXPECT_EQ(nvme->log->counters().scanned_log_files > 1,
                  !with_catalog || catalog_.size() < 2);
        EXPECT_EQ(nvme->list().size(), static_cast<size_t>(kObjects));
    }
}

// In the open log file (a torn tail) and in a full one without a manifest; zeros, garbage and the
// end of the file behind the cut.
TEST_F(NvmeRecoveryTest, ATornWriteIsCutAtTheLastWholeRecord) {
    std::mt19937_64 random(12);
    for (const uint32_t file : {places_.front().file, last_file()}) {
        std::vector<uint64_t> cuts = boundaries(file);
        for (int i = 0; i < 25; ++i) {
            cuts.push_back(kLogFileHeaderBytes + random() % 50000);
        }
        for (size_t i = 0; i < cuts.size(); ++i) {
            auto nvme = copy(false);
            const std::string path = log_file_path(work_, file);
            if (i % 3 == 0) {
                ASSERT_EQ(truncate(path.c_str(), static_cast<off_t>(cuts[i])), 0);
            } else {
                std::vector<uint8_t> behind(kLogFileBytes - cuts[i]);
                if (i % 3 == 1) {
                    for (uint8_t& byte : behind) {
                        byte = static_cast<uint8_t>(random());
                    }
                }
                overwrite(path, cuts[i], behind);
            }
            // Data that ends in zeros may be whole although its last bytes were cut off.
            uint64_t cut = cuts[i];
            for (const Placed& place : places_) {
                if (place.file == file && place.offset < cut && place.end > cut &&
                    place.end - cut < kRecordAlign) {
                    cut = place.end;
                }
            }
            if (cut != cuts[i]) {
                continue;
            }
            expect_cut(*nvme, file, cut);
            if (HasFatalFailure()) {
                return;
            }
        }
    }
}

// The next life writes where the last one was cut; a third one finds both, and nothing of what lay
// behind the cut.
TEST_F(NvmeRecoveryTest, TheLogGoesOnBehindACut) {
    std::mt19937_64 random(13);
    const uint32_t file = last_file();
    for (const uint64_t boundary : boundaries(file)) {
        // One damaged record in the middle of the open log file; whole ones lie behind it.
        auto nvme = copy(false);
        overwrite(log_file_path(work_, file), boundary, std::vector<uint8_t>(48, 0x5a));
        ASSERT_TRUE(nvme->open().ok());
        std::map<int, Version> there;
        for (int i = 0; i < kObjects; ++i) {
            there[i] = nvme->check(key(i));
        }
        // Removes what the cut took: nothing on disk has to be marked, and yet it stays gone.
        for (int i = 0; i < kObjects; ++i) {
            if (there[i] == 0) {
                nvme->log->remove(nvme->ns.id, nvme->hash(key(i)), version(i));
            }
        }
        ASSERT_TRUE(nvme->put("new", 1, random() % 3000).ok());
        ASSERT_TRUE(nvme->log->sync_removals().ok());
        for (int life = 0; life < 2; ++life) {
            ASSERT_TRUE(nvme->reopen().ok());
            for (int i = 0; i < kObjects; ++i) {
                ASSERT_EQ(nvme->check(key(i)), there[i]) << boundary;
            }
            ASSERT_EQ(nvme->check("new"), 1u);
        }
    }
}

// Every object in blocks of its own, so that what the next life writes ends exactly where a record
// begins that the cut took: whole, and of the same use of the log file.
TEST_F(NvmeRecoveryTest, WhatLiesBehindACutDoesNotComeBack) {
    NvmeTester nvme(work_);
    adjust(nvme);
    nvme.options.catalog = nullptr;
    ASSERT_TRUE(nvme.open().ok());
    for (int i = 0; i < 6; ++i) {
        ASSERT_TRUE(nvme.put(key(i), version(i), 3000).ok());
        ASSERT_TRUE(nvme.log->sync().ok());
    }
    const NvmeFound damaged = *nvme.log->find(nvme.ns.id, nvme.hash(key(2)));
    nvme.close();
    overwrite(log_file_path(work_, damaged.file), damaged.offset, std::vector<uint8_t>(64));
    ASSERT_TRUE(nvme.open().ok());
    EXPECT_EQ(nvme.check(key(1)), version(1));
    EXPECT_EQ(nvme.check(key(3)), 0u);
    nvme.log->remove(nvme.ns.id, nvme.hash(key(3)), version(3));
    ASSERT_TRUE(nvme.log->sync_removals().ok());
    ASSERT_TRUE(nvme.put("new", 1, 3000).ok());
    ASSERT_EQ(nvme.log->find(nvme.ns.id, nvme.hash("new"))->offset, damaged.offset);
    ASSERT_TRUE(nvme.reopen().ok());
    EXPECT_EQ(nvme.check("new"), 1u);
    EXPECT_EQ(nvme.check(key(1)), version(1));
    for (int i = 3; i < 6; ++i) {
        EXPECT_EQ(nvme.check(key(i)), 0u) << i;
    }
}

TEST_F(NvmeRecoveryTest, FlippedBytesNeverGiveWrongData) {
    constexpr uint64_t kSeed = 14;
    std::mt19937_64 random(kSeed);
    uint64_t lost = 0;
    constexpr int kRounds = 1000 / kSlowdown;
    for (int round = 0; round < kRounds; ++round) {
        SCOPED_TRACE("seed " + std::to_string(kSeed) + " round " + std::to_string(round));
        auto nvme = copy(round % 2 == 0);
        const auto file = static_cast<uint32_t>(random() % (last_file() + 1));
        // Headers, heads and keys are few bytes beside the data: every fourth flip is for them.
        uint64_t at = random() % kLogFileBytes;
        if (round % 4 == 1) {
            at = random() % 64;
        }
        if (round % 4 == 3) {
            const auto marks = boundaries(file);
            at = std::min(marks[random() % marks.size()] + random() % 130, kLogFileBytes - 1);
        }
        const std::string path = log_file_path(work_, file);
        std::vector<uint8_t> byte(1);
        std::ifstream(path, std::ios::binary)
            .seekg(static_cast<std::streamoff>(at))
            .read(reinterpret_cast<char*>(byte.data()), 1);
        byte[0] ^= static_cast<uint8_t>(1u << random() % 8);
        overwrite(path, at, byte);
        if (round % 10 == 0 && !catalog_.empty()) {
            auto row = catalog_.begin()->second;
            row[random() % row.size()] ^= 0x40;
            nvme->catalog.save(catalog_.begin()->first, row).ok();
        }
        const Status opened = nvme->open();
        if (!opened.ok()) {
            ADD_FAILURE() << opened.to_string();
            continue;
        }
        for (int i = 0; i < kObjects; ++i) {
            const Version got = nvme->check(key(i));
            ASSERT_TRUE(got == 0 || got == version(i));
            lost += got == 0 ? 1 : 0;
        }
        ASSERT_EQ(nvme->check("removed"), 0u);
    }
    EXPECT_GT(lost, kRounds / 10u) << "the flips hit nothing";
    EXPECT_LT(lost, kRounds * uint64_t{kObjects} / 4);
}

TEST_F(NvmeRecoveryTest, AFlippedRemovalIsCountedAndTheOthersStand) {
    auto nvme = copy(true);
    ASSERT_TRUE(nvme->open().ok());
    ASSERT_TRUE(nvme->log->remove(nvme->ns.id, nvme->hash(key(1)), version(1)));
    ASSERT_TRUE(nvme->log->remove(nvme->ns.id, nvme->hash(key(2)), version(2)));
    ASSERT_TRUE(nvme->log->sync_removals().ok());
    nvme->close();
    overwrite(work_ + "/removals-2.kvs", 30, {0xff});
    ASSERT_TRUE(nvme->open().ok());
    EXPECT_EQ(nvme->log->counters().damaged_removals, 1u);
    EXPECT_EQ(nvme->check(key(2)), 0u);
    EXPECT_EQ(nvme->check("removed"), 0u);
}

TEST_F(NvmeRecoveryTest, ACatalogThatFailsCostsNothingButTheScan) {
    class Failing : public NvmeCatalog {
      public:
        Status save(uint64_t, std::span<const uint8_t>) override { return Code::kIoError; }
        Result<std::vector<uint8_t>> load(uint64_t) override { return Code::kIoError; }
        Status drop(uint64_t) override { return Code::kIoError; }
        Result<std::vector<uint64_t>> list() override { return Code::kIoError; }
    } failing;
    auto nvme = copy(false);
    nvme->options.catalog = &failing;
    expect_cut(*nvme, UINT32_MAX, 0);
    for (Version i = 0; i < 300; ++i) {
        ASSERT_TRUE(nvme->put("more" + std::to_string(i % 9), 1000 + i, 5000).ok());
    }
    EXPECT_GT(nvme->log->counters().log_files_reclaimed, 3u);
    EXPECT_GT(nvme->log->counters().catalog_errors, 3u);
    EXPECT_EQ(nvme->list().size(), nvme->log->counters().objects);
    EXPECT_EQ(nvme->log->state(), NvmeState::kActive);
    ASSERT_TRUE(nvme->reopen().ok());
    EXPECT_EQ(nvme->check("more3"), 1000u + 291);
}

// kill -9 right after sync(): all of it is there.
TEST_F(NvmeRecoveryTest, AKilledProcessLosesNothingThatWasSynced) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        auto* nvme = new NvmeTester(work_);
        adjust(*nvme);
        bool ok = nvme->open().ok();
        for (int i = 0; i < kObjects && ok; ++i) {
            ok = nvme->put(key(i), version(i), 3000).ok();
        }
        ok = ok && nvme->log->remove(nvme->ns.id, nvme->hash(key(9)), UINT64_MAX);
        ok = ok && nvme->log->sync().ok() && nvme->log->sync_removals().ok();
        if (ok) {
            kill(getpid(), SIGKILL);
        }
        _exit(1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << status;
    NvmeTester nvme(work_);
    adjust(nvme);
    ASSERT_TRUE(nvme.open().ok());
    for (int i = 0; i < kObjects; ++i) {
        EXPECT_EQ(nvme.check(key(i)), i == 9 ? 0 : version(i));
    }
}

}  // namespace
}  // namespace kvstore
