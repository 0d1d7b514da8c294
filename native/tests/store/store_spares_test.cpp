// Blocks that are granted before it is known what for.
#include <gtest/gtest.h>

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

}  // namespace
}  // namespace kvstore
