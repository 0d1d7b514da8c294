// The directory: versions, tombstones, full announces, reasons, listings, memory, speed, threads.
#include "directory/directory.h"

#include <gtest/gtest.h>
#include <time.h>

#include <map>
#include <random>
#include <set>
#include <thread>

#include "base/clock.h"

namespace kvstore {
namespace {

constexpr HashSecret kSecret{1, 2, 3};

uint64_t thread_ns() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

class DirectoryTest : public testing::Test {
  protected:
    DirectoryTest() {
        for (NodeNumber node = 0; node < 10; ++node) {
            directory_.set_readable(node, true);
        }
    }
    const DirectoryEpoch& epoch() const { return *ns_.current.load(); }
    AnnounceOutcome put(std::string_view key, Version version, NodeNumber node = 1,
                        uint64_t size = 7, uint8_t wanted = 1) {
        return directory_.announce(
            epoch(), node,
            {.key = key, .version = version, .size = size, .replicas_wanted = wanted});
    }
    ObjectPlace find(std::string_view key) {
        ObjectPlace place;
        directory_.lookup(ns_, std::span(&key, 1), std::span(&place, 1));
        return place;
    }

    Directory directory_{kSecret, 3};
    Namespace& ns_ = **directory_.namespaces().open("tenant", "space");
};

class NamespacesTest : public DirectoryTest {
  protected:
    // Both steps at once; how many went.
    size_t forget() { return table_.forget(table_.idle(100)).size(); }
    void SetUp() override { ASSERT_EQ(forget(), 1u); }  // that of the base, which nothing uses
    AnnounceOutcome announce(const NamespacePtr& ns, Version version) {
        return directory_.announce(*ns->current, 1, {.key = "k", .version = version});
    }

    NamespaceTable& table_ = directory_.namespaces();
};

TEST_F(NamespacesTest, OnesWithNothingLeftGo) {
    NamespacePtr ns = *table_.open("t", "a");
    const uint64_t uid = ns->uid;
    EXPECT_EQ(forget(), 0u);  // somebody holds it
    const Version version = directory_.next_version();
    ASSERT_EQ(announce(ns, version).code, Code::kOk);
    ns.reset();
    EXPECT_EQ(forget(), 0u);  // an object
    ns = table_.find("t", "a");
    const Version tombstone = directory_.remove(*ns->current, "k", false).tombstone;
    ns.reset();
    EXPECT_EQ(forget(), 0u);  // a tombstone
    ns = table_.find("t", "a");
    directory_.drop_tombstone(*ns->current, "k", tombstone);
    ns.reset();
    EXPECT_EQ(forget(), 1u);
    EXPECT_EQ(table_.find("t", "a"), nullptr);
    ns = *table_.open("t", "a");
    EXPECT_NE(ns->uid, uid);
    EXPECT_EQ(announce(ns, directory_.next_version()).code, Code::kOk);
    EXPECT_EQ(directory_.stats().objects, 1u);
}

TEST_F(NamespacesTest, AFlushedOneStays) {
    NamespacePtr ns = *table_.open("t", "a");
    ASSERT_EQ(announce(ns, directory_.next_version()).code, Code::kOk);
    directory_.flush(*ns);
    ns.reset();
    while (!directory_.sweep(1000)) {
    }
    EXPECT_EQ(forget(), 0u);
    EXPECT_EQ(table_.find("t", "a")->current.load()->epoch, 1u);
}

TEST_F(NamespacesTest, OneThatWasGivenOutMeanwhileStays) {
    (void)table_.open("t", "a");
    const std::vector<NamespaceTable::Idle> idle = table_.idle(100);
    ASSERT_EQ(idle.size(), 1u);
    (void)table_.find("t", "a");  // it may have begun something, though it holds it no longer
    EXPECT_TRUE(table_.forget(idle).empty());
    EXPECT_EQ(forget(), 1u);
}

TEST_F(NamespacesTest, ATenantHasALimitAndTheOthersTheirOwn) {
    table_.set_tenant_limit(2);
    const NamespacePtr first = *table_.open_for("loud", "1");
    const NamespacePtr second = *table_.open_for("loud", "2");
    const Status refused = table_.open_for("loud", "3").status();
    EXPECT_EQ(refused.code(), Code::kNoSpace);
    EXPECT_EQ(refused.message(),
              "tenant loud has 2 namespaces, as many as tenant_namespaces allows");
    EXPECT_TRUE(table_.open_for("loud", "1").ok());
    EXPECT_TRUE(table_.open_for("quiet", "1").ok());
    EXPECT_TRUE(table_.open("loud", "4").ok());  // what a node holds
    EXPECT_EQ(forget(), 2u);
    EXPECT_EQ(table_.size(), 2u);
}

TEST_F(DirectoryTest, EveryNamespaceCountsItsOwnObjects) {
    Namespace& other = **directory_.namespaces().open("tenant", "other");
    const auto use = [&](const Namespace& ns) {
        for (const Directory::NamespaceUse& one : directory_.uses()) {
            if (one.ns.get() == &ns) {
                return one;
            }
        }
        return Directory::NamespaceUse{};
    };
    for (int i = 0; i < 100; ++i) {
        put("k" + std::to_string(i), directory_.next_version(), 1, 7);
    }
    put("k0", directory_.next_version(), 2, 107);  // replaces an object
    put("k1", directory_.next_version(), 1, 7);
    directory_.announce(*other.current.load(), 1,
                        {.key = "k0", .version = directory_.next_version(), .size = 3});
    EXPECT_EQ(use(ns_).objects, 100u);
    EXPECT_EQ(use(ns_).bytes, 800u);
    EXPECT_EQ(use(other).objects, 1u);
    EXPECT_EQ(use(other).bytes, 3u);
    directory_.remove(epoch(), "k0", false);
    EXPECT_EQ(use(ns_).objects, 99u);
    EXPECT_EQ(use(ns_).bytes, 693u);
    (void)find("k1");
    (void)find("nobody");
    EXPECT_EQ(use(ns_).ns->keys_looked_up.load(), 2u);
    EXPECT_EQ(use(ns_).ns->keys_found.load(), 1u);
    // What a flush leaves to the sweep counts no longer.
    directory_.flush(ns_);
    EXPECT_EQ(use(ns_).objects, 0u);
    EXPECT_EQ(use(ns_).epoch, 1u);
    while (!directory_.sweep(1000)) {
    }
    EXPECT_EQ(directory_.stats().objects, 1u);
    put("k2", directory_.next_version(), 1, 5);
    EXPECT_EQ(use(ns_).bytes, 5u);
    directory_.drop_node(1);
    EXPECT_EQ(use(ns_).objects + use(other).objects, directory_.stats().objects);
}

TEST_F(DirectoryTest, HigherVersionsWinAndLowerOnesAreRefused) {
    const Version first = directory_.next_version();
    const Version second = directory_.next_version();
    EXPECT_EQ(put("k", second, 1).code, Code::kOk);
    EXPECT_EQ(put("k", first, 2).code, Code::kRemoved);
    EXPECT_EQ(put("k", second, 2).code, Code::kOk);
    ObjectPlace place = find("k");
    EXPECT_EQ(place.code, Code::kOk);
    EXPECT_EQ(place.version, second);
    EXPECT_EQ(place.replica_count, 2);
    const Version third = directory_.next_version();
    const AnnounceOutcome upsert = put("k", third, 2, 9);
    EXPECT_EQ(upsert.code, Code::kOk);
    EXPECT_EQ(upsert.superseded.size(), 1u);
    place = find("k");
    EXPECT_EQ(place.version, third);
    EXPECT_EQ(place.size, 9u);
    EXPECT_EQ(place.replica_count, 1);
    EXPECT_EQ(place.nodes[0], 2);
    EXPECT_FALSE(directory_.withdraw(epoch(), 1, "k", second, MissReason::kEvicted));
    EXPECT_EQ(directory_.stats().bytes, 9u);
}

TEST_F(DirectoryTest, VersionsNobodyDrewAreRefused) {
    EXPECT_EQ(put("k", directory_.last_version() + 1).code, Code::kRemoved);
    EXPECT_EQ(put("k", 0).code, Code::kRemoved);
    EXPECT_EQ(find("k").reason, MissReason::kAbsent);
}

TEST_F(DirectoryTest, OneVersionHasOneSize) {
    const Version version = directory_.next_version();
    EXPECT_EQ(put("k", version, 1, 7).code, Code::kOk);
    EXPECT_EQ(put("k", version, 2, 8).code, Code::kInvalidArgument);
    EXPECT_EQ(find("k").replica_count, 1);
}

TEST_F(DirectoryTest, TombstonesRefuseUntilDropped) {
    const Version version = directory_.next_version();
    put("k", version, 1);
    put("k", version, 4);
    const RemoveOutcome removed = directory_.remove(epoch(), "k", false);
    EXPECT_EQ(removed.code, Code::kOk);
    EXPECT_GT(removed.tombstone, version);
    EXPECT_EQ(removed.holders, (std::vector<NodeNumber>{1, 4}));
    EXPECT_EQ(find("k").reason, MissReason::kRemoved);
    EXPECT_EQ(put("k", version, 1).code, Code::kRemoved);
    EXPECT_EQ(directory_.remove(epoch(), "k", false).code, Code::kNotFound);
    const Version later = directory_.next_version();
    EXPECT_EQ(put("k", later, 1).code, Code::kOk);
    directory_.drop_tombstone(epoch(), "k", removed.tombstone);
    EXPECT_EQ(directory_.stats().tombstones, 0u);
    EXPECT_EQ(find("k").code, Code::kOk);
    EXPECT_NE(directory_.remove(epoch(), "absent", true).tombstone, 0u);
}

TEST_F(DirectoryTest, TheFloorLetsOnlyRecordedVersionsPass) {
    const Version old = directory_.next_version();
    const Version floor = directory_.next_version();
    const Version fresh = directory_.next_version();
    const auto announce = [&](std::string_view key, Version version, NodeNumber node) {
        return directory_
            .announce(epoch(), node, {.key = key, .version = version, .size = 1}, floor)
            .code;
    };
    EXPECT_EQ(announce("a", old, 2), Code::kRemoved);
    put("a", old, 1, 1);
    EXPECT_EQ(announce("a", old, 2), Code::kOk);
    EXPECT_EQ(announce("b", fresh, 2), Code::kOk);
}

TEST_F(DirectoryTest, ReplicasOfADownNodeAreKeptButNotReturned) {
    const Version version = directory_.next_version();
    put("k", version, 1);
    directory_.set_readable(1, false);
    EXPECT_EQ(find("k").reason, MissReason::kNodeDown);
    put("k", version, 2);
    EXPECT_EQ(find("k").nodes[0], 2);
    directory_.set_readable(1, true);
    EXPECT_EQ(find("k").replica_count, 2);
    EXPECT_EQ(directory_.drop_node(1), 1u);
    EXPECT_EQ(find("k").replica_count, 1);
    EXPECT_EQ(directory_.replicas_of(1), 0u);
}

TEST_F(DirectoryTest, MoreReplicasThanFitReplaceTheUnreadable) {
    const Version version = directory_.next_version();
    for (NodeNumber node = 0; node < 8; ++node) {
        EXPECT_EQ(put("k", version, node).code, Code::kOk);
    }
    EXPECT_EQ(put("k", version, 8).code, Code::kNoSpace);
    directory_.set_readable(3, false);
    EXPECT_EQ(put("k", version, 8).code, Code::kOk);
    EXPECT_EQ(find("k").replica_count, 8);
    EXPECT_EQ(directory_.replicas_of(3), 0u);
}

TEST_F(DirectoryTest, ManyAnnouncedAtOnceAreAsEachByItself) {
    Directory single(kSecret, 3);
    const DirectoryEpoch& single_ns = *(*single.namespaces().open("tenant", "space"))->current;
    std::mt19937_64 random(7);
    for (NodeNumber node = 0; node < 4; ++node) {
        single.set_readable(node, true);
    }
    for (int round = 0; round < 200; ++round) {
        std::vector<std::string> keys;
        std::vector<AnnouncedObject> items;
        const size_t count = random() % 300;
        for (size_t i = 0; i < count; ++i) {
            keys.push_back("key " + std::to_string(random() % 2'000));
        }
        keys.push_back("");  // no key: it is refused
        for (const std::string& key : keys) {
            const Version version = directory_.next_version();
            ASSERT_EQ(single.next_version(), version);
            items.push_back({.key = key, .version = version - random() % 500, .size = key.size()});
        }
        const std::string removed = "key " + std::to_string(random() % 2'000);
        directory_.remove(epoch(), removed, true);
        single.remove(single_ns, removed, true);
        const auto node = static_cast<NodeNumber>(random() % 4);
        const Version floor = round % 3 == 0 ? items.front().version : 0;
        std::vector<AnnounceOutcome> outcomes(items.size());
        directory_.announce(epoch(), node, items, floor, outcomes);
        for (size_t i = 0; i < items.size(); ++i) {
            const AnnounceOutcome one = single.announce(single_ns, node, items[i], floor);
            ASSERT_EQ(outcomes[i].code, one.code);
            ASSERT_EQ(outcomes[i].is_newer, one.is_newer);
            ASSERT_EQ(outcomes[i].superseded, one.superseded);
            ASSERT_EQ(outcomes[i].readable, one.readable);
        }
    }
    EXPECT_EQ(directory_.stats().replicas, single.stats().replicas);
    for (int number = 0; number < 2'000; ++number) {
        const std::string key = "key " + std::to_string(number);
        const ObjectPlace place = find(key);
        EXPECT_EQ(place.version, single.lookup_one(single_ns, key).version);
        EXPECT_EQ(place.nodes, single.lookup_one(single_ns, key).nodes);
    }
}

TEST_F(DirectoryTest, AFullAnnounceDropsWhatIsNotInIt) {
    std::map<std::string, Version> versions;
    for (const char* key : {"a", "b", "c", "d"}) {
        versions[key] = directory_.next_version();
        put(key, versions[key], 1);
    }
    put("a", versions["a"], 2);
    directory_.begin_full(1);
    put("b", versions["b"], 1);
    directory_.begin_full(1);  // the first round was cut off: its marks do not count
    put("c", versions["c"], 1);
    EXPECT_EQ(directory_.end_full(1), 3u);
    EXPECT_EQ(find("a").nodes[0], 2);
    EXPECT_EQ(find("b").code, Code::kNotFound);
    EXPECT_EQ(find("c").code, Code::kOk);
    EXPECT_EQ(find("d").code, Code::kNotFound);
    directory_.begin_full(1);
    EXPECT_EQ(directory_.end_full(1), 1u);
    EXPECT_EQ(directory_.stats().objects, 1u);
}

// A pass that finds nothing left would not be made, so whatever ends a replica has to be counted.
TEST_F(DirectoryTest, WhatEndsDuringAFullAnnounceIsNotLookedForAtItsEnd) {
    std::map<std::string, Version> versions;
    for (const char* key : {"a", "b", "removed", "replaced", "withdrawn", "c", "d"}) {
        versions[key] = directory_.next_version();
        put(key, versions[key], 1);
    }
    directory_.begin_full(1);
    put("a", versions["a"], 1);
    put("b", versions["b"], 1);
    put("b", versions["b"], 1);  // twice is once
    directory_.remove(epoch(), "removed", false);
    put("replaced", directory_.next_version(), 2);
    directory_.withdraw(epoch(), 1, "withdrawn", versions["withdrawn"], MissReason::kEvicted);
    EXPECT_EQ(directory_.replicas_of(1), 4u);
    EXPECT_EQ(directory_.end_full(1), 2u);
    EXPECT_EQ(directory_.replicas_of(1), 2u);
    EXPECT_EQ(find("d").code, Code::kNotFound);

    directory_.begin_full(1);
    put("a", versions["a"], 1);
    directory_.remove(epoch(), "b", false);
    EXPECT_EQ(directory_.end_full(1), 0u);
    directory_.begin_full(1);
    put("a", versions["a"], 1);
    directory_.begin_full(1);  // "a" is to be announced again
    EXPECT_EQ(directory_.end_full(1), 1u);
    EXPECT_EQ(directory_.replicas_of(1), 0u);
    EXPECT_EQ(directory_.replicas_of(2), 1u);
}

TEST_F(DirectoryTest, ReasonsOfAMiss) {
    EXPECT_EQ(find("never").reason, MissReason::kAbsent);
    const Version version = directory_.next_version();
    put("evicted", version);
    EXPECT_TRUE(directory_.withdraw(epoch(), 1, "evicted", version, MissReason::kEvicted));
    EXPECT_EQ(find("evicted").reason, MissReason::kEvicted);
    directory_.announce(epoch(), 1, {.key = "short", .version = version, .size = 1, .ttl_ms = 1});
    const Deadline deadline = Deadline::after_ms(5000);
    while (find("short").code == Code::kOk && !deadline.expired()) {
        std::this_thread::yield();
    }
    EXPECT_EQ(find("short").reason, MissReason::kExpired);
    directory_.set_rebuilding(true);
    EXPECT_EQ(find("never").reason, MissReason::kRebuilding);
    const Directory::Stats stats = directory_.stats();
    EXPECT_EQ(stats.lookups[static_cast<size_t>(MissReason::kEvicted)], 1u);
}

TEST_F(DirectoryTest, EvictedCopiesAreNotWantedAgain) {
    const Version version = directory_.next_version();
    put("k", version, 1, 7, 2);
    put("k", version, 2, 7, 2);
    directory_.withdraw(epoch(), 2, "k", version, MissReason::kEvicted);
    ObjectInfo info;
    ASSERT_TRUE(directory_.inspect(epoch(), "k", info));
    EXPECT_EQ(info.replicas_wanted, 1);
    EXPECT_EQ(info.replicas.size(), 1u);
    EXPECT_GT(info.created_ms, 1'600'000'000'000u);
}

TEST_F(DirectoryTest, FlushIsAtOnceAndSweptLater) {
    const DirectoryEpoch& old = epoch();
    for (int i = 0; i < 1000; ++i) {
        put("key" + std::to_string(i), directory_.next_version());
    }
    directory_.remove(old, "key0", false);
    const Version in_flight = directory_.next_version();
    EXPECT_TRUE(directory_.sweep(10));
    EXPECT_EQ(directory_.flush(ns_)->epoch, 1u);
    EXPECT_EQ(find("key5").reason, MissReason::kAbsent);
    EXPECT_EQ(directory_.announce(old, 1, {.key = "late", .version = in_flight, .size = 1}).code,
              Code::kRemoved);
    put("key5", directory_.next_version());
    while (!directory_.sweep(100)) {
    }
    const Directory::Stats stats = directory_.stats();
    EXPECT_EQ(stats.objects, 1u);
    EXPECT_EQ(stats.replicas, 1u);
    EXPECT_EQ(stats.bytes, 7u);
    EXPECT_EQ(stats.tombstones, 0u);
    EXPECT_EQ(find("key5").code, Code::kOk);
}

TEST_F(DirectoryTest, ListingPagesOverAPrefix) {
    std::set<std::string> expected;
    for (int i = 0; i < 500; ++i) {
        const std::string key = (i % 5 == 0 ? "x/" : "y/") + std::to_string(i);
        put(key, directory_.next_version(), i % 2 == 0 ? 1 : 2);
        if (i % 5 == 0 && i % 2 == 0) {
            expected.insert(key);
        }
    }
    directory_.set_readable(2, false);
    std::vector<std::string> keys;
    uint64_t cursor = 0;
    do {
        std::vector<std::string> page;
        cursor = directory_.list(epoch(), "x/", cursor, 7, page);
        EXPECT_LE(page.size(), 7u);
        keys.insert(keys.end(), page.begin(), page.end());
    } while (cursor != 0);
    EXPECT_EQ(keys.size(), expected.size());
    EXPECT_EQ(std::set<std::string>(keys.begin(), keys.end()), expected);
}

TEST_F(DirectoryTest, NamespacesDoNotMeet) {
    Namespace& other = **directory_.namespaces().open("tenant", "other");
    put("k", directory_.next_version());
    ObjectPlace place;
    const std::string_view key = "k";
    directory_.lookup(other, std::span(&key, 1), std::span(&place, 1));
    EXPECT_EQ(place.code, Code::kNotFound);
    EXPECT_EQ(directory_.namespaces().open("", "x").code(), Code::kInvalidArgument);
    EXPECT_EQ(directory_.namespaces().open("t", "bad\n").code(), Code::kInvalidArgument);
}

TEST_F(DirectoryTest, MatchesAMapUnderRandomOperations) {
    const uint64_t seed = std::random_device()();
    RecordProperty("seed", std::to_string(seed));
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    std::map<std::string, std::map<NodeNumber, Version>> model;
    std::map<std::string, Version> current;
    for (int step = 0; step < 200'000; ++step) {
        std::string key = std::to_string(random() % 3000);
        key.append(random() % 2 == 0 ? 0 : static_cast<size_t>(std::stoi(key)) % 300, '-');
        const auto node = static_cast<NodeNumber>(random() % 4);
        switch (random() % 4) {
            case 0: {
                const Version version = directory_.next_version();
                ASSERT_EQ(put(key, version, node).code, Code::kOk);
                model[key] = {{node, version}};
                current[key] = version;
                break;
            }
            case 1:
                if (current.contains(key)) {
                    ASSERT_EQ(put(key, current[key], node).code, Code::kOk);
                    model[key][node] = current[key];
                }
                break;
            case 2:
                if (current.contains(key)) {
                    ASSERT_EQ(
                        directory_.withdraw(epoch(), node, key, current[key], MissReason::kEvicted),
                        model[key].erase(node) == 1);
                    if (model[key].empty()) {
                        model.erase(key);
                        current.erase(key);
                    }
                }
                break;
            default:
                ASSERT_EQ(directory_.remove(epoch(), key, false).code,
                          current.contains(key) ? Code::kOk : Code::kNotFound);
                model.erase(key);
                current.erase(key);
        }
        const ObjectPlace place = find(key);
        ASSERT_EQ(place.code == Code::kOk, current.contains(key)) << key;
        if (place.code == Code::kOk) {
            ASSERT_EQ(place.version, current[key]);
            ASSERT_EQ(place.replica_count, model[key].size());
        }
    }
    EXPECT_EQ(directory_.stats().objects, current.size());
}

TEST_F(DirectoryTest, MemoryPerObjectAndLookupSpeed) {
#ifdef NDEBUG
    constexpr size_t kObjects = 1'000'000;
#else
    constexpr size_t kObjects = 200'000;
#endif
    const uint64_t before = directory_.stats().memory_bytes;
    size_t key_bytes = 0;
    std::vector<std::string> keys;
    for (size_t i = 0; i < kObjects; ++i) {
        keys.push_back("model/llama/page/" + std::to_string(i * 0x9E3779B97F4A7C15ull));
        key_bytes += keys.back().size();
        put(keys.back(), directory_.next_version());
    }
    const double per_object =
        static_cast<double>(directory_.stats().memory_bytes - before - key_bytes) / kObjects;
    std::shuffle(keys.begin(), keys.end(), std::mt19937_64(1));
    // As in a frame: a batch's keys lie one behind the other. Processor time, since tests share it.
    std::string frame;
    std::vector<std::string_view> views;
    std::vector<ObjectPlace> places(128);
    uint64_t hits = 0;
    uint64_t lookup_ns = 0;
    for (size_t i = 0; i + 128 <= keys.size(); i += 128) {
        frame.clear();
        views.clear();
        frame.reserve(128 * limits::kMaxKeyBytes);
        for (size_t row = i; row < i + 128; ++row) {
            views.emplace_back(frame.data() + frame.size(), keys[row].size());
            frame += keys[row];
        }
        const uint64_t start = thread_ns();
        directory_.lookup(ns_, views, places);
        lookup_ns += thread_ns() - start;
        hits += places[i % 128].code == Code::kOk ? 1 : 0;
    }
    const double seconds = static_cast<double>(lookup_ns) / 1e9;
    printf("%zu objects: %.1f bytes beside the key, %.1f M lookups/s in batches of 128\n", kObjects,
           per_object, static_cast<double>(kObjects) / seconds / 1e6);
    EXPECT_EQ(hits, kObjects / 128);
    EXPECT_LE(per_object, 96.0);
}

TEST_F(DirectoryTest, ThreadsAnnounceLookUpRemoveAndSweep) {
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    std::vector<std::string> keys;
    for (int i = 0; i < 256; ++i) {
        keys.push_back("key" + std::to_string(i));
    }
    for (NodeNumber node = 0; node < 2; ++node) {
        threads.emplace_back([&, node] {
            std::mt19937_64 random(node);
            while (!stop) {
                const std::string& key = keys[random() % keys.size()];
                const Version version = directory_.next_version();
                put(key, version, node);
                directory_.withdraw(epoch(), node, key, version, MissReason::kEvicted);
            }
        });
    }
    threads.emplace_back([&] {
        const std::vector<std::string_view> views(keys.begin(), keys.end());
        std::vector<ObjectPlace> places(views.size());
        while (!stop) {
            directory_.lookup(ns_, views, places);
            for (const ObjectPlace& place : places) {
                ASSERT_TRUE((place.code == Code::kOk) == (place.replica_count > 0));
            }
        }
    });
    threads.emplace_back([&] {
        uint64_t cursor = 0;
        while (!stop) {
            directory_.begin_full(0);
            directory_.end_full(0);
            directory_.remove(epoch(), keys[7], true);
            directory_.flush(ns_);
            directory_.sweep(1000);
            cursor = directory_.watch().poll(cursor, 100, boottime_ms()).next_cursor;
            std::vector<std::string> page;
            directory_.list(epoch(), "key", 0, 100, page);
        }
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    stop = true;
    for (std::thread& thread : threads) {
        thread.join();
    }
    directory_.drop_node(0);
    directory_.drop_node(1);
    EXPECT_EQ(directory_.stats().objects, 0u);
    EXPECT_EQ(directory_.stats().replicas, 0u);
}

TEST(WatchRingTest, DeliversResyncsAndFallsAsleep) {
    WatchRing ring(8192);
    ring.record(WatchKind::kPublish, "t", "n", "unseen", 1, 2, 3);
    WatchRing::Batch batch = ring.poll(0, 10, 1000);
    EXPECT_TRUE(batch.resync);
    EXPECT_TRUE(batch.events.empty());
    uint64_t cursor = batch.next_cursor;
    for (uint64_t i = 0; i < 5; ++i) {
        ring.record(WatchKind::kPublish, "tenant", "space", "key" + std::to_string(i), i, i * 2, 3);
    }
    batch = ring.poll(cursor, 3, 1000);
    ASSERT_EQ(batch.events.size(), 3u);
    EXPECT_FALSE(batch.resync);
    EXPECT_EQ(batch.events[2].key, "key2");
    EXPECT_EQ(batch.events[2].tenant, "tenant");
    EXPECT_EQ(batch.events[2].ns, "space");
    EXPECT_EQ(batch.events[2].size, 4u);
    EXPECT_EQ(batch.events[2].node, 3);
    batch = ring.poll(batch.next_cursor, 10, 1000);
    EXPECT_EQ(batch.events.size(), 2u);
    cursor = batch.next_cursor;
    for (int round = 0; round < 100; ++round) {  // around the ring's end, at every offset
        const std::string key(static_cast<size_t>(round) * 7 % 500, 'k');
        ring.record(WatchKind::kWithdraw, "t", "n", key, 9, 0, 1);
        batch = ring.poll(cursor, 10, 1000);
        ASSERT_EQ(batch.events.size(), 1u);
        ASSERT_EQ(batch.events[0].key, key);
        cursor = batch.next_cursor;
    }
    for (int i = 0; i < 2000; ++i) {
        ring.record(WatchKind::kWithdraw, "t", "n", "key", 9, 0, 1);
    }
    batch = ring.poll(cursor, 10, 1000);
    EXPECT_TRUE(batch.resync);
    ring.record(WatchKind::kPublish, "t", "n", "after", 9, 0, 1);
    batch = ring.poll(batch.next_cursor, 10, 1000);
    ASSERT_EQ(batch.events.size(), 1u);
    EXPECT_EQ(batch.events[0].key, "after");
    ring.expire(1000 + WatchRing::kIdleMs + 1);
    EXPECT_FALSE(ring.active());
    ring.record(WatchKind::kPublish, "t", "n", "lost", 9, 0, 1);
    EXPECT_TRUE(ring.poll(batch.next_cursor, 10, 200'000).resync);
}

}  // namespace
}  // namespace kvstore
