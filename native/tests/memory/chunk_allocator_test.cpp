// The allocator against a map of what it handed out, and its utilisation under eviction.
#include "memory/chunk_allocator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <ostream>
#include <random>
#include <unordered_map>

namespace kvstore {
namespace {

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;
constexpr uint64_t kGiB = 1024 * kMiB;

uint64_t test_seed() {
    const char* given = std::getenv("KVSTORE_TEST_SEED");
    return given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
}

// An LRU cache over the allocator that evicts as the block store does: the oldest block of the same
// class while that one is old enough, else what the reclaim plan names.
class LruCache {
  public:
    // How old, relative to the oldest block of all, a victim of the same class must be.
    static constexpr double kSameClassAge = 0.75;

    explicit LruCache(uint64_t capacity_bytes) : allocator_(capacity_bytes) {
        allocator_.grow(capacity_bytes);
    }

    bool put(uint64_t size_bytes) {
        auto offset = allocator_.allocate(size_bytes);
        while (!offset) {
            if (!make_room(size_bytes)) {
                return false;
            }
            offset = allocator_.allocate(size_bytes);
        }
        const uint64_t stamp = ++clock_;
        blocks_[*offset] = {size_bytes, stamp};
        by_stamp_[stamp] = *offset;
        by_size_[size_bytes][stamp] = *offset;
        return true;
    }

    // Marks a live block as used; `choice` in [0, 1) picks one by age, 0 the oldest.
    void touch(double choice) {
        if (by_stamp_.empty()) {
            return;
        }
        const uint64_t oldest = by_stamp_.begin()->first;
        const auto span = static_cast<double>(clock_ - oldest);
        const auto at = by_stamp_.lower_bound(oldest + static_cast<uint64_t>(choice * span));
        const uint64_t offset = at->second;
        Block& block = blocks_.at(offset);
        auto& same = by_size_[block.size_bytes];
        same.erase(block.stamp);
        by_stamp_.erase(block.stamp);
        block.stamp = ++clock_;
        same[block.stamp] = offset;
        by_stamp_[block.stamp] = offset;
    }

    double utilisation() const {
        const auto stats = allocator_.stats();
        return static_cast<double>(stats.requested_bytes) /
               static_cast<double>(stats.capacity_bytes);
    }
    const ChunkAllocator& allocator() const { return allocator_; }
    uint64_t plans() const { return plans_; }

  private:
    struct Block {
        uint64_t size_bytes;
        uint64_t stamp;
    };

    double relative_age(uint64_t stamp) const {
        return static_cast<double>(clock_ - stamp + 1) /
               static_cast<double>(clock_ - by_stamp_.begin()->first + 1);
    }

    bool make_room(uint64_t size_bytes) {
        const auto same = by_size_.find(size_bytes);
        if (same != by_size_.end() && !same->second.empty()) {
            const auto [stamp, offset] = *same->second.begin();
            if (relative_age(stamp) >= kSameClassAge) {
                evict(offset);
                return true;
            }
        }
        ++plans_;
        const auto plan = allocator_.reclaim_plan(
            size_bytes, [this](uint64_t offset) { return blocks_.at(offset).stamp; });
        for (const uint64_t offset : plan) {
            evict(offset);
        }
        return !plan.empty();
    }

    void evict(uint64_t offset) {
        const Block block = blocks_.at(offset);
        by_size_[block.size_bytes].erase(block.stamp);
        by_stamp_.erase(block.stamp);
        blocks_.erase(offset);
        allocator_.free(offset);
    }

    ChunkAllocator allocator_;
    uint64_t clock_ = 0;
    std::unordered_map<uint64_t, Block> blocks_;
    std::map<uint64_t, uint64_t> by_stamp_;
    std::unordered_map<uint64_t, std::map<uint64_t, uint64_t>> by_size_;
    uint64_t plans_ = 0;
};

// Draws a size; `volume` is how often the capacity has been written so far.
using DrawSize = std::function<uint64_t(std::mt19937_64&, double volume)>;

struct Measured {
    double mean = 0;
    double least = 1;
};

// Writes `volumes` times the capacity, touching a block for every put; measures after the first
// two.
Measured measure(LruCache& cache, double volumes, std::mt19937_64& random,
                 const DrawSize& draw_size) {
    std::uniform_real_distribution<double> uniform(0, 1);
    const auto capacity = static_cast<double>(cache.allocator().stats().capacity_bytes);
    Measured result;
    double written = 0;
    double samples = 0;
    while (written < volumes * capacity) {
        const uint64_t size = draw_size(random, written / capacity);
        EXPECT_TRUE(cache.put(size)) << size;
        written += static_cast<double>(size);
        cache.touch(uniform(random));
        if (written < 2 * capacity) {
            continue;
        }
        result.mean += cache.utilisation();
        result.least = std::min(result.least, cache.utilisation());
        ++samples;
    }
    result.mean /= samples;
    EXPECT_TRUE(cache.allocator().audit().ok()) << cache.allocator().audit().to_string();
    return result;
}

// Bytes of a page of 64 tokens: grouped-query attention keeps K and V, latent attention one vector.
constexpr uint64_t kPageTokens = 64;
constexpr uint64_t gqa_page(uint64_t layers, uint64_t kv_heads, uint64_t head_dim) {
    return kPageTokens * layers * 2 * kv_heads * head_dim * 2;
}
constexpr uint64_t mla_page(uint64_t layers, uint64_t latent, uint64_t rope) {
    return kPageTokens * layers * (latent + rope) * 2;
}

const uint64_t kLlama3Page = gqa_page(80, 8, 128);
const uint64_t kQwen3Page = gqa_page(94, 4, 128);
const uint64_t kDeepSeekPage = mla_page(61, 512, 64);

DrawSize one_of(std::vector<uint64_t> sizes) {
    return [sizes](std::mt19937_64& random, double) { return sizes[random() % sizes.size()]; };
}

// One model after the other, as when an engine fleet is redeployed.
DrawSize in_turn(std::vector<uint64_t> sizes) {
    return [sizes](std::mt19937_64&, double volume) {
        return sizes[static_cast<size_t>(volume * 1.3) % sizes.size()];
    };
}

DrawSize log_uniform(double from_bytes, double to_bytes) {
    return [=](std::mt19937_64& random, double) {
        std::uniform_real_distribution<double> exponent(std::log(from_bytes), std::log(to_bytes));
        return static_cast<uint64_t>(std::exp(exponent(random)));
    };
}

struct Load {
    const char* name;
    double volumes;  // times the capacity that is written
    double goal;
    DrawSize draw;
};

void PrintTo(const Load& load, std::ostream* out) { *out << load.name; }

class Utilisation : public testing::TestWithParam<Load> {};

TEST_P(Utilisation, ReachesItsGoalUnderEviction) {
    const Load& load = GetParam();
    const uint64_t seed = test_seed();
    std::mt19937_64 random(seed);
    LruCache cache(kGiB);
    const Measured result = measure(cache, load.volumes, random, load.draw);
    std::printf("utilisation %-28s mean %.4f least %.4f goal %.2f plans %" PRIu64 " seed %" PRIu64
                "\n",
                load.name, result.mean, result.least, load.goal, cache.plans(), seed);
    EXPECT_GE(result.mean, load.goal) << "KVSTORE_TEST_SEED=" << seed;
}

INSTANTIATE_TEST_SUITE_P(
    Loads, Utilisation,
    testing::Values(
        Load{"Llama-3-70B", 8, 0.95, one_of({kLlama3Page})},
        Load{"Qwen3-235B-A22B", 8, 0.95, one_of({kQwen3Page})},
        Load{"DeepSeek-V3", 8, 0.95, one_of({kDeepSeekPage})},
        Load{"all three models", 12, 0.95, one_of({kLlama3Page, kQwen3Page, kDeepSeekPage})},
        Load{"all three, rank of eight", 8, 0.95,
             one_of({kLlama3Page / 8, kQwen3Page / 4, kDeepSeekPage})},
        Load{"all three, by layer", 4, 0.95,
             one_of({gqa_page(1, 8, 128), gqa_page(1, 4, 128), mla_page(1, 512, 64)})},
        Load{"all three in turn", 12, 0.90, in_turn({kLlama3Page, kDeepSeekPage, kQwen3Page})},
        Load{"log-uniform 4 KiB-16 MiB", 8, 0.90, log_uniform(4 * kKiB, 16 * kMiB)},
        Load{"log-uniform 4-128 KiB", 3, 0.90, log_uniform(4 * kKiB, 128 * kKiB)}));

TEST(ChunkAllocator, RoundsToTheAlignment) {
    ChunkAllocator allocator(kMiB, 64);
    allocator.grow(kMiB);
    for (const uint64_t size : {0u, 1u, 64u, 65u, 4096u, 100'000u}) {
        const auto offset = allocator.allocate(size);
        ASSERT_TRUE(offset.has_value());
        EXPECT_EQ(*offset % 64, 0u);
        EXPECT_EQ(allocator.block_bytes(*offset), (std::max<uint64_t>(size, 1) + 63) / 64 * 64);
        EXPECT_EQ(allocator.block_bytes(*offset + 1), 0u);
    }
    EXPECT_EQ(allocator.stats().requested_bytes, 0u + 1 + 64 + 65 + 4096 + 100'000);
    EXPECT_TRUE(allocator.same_class(1, 64));
    EXPECT_FALSE(allocator.same_class(64, 65));
}

TEST(ChunkAllocator, GrowsAndFillsToTheLastByte) {
    ChunkAllocator allocator(kMiB);
    EXPECT_FALSE(allocator.allocate(1).has_value());
    allocator.grow(kMiB / 2);
    EXPECT_FALSE(allocator.allocate(kMiB).has_value());
    EXPECT_FALSE(allocator.allocate(UINT64_MAX).has_value());
    allocator.grow(kMiB);
    const auto whole = allocator.allocate(kMiB);
    ASSERT_TRUE(whole.has_value());
    EXPECT_EQ(*whole, 0u);
    EXPECT_FALSE(allocator.allocate(1).has_value());
    EXPECT_TRUE(allocator.audit().ok());
    allocator.free(*whole);
    for (uint64_t i = 0; i < kMiB / 4096; ++i) {
        ASSERT_TRUE(allocator.allocate(4096).has_value());
    }
    EXPECT_EQ(allocator.stats().requested_bytes, kMiB);
    EXPECT_FALSE(allocator.allocate(1).has_value());
    EXPECT_TRUE(allocator.audit().ok());
}

TEST(ChunkAllocatorDeathTest, RefusesWhatItDidNotHandOut) {
    testing::FLAGS_gtest_death_test_style = "threadsafe";
    ChunkAllocator allocator(kMiB);
    allocator.grow(kMiB);
    const uint64_t offset = allocator.allocate(4096).value();
    EXPECT_DEATH(allocator.free(offset + 64), "invariant failed");
    EXPECT_DEATH(allocator.free(kMiB), "invariant failed");
    allocator.free(offset);
    EXPECT_DEATH(allocator.free(offset), "invariant failed");
}

// Random use against a map of live ranges: nothing overlaps, everything is accounted for.
void random_use(uint64_t capacity, uint32_t alignment, uint64_t least, uint64_t most, int steps) {
    const uint64_t seed = test_seed();
    SCOPED_TRACE("KVSTORE_TEST_SEED=" + std::to_string(seed));
    std::mt19937_64 random(seed);
    ChunkAllocator allocator(capacity, alignment);
    allocator.grow(capacity / 3);
    std::map<uint64_t, uint64_t> live;  // offset, size
    uint64_t requested = 0;
    const DrawSize draw = log_uniform(static_cast<double>(least), static_cast<double>(most));
    for (int step = 0; step < steps; ++step) {
        if (step == steps / 4) {
            allocator.grow(capacity);
        }
        const bool growing = (step / 4000) % 2 == 0;
        if (random() % 100 < (growing ? 65u : 35u) || live.empty()) {
            const uint64_t size = draw(random, 0);
            const auto offset = allocator.allocate(size);
            if (!offset) {
                continue;
            }
            const uint64_t bytes = allocator.block_bytes(*offset);
            ASSERT_GE(bytes, size);
            ASSERT_LE(*offset + bytes, allocator.stats().capacity_bytes);
            const auto after = live.lower_bound(*offset);
            if (after != live.end()) {
                ASSERT_LE(*offset + bytes, after->first);
            }
            if (after != live.begin()) {
                const auto before = std::prev(after);
                ASSERT_LE(before->first + before->second, *offset);
            }
            live[*offset] = size;
            requested += size;
        } else {
            auto victim = live.lower_bound(random() % capacity);
            if (victim == live.end()) {
                victim = live.begin();
            }
            requested -= victim->second;
            allocator.free(victim->first);
            live.erase(victim);
        }
        if (step % 1000 == 0) {
            ASSERT_TRUE(allocator.audit().ok()) << allocator.audit().to_string();
        }
        ASSERT_EQ(allocator.stats().requested_bytes, requested);
        ASSERT_EQ(allocator.stats().live_blocks, live.size());
    }
    for (const auto& [offset, size] : live) {
        allocator.free(offset);
    }
    EXPECT_TRUE(allocator.audit().ok()) << allocator.audit().to_string();
    EXPECT_EQ(allocator.stats().chunks, 0u);
    EXPECT_EQ(allocator.allocate(capacity), std::optional<uint64_t>(0));  // all merged again
}

TEST(ChunkAllocator, RandomUseOfPages) { random_use(kGiB, 64, 4 * kKiB, 16 * kMiB, 40'000); }
TEST(ChunkAllocator, RandomUseOfManySizes) { random_use(64 * kMiB, 64, 1, 8 * kMiB, 40'000); }
TEST(ChunkAllocator, RandomUseOfKeys) { random_use(4 * kMiB, 16, 40, 1200, 40'000); }
TEST(ChunkAllocator, RandomUseOfATinySpace) { random_use(16 * kKiB, 16, 1, 2000, 40'000); }

// The key heap of an index: short records of many lengths leave little behind.
TEST(ChunkAllocator, KeyHeapIsUsedWell) {
    const uint64_t seed = test_seed();
    std::mt19937_64 random(seed);
    ChunkAllocator allocator(64 * kMiB, 16);
    allocator.grow(64 * kMiB);
    while (allocator.allocate(40 + random() % 1160)) {
    }
    const auto stats = allocator.stats();
    const double used =
        static_cast<double>(stats.requested_bytes) / static_cast<double>(stats.capacity_bytes);
    std::printf("utilisation key heap, first refusal: %.4f seed %" PRIu64 "\n", used, seed);
    EXPECT_GE(used, 0.90) << "KVSTORE_TEST_SEED=" << seed;
}

TEST(ReclaimPlan, NamesBlocksThatMakeRoomAndNoneThatMustStay) {
    const uint64_t seed = test_seed();
    SCOPED_TRACE("KVSTORE_TEST_SEED=" + std::to_string(seed));
    std::mt19937_64 random(seed);
    for (int round = 0; round < 20; ++round) {
        ChunkAllocator allocator(64 * kMiB);
        allocator.grow(64 * kMiB);
        std::unordered_map<uint64_t, bool> pinned;
        const DrawSize draw = log_uniform(4 * kKiB, 2 * kMiB);
        for (int refused = 0; refused < 100;) {
            const auto offset = allocator.allocate(draw(random, 0));
            refused += offset ? 0 : 1;
            if (offset) {
                pinned[*offset] = random() % 100 < 10;
            }
        }
        const uint64_t wanted = draw(random, 0);
        if (allocator.allocate(wanted)) {
            continue;
        }
        const auto plan = allocator.reclaim_plan(
            wanted, [&](uint64_t offset) { return pinned.at(offset) ? UINT64_MAX : offset; });
        ASSERT_FALSE(plan.empty());
        for (const uint64_t offset : plan) {
            ASSERT_FALSE(pinned.at(offset));
            allocator.free(offset);
        }
        ASSERT_TRUE(allocator.allocate(wanted).has_value());
        ASSERT_TRUE(allocator.audit().ok()) << allocator.audit().to_string();
    }
}

// Of a chunk only a few blocks are asked for their heat, so a rare pin shows up late.
TEST(ReclaimPlan, SparesThePinThatTheSampleMissed) {
    const uint64_t seed = test_seed();
    SCOPED_TRACE("KVSTORE_TEST_SEED=" + std::to_string(seed));
    std::mt19937_64 random(seed);
    ChunkAllocator allocator(kGiB);
    allocator.grow(kGiB);
    std::unordered_map<uint64_t, bool> pinned;
    while (const auto offset = allocator.allocate(4096)) {
        pinned[*offset] = random() % 300 == 0;
    }
    for (int round = 0; round < 50; ++round) {
        const uint64_t coldest = random() % kGiB;
        const auto plan = allocator.reclaim_plan(kMiB, [&](uint64_t offset) {
            const uint64_t distance = offset < coldest ? coldest - offset : offset - coldest;
            return pinned.at(offset) ? UINT64_MAX : distance;
        });
        ASSERT_FALSE(plan.empty());
        for (const uint64_t offset : plan) {
            ASSERT_FALSE(pinned.at(offset));
        }
    }
}

TEST(ReclaimPlan, FindsTheOnlyBlockThatMayGo) {
    ChunkAllocator allocator(16 * kMiB);
    allocator.grow(16 * kMiB);
    std::vector<uint64_t> offsets;
    while (const auto offset = allocator.allocate(4096)) {
        offsets.push_back(*offset);
    }
    const uint64_t only = offsets[offsets.size() * 2 / 3];
    const auto heat = [only](uint64_t offset) { return offset == only ? 7 : UINT64_MAX; };
    EXPECT_EQ(allocator.reclaim_plan(4096, heat), std::vector<uint64_t>{only});
    EXPECT_TRUE(allocator.reclaim_plan(8192, heat).empty());
    EXPECT_TRUE(allocator.reclaim_plan(4096, [](uint64_t) { return UINT64_MAX; }).empty());
    EXPECT_TRUE(allocator.reclaim_plan(UINT64_MAX, heat).empty());
}

TEST(ReclaimPlan, PrefersTheColdestChunk) {
    ChunkAllocator allocator(64 * kMiB);
    allocator.grow(64 * kMiB);
    std::vector<uint64_t> offsets;
    while (const auto offset = allocator.allocate(4096)) {
        offsets.push_back(*offset);
    }
    // Everything in [20 MiB, 24 MiB) is cold; elsewhere the start is the hottest.
    const auto cold = [](uint64_t offset) { return offset >= 20 * kMiB && offset < 24 * kMiB; };
    const auto plan = allocator.reclaim_plan(
        5000, [&](uint64_t offset) { return cold(offset) ? 1 + offset % 7 : kGiB - offset; });
    ASSERT_FALSE(plan.empty());
    EXPECT_TRUE(std::all_of(plan.begin(), plan.end(), cold));
}

TEST(ReclaimPlan, LooksAtAFewBlocksOfALargeSegment) {
    using Clock = std::chrono::steady_clock;
    const auto ns_since = [](Clock::time_point start) {
        return static_cast<double>((Clock::now() - start).count());
    };
    constexpr uint64_t kCapacity = 64 * kGiB;
    ChunkAllocator allocator(kCapacity);
    allocator.grow(kCapacity);
    const auto start = Clock::now();
    while (allocator.allocate(4096)) {
    }
    const uint64_t blocks = allocator.stats().live_blocks;
    EXPECT_EQ(blocks, kCapacity / 4096);
    std::printf("64 GiB of 4 KiB blocks: %.0f ns an allocate\n",
                ns_since(start) / static_cast<double>(blocks));
    for (const uint64_t size : {uint64_t{5000}, 256 * kKiB, kLlama3Page}) {
        uint64_t asked = 0;
        const auto begun = Clock::now();
        const auto plan = allocator.reclaim_plan(size, [&](uint64_t offset) {
            ++asked;
            return offset;
        });
        std::printf("plan for %" PRIu64 " bytes: %zu victims, %" PRIu64 " heats, %.0f us\n", size,
                    plan.size(), asked, ns_since(begun) / 1000);
        EXPECT_LT(asked, 50'000u);
        ASSERT_FALSE(plan.empty());
        for (const uint64_t offset : plan) {
            allocator.free(offset);
        }
        EXPECT_TRUE(allocator.allocate(size).has_value());
    }
}

TEST(ChunkAllocator, CostOfAPair) {
    std::mt19937_64 random(1);
    ChunkAllocator allocator(kGiB);
    allocator.grow(kGiB);
    std::vector<uint64_t> offsets;
    const std::vector<uint64_t> sizes = {4096, 72 * kKiB, 128 * kKiB, 256 * kKiB};
    while (const auto offset = allocator.allocate(sizes[random() % 4])) {
        offsets.push_back(*offset);
    }
    constexpr int kPairs = 200'000;
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kPairs; ++i) {
        uint64_t& offset = offsets[random() % offsets.size()];
        const uint64_t bytes = allocator.block_bytes(offset);
        allocator.free(offset);
        offset = allocator.allocate(bytes).value();
    }
    const auto spent = std::chrono::steady_clock::now() - start;
    std::printf("free and allocate: %.0f ns a pair\n", static_cast<double>(spent.count()) / kPairs);
    EXPECT_TRUE(allocator.audit().ok());
}

}  // namespace
}  // namespace kvstore
