// What the tests of the NVMe tier share: an I/O seam that fails on demand, objects whose bytes
// prove whose they are, and a log with reads that wait.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/checksum.h"
#include "base/clock.h"
#include "base/hash.h"
#include "nvme/log.h"
#include "tests/temp_dir.h"

namespace kvstore {

// Long loops are this many times shorter where a call costs that much more.
#ifdef __SANITIZE_THREAD__
inline constexpr int kSlowdown = 8;
#else
inline constexpr int kSlowdown = 1;
#endif

// Counts calls; from the `fail_from`th on (1 is the first) the next `fail_count` end with `error`.
// Writes can be cut short instead, as can reads.
class FaultyIo : public FileIo {
  public:
    std::atomic<int64_t> calls{0};
    std::atomic<int64_t> fail_from{0};
    std::atomic<int64_t> fail_count{0};
    std::atomic<int> error{EIO};
    std::atomic<bool> fail_writes{false};
    std::atomic<bool> fail_reads{false};
    std::atomic<bool> fail_syncs{false};
    std::atomic<bool> short_writes{false};  // to whole blocks, at least one
    std::atomic<bool> short_reads{false};
    std::atomic<bool> hold_reads{false};   // those of the pool wait while this is set
    std::atomic<bool> hold_writes{false};  // every write waits while this is set
    std::atomic<int> held{0};
    std::atomic<uint64_t> free_bytes{0};  // of a file system of total_bytes; 0: what there is
    std::atomic<uint64_t> total_bytes{0};

    int open(const std::string& path, int flags) override {
        return failing() ? -error : FileIo::open(path, flags);
    }
    int64_t read(int fd, void* to, size_t size, uint64_t offset) override {
        if (failing() || fail_reads) {
            return -error;
        }
        if (hold_reads && size >= kIoAlign) {
            ++held;
            hold_reads.wait(true);
            if (fail_reads) {
                return -error;
            }
        }
        return FileIo::read(fd, to, short_reads ? shortened(size) : size, offset);
    }
    int64_t write(int fd, std::span<const iovec> parts, uint64_t offset) override {
        if (failing() || fail_writes) {
            return -error;
        }
        if (hold_writes) {
            ++held;
            hold_writes.wait(true);
        }
        if (!short_writes) {
            return FileIo::write(fd, parts, offset);
        }
        const iovec first{parts.front().iov_base, shortened(parts.front().iov_len)};
        return FileIo::write(fd, {&first, 1}, offset);
    }
    int allocate(int fd, uint64_t size) override {
        return failing() ? -error : FileIo::allocate(fd, size);
    }
    int room(const std::string& path, uint64_t* free, uint64_t* total) override {
        if (free_bytes == 0) {
            return FileIo::room(path, free, total);
        }
        *free = free_bytes;
        *total = total_bytes;
        return 0;
    }
    int sync(int fd) override { return failing() || fail_syncs ? -error : FileIo::sync(fd); }
    int unlink(const std::string& path) override {
        return failing() ? -error : FileIo::unlink(path);
    }
    int64_t ring_result(int64_t result, size_t size) override {
        if (failing() || fail_reads) {
            return -error;
        }
        if (!short_reads || result <= 0) {
            return result;
        }
        return std::min<int64_t>(result, static_cast<int64_t>(shortened(size)));
    }

  private:
    bool failing() {
        const int64_t call = ++calls;
        return fail_from > 0 && call >= fail_from && call < fail_from + fail_count;
    }
    static size_t shortened(size_t size) {
        return size <= kIoAlign ? size : (size / kIoAlign + 1) / 2 * kIoAlign;
    }
};

inline constexpr HashSecret kTestSecret = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

inline NamespaceEpoch test_namespace(const std::string& name = "space", uint32_t epoch = 1) {
    return {.tenant = "tenant",
            .name = name,
            .epoch = epoch,
            .tenant_id = tenant_id(kTestSecret, "tenant"),
            .id = namespace_id(kTestSecret, "tenant", name, epoch)};
}

// The bytes of (key, version): every eight of them say whose they are and where they belong.
inline std::vector<uint8_t> test_data(const Hash128& hash, Version version, size_t size) {
    std::vector<uint8_t> data(size);
    for (size_t at = 0; at < size; at += 8) {
        const uint64_t word = (hash.lo ^ version * 0x9e3779b97f4a7c15ull) + at;
        std::memcpy(data.data() + at, &word, std::min<size_t>(8, size - at));
    }
    return data;
}

class NvmeTester {
  public:
    explicit NvmeTester(std::string directory, uint64_t size_bytes = 1 << 20) {
        options.directory = std::move(directory);
        options.size_bytes = size_bytes;
        options.log_file_bytes = 256 << 10;
        options.node_id = "node-a";
        options.cluster_check = 77;
        options.buffer_bytes = 64 << 10;
        options.buffers = 6;
        options.flush_after_ms = 20;
        options.reads.depth = 8;
        options.io = &io;
        options.catalog = &catalog;
        options.on_dropped = [this](const NvmeDropped& one) {
            const std::lock_guard lock(mutex);
            dropped.push_back(one);
        };
    }
    ~NvmeTester() { close(); }

    Status open() {
        Result<std::unique_ptr<NvmeLog>> opened = NvmeLog::open(options);
        if (!opened.ok()) {
            return opened.status();
        }
        log = std::move(*opened);
        return log->register_namespace(ns);
    }
    void close() { log.reset(); }
    Status reopen() {
        close();
        return open();
    }

    Hash128 hash(std::string_view key) const { return key_hash(kTestSecret, ns.id, key); }
    // `key` must outlive the object: a literal, or a string of the caller's.
    NvmeObject object(std::string_view key, Version version, std::span<const uint8_t> data) const {
        NvmeObject one;
        one.identity = {.tenant = ns.tenant_id,
                        .ns = ns.id,
                        .hash = hash(key),
                        .version = version,
                        .length = data.size()};
        one.sealed_crc = seal_checksum(crc32c(data.data(), data.size()), one.identity);
        one.key = key;
        one.put_wall_ms = 1000 + version;
        one.parent = {version, 5};
        return one;
    }
    // Waits for room; every other refusal is returned.
    Status put(const std::string& key, Version version, size_t size, Pin pin = Pin::kNone,
               uint64_t expires_at_ms = 0) {
        const std::vector<uint8_t> data = test_data(hash(key), version, size);
        NvmeObject one = object(key, version, data);
        one.pin = pin;
        one.expires_at_ms = expires_at_ms;
        for (int tries = 0; tries < 1000; ++tries) {
            Status status = log->append(one, data);
            if (status.code() != Code::kOverloaded) {
                return status;
            }
            log->await_space(size, 100);
        }
        return {Code::kOverloaded, "no room for ten seconds"};
    }

    struct Got {
        NvmeReadResult result;
        std::vector<uint8_t> data;
    };
    std::vector<Got> get_all(const std::vector<std::string>& keys, size_t capacity) {
        std::vector<Got> got(keys.size());
        std::vector<NvmeRead> reads;
        for (size_t i = 0; i < keys.size(); ++i) {
            got[i].data.resize(capacity + 1);
            // Odd addresses: destinations have any alignment.
            reads.push_back({.ns = ns.id,
                             .hash = hash(keys[i]),
                             .version = 0,
                             .key = keys[i],
                             .to = got[i].data.data() + 1,
                             .capacity = capacity,
                             .tag = i});
        }
        std::mutex done_mutex;
        std::condition_variable done;
        size_t left = reads.size();
        log->read(reads, [&](uint64_t tag, const NvmeReadResult& result) {
            const std::lock_guard lock(done_mutex);
            got[tag].result = result;
            if (--left == 0) {
                done.notify_all();
            }
        });
        std::unique_lock lock(done_mutex);
        EXPECT_TRUE(done.wait_for(lock, std::chrono::seconds(60), [&] { return left == 0; }));
        for (Got& one : got) {
            one.data.erase(one.data.begin());
            one.data.resize(one.result.identity.length);
        }
        return got;
    }
    size_t most_bytes = 256 << 10;  // of what get() and check() read to
    Got get(const std::string& key) {
        return std::move(get_all(std::vector{key}, most_bytes).front());
    }

    // Ok answers are right answers; anything else says so. Returns the version, 0 for none.
    Version check(const std::string& key) {
        const Got got = get(key);
        if (!got.result.status.ok()) {
            return 0;
        }
        const Version version = got.result.identity.version;
        EXPECT_EQ(got.data, test_data(hash(key), version, got.data.size())) << key;
        EXPECT_EQ(got.result.put_wall_ms, 1000 + version);
        EXPECT_EQ(got.result.parent, (Hash128{version, 5}));
        return version;
    }

    // Until nothing is left for the maintenance to do.
    void settle() {
        const Deadline deadline = Deadline::after_ms(30'000);
        uint64_t before = UINT64_MAX;
        while (!deadline.expired()) {
            const NvmeCounters now = log->counters();
            if (now.free_log_files >= 2 && now.log_files_reclaimed == before) {
                return;
            }
            before = now.log_files_reclaimed;
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
        ADD_FAILURE() << "the log does not come to rest";
    }

    std::map<std::string, NvmeListed> list(size_t batch = 7) {
        std::map<std::string, NvmeListed> all;
        NvmeCursor cursor;
        while (!cursor.done) {
            std::vector<NvmeListed> rows;
            EXPECT_TRUE(log->list(&cursor, batch, &rows).ok());
            EXPECT_LE(rows.size(), batch);
            for (NvmeListed& row : rows) {
                all[row.key] = row;
            }
        }
        return all;
    }

    FaultyIo io;
    MemoryCatalog catalog;
    NvmeOptions options;
    NamespaceEpoch ns = test_namespace();
    std::mutex mutex;
    std::vector<NvmeDropped> dropped;
    std::unique_ptr<NvmeLog> log;
};

inline std::string log_file_path(const std::string& folder, uint64_t number) {
    return folder + "/segment-" + std::to_string(number) + ".kvs";
}

inline void copy_folder(const std::string& from, const std::string& to) {
    std::filesystem::remove_all(to);
    std::filesystem::copy(from, to, std::filesystem::copy_options::recursive);
}

}  // namespace kvstore
