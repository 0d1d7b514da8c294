// The NVMe log beside the disk itself: sequential writes and random reads of one size, raw
// (O_DIRECT) and through the log, in turns on the same file system. The log writes objects that it
// copies, and others from shared memory, as a node's segment is; with the processor time that each
// way takes. Prints one JSON object.
//
//   nvme_bench FOLDER [MiB a round] [rounds] [depth] [objects of the recovery]
//
// FOLDER must be on the disk to be measured; what is written there is deleted again.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/checksum.h"
#include "base/clock.h"
#include "base/hash.h"
#include "nvme/log.h"

namespace kvstore {
namespace {

constexpr size_t kObjectBytes = 1 << 20;
constexpr size_t kSegmentBytes = 512 << 20;
constexpr size_t kSmallBytes = 4096;
constexpr uint64_t kSeed = 1;
constexpr HashSecret kSecret = {7};

[[noreturn]] void fail(const std::string& what) {
    std::cerr << "nvme_bench: " << what << std::endl;
    std::exit(1);
}

void must(const Status& status) {
    if (!status.ok()) {
        fail(status.to_string());
    }
}

double gib_per_s(uint64_t bytes, uint64_t ns) {
    return static_cast<double>(bytes) / (1 << 30) / (static_cast<double>(ns) / 1e9);
}

// Of this process, in user space and in the kernel.
double cpu_s() {
    rusage used{};
    getrusage(RUSAGE_SELF, &used);
    const auto seconds = [](const timeval& time) {
        return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
    };
    return seconds(used.ru_utime) + seconds(used.ru_stime);
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

// Counts completions down; the benchmark's threads wait for a free place.
class Window {
  public:
    explicit Window(size_t depth) : free_(depth), depth_(depth) {}
    void enter() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return free_ > 0; });
        --free_;
    }
    void leave() {
        const std::lock_guard lock(mutex_);
        ++free_;
        changed_.notify_all();
    }
    void drain() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return free_ == depth_; });
    }

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    size_t free_;
    size_t depth_;
};

class NvmeBench {
  public:
    NvmeBench(std::string folder, size_t mib, size_t depth)
        : folder_(std::move(folder)), objects_(mib), depth_(depth), data_(kObjectBytes) {
        std::mt19937_64 random(kSeed);
        for (size_t at = 0; at < data_.size(); at += 8) {
            const uint64_t word = random();
            std::memcpy(data_.data() + at, &word, 8);
        }
        raw_ =
            Fd(::open((folder_ + "/raw").c_str(), O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600));
        if (!raw_.valid()) {
            fail("O_DIRECT is not possible in " + folder_);
        }
        if (fallocate(raw_.get(), 0, 0, static_cast<off_t>(objects_ * kObjectBytes)) != 0) {
            fail("no room in " + folder_);
        }
        const Fd segment(memfd_create("segment", MFD_CLOEXEC));
        void* mapped = MAP_FAILED;
        if (segment.valid() && ftruncate(segment.get(), kSegmentBytes) == 0) {
            mapped =
                mmap(nullptr, kSegmentBytes, PROT_READ | PROT_WRITE, MAP_SHARED, segment.get(), 0);
        }
        if (mapped == MAP_FAILED) {
            fail("no shared memory");
        }
        segment_ = static_cast<uint8_t*>(mapped);
        (void)madvise(mapped, kSegmentBytes, MADV_HUGEPAGE);  // where shmem_enabled is `advise`
        for (size_t at = 0; at < kSegmentBytes; at += kObjectBytes) {
            std::memcpy(segment_ + at, data_.data(), kObjectBytes);
        }
        ns_ = {.tenant = "bench", .name = "", .epoch = 1, .tenant_id = 2, .id = 1};
    }
    ~NvmeBench() {
        log_.reset();
        munmap(segment_, kSegmentBytes);
        std::error_code ignored;
        std::filesystem::remove(folder_ + "/raw", ignored);
        std::filesystem::remove_all(folder_ + "/log", ignored);
        std::filesystem::remove_all(folder_ + "/recovery", ignored);
    }

    void open_log() { log_ = open("/log", (objects_ * kObjectBytes) * 5 / 2, &catalog_); }
    const char* read_way() const { return log_->read_way(); }

    // Two writers of 2 MiB each, as the log has them.
    double raw_write() {
        constexpr size_t kWrite = 2 << 20;
        const size_t writes = objects_ * kObjectBytes / kWrite;
        std::atomic<size_t> next{0};
        const uint64_t start = monotonic_ns();
        std::vector<std::thread> writers;
        for (int t = 0; t < 2; ++t) {
            writers.emplace_back([&] {
                AlignedBuffer buffer(kWrite);
                std::memcpy(buffer.data(), data_.data(), kObjectBytes);
                std::memcpy(buffer.data() + kObjectBytes, data_.data(), kObjectBytes);
                for (size_t i = next++; i < writes; i = next++) {
                    must(write_fully(FileIo::system(), raw_.get(), buffer.data(), kWrite,
                                     i * kWrite, "raw"));
                }
            });
        }
        for (std::thread& writer : writers) {
            writer.join();
        }
        if (fdatasync(raw_.get()) != 0) {
            fail("fdatasync");
        }
        return gib_per_s(objects_ * kObjectBytes, monotonic_ns() - start);
    }

    // Copied, the log checks the seal while it does so; lent, the log writes it from the segment.
    double log_write(Version version, bool lend) {
        const uint32_t crc = crc32c(data_.data(), data_.size());
        const std::shared_ptr<const void> lender(segment_, [](const void*) {});
        const uint64_t start = monotonic_ns();
        for (uint64_t n = 0; n < objects_; ++n) {
            const uint8_t* from = segment_ + n * kObjectBytes % kSegmentBytes;
            append(*log_, "object-" + std::to_string(n), version, {from, kObjectBytes}, crc,
                   lend ? lender : nullptr);
        }
        must(log_->sync());
        return gib_per_s(objects_ * kObjectBytes, monotonic_ns() - start);
    }

    double raw_read(uint64_t round, NvmeReadEngine& engine) {
        struct Op : NvmeReadOp {
            AlignedBuffer buffer{kObjectBytes};
            Window* window = nullptr;
            std::atomic<bool> busy{false};
            void complete(int64_t result) override {
                if (result != static_cast<int64_t>(kObjectBytes)) {
                    fail("raw read");
                }
                busy = false;
                window->leave();
            }
        };
        std::mt19937_64 random(kSeed + round);
        Window window(depth_);
        std::vector<Op> ops(depth_);
        const uint64_t start = monotonic_ns();
        for (size_t i = 0; i < objects_; ++i) {
            window.enter();
            Op& op = *std::find_if(ops.begin(), ops.end(), [](Op& one) { return !one.busy; });
            op.busy = true;
            op.window = &window;
            op.fd = raw_.get();
            op.to = op.buffer.data();
            op.size = kObjectBytes;
            op.offset = random() % objects_ * kObjectBytes;
            engine.submit(&op);
        }
        window.drain();
        return gib_per_s(objects_ * kObjectBytes, monotonic_ns() - start);
    }

    double log_read(uint64_t round) {
        std::mt19937_64 random(kSeed + round);
        Window window(depth_);
        std::vector<std::vector<uint8_t>> to(depth_, std::vector<uint8_t>(kObjectBytes));
        std::vector<std::atomic<bool>> busy(depth_);
        const uint64_t start = monotonic_ns();
        for (size_t i = 0; i < objects_; ++i) {
            window.enter();
            const auto slot =
                static_cast<size_t>(std::find(busy.begin(), busy.end(), false) - busy.begin());
            busy[slot] = true;
            const std::string key = "object-" + std::to_string(random() % objects_);
            const NvmeRead read{.ns = ns_.id,
                                .hash = key_hash(kSecret, ns_.id, key),
                                .version = 0,
                                .key = key,
                                .to = to[slot].data(),
                                .capacity = kObjectBytes,
                                .tag = slot};
            log_->read({&read, 1}, [&](uint64_t tag, const NvmeReadResult& result) {
                must(result.status);
                busy[tag] = false;
                window.leave();
            });
        }
        window.drain();
        return gib_per_s(objects_ * kObjectBytes, monotonic_ns() - start);
    }

    // Many small objects, then two openings: by manifests, and by scans.
    void recovery(uint64_t count) {
        MemoryCatalog catalog;
        const uint64_t tier_bytes = count * (kSmallBytes + 256) * 3 / 2 + (512 << 20);
        auto log = open("/recovery", tier_bytes, &catalog);
        const std::vector<uint8_t> data(data_.begin(), data_.begin() + kSmallBytes);
        const uint32_t crc = crc32c(data.data(), data.size());
        const uint64_t start = monotonic_ns();
        for (uint64_t n = 0; n < count; ++n) {
            append(*log, "a page's hash in hexadecimal " + std::to_string(n), 1, data, crc);
        }
        must(log->sync());
        const double appends =
            static_cast<double>(count) * 1e9 / static_cast<double>(monotonic_ns() - start);
        const double each = static_cast<double>(log->counters().index_bytes) /
                            static_cast<double>(log->counters().objects);
        std::cout << R"(,"small_objects":)" << log->counters().objects
                  << R"(,"small_appends_per_s":)" << appends << R"(,"index_bytes_an_object":)"
                  << each;
        for (NvmeCatalog* used :
             {static_cast<NvmeCatalog*>(&catalog), static_cast<NvmeCatalog*>(nullptr)}) {
            log.reset();
            const uint64_t before = monotonic_ns();
            log = open("/recovery", tier_bytes, used);
            const double seconds = static_cast<double>(monotonic_ns() - before) / 1e9;
            if (log->counters().objects != count) {
                fail("objects were lost");
            }
            std::cout << (used != nullptr ? R"(,"recovery_by_manifests_s":)"
                                          : R"(,"recovery_by_scan_s":)")
                      << seconds;
        }
    }

  private:
    std::unique_ptr<NvmeLog> open(const std::string& name, uint64_t bytes, NvmeCatalog* catalog) {
        NvmeOptions options;
        options.directory = folder_ + name;
        options.size_bytes = bytes;
        options.node_id = "bench";
        options.catalog = catalog;
        options.reads.depth = depth_;
        Result<std::unique_ptr<NvmeLog>> log = NvmeLog::open(options);
        must(log.status());
        must(log.value()->register_namespace(ns_));
        return std::move(*log);
    }
    void append(NvmeLog& log, const std::string& key, Version version,
                std::span<const uint8_t> data, uint32_t crc,
                const std::shared_ptr<const void>& lender = nullptr) {
        NvmeObject object;
        object.identity = {.tenant = ns_.tenant_id,
                           .ns = ns_.id,
                           .hash = key_hash(kSecret, ns_.id, key),
                           .version = version,
                           .length = data.size()};
        object.sealed_crc = seal_checksum(crc, object.identity);
        object.key = key;
        while (true) {
            Status status = log.append(object, data, lender);
            if (status.code() != Code::kOverloaded) {
                return must(status);
            }
            log.await_space(data.size(), 1000);
        }
    }

    std::string folder_;
    uint64_t objects_;
    size_t depth_;
    std::vector<uint8_t> data_;
    uint8_t* segment_ = nullptr;
    Fd raw_;
    NamespaceEpoch ns_;
    MemoryCatalog catalog_;
    std::unique_ptr<NvmeLog> log_;
};

void print(const char* name, const std::vector<double>& values) {
    std::cout << ",\"" << name << "\":[";
    for (size_t i = 0; i < values.size(); ++i) {
        std::cout << (i == 0 ? "" : ",") << values[i];
    }
    std::cout << "]";
}

void run(const std::string& folder, size_t mib, size_t rounds, size_t depth, uint64_t small) {
    NvmeBench bench(folder, mib, depth);
    bench.open_log();
    Result<std::unique_ptr<NvmeReadEngine>> engine = NvmeReadEngine::create(
        FileIo::system(), {.way = NvmeReadEngine::Way::kAuto, .depth = depth, .threads = 2});
    must(engine.status());
    std::vector<double> raw_writes;
    std::vector<double> log_writes;
    std::vector<double> lent_writes;
    std::vector<double> write_cpu;
    std::vector<double> lent_cpu;
    const double gib = static_cast<double>(mib) / 1024;
    std::vector<double> raw_reads;
    std::vector<double> log_reads;
    bench.raw_write();  // the first write of a preallocated file is another one
    bench.log_write(1, false);
    for (uint64_t round = 1; round <= rounds; ++round) {
        raw_writes.push_back(bench.raw_write());
        const double before = cpu_s();
        log_writes.push_back(bench.log_write(2 * round, false));
        const double between = cpu_s();
        lent_writes.push_back(bench.log_write(2 * round + 1, true));
        write_cpu.push_back((between - before) / gib);
        lent_cpu.push_back((cpu_s() - between) / gib);
        raw_reads.push_back(bench.raw_read(round, **engine));
        log_reads.push_back(bench.log_read(round));
    }
    std::cout << R"({"seed":)" << kSeed << R"(,"object_bytes":)" << kObjectBytes << R"(,"mib":)"
              << mib << R"(,"depth":)" << depth << R"(,"way":")" << bench.read_way() << '"';
    print("raw_write_gib_per_s", raw_writes);
    print("log_write_gib_per_s", log_writes);
    print("log_write_lent_gib_per_s", lent_writes);
    print("log_write_cpu_s_per_gib", write_cpu);
    print("log_write_lent_cpu_s_per_gib", lent_cpu);
    print("raw_read_gib_per_s", raw_reads);
    print("log_read_gib_per_s", log_reads);
    std::cout << R"(,"write_ratio":)" << median(log_writes) / median(raw_writes)
              << R"(,"write_lent_ratio":)" << median(lent_writes) / median(raw_writes)
              << R"(,"read_ratio":)" << median(log_reads) / median(raw_reads);
    if (small > 0) {
        bench.recovery(small);
    }
    std::cout << "}" << std::endl;
}

}  // namespace
}  // namespace kvstore

int main(int argc, char** argv) {
    if (argc < 2) {
        std::cerr << "usage: nvme_bench FOLDER [MiB] [rounds] [depth] [small objects]" << std::endl;
        return 2;
    }
    const auto number = [&](int at, uint64_t otherwise) {
        return argc > at ? std::strtoull(argv[at], nullptr, 10) : otherwise;
    };
    kvstore::run(argv[1], number(2, 1024), number(3, 3), number(4, 16), number(5, 0));
    return 0;
}
