// The master's directory alone: announcements, lookups in batches of 128, memory, and lookups while
// a node announces everything again. Prints one JSON object.
//
//   directory_bench [objects] [seconds of each lookup phase]
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "directory/directory.h"

namespace kvstore {
namespace {

constexpr size_t kBatch = 128;
constexpr size_t kFrame = 512;    // as a node announces
constexpr size_t kKeyBytes = 32;  // a page's hash in hexadecimal
constexpr size_t kRejoinObjects = 1'000'000;
constexpr uint64_t kObjectBytes = 262144;
constexpr NodeNumber kNode = 1;
constexpr NodeNumber kRejoining = 2;
constexpr uint64_t kSeed = 1;

// All keys in one piece of memory, so that they are no part of what is measured.
class Keys {
  public:
    explicit Keys(size_t count) : text_(count * kKeyBytes), count_(count) {
        static constexpr char kDigits[] = "0123456789abcdef";
        std::mt19937_64 random(kSeed);
        for (size_t at = 0; at < text_.size(); at += 16) {
            uint64_t word = random();
            for (size_t i = 0; i < 16; ++i, word >>= 4) {
                text_[at + i] = kDigits[word & 15];
            }
        }
    }
    size_t count() const { return count_; }
    std::string_view operator[](size_t number) const {
        return {text_.data() + number * kKeyBytes, kKeyBytes};
    }

  private:
    std::vector<char> text_;
    size_t count_;
};

struct Times {
    double per_second = 0;
    uint64_t p50_ns = 0;
    uint64_t p99_ns = 0;
};

std::ostream& operator<<(std::ostream& out, const Times& times) {
    return out << R"({"lookups_per_s":)" << times.per_second << R"(,"p50_ns":)" << times.p50_ns
               << R"(,"p99_ns":)" << times.p99_ns << "}";
}

class DirectoryBench {
  public:
    DirectoryBench(size_t objects, double seconds)
        : keys_(objects), versions_(objects), seconds_(seconds) {
        directory_.set_readable(kNode, true);
        directory_.set_readable(kRejoining, true);
    }

    void run() {
        const uint64_t before = directory_.stats().memory_bytes;
        const double announces = announce_all();
        const uint64_t used = directory_.stats().memory_bytes - before - key_bytes();
        const Times present = lookups([] { return true; }, false);
        const Times absent = lookups([] { return true; }, true);
        const uint64_t rejoin = std::min<uint64_t>(kRejoinObjects, keys_.count());
        announce_range(kRejoining, rejoin);
        const Times idle = lookups([] { return true; }, false);
        std::atomic<bool> running{true};
        double rejoin_rate = 0;
        std::thread node([&] {
            directory_.begin_full(kRejoining);
            rejoin_rate = announce_range(kRejoining, rejoin);
            directory_.end_full(kRejoining);
            running = false;
        });
        const Times during = lookups([&] { return running.load(); }, false);
        node.join();
        std::cout << std::fixed << R"({"objects":)" << keys_.count() << R"(,"seed":)" << kSeed
                  << R"(,"batch":)" << kBatch << R"(,"announces_per_s":)" << announces
                  << R"(,"bytes_an_object_beside_the_key":)"
                  << static_cast<double>(used) / static_cast<double>(keys_.count())
                  << R"(,"present":)" << present << R"(,"absent":)" << absent << R"(,"idle":)"
                  << idle << R"(,"rejoin_announces_per_s":)" << rejoin_rate
                  << R"(,"during_rejoin":)" << during << "}" << std::endl;
    }

  private:
    const DirectoryEpoch& epoch() const { return *ns_.current.load(); }
    uint64_t key_bytes() const { return keys_.count() * kKeyBytes; }

    double announce_all() {
        for (Version& version : versions_) {
            version = directory_.next_version();
        }
        return announce_range(kNode, keys_.count());
    }

    // Announcements a second of this thread's processor time.
    double announce_range(NodeNumber node, size_t count) {
        const uint64_t start = cpu_ns();
        std::vector<AnnouncedObject> items;
        std::vector<AnnounceOutcome> outcomes(kFrame);
        for (size_t first = 0; first < count; first += kFrame) {
            items.clear();
            for (size_t i = first; i < std::min(first + kFrame, count); ++i) {
                items.push_back({.key = keys_[i], .version = versions_[i], .size = kObjectBytes});
            }
            directory_.announce(epoch(), node, items, 0, outcomes);
            for (size_t i = 0; i < items.size(); ++i) {
                if (outcomes[i].code != Code::kOk) {
                    fail("an announcement was refused");
                }
            }
        }
        return static_cast<double>(count) * 1e9 / static_cast<double>(cpu_ns() - start);
    }

    // Random batches until the time has passed or `more` says no. Rates are per second of this
    // thread's processor time, so that they are one core's; the percentiles are of wall time.
    template <typename More>
    Times lookups(More more, bool absent) {
        std::mt19937_64 random(kSeed + 1);
        std::vector<std::string> made(kBatch);
        std::vector<std::string_view> keys(kBatch);
        std::vector<ObjectPlace> places(kBatch);
        std::vector<uint64_t> times;
        uint64_t total = 0;
        uint64_t cpu = 0;
        const auto limit = static_cast<uint64_t>(seconds_ * 1e9);
        while (total < limit && more()) {
            for (size_t i = 0; i < kBatch; ++i) {
                // Copied, because a request's keys have just been received and lie in the cache.
                made[i].assign(keys_[random() % keys_.count()]);
                if (absent) {
                    made[i][0] = 'x';
                }
                keys[i] = made[i];
            }
            const uint64_t cpu_start = cpu_ns();
            const uint64_t start = steady_ns();
            directory_.lookup(ns_, keys, places);
            times.push_back(steady_ns() - start);
            cpu += cpu_ns() - cpu_start;
            total += times.back();
            const Code wanted = absent ? Code::kNotFound : Code::kOk;
            if (places.front().code != wanted || places.back().code != wanted) {
                fail("a lookup answered wrongly");
            }
        }
        std::sort(times.begin(), times.end());
        return {static_cast<double>(times.size() * kBatch) * 1e9 / static_cast<double>(cpu),
                times[times.size() / 2], times[times.size() * 99 / 100]};
    }

    static uint64_t cpu_ns() {
        timespec now{};
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
        return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 +
               static_cast<uint64_t>(now.tv_nsec);
    }
    static uint64_t steady_ns() {
        return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch() /
                                     std::chrono::nanoseconds(1));
    }
    [[noreturn]] static void fail(const char* what) {
        std::cerr << "directory_bench: " << what << std::endl;
        std::exit(1);
    }

    Keys keys_;
    std::vector<Version> versions_;
    double seconds_;
    Directory directory_{HashSecret{1, 2, 3}, 1};
    Namespace& ns_ = **directory_.namespaces().open("tenant", "space");
};

}  // namespace
}  // namespace kvstore

int main(int count, char** arguments) {
    const size_t objects = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 1'000'000;
    const double seconds = count > 2 ? std::strtod(arguments[2], nullptr) : 2.0;
    if (objects == 0 || seconds <= 0) {
        std::cerr << "usage: directory_bench [objects] [seconds]" << std::endl;
        return 2;
    }
    kvstore::DirectoryBench(objects, seconds).run();
    return 0;
}
