// Blocks that are granted before it is known what for.
#include <fcntl.h>
#include <gtest/gtest.h>

#include "index/client_slots.h"
#include "index/slot_registry.h"
#include "tests/store/store_harness.h"

namespace kvstore {
namespace {

constexpr uint64_t kSegment = 16u << 20;
constexpr uint64_t kSize = 64u << 10;

class StoreSpares : public ::testing::Test {
  protected:
    StoreSpares() : store(kSegment, living_slots()) { store.owner = {1, 0}; }
    static BlockStore::Options living_slots() {
        BlockStore::Options options;
        options.slot_alive = [](int) { return true; };
        return options;
    }
    BlockStore::Reserved assign(const std::string& name, Generation spare, uint64_t size = kSize) {
        BlockStore::ReserveItem item = store.item(name, size);
        item.spare = spare;
        return store.store->reserve(store.owner, store.ns, item);
    }
    StoreHarness store;
};

TEST_F(StoreSpares, ASpareBecomesAnObject) {
    const auto spare = store.store->reserve_spare(store.owner, kSize);
    ASSERT_EQ(spare.code, Code::kOk);
    EXPECT_EQ(store.store->stats().spares, 1u);
    EXPECT_EQ(store.store->stats().reservations, 0u);  // nothing that a drain has to wait for
    store.expect_sound();
    const auto assigned = assign("k", spare.generation);
    ASSERT_EQ(assigned.code, Code::kOk);
    EXPECT_EQ(assigned.generation, spare.generation);
    EXPECT_EQ(assigned.offset, spare.offset);
    EXPECT_EQ(store.store->stats().spares, 0u);
    EXPECT_EQ(store.store->stats().reservations, 1u);
    EXPECT_EQ(store.finish(assigned, "k", 7, kSize).code, Code::kOk);
    EXPECT_TRUE(store.get("k"));
    store.expect_sound();
}

TEST_F(StoreSpares, OnlyItsOwnerAndItsSizeOnce) {
    const Generation spare = store.store->reserve_spare(store.owner, kSize).generation;
    EXPECT_EQ(assign("k", spare + 1).code, Code::kExpired);
    EXPECT_EQ(assign("k", spare, kSize - 1).code, Code::kExpired);
    store.owner = {1, 1};
    EXPECT_EQ(assign("k", spare).code, Code::kExpired);
    store.owner = {2, 0};  // another session of the same process
    EXPECT_EQ(assign("k", spare).code, Code::kOk);
    EXPECT_EQ(assign("l", spare).code, Code::kExpired);
    store.expect_sound();
}

TEST_F(StoreSpares, NothingIsPublishedWithoutAKey) {
    const Generation spare = store.store->reserve_spare(store.owner, kSize).generation;
    EXPECT_EQ(store.store->grant(spare, 7), Code::kInvalidArgument);
    const BlockStore::PublishItem publish{spare, 0, 7};
    EXPECT_EQ(store.store->publish(store.owner, {&publish, 1}).front().code,
              Code::kInvalidArgument);
    EXPECT_EQ(store.store->stats().spares, 1u);
}

TEST_F(StoreSpares, ARefusedObjectLeavesTheSpare) {
    ASSERT_EQ(store.put("there", kSize), Code::kOk);
    const Generation spare = store.store->reserve_spare(store.owner, kSize).generation;
    EXPECT_EQ(assign("there", spare).code, Code::kAlreadyExists);
    EXPECT_EQ(assign("new", spare).code, Code::kOk);
    store.expect_sound();
}

TEST_F(StoreSpares, TimeOverQuarantinesItAndAssigningRenewsIt) {
    const Generation old = store.store->reserve_spare(store.owner, kSize).generation;
    const Generation renewed = store.store->reserve_spare(store.owner, kSize).generation;
    store.clock_ms += store.options.reservation_ms - 1;
    const auto assigned = assign("k", renewed);
    ASSERT_EQ(assigned.code, Code::kOk);
    store.clock_ms += 2;
    store.store->tick();
    EXPECT_EQ(store.store->stats().quarantined, 1u);
    EXPECT_EQ(store.store->stats().spares, 0u);
    EXPECT_EQ(assign("l", old).code, Code::kExpired);
    EXPECT_EQ(store.finish(assigned, "k", 7, kSize).code, Code::kOk);
    EXPECT_EQ(store.store->abort(store.owner, old), Code::kOk);  // its writer has stopped
    EXPECT_EQ(store.store->stats().quarantined, 0u);
    store.expect_sound();
}

TEST_F(StoreSpares, TheyTakeASmallShareAndNeedASlot) {
    size_t granted = 0;
    while (store.store->reserve_spare(store.owner, kSize).code == Code::kOk) {
        ++granted;
    }
    EXPECT_EQ(granted, kSegment / 32 / kSize);
    EXPECT_EQ(store.store->reserve_spare({1, -1}, kSize).code, Code::kNoSpace);
    store.expect_sound();
    store.store->on_slot_dead(0);
    EXPECT_EQ(store.store->stats().spares, 0u);
    EXPECT_EQ(store.store->stats().used_bytes, 0u);
    store.expect_sound();
}

TEST_F(StoreSpares, AClosedSessionsProcessMayStillWrite) {
    const Generation spare = store.store->reserve_spare(store.owner, kSize).generation;
    store.store->on_session_closed(store.owner.session);
    EXPECT_EQ(store.store->stats().quarantined, 1u);
    EXPECT_EQ(assign("k", spare).code, Code::kExpired);
    store.expect_sound();
}

// A client with a slot of its own, in this process.
class ShownSpares : public ::testing::Test {
  protected:
    ShownSpares() : store(kSegment) {
        const auto number = store.store->client_slots().assign();
        EXPECT_TRUE(number.ok());
        Fd file(fcntl(store.store->client_slots().fd(*number), F_DUPFD_CLOEXEC, 0));
        auto acquired = SlotRegistry::instance().acquire(std::move(file), *number);
        EXPECT_TRUE(acquired.ok()) << acquired.status().to_string();
        slot = std::move(*acquired);
        EXPECT_TRUE(store.store->client_slots().confirm(*number).ok());
        slot->set_confirmed();
        store.owner = {1, static_cast<int>(*number)};
    }
    // A spare that lies unused, as SpareBlocks keeps it.
    Generation grant(uint64_t size = kSize) {
        const auto spare = store.store->reserve_spare(store.owner, size);
        EXPECT_EQ(spare.code, Code::kOk);
        place = slot->show_spare(spare.generation).value_or(0);
        return spare.generation;
    }
    uint64_t used() const { return store.store->stats().used_bytes; }

    StoreHarness store;
    std::shared_ptr<ClientSlot> slot;
    uint32_t place = 0;
};

TEST_F(ShownSpares, AnExpiredOneGoesBackByItself) {
    const Generation spare = grant();
    store.clock_ms += store.options.reservation_ms + 1;
    store.store->tick();
    EXPECT_EQ(used(), 0u);
    EXPECT_EQ(store.store->stats().quarantined, 0u);
    EXPECT_FALSE(slot->take_spare(place, spare)) << "the client must not write into it any more";
    store.expect_sound();
}

TEST_F(ShownSpares, OneThatIsBeingWrittenStays) {
    const Generation spare = grant();
    ASSERT_TRUE(slot->take_spare(place, spare));
    store.clock_ms += store.options.reservation_ms + 1;
    store.store->tick();
    EXPECT_EQ(store.store->stats().quarantined, 1u);
    EXPECT_GT(used(), 0u);
    // Shown again after its time: the next tick finds it.
    ASSERT_TRUE(slot->show_spare(spare).has_value());
    store.store->tick();
    EXPECT_EQ(used(), 0u);
    store.expect_sound();
}

TEST_F(ShownSpares, AClosedSessionGivesItBack) {
    grant();
    store.store->on_session_closed(store.owner.session);
    EXPECT_EQ(used(), 0u);
    store.expect_sound();
}

TEST_F(ShownSpares, TheQuarantinedOnesCountAsWell) {
    while (store.store->reserve_spare(store.owner, kSize).code == Code::kOk) {
    }
    store.clock_ms += store.options.reservation_ms + 1;
    store.store->tick();
    EXPECT_EQ(store.store->stats().quarantined, kSegment / 32 / kSize);
    EXPECT_EQ(store.store->reserve_spare(store.owner, kSize).code, Code::kNoSpace);
    store.expect_sound();
}

TEST_F(ShownSpares, AnIdleOneGoesBeforeAnythingPublished) {
    uint64_t objects = 0;
    grant();
    while (store.store->stats().evictions == 0 && objects < kSegment / kSize) {
        store.clock_ms += 300;  // the client is idle
        EXPECT_EQ(store.put("k" + std::to_string(objects), kSize), Code::kOk);
        ++objects;
    }
    EXPECT_EQ(objects, kSegment / kSize) << "the spare's memory is one object's";
    EXPECT_EQ(store.store->stats().evictions, 0u);
    store.expect_sound();
}

TEST_F(ShownSpares, OneInUseIsTakenOnlyWhereNothingElseHelps) {
    const Generation spare = grant(kSegment / 32);
    EXPECT_EQ(store.put("all", kSegment - kSegment / 32), Code::kOk);
    EXPECT_EQ(store.store->stats().spares, 1u);
    EXPECT_EQ(store.put("more", kSize), Code::kOk);
    EXPECT_EQ(store.store->stats().evictions, 1u);
    EXPECT_EQ(store.put("whole", kSegment), Code::kOk) << "needs the spare's memory, too";
    EXPECT_FALSE(slot->take_spare(place, spare));
    store.expect_sound();
}

TEST_F(ShownSpares, APutIsNeverRefusedForASpare) {
    store.store->set_limits(store.options.reservation_ms, kSegment / 2);
    grant();
    EXPECT_EQ(store.put("above the cap", kSegment / 4 * 3), Code::kOk);
    store.expect_sound();
}

TEST_F(ShownSpares, PlacesOfAnEarlierLifeAreFree) {
    for (uint32_t i = 0; i < kSlotSpares; ++i) {
        ASSERT_TRUE(slot->show_spare(pack_epoch(1, i + 1)).has_value());
    }
    EXPECT_FALSE(slot->show_spare(pack_epoch(1, 100)).has_value());
    EXPECT_TRUE(slot->show_spare(pack_epoch(2, 1)).has_value());
}

}  // namespace
}  // namespace kvstore
