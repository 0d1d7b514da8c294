// What the block store evicts: never what is protected, tails before heads, about what LRU would.
#include <thread>

#include "index/client_slots.h"
#include "index/index.h"
#include "index/slot_registry.h"
#include "tests/store/exact_lru.h"
#include "tests/store/store_harness.h"

namespace kvstore {
namespace {

constexpr uint64_t kMiB = 1u << 20;
constexpr uint64_t kBlock = 4096;

std::string numbered(const std::string& prefix, uint64_t number) {
    return prefix + std::to_string(number);
}

TEST(StoreEviction, AWorkingSetOfThreeTimesTheCapacity) {
    const uint64_t seed = 11;
    std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
    StoreHarness h(4 * kMiB);
    std::mt19937_64 random(seed);
    std::vector<std::string> safe;
    std::vector<BlockStore::HoldToken> held;
    std::vector<BlockStore::Key> leased;
    for (uint64_t i = 0; i < 60; ++i) {
        safe.push_back(numbered("safe", i));
    }
    for (size_t i = 0; i < safe.size(); ++i) {
        auto item = h.item(safe[i], 1000 + random() % 20'000);
        if (i % 3 == 0) {
            item.pin = Pin::kHard;
        }
        ASSERT_EQ(h.put_item(item), Code::kOk);
        if (i % 3 == 1) {
            held.push_back(h.store->find(h.ns, h.key(safe[i])).hold);
        }
        if (i % 3 == 2) {
            leased.push_back(h.key(safe[i]));
        }
    }
    ASSERT_EQ(h.store->lease_acquire(h.owner, h.ns, leased, 1, 60'000).length, leased.size());
    // 12 MiB of objects from 1 byte to 64 KiB, twice over, so that they evict each other.
    for (int round = 0; round < 2; ++round) {
        std::mt19937_64 sizes(seed);
        uint64_t bytes = 0;
        for (uint64_t i = 0; bytes < 12 * kMiB; ++i) {
            const uint64_t size = 1 + (uint64_t{1} << sizes() % 17) + sizes() % 1000;
            bytes += size;
            const Code code = h.put(numbered("k", i), size);
            ASSERT_TRUE(code == Code::kOk || code == Code::kAlreadyExists) << size;
            ASSERT_TRUE(h.has(numbered("k", i)));
            h.get(numbered("k", random() % (i + 1)));
        }
        h.expect_sound();
    }
    for (const std::string& name : safe) {
        EXPECT_TRUE(h.get(name)) << name;
    }
    for (const auto& gone : h.withdrawn) {
        EXPECT_NE(gone.key.substr(0, 4), "safe") << gone.key;
    }
    EXPECT_GT(h.store->stats().evictions, 100u);
}

// Hard pins may fill the segment.
BlockStore::Options all_pinned() {
    BlockStore::Options options;
    options.pin_cap_bytes = kMiB;
    return options;
}

TEST(StoreEviction, NoSpaceWhenOnlyHardPinsAreLeft) {
    StoreHarness h(kMiB, all_pinned());
    for (uint64_t i = 0;; ++i) {
        auto item = h.item(numbered("k", i), kBlock);
        item.pin = Pin::kHard;
        if (h.put_item(item) != Code::kOk) {
            break;
        }
    }
    const auto stats = h.store->stats();
    EXPECT_EQ(stats.objects, kMiB / kBlock);
    EXPECT_EQ(stats.hard_pinned_bytes, kMiB);
    EXPECT_EQ(stats.evictions, 0u);
    const auto refused = h.reserve("more", kBlock);
    EXPECT_EQ(refused.code, Code::kNoSpace);
    EXPECT_NE(refused.message.find("segment_size"), std::string::npos);
    EXPECT_EQ(h.store->set_pin(h.ns, h.key("k7"), Pin::kNone), Code::kOk);
    EXPECT_EQ(h.put("more", kBlock), Code::kOk);
    EXPECT_EQ(h.miss("k7"), MissReason::kEvicted);
    h.expect_sound();
}

TEST(StoreEviction, SoftPinsGoLast) {
    StoreHarness h(kMiB, all_pinned());
    constexpr uint64_t kSoft = 100;
    for (uint64_t i = 0; i < kSoft; ++i) {
        auto item = h.item(numbered("soft", i), kBlock);
        item.pin = Pin::kSoft;
        ASSERT_EQ(h.put_item(item), Code::kOk);
    }
    for (uint64_t i = 0; i < 1000; ++i) {
        ASSERT_EQ(h.put(numbered("k", i), kBlock), Code::kOk);
    }
    for (uint64_t i = 0; i < kSoft; ++i) {
        EXPECT_TRUE(h.has(numbered("soft", i)));
    }
    for (uint64_t i = 0; i < 256; ++i) {  // only hard pins are above them
        auto item = h.item(numbered("hard", i), kBlock);
        item.pin = Pin::kHard;
        ASSERT_EQ(h.put_item(item), Code::kOk) << i;
    }
    EXPECT_EQ(h.store->stats().soft_pinned_bytes, 0u);
    h.expect_sound();
}

TEST(StoreEviction, OnlyAsMuchAsThePutNeeds) {
    StoreHarness h(kMiB);
    for (uint64_t i = 0; i < 256; ++i) {
        ASSERT_EQ(h.put(numbered("k", i), kBlock), Code::kOk);
    }
    for (uint64_t i = 256; i < 512; ++i) {
        ASSERT_EQ(h.put(numbered("k", i), kBlock), Code::kOk);
        EXPECT_EQ(h.store->stats().evictions, i - 255);
        EXPECT_EQ(h.store->stats().objects, 256u);
    }
}

// What the rows of one message evict is one message to the master, not one for each.
TEST(StoreEviction, ABatchTellsOnceWhatItEvicted) {
    StoreHarness h(kMiB);  // 256 blocks
    for (uint64_t i = 0; i < 256; ++i) {
        ASSERT_EQ(h.put(numbered("old", i), kBlock), Code::kOk);
    }
    std::vector<size_t> told;
    h.store->set_on_withdraw(
        [&](std::span<const BlockStore::Withdrawn> batch) { told.push_back(batch.size()); });
    std::vector<BlockStore::ReserveItem> items;
    for (uint64_t i = 0; i < 40; ++i) {
        items.push_back(h.item(numbered("new", i), kBlock));
    }
    items.push_back(h.item(numbered("old", 255), kBlock));  // the warmest one
    const auto reserved = h.store->reserve_all(h.owner, h.ns, items);
    ASSERT_EQ(reserved.size(), 41u);
    for (size_t i = 0; i < 40; ++i) {
        EXPECT_EQ(reserved[i].code, Code::kOk) << i;
    }
    EXPECT_EQ(reserved[40].code, Code::kAlreadyExists);
    EXPECT_EQ(told, std::vector<size_t>{40});
}

// A batch is published head first; a chain put in two batches, with the prefix's recency renewed by
// the second through `parent`.
TEST(StoreEviction, AChainLosesItsTailFirst) {
    StoreHarness h(kMiB);  // 256 blocks
    std::vector<std::string> chain;
    for (uint64_t i = 0; i < 100; ++i) {
        chain.push_back(numbered("chain", i));
    }
    for (const size_t begin : {size_t{0}, size_t{50}}) {
        std::vector<BlockStore::PublishItem> items;
        for (size_t i = begin; i < begin + 50; ++i) {
            auto item = h.item(chain[i], kBlock);
            if (i > 0) {
                item.parent = chain[i - 1];
            }
            const auto reserved = h.store->reserve(h.owner, h.ns, item);
            ASSERT_EQ(reserved.code, Code::kOk);
            items.push_back({reserved.generation, 0, ++h.version});
        }
        for (const auto& published : h.store->publish(h.owner, items)) {
            ASSERT_EQ(published.code, Code::kOk);
        }
        for (uint64_t i = 0; i < 30; ++i) {
            h.put(numbered("between", i + begin), kBlock);
        }
    }
    // Sampling may take neighbours in another order, no more: blocks behind a gap stay few.
    size_t present = chain.size();
    for (uint64_t i = 0; present > 0; ++i) {
        ASSERT_LT(i, 1000u);
        h.put(numbered("new", i), kBlock);
        present = 0;
        for (const std::string& name : chain) {
            present += h.has(name) ? 1 : 0;
        }
        size_t prefix = 0;
        while (prefix < chain.size() && h.has(chain[prefix])) {
            ++prefix;
        }
        ASSERT_LE(present - prefix, 10u);
    }
}

TEST(StoreEviction, ABatchOfReadsIsStampedTailFirst) {
    StoreHarness h(kMiB);
    std::vector<std::string> names;
    for (uint64_t i = 0; i < 256; ++i) {
        names.push_back(numbered("k", i));
    }
    for (const auto& name : names) {
        ASSERT_EQ(h.put(name, kBlock), Code::kOk);
    }
    std::vector<BlockStore::Key> keys;
    for (const auto& name : names) {
        keys.push_back(h.key(name));
    }
    EXPECT_EQ(h.store->find(h.ns, keys).size(), keys.size());
    for (uint64_t i = 0; i < 128; ++i) {
        h.put(numbered("new", i), kBlock);
    }
    size_t left_of_head = 0;
    for (size_t i = 0; i < 128; ++i) {
        left_of_head += h.has(names[i]) ? 1 : 0;
    }
    EXPECT_EQ(left_of_head, 128u);
    // The same through AlreadyExists, whose keys come one by one.
    for (size_t i = 0; i < 128; ++i) {
        EXPECT_EQ(h.put(names[i], kBlock), Code::kAlreadyExists);
    }
    for (uint64_t i = 0; i < 192; ++i) {
        h.put(numbered("newer", i), kBlock);
    }
    for (size_t i = 0; i < 128; ++i) {
        EXPECT_EQ(h.has(names[i]), i < 64) << i;
    }
}

TEST(StoreEviction, TouchesOfClientsCount) {
    StoreHarness h(kMiB);
    ClientSlots& slots = h.store->client_slots();
    const auto number = slots.assign();
    ASSERT_TRUE(number.ok());
    auto slot = SlotRegistry::instance().acquire(Fd(dup(slots.fd(*number))), *number);
    ASSERT_TRUE(slot.ok()) << slot.status().to_string();
    ASSERT_TRUE(slots.confirm(*number).ok());
    (*slot)->set_confirmed();
    for (uint64_t i = 0; i < 256; ++i) {
        ASSERT_EQ(h.put(numbered("k", i), kBlock), Code::kOk);
    }
    auto reader = IndexReader::attach(h.store->index_fd(), h.store->segment_bytes());
    ASSERT_TRUE(reader.ok());
    for (uint64_t i = 0; i < 128; ++i) {
        const std::string name = numbered("k", i);
        const auto found = (*reader)->probe(h.ns->id, h.key(name).hash, name, h.clock_ms);
        ASSERT_TRUE(found);
        (*slot)->touch(found->ref);
    }
    for (const uint32_t nonsense : {UINT32_MAX - 1, 1u << 30, 100'000u}) {
        (*slot)->touch(nonsense);
    }
    for (uint64_t i = 0; i < 128; ++i) {
        h.put(numbered("new", i), kBlock);
    }
    for (uint64_t i = 0; i < 256; ++i) {
        EXPECT_EQ(h.has(numbered("k", i)), i < 128) << i;
    }
    EXPECT_EQ(h.store->stats().touches, 128u);
}

TEST(StoreEviction, ALateSizeIsNotStuckInItsFirstChunk) {
    StoreHarness h(8 * kMiB);
    constexpr uint64_t kOther = 6000;
    for (uint64_t i = 0; i < 8 * kMiB / kBlock; ++i) {
        h.put(numbered("old", i), kBlock);
    }
    // From here on only the other size is used: it must get nearly all of the segment.
    for (uint64_t i = 0; i < 40'000; ++i) {
        ASSERT_EQ(h.put(numbered("new", i), kOther), Code::kOk);
    }
    uint64_t present = 0;
    for (uint64_t i = 0; i < 40'000; ++i) {
        present += h.has(numbered("new", i)) ? 1 : 0;
    }
    EXPECT_GT(present * kOther, 8 * kMiB * 3 / 4);
    EXPECT_GT(h.store->stats().reclaims, 0u);
    h.expect_sound();
}

TEST(StoreEviction, WaitsForPrefaultingInsteadOfEvicting) {
    BlockStore::Options options;
    options.prefault_wait_ms = 60'000;
    StoreHarness h(256 * kMiB, options);
    const uint64_t ready = h.store->stats().capacity_bytes;
    for (uint64_t i = 0; i < 255; ++i) {
        const auto reserved = h.reserve(numbered("k", i), kMiB);
        ASSERT_EQ(reserved.code, Code::kOk);
        const BlockStore::PublishItem item{reserved.generation, 0, ++h.version};
        ASSERT_EQ(h.store->publish(h.owner, {&item, 1})[0].code, Code::kOk);
    }
    std::printf("%llu of %llu bytes were ready at first\n", static_cast<unsigned long long>(ready),
                static_cast<unsigned long long>(256 * kMiB));
    EXPECT_EQ(h.store->stats().evictions, 0u);
    h.expect_sound();
}

// Conversations that come back, as a put/get workload: read the prefix that is present, put the
// rest.
TEST(StoreEviction, HitRateOfPrefixChainsIsThatOfLru) {
    const uint64_t seed = 5;
    std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
    constexpr uint64_t kSmall = 512;
    constexpr uint64_t kBlocks = 3 * kMiB / kSmall;
    BlockStore::Options options;
    options.index_entries = kBlocks * 5 / 4;
    options.max_index_entries = options.index_entries;
    StoreHarness h(3 * kMiB, options);
    ExactLru lru(kBlocks);
    std::mt19937_64 random(seed);
    std::vector<std::pair<uint64_t, uint64_t>> open(400);
    uint64_t conversations = 0;
    for (auto& place : open) {
        place = {conversations++, 1 + random() % 20};
    }
    uint64_t total = 0, lru_hits = 0, store_hits = 0;
    for (int turn = 0; turn < 8000; ++turn) {
        auto& [conversation, blocks] = open[random() % open.size()];
        std::vector<std::string> names;
        for (uint64_t i = 0; i < blocks; ++i) {
            names.push_back(numbered("c", conversation) + numbered("-", i));
        }
        bool prefix = true;
        for (uint64_t i = 0; i < blocks; ++i) {
            const uint64_t id = conversation << 20 | i;
            const bool hit = lru.touch(id);
            if (!hit) {
                lru.insert(id);
            }
            prefix = prefix && hit;
            lru_hits += prefix ? 1 : 0;
        }
        std::vector<BlockStore::Key> keys;
        for (const auto& name : names) {
            keys.push_back(h.key(name));
        }
        size_t present = 0;
        while (present < keys.size() && h.store->contains(h.ns, keys[present])) {
            ++present;
        }
        (void)h.store->find(h.ns, {keys.data(), present});
        store_hits += present;
        total += blocks;
        std::vector<BlockStore::PublishItem> items;
        for (size_t i = present; i < names.size(); ++i) {
            auto item = h.item(names[i], kSmall);
            if (i > 0) {
                item.parent = names[i - 1];
            }
            const auto reserved = h.store->reserve(h.owner, h.ns, item);
            if (reserved.code == Code::kOk) {
                items.push_back({reserved.generation, 0, ++h.version});
            }
        }
        (void)h.store->publish(h.owner, items);
        blocks += 1 + random() % 10;
        if (random() % 8 == 0) {
            open[random() % open.size()] = {conversations++, 1 + random() % 20};
        }
    }
    const double exact = static_cast<double>(lru_hits) / static_cast<double>(total);
    const double store = static_cast<double>(store_hits) / static_cast<double>(total);
    std::printf("prefix hit rate: exact LRU %.4f, store %.4f\n", exact, store);
    EXPECT_GT(store, exact - 0.005);
    h.expect_sound();
}

// Many small objects: what is scarce is entries, and whoever asks is told so.
TEST(StoreEviction, AnEvictionForAnEntryOfTheIndexSaysSo) {
    BlockStore::Options options;
    options.index_entries = 64;
    options.max_index_entries = 64;
    StoreHarness h(8 << 20, options);
    size_t misses = 0;
    for (int i = 0; i < 200; ++i) {
        EXPECT_EQ(h.put("k" + std::to_string(i), 64), Code::kOk);
    }
    for (int i = 0; i < 200; ++i) {
        misses += h.miss("k" + std::to_string(i)) == MissReason::kIndexFull ? 1 : 0;
    }
    const BlockStore::Stats stats = h.store->stats();
    EXPECT_EQ(stats.index_evictions, stats.evictions);
    EXPECT_EQ(stats.index_evictions, misses);
    EXPECT_EQ(stats.index_used, 200 - misses);
    EXPECT_LE(stats.index_used, stats.index_capacity);
    h.expect_sound();
}

// Whatever their size, objects fill the segment before one is evicted for want of an entry.
TEST(StoreEviction, TheIndexGrowsWithSmallObjects) {
    for (const uint64_t size : {uint64_t{64}, uint64_t{200}, uint64_t{1024}}) {
        StoreHarness h(4 << 20);
        const uint64_t at_first = h.store->stats().index_capacity;
        uint64_t bytes = 0;
        int objects = 0;
        while (h.store->stats().evictions == 0) {
            ASSERT_EQ(h.put("k" + std::to_string(objects++), size), Code::kOk);
            bytes += size;
        }
        const BlockStore::Stats stats = h.store->stats();
        std::printf("%llu bytes each: %d objects, %.0f %% of the segment, %llu entries\n",
                    static_cast<unsigned long long>(size), objects,
                    100.0 * static_cast<double>(bytes) / (4 << 20),
                    static_cast<unsigned long long>(stats.index_capacity));
        EXPECT_GT(bytes, 0.4 * (4 << 20));
        EXPECT_GT(stats.index_capacity, at_first);
        EXPECT_LE(stats.index_capacity, stats.index_max);
        EXPECT_EQ(stats.growth_error, "");
        for (int i = objects - 1; i > objects - 1000; --i) {
            ASSERT_TRUE(h.get("k" + std::to_string(i)));
        }
        h.expect_sound();
    }
}

}  // namespace
}  // namespace kvstore
