// Withdrawn blocks and holds by socket: what is free when, and what the ledger records meanwhile.
#include "store/deferred_blocks.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "store/socket_holds.h"

namespace kvstore {
namespace {

class Deferred : public ::testing::Test {
  protected:
    void SetUp() override {
        const IndexGeometry geometry = *IndexGeometry::of(4, 64 * 1024);
        fd_ = Fd(memfd_create("ledger", 0));
        ASSERT_EQ(ftruncate(fd_.get(), static_cast<off_t>(geometry.file_bytes())), 0);
        ledger_ = std::move(*Ledger::create(fd_.get(), geometry));
        allocator_.grow(allocator_bytes_);
        blocks_.emplace(*ledger_, allocator_, [this](std::vector<Generation>* out) {
            *out = hazards_;
            ++scans_;
        });
        holds_.emplace(*ledger_, 3);
    }

    // A block whose entry was invalidated, with its record.
    DeferredBlocks::Block block(Generation generation, uint32_t holds = 0) {
        const uint64_t offset = *allocator_.allocate(kBytes);
        const Ledger::Line line =
            ledger_->add_block(BlockUse::kDeferred, generation, offset, kBytes, -1);
        return {offset, kBytes, holds, line};
    }
    uint64_t live() const { return allocator_.stats().live_blocks; }

    static constexpr uint64_t kBytes = 4096;
    static constexpr uint64_t allocator_bytes_ = 64u << 20;
    Fd fd_;
    std::unique_ptr<Ledger> ledger_;
    ChunkAllocator allocator_{allocator_bytes_};
    std::vector<Generation> hazards_;  // sorted
    int scans_ = 0;
    std::optional<DeferredBlocks> blocks_;
    std::optional<SocketHolds> holds_;
};

TEST_F(Deferred, WhatNobodyReadsIsFreeAfterOneScan) {
    blocks_->withdraw(1, block(1));
    blocks_->withdraw(2, block(2));
    EXPECT_EQ(live(), 2u);
    EXPECT_EQ(scans_, 0);
    blocks_->settle();
    EXPECT_EQ(scans_, 1);
    EXPECT_EQ(live(), 0u);
    EXPECT_EQ(ledger_->lines_in_use(), 0u);
    EXPECT_EQ(blocks_->size(), 0u);
    blocks_->settle();
    blocks_->recheck();
    EXPECT_EQ(scans_, 1);  // nothing to decide
}

TEST_F(Deferred, AHazardKeepsABlockUntilItIsGone) {
    hazards_ = {2, 7};
    blocks_->withdraw(1, block(1));
    blocks_->withdraw(2, block(2));
    blocks_->settle();
    EXPECT_EQ(live(), 1u);
    EXPECT_TRUE(blocks_->contains(2));
    EXPECT_EQ(blocks_->bytes(), kBytes);
    EXPECT_EQ(ledger_->lines_in_use(), 1u);
    blocks_->recheck();
    EXPECT_EQ(live(), 1u);
    hazards_ = {7};
    blocks_->recheck();
    EXPECT_EQ(live(), 0u);
    EXPECT_EQ(ledger_->lines_in_use(), 0u);
}

TEST_F(Deferred, AHoldKeepsABlockAndAHazardAfterItToo) {
    blocks_->withdraw(3, block(3, 2));
    blocks_->release_hold(3);  // settles first: the withdrawal was in progress
    blocks_->settle();
    EXPECT_EQ(live(), 1u);
    EXPECT_TRUE(blocks_->add_hold(3));
    EXPECT_FALSE(blocks_->add_hold(4));
    blocks_->release_hold(3);
    hazards_ = {3};
    blocks_->release_hold(3);  // the last hold; the hazard is found when it is settled
    blocks_->settle();
    EXPECT_TRUE(blocks_->contains(3));
    hazards_ = {};
    blocks_->recheck();
    EXPECT_EQ(live(), 0u);
}

TEST_F(Deferred, DeferredByAnEarlierLife) {
    hazards_ = {5};
    blocks_->defer(5, block(5));
    blocks_->settle();
    EXPECT_EQ(live(), 1u);
    hazards_ = {};
    blocks_->recheck();
    EXPECT_EQ(live(), 0u);
}

TEST_F(Deferred, ManyWithdrawalsSettleByThemselves) {
    for (Generation generation = 1; generation <= DeferredBlocks::kMaxUnsettled; ++generation) {
        blocks_->withdraw(generation, block(generation));
    }
    EXPECT_EQ(scans_, 1);
    EXPECT_EQ(live(), 0u);
}

TEST_F(Deferred, TheSnapshotServesTheChoiceOfVictims) {
    hazards_ = {4, 9};
    EXPECT_FALSE(blocks_->has_hazard(4));
    blocks_->scan_hazards();
    EXPECT_TRUE(blocks_->has_hazard(4));
    EXPECT_TRUE(blocks_->has_hazard(9));
    EXPECT_FALSE(blocks_->has_hazard(5));
}

TEST_F(Deferred, SocketHoldsOfOneSessionAddUp) {
    using Added = SocketHolds::Added;
    const SocketHolds::Target target{10, 4, 0, kBytes};
    EXPECT_EQ(holds_->add({1, 5}, target), Added::kNew);
    EXPECT_EQ(holds_->add({1, 5}, target), Added::kAgain);
    EXPECT_EQ(holds_->add({2, 5}, target), Added::kNew);
    EXPECT_EQ(holds_->recorded(), 2u);
    EXPECT_EQ(ledger_->lines_in_use(), 2u);
    EXPECT_EQ(holds_->slots(), (std::vector{5, 5}));
    EXPECT_FALSE(holds_->release(1, 10));
    EXPECT_TRUE(holds_->contains(1, 10));
    const auto ended = holds_->release(1, 10);
    ASSERT_TRUE(ended);
    EXPECT_EQ(ended->generation, 10u);
    EXPECT_EQ(ended->ref, 4u);
    EXPECT_FALSE(holds_->contains(1, 10));
    EXPECT_EQ(ledger_->lines_in_use(), 1u);
}

TEST_F(Deferred, SocketHoldsAreBounded) {
    using Added = SocketHolds::Added;
    for (Generation generation = 1; generation <= 3; ++generation) {
        EXPECT_EQ(holds_->add({1, -1}, {generation, 0, 0, 1}), Added::kNew);
    }
    EXPECT_EQ(holds_->add({1, -1}, {4, 0, 0, 1}), Added::kFull);
    EXPECT_EQ(holds_->add({1, -1}, {3, 0, 0, 1}), Added::kAgain);
    holds_->keep({9, 2}, {4, 0, 0, 1});  // of an earlier life: not refused
    EXPECT_TRUE(holds_->contains(9, 4));
}

// A session's end proves nothing of a process with a slot; its slot's end does.
TEST_F(Deferred, SocketHoldsEndWithTheirReader) {
    holds_->add({1, -1}, {10, 0, 0, 1});
    holds_->add({1, 6}, {11, 0, 0, 1});
    holds_->add({2, -1}, {10, 0, 0, 1});
    const auto of_session = holds_->end_session(1);
    ASSERT_EQ(of_session.size(), 1u);
    EXPECT_EQ(of_session[0].generation, 10u);
    EXPECT_TRUE(holds_->contains(1, 11));
    EXPECT_TRUE(holds_->contains(2, 10));
    const auto of_slot = holds_->end_slot(6);
    ASSERT_EQ(of_slot.size(), 1u);
    EXPECT_EQ(of_slot[0].generation, 11u);
    EXPECT_EQ(ledger_->lines_in_use(), 1u);
}

}  // namespace
}  // namespace kvstore
