// The operations log: numbers, records, durability, trimming; and the waits for acknowledgements.
#include "master/ops_log.h"

#include <gtest/gtest.h>

#include <map>

#include "master/ack_waits.h"

namespace kvstore {
namespace {

Op remove_op(const std::string& key, Version version) {
    return {.kind = OpKind::kRemove,
            .epoch = 2,
            .version = version,
            .arg = 0,
            .tenant = "tenant",
            .ns = "space",
            .key = key};
}

TEST(OpsLogTest, RecordsRoundTripAndDamageIsRefused) {
    Op op = remove_op("key", 77);
    op.seq = 12;
    op.arg = 3;
    const std::vector<uint8_t> record = OpsLog::encode(op);
    const Result<Op> back = OpsLog::decode(record);
    ASSERT_TRUE(back.ok());
    EXPECT_EQ(back->seq, 12u);
    EXPECT_EQ(back->kind, OpKind::kRemove);
    EXPECT_EQ(back->epoch, 2u);
    EXPECT_EQ(back->version, 77u);
    EXPECT_EQ(back->arg, 3u);
    EXPECT_EQ(back->tenant + "/" + back->ns + "/" + back->key, "tenant/space/key");
    for (size_t i = 0; i < record.size(); ++i) {
        std::vector<uint8_t> damaged = record;
        damaged[i] ^= 0x10;
        EXPECT_FALSE(OpsLog::decode(damaged).ok());
        EXPECT_FALSE(OpsLog::decode(std::span(record).first(i)).ok());
    }
}

TEST(OpsLogTest, AnUnknownKindIsRefused) {
    for (int kind = 0; kind < 256; ++kind) {
        Op op = remove_op("key", 77);
        op.seq = 1;
        op.kind = static_cast<OpKind>(kind);
        const Result<Op> back = OpsLog::decode(OpsLog::encode(op));
        EXPECT_EQ(back.ok(), kind >= 1 && kind <= 3) << kind;
        OpsLog log(0, 0);
        EXPECT_EQ(log.load(OpsLog::encode(op)).ok(), back.ok());
    }
}

TEST(OpsLogTest, NothingIsPushedBeforeItIsDurable) {
    OpsLog log(0, 0);
    EXPECT_EQ(log.append(remove_op("a", 1)), 1u);
    EXPECT_EQ(log.append(remove_op("b", 2)), 2u);
    EXPECT_TRUE(log.run_after(0, 10).empty());
    EXPECT_EQ(log.take_records(1).front().first, 1u);
    EXPECT_EQ(log.take_records(9).size(), 1u);
    EXPECT_FALSE(log.has_records());
    log.make_durable(1);
    ASSERT_EQ(log.run_after(0, 10).size(), 1u);
    log.make_durable(99);
    EXPECT_EQ(log.durable_seq(), 2u);
    EXPECT_EQ(log.run_after(0, 10).size(), 2u);
    EXPECT_EQ(log.run_after(1, 10).front().key, "b");
}

TEST(OpsLogTest, TrimmingRaisesTheFloorAndARestartGoesOn) {
    OpsLog log(0, 0);
    std::vector<std::vector<uint8_t>> records;
    for (Version version = 1; version <= 5; ++version) {
        log.append(remove_op("k" + std::to_string(version), version * 10));
    }
    for (auto& [seq, record] : log.take_records(99)) {
        records.push_back(record);
    }
    log.make_durable(4);
    EXPECT_EQ(log.trim(9).size(), 4u);
    EXPECT_EQ(log.trimmed_seq(), 4u);
    EXPECT_EQ(log.version_floor(), 40u);

    OpsLog next(2, 20);
    for (const auto& record : records) {
        EXPECT_TRUE(next.load(record).ok());
    }
    EXPECT_EQ(next.size(), 3u);
    EXPECT_EQ(next.last_seq(), 5u);
    EXPECT_FALSE(next.has_records());
    EXPECT_FALSE(next.load(records[3]).ok());
    EXPECT_EQ(next.append(remove_op("new", 99)), 6u);
    EXPECT_TRUE(next.has_records());
}

TEST(OpsLogTest, TheLastEndingIsARemoveOrAFlushThatIsKept) {
    OpsLog log(0, 0);
    const auto last = [&](std::string_view key) { return log.last_ending("tenant", "space", key); };
    log.append(remove_op("k", 1));
    Op flush = remove_op("", 2);
    flush.kind = OpKind::kFlush;
    log.append(flush);
    Op pin = remove_op("k", 2);
    pin.kind = OpKind::kPin;
    log.append(pin);
    EXPECT_EQ(last("k"), 2u);
    EXPECT_EQ(last("other"), 2u);
    EXPECT_EQ(log.last_ending("tenant", "elsewhere", "k"), 0u);
    log.append(remove_op("k", 3));
    EXPECT_EQ(last("k"), 4u);
    log.make_durable(4);
    log.trim(3);
    EXPECT_EQ(last("k"), 4u);
    EXPECT_EQ(last("other"), 0u);
}

TEST(OpsLogTest, SkippedNumbersLeaveRunsConsecutive) {
    OpsLog log(0, 0);
    log.append(remove_op("a", 1));
    log.make_durable(1);
    log.skip_to(10);
    EXPECT_EQ(log.append(remove_op("b", 2)), 11u);
    log.make_durable(11);
    ASSERT_EQ(log.run_after(0, 10).size(), 1u);
    EXPECT_EQ(log.run_after(1, 10).front().seq, 11u);
}

class AckWaitsTest : public testing::Test {
  protected:
    void start(std::vector<AckRow> rows, uint64_t deadline_ms = 1000) {
        waits_.add(std::move(rows), deadline_ms,
                   [this](std::vector<Code> codes, std::vector<NodeNumber> unreached) {
                       ++answers_;
                       codes_ = std::move(codes);
                       unreached_ = std::move(unreached);
                   });
    }
    void look(uint64_t durable_seq, uint64_t now_ms = 0) {
        for (AckWaits::Ready& one :
             waits_.collect(durable_seq, now_ms, [this](NodeNumber s) { return nodes_[s]; })) {
            one.run();
        }
    }
    AckWaits waits_;
    std::map<NodeNumber, AckNode> nodes_;
    int answers_ = 0;
    std::vector<Code> codes_;
    std::vector<NodeNumber> unreached_;
};

TEST_F(AckWaitsTest, OkWhenAllHoldersHaveAcknowledged) {
    nodes_ = {{1, {true, 0}}, {2, {true, 0}}};
    start({{Code::kOk, 5, {1, 2}}, {Code::kNotFound, 0, {}}, {Code::kOk, 6, {1}}});
    look(6);
    EXPECT_EQ(answers_, 0);
    nodes_[1].applied_seq = 6;
    look(6);
    EXPECT_EQ(answers_, 0);
    nodes_[2].applied_seq = 5;
    look(5);
    EXPECT_EQ(answers_, 0) << "operation 6 is not durable";
    look(6);
    EXPECT_EQ(codes_, (std::vector<Code>{Code::kOk, Code::kNotFound, Code::kOk}));
    EXPECT_TRUE(unreached_.empty());
    EXPECT_EQ(waits_.size(), 0u);
}

TEST_F(AckWaitsTest, PartialAtOnceForWhoIsAwayAfterTheOthers) {
    nodes_ = {{1, {true, 0}}, {2, {false, 3}}};
    start({{Code::kOk, 5, {1, 2}}});
    look(5);
    EXPECT_EQ(answers_, 0);
    nodes_[1].applied_seq = 5;
    look(5);
    EXPECT_EQ(codes_, (std::vector<Code>{Code::kPartial}));
    EXPECT_EQ(unreached_, (std::vector<NodeNumber>{2}));
}

TEST_F(AckWaitsTest, TheDeadlineNamesTheSilent) {
    nodes_ = {{1, {true, 0}}, {2, {true, 9}}};
    start({{Code::kOk, 5, {1, 2}}, {Code::kOk, 6, {2}}});
    look(6, 999);
    EXPECT_EQ(answers_, 0);
    look(6, 1000);
    EXPECT_EQ(codes_, (std::vector<Code>{Code::kPartial, Code::kOk}));
    EXPECT_EQ(unreached_, (std::vector<NodeNumber>{1}));
    start({{Code::kOk, 7, {2}}});
    look(6, 1000);
    EXPECT_EQ(codes_, (std::vector<Code>{Code::kDeadlineExceeded}));
}

}  // namespace
}  // namespace kvstore
