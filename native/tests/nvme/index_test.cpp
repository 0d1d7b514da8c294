// The NVMe tier's index: agrees with a map, and has at most 40 bytes an object at every count.
#include "nvme/index.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <fstream>
#include <map>
#include <random>
#include <vector>

namespace kvstore {
namespace {

constexpr uint64_t kBudget = 40;  // bytes an object

NvmeEntry entry_of(uint64_t number) {
    return {.version = number + 1,
            .unit = number % NvmeIndex::kMaxUnit,
            .length = static_cast<uint32_t>(number * 7),
            .expires_at_s = static_cast<uint32_t>(number * 3),
            .ns_slot = static_cast<uint16_t>(number % NvmeIndex::kMaxNamespaceSlots),
            .head_units = static_cast<uint8_t>(number % 19),
            .pin = static_cast<Pin>(number % 3),
            .touches = static_cast<uint8_t>(number % 4)};
}

bool same(const NvmeEntry& a, const NvmeEntry& b) {
    return a.version == b.version && a.unit == b.unit && a.length == b.length &&
           a.expires_at_s == b.expires_at_s && a.ns_slot == b.ns_slot &&
           a.head_units == b.head_units && a.pin == b.pin && a.touches == b.touches;
}

TEST(NvmeIndexTest, EveryFieldKeepsItsGreatestValue) {
    NvmeIndex index(4);
    const NvmeEntry greatest{.version = UINT64_MAX,
                             .unit = NvmeIndex::kMaxUnit - 1,
                             .length = UINT32_MAX,
                             .expires_at_s = UINT32_MAX,
                             .ns_slot = NvmeIndex::kMaxNamespaceSlots - 1,
                             .head_units = 31,
                             .pin = Pin::kHard,
                             .touches = NvmeIndex::kMaxTouches};
    ASSERT_TRUE(index.put({1, 2}, greatest));
    EXPECT_TRUE(same(*index.find({1, 2}), greatest));
    index.touch({1, 2});
    EXPECT_TRUE(same(*index.find({1, 2}), greatest));
    index.set_pin({1, 2}, Pin::kSoft);
    EXPECT_EQ(index.find({1, 2})->pin, Pin::kSoft);
    EXPECT_EQ(index.find({1, 2})->touches, NvmeIndex::kMaxTouches);
    EXPECT_EQ(index.find({1, 2})->head_units, 31);
    EXPECT_FALSE(index.find({1, 3}));
    EXPECT_FALSE(index.find({2, 2}));
}

TEST(NvmeIndexTest, AgreesWithAMap) {
    for (const uint64_t seed : {1, 2, 3}) {
        SCOPED_TRACE(seed);
        std::mt19937_64 random(seed);
        NvmeIndex index(seed == 1 ? 1 : 8);
        std::map<uint64_t, NvmeEntry> model;
        // The third fills its shards from few homes: long runs, across the end.
        const auto hash = [&](uint64_t n) {
            const uint64_t mixed = n * 0x9e3779b97f4a7c15ull;
            return Hash128{n, seed == 3 ? UINT64_MAX - n % 50 * 1000 - n : mixed};
        };
        for (int step = 0; step < 60000; ++step) {
            const uint64_t n = random() % 3000;
            const uint64_t kind = random() % (step < 40000 ? 3 : 5);
            if (kind < 2) {
                const NvmeEntry entry = entry_of(random() >> 30);
                ASSERT_TRUE(index.put(hash(n), entry));
                model[n] = entry;
            } else if (kind < 4) {
                EXPECT_EQ(index.erase(hash(n)), model.erase(n) == 1);
            } else if (step % 1000 == 0) {
                for (size_t shard = 0; shard < index.shards(); ++shard) {
                    index.erase_if(shard, [](const NvmeEntry& e) { return e.unit % 7 == 0; });
                }
                std::erase_if(model, [](const auto& one) { return one.second.unit % 7 == 0; });
            }
            ASSERT_EQ(index.size(), model.size());
            const uint64_t probe = random() % 3000;
            const auto found = index.find(hash(probe));
            const auto expected = model.find(probe);
            ASSERT_EQ(found.has_value(), expected != model.end());
            ASSERT_TRUE(!found || same(*found, expected->second));
        }
    }
}

// Growing and shrinking, at every thousandth count: no moment is above the budget, the ones just
// after a growth included.
TEST(NvmeIndexTest, HasAtMostFortyBytesAnObject) {
    NvmeIndex index(64);
    std::mt19937_64 random(7);
    std::vector<Hash128> hashes(1'000'000);
    double worst = 0;
    for (size_t n = 0; n < hashes.size(); ++n) {
        hashes[n] = {random(), random()};
        ASSERT_TRUE(index.put(hashes[n], entry_of(n)));
        if (n + 1 < 10'000 || (n + 1) % 1000 != 0) {
            continue;
        }
        worst = std::max(
            worst, static_cast<double>(index.memory_bytes()) / static_cast<double>(index.size()));
    }
    EXPECT_LE(worst, kBudget) << "while growing";
    for (size_t n = hashes.size(); n > 10'000; --n) {
        ASSERT_TRUE(index.erase(hashes[n - 1]));
        if (n % 1000 != 0) {
            continue;
        }
        worst = std::max(
            worst, static_cast<double>(index.memory_bytes()) / static_cast<double>(index.size()));
    }
    EXPECT_LE(worst, kBudget) << "while shrinking";
    RecordProperty("worst_bytes_an_object", std::to_string(worst));
    std::cout << "worst: " << worst << " bytes an object\n";
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
uint64_t resident_bytes() {
    uint64_t total = 0;
    uint64_t resident = 0;
    std::ifstream("/proc/self/statm") >> total >> resident;
    return resident * 4096;
}

TEST(NvmeIndexTest, TheSystemSeesNoMoreThanItSays) {
    malloc_trim(0);
    const uint64_t before = resident_bytes();
    NvmeIndex index(64);
    std::mt19937_64 random(8);
    constexpr size_t kCount = 3'000'000;
    for (size_t n = 0; n < kCount; ++n) {
        ASSERT_TRUE(index.put({random(), random()}, entry_of(n)));
    }
    const uint64_t resident = resident_bytes() - before;
    const double each = static_cast<double>(resident) / kCount;
    std::cout << "resident: " << each << " bytes an object\n";
    EXPECT_LE(each, kBudget);
    EXPECT_LE(index.memory_bytes(), kBudget * kCount);
}
#endif

}  // namespace
}  // namespace kvstore
