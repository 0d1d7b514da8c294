// The evictor: hit rates beside exact LRU, and its bookkeeping of members, ranks and groups.
#include "store/evictor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>

#include "tests/store/exact_lru.h"

namespace kvstore {
namespace {

constexpr uint64_t kBlock = 4096;
const Evictor::SameClass kSameSize = [](uint64_t a, uint64_t b) { return a == b; };
const Evictor::Blocked kNothingBlocked = [](uint32_t) { return false; };

// A cache of numbers whose victims the evictor names.
class SampledCache {
  public:
    SampledCache(uint32_t capacity, uint64_t seed)
        : stamps_(capacity, 0), evictor_({stamps_, {}}, seed), ids_(capacity) {
        EXPECT_TRUE(evictor_.grow(capacity));
        for (uint32_t entry = 0; entry < capacity; ++entry) {
            free_.push_back(entry);
        }
    }
    bool touch(uint64_t id) {
        const auto it = entries_.find(id);
        if (it == entries_.end()) {
            return false;
        }
        evictor_.touch(it->second);
        return true;
    }
    void insert(uint64_t id) {
        if (free_.empty()) {
            const auto victim = evictor_.coldest(kBlock, false, kSameSize, kNothingBlocked);
            ASSERT_TRUE(victim);
            evictor_.remove(*victim);
            entries_.erase(ids_[*victim]);
            free_.push_back(*victim);
        }
        const uint32_t entry = free_.back();
        free_.pop_back();
        ids_[entry] = id;
        entries_[id] = entry;
        evictor_.add(entry, kBlock, false);
        evictor_.touch(entry);
    }

  private:
    std::vector<uint64_t> stamps_;
    Evictor evictor_;
    std::vector<uint64_t> ids_;
    std::vector<uint32_t> free_;
    std::unordered_map<uint64_t, uint32_t> entries_;
};

std::vector<uint64_t> zipf_trace(uint64_t seed, size_t length) {
    constexpr size_t kKeys = 40'000;
    std::vector<double> sums(kKeys);
    double sum = 0;
    for (size_t i = 0; i < kKeys; ++i) {
        sum += 1.0 / std::pow(static_cast<double>(i + 1), 0.9);
        sums[i] = sum;
    }
    std::mt19937_64 random(seed);
    std::uniform_real_distribution<double> uniform(0, sum);
    std::vector<uint64_t> trace(length);
    for (uint64_t& id : trace) {
        id = static_cast<uint64_t>(std::lower_bound(sums.begin(), sums.end(), uniform(random)) -
                                   sums.begin());
    }
    return trace;
}

// Conversations that come back with a longer prompt each time: every turn reads its whole prefix.
std::vector<uint64_t> conversation_trace(uint64_t seed, size_t turns) {
    std::mt19937_64 random(seed);
    std::vector<std::pair<uint64_t, uint64_t>> open(600);  // conversation, blocks so far
    uint64_t conversations = 0;
    for (auto& place : open) {
        place = {conversations++, 1 + random() % 20};
    }
    std::vector<uint64_t> trace;
    for (size_t turn = 0; turn < turns; ++turn) {
        auto& [conversation, blocks] = open[random() % open.size()];
        for (uint64_t block = 0; block < blocks; ++block) {
            trace.push_back(conversation << 20 | block);
        }
        blocks += 1 + random() % 10;
        if (random() % 8 == 0) {
            open[random() % open.size()] = {conversations++, 1 + random() % 20};
        }
    }
    return trace;
}

template <class Cache>
double hit_rate(Cache cache, const std::vector<uint64_t>& trace) {
    size_t hits = 0;
    for (const uint64_t id : trace) {
        if (cache.touch(id)) {
            ++hits;
        } else {
            cache.insert(id);
        }
    }
    return static_cast<double>(hits) / static_cast<double>(trace.size());
}

TEST(Evictor, ComesCloseToExactLru) {
    const uint64_t seed = 20240501;
    std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
    const struct {
        const char* name;
        std::vector<uint64_t> trace;
    } workloads[] = {{"zipf", zipf_trace(seed, 200'000)},
                     {"conversations", conversation_trace(seed, 10'000)}};
    for (const auto& workload : workloads) {
        for (const uint32_t capacity : {500u, 3000u, 12'000u}) {
            const double exact = hit_rate(ExactLru(capacity), workload.trace);
            const double sampled = hit_rate(SampledCache(capacity, seed), workload.trace);
            std::printf("%-14s %6u entries: exact LRU %.4f, sampled %.4f\n", workload.name,
                        capacity, exact, sampled);
            EXPECT_GT(sampled, exact - 0.005) << workload.name << " " << capacity;
        }
    }
}

TEST(Evictor, SmallGroupsAreExact) {
    std::vector<uint64_t> stamps(64, 0);
    Evictor evictor({stamps, {}}, 1);
    ASSERT_TRUE(evictor.grow(stamps.size()));
    for (uint32_t entry = 0; entry < 64; ++entry) {
        evictor.add(entry, kBlock, false);
        evictor.touch(entry);
    }
    for (uint32_t entry = 0; entry < 64; entry += 2) {
        evictor.touch(entry);
    }
    for (uint32_t i = 0; i < 64; ++i) {
        const auto victim = evictor.coldest(kBlock, false, kSameSize, kNothingBlocked);
        ASSERT_TRUE(victim);
        EXPECT_EQ(*victim, i < 32 ? 2 * i + 1 : 2 * (i - 32));
        evictor.remove(*victim);
        EXPECT_TRUE(evictor.consistent());
    }
    EXPECT_FALSE(evictor.coldest(kBlock, false, kSameSize, kNothingBlocked));
}

TEST(Evictor, GroupsAndRanksStayApart) {
    std::vector<uint64_t> stamps(8, 0);
    Evictor evictor({stamps, {}}, 1);
    ASSERT_TRUE(evictor.grow(stamps.size()));
    evictor.add(0, 4096, false);
    evictor.add(1, 8192, false);
    evictor.add(2, 4096, true);
    EXPECT_EQ(evictor.coldest(4096, false, kSameSize, kNothingBlocked), 0u);
    EXPECT_EQ(evictor.coldest(8192, false, kSameSize, kNothingBlocked), 1u);
    EXPECT_EQ(evictor.coldest(4096, true, kSameSize, kNothingBlocked), 2u);
    EXPECT_FALSE(evictor.coldest(8192, true, kSameSize, kNothingBlocked));
    EXPECT_FALSE(evictor.coldest(5000, false, kSameSize, kNothingBlocked));
    EXPECT_TRUE(evictor.is_soft(2));
    EXPECT_EQ(evictor.size(false), 2u);
    evictor.remove(0);
    evictor.remove(0);
    EXPECT_FALSE(evictor.contains(0));
    EXPECT_TRUE(evictor.consistent());
}

TEST(Evictor, BlockedMembersAreSkippedHoweverMany) {
    constexpr uint32_t kEntries = 2000;
    std::vector<uint64_t> stamps(kEntries, 0);
    Evictor evictor({stamps, {}}, 1);
    ASSERT_TRUE(evictor.grow(stamps.size()));
    for (uint32_t entry = 0; entry < kEntries; ++entry) {
        evictor.add(entry, kBlock, false);
        evictor.touch(entry);
    }
    const auto all_but = [](uint32_t entry) { return entry != 1234; };
    EXPECT_EQ(evictor.coldest(kBlock, false, kSameSize, all_but), 1234u);
    EXPECT_FALSE(evictor.coldest(kBlock, false, kSameSize, [](uint32_t) { return true; }));
}

TEST(Evictor, TakesMoreEntriesAndKeepsTheOrder) {
    std::vector<uint64_t> first(4, 0);
    std::vector<uint64_t> more(12, 0);
    Evictor evictor({first, more}, 1);
    ASSERT_TRUE(evictor.grow(4));
    for (uint32_t entry = 0; entry < 16; ++entry) {
        ASSERT_TRUE(evictor.grow(entry < 4 ? 4 : 16));
        evictor.add(entry, kBlock, false);
        evictor.touch(entry);
    }
    evictor.touch(3);
    evictor.touch(4);
    for (const uint32_t coldest : {0u, 1u, 2u, 5u, 6u}) {
        const auto victim = evictor.coldest(kBlock, false, kSameSize, kNothingBlocked);
        ASSERT_EQ(victim, coldest);
        evictor.remove(*victim);
    }
    EXPECT_EQ(more[0], evictor.clock());
    EXPECT_TRUE(evictor.consistent());
}

TEST(Evictor, TellsHowColdOtherGroupsAre) {
    std::vector<uint64_t> stamps(4, 0);
    Evictor evictor({stamps, {}}, 1);
    ASSERT_TRUE(evictor.grow(stamps.size()));
    EXPECT_EQ(evictor.coldest_elsewhere(4096, false, kSameSize), UINT64_MAX);
    evictor.add(0, 4096, false);
    evictor.add(1, 8192, false);
    for (const uint32_t entry : {1u, 0u}) {
        evictor.touch(entry);
    }
    EXPECT_EQ(evictor.coldest_elsewhere(4096, false, kSameSize), evictor.stamp(1));
    EXPECT_EQ(evictor.coldest_elsewhere(8192, false, kSameSize), evictor.stamp(0));
}

}  // namespace
}  // namespace kvstore
