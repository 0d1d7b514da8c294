// The block store's small tables: leases, reservations, tombstones, miss reasons, entry maps.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "store/lease_table.h"
#include "store/ref_map.h"
#include "store/reservation_table.h"
#include "store/withdrawal_memory.h"

namespace kvstore {
namespace {

LeaseTable::Lease lease(uint64_t session, uint64_t deadline_ms, uint64_t bytes) {
    return {session, 7, deadline_ms, bytes, {{1, 2}}};
}

TEST(LeaseTable, EndsByReleaseSessionOrTime) {
    LeaseTable table(1000);
    const uint64_t first = table.add(lease(1, 100, 300));
    const uint64_t second = table.add(lease(1, 200, 300));
    table.add(lease(2, 50, 100));
    EXPECT_EQ(table.room_bytes(7), 300u);
    EXPECT_EQ(table.room_bytes(8), 1000u);
    EXPECT_FALSE(table.take(2, first));
    EXPECT_TRUE(table.take_expired(49).empty());
    EXPECT_EQ(table.take_expired(50).size(), 1u);
    EXPECT_FALSE(table.renew(2, first, 500, 60));
    EXPECT_FALSE(table.renew(1, first, 500, 100));  // over, though nobody has looked
    EXPECT_TRUE(table.renew(1, first, 500, 99));
    EXPECT_EQ(table.take_expired(300).size(), 1u);
    EXPECT_FALSE(table.take(1, second));
    EXPECT_EQ(table.take_session(1).size(), 1u);
    EXPECT_EQ(table.size(), 0u);
    EXPECT_EQ(table.bytes(), 0u);
    EXPECT_EQ(table.room_bytes(7), 1000u);
}

TEST(LeaseTable, EmptyObjectsCanBeLeased) {
    LeaseTable table(1000);
    table.add(lease(1, 100, 0));
    table.add(lease(1, 200, 0));
    EXPECT_EQ(table.take_expired(100).size(), 1u);
    EXPECT_EQ(table.take_expired(200).size(), 1u);
}

Reservation reservation(Owner owner, uint64_t bytes, uint64_t deadline_ms) {
    Reservation made;
    made.owner = owner;
    made.size_bytes = bytes;
    made.deadline_ms = deadline_ms;
    return made;
}

TEST(ReservationTable, CountsPerSlotOrSession) {
    ReservationTable table(1000);
    EXPECT_TRUE(table.has_room({1, 5}, 5000));  // nothing reserved yet
    table.add(10, reservation({1, 5}, 600, 100));
    table.add(11, reservation({2, 5}, 400, 100));
    table.add(12, reservation({1, -1}, 900, 110));
    EXPECT_FALSE(table.has_room({3, 5}, 1));  // the slot's sessions share
    EXPECT_TRUE(table.has_room({1, -1}, 100));
    EXPECT_FALSE(table.has_room({1, -1}, 101));
    EXPECT_EQ(table.of_session(1).size(), 2u);
    EXPECT_EQ(table.of_slot(5).size(), 2u);
    EXPECT_EQ(table.slots(), std::vector<int>{5});
    table.quarantine_expired(100);
    EXPECT_EQ(table.quarantined_bytes(), 1000u);
    EXPECT_EQ(table.active(), 1u);
    table.quarantine(10);
    EXPECT_TRUE(table.consistent());
    EXPECT_TRUE(table.take(10).quarantined);
    EXPECT_EQ(table.quarantined_bytes(), 400u);
    EXPECT_TRUE(table.has_room({3, 5}, 600));
    table.take(11);
    table.take(12);
    EXPECT_TRUE(table.has_room({3, 5}, 5000));
    EXPECT_TRUE(table.consistent());
}

TEST(ReservationTable, AShorterTimeHoldsForWhatComesThen) {
    ReservationTable table(10'000);
    for (Generation generation = 1; generation <= 9; ++generation) {
        table.add(generation, reservation({1, 5}, 10, 100 + generation));
    }
    table.take(3);
    table.take(9);
    table.shorten_deadlines();
    table.add(20, reservation({1, 5}, 10, 50));
    table.add(21, reservation({1, 5}, 10, 104));
    table.add(22, reservation({1, 5}, 10, 104));
    table.shorten_deadlines();  // again, while the longest ones are there
    table.add(23, reservation({1, 5}, 10, 40));
    table.quarantine_expired(40);
    EXPECT_EQ(table.quarantined(), 1u);
    table.quarantine_expired(50);
    EXPECT_EQ(table.quarantined(), 2u);
    table.quarantine_expired(104);
    EXPECT_EQ(table.quarantined(), 7u);  // 1, 2, 4 and those four
    table.add(24, reservation({1, 5}, 10, 200));
    table.quarantine_expired(108);
    EXPECT_EQ(table.active(), 1u);
    EXPECT_TRUE(table.consistent());
}

TEST(TombstoneTable, IsKeptLongerButNeverShorter) {
    TombstoneTable table(100);
    table.keep_at_least(50);
    table.note({1, 2}, 9, 0);
    table.keep_at_least(300);
    table.note({3, 4}, 8, 0);
    table.forget_old(100);
    EXPECT_EQ(table.removed_upto({1, 2}), 0u);
    table.forget_old(299);
    EXPECT_EQ(table.removed_upto({3, 4}), 8u);
}

TEST(TombstoneTable, KeepsTheHighestUntilItsTime) {
    TombstoneTable table(100);
    const Hash128 a{1, 2};
    table.note(a, 9, 0);
    table.note(a, 5, 50);  // keeps 9, and longer
    EXPECT_EQ(table.removed_upto(a), 9u);
    table.forget_old(149);
    EXPECT_EQ(table.removed_upto(a), 9u);
    table.forget_old(150);
    EXPECT_EQ(table.removed_upto(a), 0u);
    EXPECT_EQ(table.size(), 0u);
}

TEST(TombstoneTable, OverflowMeltsIntoAFloor) {
    TombstoneTable table(100, 4);
    for (uint64_t i = 1; i <= 5; ++i) {
        table.note({i, i}, i * 10, i);
    }
    EXPECT_EQ(table.size(), 4u);
    EXPECT_EQ(table.removed_upto({1, 1}), 10u);
    EXPECT_EQ(table.removed_upto({99, 99}), 10u);
    EXPECT_EQ(table.removed_upto({5, 5}), 50u);
    for (uint64_t i = 0; i < 100; ++i) {
        table.note({5, 5}, 50, 10 + i);  // renewing never overflows
    }
    EXPECT_EQ(table.removed_upto({5, 5}), 50u);
}

TEST(MissHistory, RemembersTheLastReason) {
    MissHistory history;
    EXPECT_EQ(history.reason({1, 2}), MissReason::kNone);
    history.note({1, 2}, MissReason::kEvicted, 7);
    history.note({3, 4}, MissReason::kRemoved, 8);
    EXPECT_EQ(history.time_ms({1, 2}), 7u);
    EXPECT_EQ(history.reason({1, 2}), MissReason::kEvicted);
    EXPECT_EQ(history.reason({1, 3}), MissReason::kNone);
    history.note({1, 3}, MissReason::kFlushed, 9);  // same place
    EXPECT_EQ(history.time_ms({1, 2}), 0u);
    EXPECT_EQ(history.reason({1, 2}), MissReason::kNone);
}

TEST(RefMap, AgreesWithAMap) {
    constexpr uint32_t kCapacity = 1000;
    const uint64_t seed = 42;
    std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
    std::vector<uint64_t> keys(kCapacity, 0);
    const auto key_of = [&keys](uint32_t entry) { return keys[entry]; };
    RefMap<decltype(key_of)> map(key_of);
    ASSERT_TRUE(map.grow(kCapacity / 10));
    std::map<uint64_t, uint32_t> model;
    std::mt19937_64 random(seed);
    for (int step = 0; step < 200'000; ++step) {
        if (step == 1000 || step == 20'000) {
            ASSERT_TRUE(map.grow(step == 1000 ? kCapacity / 2 : kCapacity));
        }
        const uint32_t capacity = step < 1000     ? kCapacity / 10
                                  : step < 20'000 ? kCapacity / 2
                                                  : kCapacity;
        const auto entry = static_cast<uint32_t>(random() % capacity);
        if (keys[entry] == 0) {
            const uint64_t key = 1 + random() % 100'000 * 64;
            if (model.contains(key)) {
                continue;
            }
            keys[entry] = key;
            map.insert(key, entry);
            model[key] = entry;
        } else {
            map.erase(keys[entry], entry);
            model.erase(keys[entry]);
            keys[entry] = 0;
        }
        const uint64_t probe = 1 + random() % 100'000 * 64;
        const auto it = model.find(probe);
        ASSERT_EQ(map.find(probe), it == model.end() ? map.kNone : it->second);
    }
    for (const auto& [key, entry] : model) {
        ASSERT_EQ(map.find(key), entry);
    }
    EXPECT_EQ(map.size(), model.size());
}

}  // namespace
}  // namespace kvstore
