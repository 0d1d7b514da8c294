// PutFlow over a real block store and a real link to a made-up master: each stage of a put, and
// what every end leaves of it at the store, at the master and with the writer.
#include "node/put_flow.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "node/announce_stream.h"
#include "tests/node/made_up_master.h"

namespace kvstore {
namespace {

using testing::bytes_of;
using testing::eventually;
using testing::LinkedNode;
using testing::MadeUpMaster;
using testing::test_secret;

constexpr uint32_t kWaitMs = 30'000;
constexpr Owner kEngine{1, 0};  // writes by itself, into the mapped segment
constexpr Owner kSocket{2, -1};

// What the writer is told: the rows of one StatusReply.
class Answer final : public ConnectionRef {
  public:
    bool send(MessageType type, uint16_t, uint64_t, std::span<const uint8_t> body,
              std::span<const iovec>, std::shared_ptr<void>) override {
        EXPECT_EQ(type, MessageType::kStatusReply);
        StatusReply reply;
        EXPECT_TRUE(decode_message(body, &reply).ok());
        const std::lock_guard lock(mutex_);
        EXPECT_FALSE(codes_.has_value()) << "answered twice";
        codes_ = testing::NodeClient::codes(reply);
        return true;
    }
    void close(Code, std::string_view) override {}
    void post(std::function<void(Connection&)>) override {}
    bool open() const override { return true; }
    uint64_t id() const override { return 1; }

    std::optional<std::vector<Code>> codes() const {
        const std::lock_guard lock(mutex_);
        return codes_;
    }

  private:
    mutable std::mutex mutex_;
    std::optional<std::vector<Code>> codes_;
};

class PutNode final : public LinkedNode {
  public:
    PutNode(const MadeUpMaster& master, uint32_t reservation_ms)
        : LinkedNode(link_options(master)),
          ns(make_namespace(test_secret(), "tenant", "space", 0)),
          store(make_store(reservation_ms)),
          flow({test_secret(), reservation_ms, kWaitMs}, *store, nullptr, link, metrics, wishes) {
        start();
        EXPECT_TRUE(link.wait_state(LinkState::kUp, kWaitMs));
    }
    ~PutNode() override { stop(); }

    void on_link_down(uint64_t from) override {
        flow.on_link_down(from);
        ++downs;
    }
    void on_claims(uint64_t from, std::span<const ClaimAnswer> results) override {
        flow.on_claims(from, results);
        claims += results.size();
    }
    void on_announced(uint64_t, const NamespaceRef&,
                      std::span<const AnnounceResult> results) override {
        flow.on_announced(results);
    }
    void on_ops(std::span<const OpView>) override {}
    void on_applied(uint64_t) override {}
    void on_copy(CopyOrder) override {}
    uint32_t list_objects(uint32_t, size_t, std::vector<AnnounceGroup>&) override { return 0; }

    const NamespaceRef ns;
    const std::unique_ptr<BlockStore> store;
    NodeMetrics metrics;
    ReplicaWishes wishes;
    PutFlow flow;
    std::atomic<int> downs{0};
    std::atomic<size_t> claims{0};  // answers that the flow has seen

  private:
    static std::unique_ptr<BlockStore> make_store(uint32_t reservation_ms) {
        BlockStore::Options options;
        options.size_bytes = 16u << 20;
        options.node_id = "a";
        options.secret = test_secret();
        options.reservation_ms = reservation_ms;
        options.slot_alive = [](int) { return true; };
        auto created = BlockStore::create(options);
        EXPECT_TRUE(created.ok()) << created.status().to_string();
        return std::move(*created);
    }
};

class PutFlowTest : public ::testing::Test {
  protected:
    explicit PutFlowTest(uint32_t reservation_ms = limits::kReservationMs)
        : node(master, reservation_ms) {}

    void hold(bool claims, bool announces) {
        master.set({.hold_claims = claims, .hold_announces = announces});
    }
    static PutFlow::Row row_of(std::string_view key, uint64_t size_bytes = kBytes) {
        PutFlow::Row row;
        row.key = key;
        row.size_bytes = size_bytes;
        return row;
    }
    PutFlow::Begun begin(const std::string& key, const Owner& owner = kEngine,
                         bool upsert = false) {
        PutFlow::Row row = row_of(key);
        row.upsert = upsert;
        const PutFlow::Begun begun = node.flow.begin(owner, node.ns, {&row, 1}, kWaitMs).at(0);
        if (begun.code == Code::kOk) {
            write(begun, key);
        }
        return begun;
    }
    void write(const PutFlow::Begun& begun, const std::string& key) {
        const std::string bytes = bytes_of(key, kBytes);
        std::memcpy(begun.data, bytes.data(), kBytes);
        crcs_[begun.generation] = crc32c(bytes.data(), kBytes);
    }
    std::shared_ptr<Answer> commit(const std::vector<PutFlow::Begun>& blocks,
                                   const Owner& owner = kEngine, uint32_t timeout_ms = kWaitMs) {
        auto answer = std::make_shared<Answer>();
        const auto reply = std::make_shared<PutReply>(answer, 1, blocks.size());
        std::vector<PutFlow::Committed> rows;
        for (const PutFlow::Begun& block : blocks) {
            rows.push_back({rows.size(), block.generation, crcs_[block.generation]});
        }
        node.flow.commit(owner, rows, timeout_ms, reply);
        return answer;
    }
    // What a row was told; within the deadline of eventually().
    static Code told(const std::shared_ptr<Answer>& answer, size_t row = 0) {
        EXPECT_TRUE(eventually([&] { return answer->codes().has_value(); }));
        return answer->codes().value_or(std::vector<Code>(row + 1, Code::kInternal)).at(row);
    }
    bool readable(const std::string& key, Version version = 0) {
        const Hash128 hash = key_hash(test_secret(), node.ns->id, key);
        const BlockStore::Found found = node.store->find(node.ns, {key, hash, version});
        return found.hold != nullptr && std::string(reinterpret_cast<const char*>(found.data),
                                                    found.length) == bytes_of(key, kBytes);
    }
    // Waits until the master has heard of this claim, and what its end was.
    bool claimed(Generation generation) {
        return eventually([&] {
            const auto claims = master.heard().claims;
            return std::any_of(claims.begin(), claims.end(),
                               [&](const auto& one) { return one.id == generation; });
        });
    }
    bool abandoned(Generation generation) {
        return eventually([&] {
            const auto ids = master.heard().abandoned;
            return std::find(ids.begin(), ids.end(), generation) != ids.end();
        });
    }
    // A claim's answer, once the flow has seen it.
    void answer_claim(Generation generation, Code code, Version version = 1) {
        ASSERT_TRUE(claimed(generation));
        const size_t seen = node.claims;
        master.answer_claim(generation, code, version);
        ASSERT_TRUE(eventually([&] { return node.claims == seen + 1; }));
    }
    size_t announces() const {
        size_t count = 0;
        for (const MadeUpMaster::Announced& one : master.heard().announces) {
            count += one.phase == AnnouncePhase::kIncremental ? 1 : 0;
        }
        return count;
    }
    bool announced(size_t count) {
        return eventually([&] { return announces() == count; });
    }
    void lose_link() {
        const int downs = node.downs;
        master.drop_link();
        ASSERT_TRUE(eventually([&] { return node.downs == downs + 1; }));
    }
    // Nothing is left of a write that did not succeed.
    void expect_no_trace(const std::string& key) {
        EXPECT_FALSE(readable(key));
        EXPECT_EQ(node.flow.under_way(), 0u);
        EXPECT_EQ(node.store->stats().reservations, 0u);
        EXPECT_EQ(node.store->stats().quarantined, 0u);
        const Status books = node.store->audit();
        EXPECT_TRUE(books.ok()) << books.to_string();
    }

    static constexpr uint64_t kBytes = 4'000;
    MadeUpMaster master;
    PutNode node;

  private:
    std::map<Generation, uint32_t> crcs_;
};

// ---- the way to Ok ---------------------------------------------------------------------------

TEST_F(PutFlowTest, OkFollowsClaimPublishAndAnnounce) {
    hold(true, true);
    const PutFlow::Begun block = begin("k");
    ASSERT_EQ(block.code, Code::kOk);
    const auto answer = commit({block});
    EXPECT_FALSE(readable("k")) << "the claim is not granted";
    answer_claim(block.generation, Code::kOk, 5);
    EXPECT_TRUE(readable("k", 5));
    ASSERT_TRUE(announced(1));
    EXPECT_FALSE(answer->codes().has_value()) << "the master has not acknowledged it";
    master.answer_announce();
    EXPECT_EQ(told(answer), Code::kOk);
    EXPECT_EQ(node.flow.under_way(), 0u);
    EXPECT_EQ(node.metrics.puts_ok.get(), 1u);
    EXPECT_EQ(node.metrics.put_bytes_shm.get(), kBytes);
    EXPECT_TRUE(master.heard().abandoned.empty()) << "the claim was used";
}

TEST_F(PutFlowTest, AGrantThatComesFirstWaitsForTheBytes) {
    hold(true, false);
    const PutFlow::Begun block = begin("k", kSocket);
    answer_claim(block.generation, Code::kOk);
    EXPECT_FALSE(readable("k"));
    EXPECT_EQ(announces(), 0u);
    EXPECT_EQ(told(commit({block}, kSocket)), Code::kOk);
    EXPECT_TRUE(readable("k"));
    EXPECT_EQ(node.metrics.put_bytes_socket.get(), kBytes);
}

TEST_F(PutFlowTest, RowsOfOneCommitEndEachForItself) {
    hold(true, false);
    const std::vector<PutFlow::Row> rows{row_of("a"), row_of("b"), row_of("c", uint64_t{1} << 40)};
    const auto begun = node.flow.begin(kSocket, node.ns, rows, kWaitMs);
    ASSERT_EQ(begun.size(), 3u);
    EXPECT_EQ(begun[2].code, Code::kTooLarge);
    write(begun[0], "a");
    write(begun[1], "b");
    answer_claim(begun[0].generation, Code::kAlreadyExists);
    const auto answer = commit({begun[0], begun[1]}, kSocket);
    EXPECT_FALSE(answer->codes().has_value());
    answer_claim(begun[1].generation, Code::kOk);
    EXPECT_EQ(told(answer, 0), Code::kAlreadyExists);
    EXPECT_EQ(told(answer, 1), Code::kOk);
    EXPECT_TRUE(readable("b"));
    expect_no_trace("a");
    EXPECT_EQ(master.heard().claims.size(), 2u) << "what has no block claims no key";
}

TEST_F(PutFlowTest, ASpareBlockIsWrittenInPlaceOfANewOne) {
    const BlockStore::Reserved spare = node.store->reserve_spare(kEngine, kBytes);
    ASSERT_EQ(spare.code, Code::kOk);
    PutFlow::Row row = row_of("k");
    row.spare = spare.generation;
    const PutFlow::Begun block = node.flow.begin(kEngine, node.ns, {&row, 1}, kWaitMs).at(0);
    ASSERT_EQ(block.code, Code::kOk);
    EXPECT_EQ(block.offset, spare.offset);
    write(block, "k");
    EXPECT_EQ(told(commit({block})), Code::kOk);
    EXPECT_TRUE(readable("k"));
}

TEST_F(PutFlowTest, WhatIsPublishedExistsAndClaimsNothing) {
    EXPECT_EQ(told(commit({begin("k")})), Code::kOk);
    EXPECT_EQ(begin("k").code, Code::kAlreadyExists);
    EXPECT_EQ(master.heard().claims.size(), 1u);
    EXPECT_EQ(node.metrics.puts_exist.get(), 1u);
    const PutFlow::Begun again = begin("k", kEngine, true);
    ASSERT_EQ(again.code, Code::kOk);
    EXPECT_EQ(told(commit({again})), Code::kOk);
    EXPECT_EQ(master.heard().claims.back().flags, kPutUpsert);
    EXPECT_TRUE(readable("k", 2));
}

TEST_F(PutFlowTest, WhatIsNotAcknowledgedYetDoesNotExist) {
    hold(false, true);
    const auto first = commit({begin("k")});
    ASSERT_TRUE(announced(1));
    hold(true, true);
    const PutFlow::Begun second = begin("k");
    ASSERT_EQ(second.code, Code::kOk)
        << "the claim waits at the master for the first one's outcome";
    ASSERT_TRUE(claimed(second.generation));
    master.answer_announce();
    EXPECT_EQ(told(first), Code::kOk);
    answer_claim(second.generation, Code::kAlreadyExists);
    EXPECT_EQ(told(commit({second})), Code::kAlreadyExists);
    EXPECT_TRUE(readable("k", 1));
}

// ---- the first of a key ----------------------------------------------------------------------

TEST_F(PutFlowTest, TheFirstOfAKeyIsAnsweredWhenItsAnnounceIsOnTheWay) {
    master.set({.hold_announces = true, .first_of_its_key = true});
    const PutFlow::Begun block = begin("k");
    EXPECT_EQ(told(commit({block})), Code::kOk);
    ASSERT_TRUE(announced(1));
    EXPECT_TRUE(readable("k"));
    EXPECT_EQ(node.metrics.puts_ok.get(), 1u);
    EXPECT_EQ(node.flow.under_way(), 1u) << "the master may still refuse it";
    EXPECT_EQ(told(commit({block})), Code::kExpired) << "once";
    master.answer_announce();
    ASSERT_TRUE(eventually([&] { return node.flow.under_way() == 0; }));
    EXPECT_TRUE(readable("k"));
    EXPECT_EQ(node.metrics.puts_ok.get(), 1u) << "counted once";
    EXPECT_TRUE(master.heard().abandoned.empty());
}

TEST_F(PutFlowTest, WhatWasAnsweredOutlivesItsLink) {
    master.set({.hold_announces = true, .first_of_its_key = true});
    EXPECT_EQ(told(commit({begin("k")})), Code::kOk);
    ASSERT_TRUE(announced(1));
    master.drop_link();
    ASSERT_TRUE(eventually([&] { return node.downs == 1; }));
    EXPECT_EQ(node.flow.under_way(), 0u);
    EXPECT_TRUE(readable("k")) << "the next full announce names it";
}

TEST_F(PutFlowTest, WhatWasAnsweredGoesWhenTheMasterRefusesIt) {
    master.set({.hold_announces = true, .first_of_its_key = true});
    EXPECT_EQ(told(commit({begin("k")})), Code::kOk);
    ASSERT_TRUE(announced(1));
    master.answer_announce(Code::kRemoved);
    ASSERT_TRUE(eventually([&] { return node.flow.under_way() == 0; }));
    EXPECT_FALSE(readable("k"));
}

TEST_F(PutFlowTest, AFullWindowKeepsNoWriterWaiting) {
    master.set({.hold_announces = true, .first_of_its_key = true});
    for (size_t i = 0; i < AnnounceStream::kWindow + 2; ++i) {
        EXPECT_EQ(told(commit({begin("k" + std::to_string(i))})), Code::kOk);
    }
    ASSERT_TRUE(announced(AnnounceStream::kWindow));
    master.ping();
    ASSERT_TRUE(eventually([&] { return !master.heard().pongs.empty(); }));
    EXPECT_EQ(announces(), AnnounceStream::kWindow + 1) << "who asks has waited for it";
}

// ---- copies ----------------------------------------------------------------------------------

TEST_F(PutFlowTest, ACopyClaimsNothingAndIsAnnounced) {
    const PutFlow::Row row = row_of("k");
    EXPECT_EQ(node.flow.begin_copy(kSocket, node.ns, row, 0).code, Code::kInvalidArgument);
    const PutFlow::Begun block = node.flow.begin_copy(kSocket, node.ns, row, 7);
    ASSERT_EQ(block.code, Code::kOk);
    write(block, "k");
    EXPECT_EQ(told(commit({block}, kSocket)), Code::kOk);
    EXPECT_TRUE(readable("k", 7));
    EXPECT_TRUE(master.heard().claims.empty());
    EXPECT_EQ(announces(), 1u);
    EXPECT_EQ(node.metrics.copies_in.get(), 1u);
    EXPECT_EQ(node.metrics.puts_ok.get(), 0u);
    EXPECT_EQ(node.flow.begin_copy(kSocket, node.ns, row, 7).code, Code::kAlreadyExists);
}

TEST_F(PutFlowTest, ACopyEndsWithItsSession) {
    const PutFlow::Row row = row_of("k");
    const PutFlow::Begun block = node.flow.begin_copy(kSocket, node.ns, row, 7);
    ASSERT_EQ(block.code, Code::kOk);
    node.flow.on_session_closed(kSocket.session);
    node.store->on_session_closed(kSocket.session);
    expect_no_trace("k");
}

// ---- refusals --------------------------------------------------------------------------------

TEST_F(PutFlowTest, ARefusedBlockIsFreedWhenItsWriterHasStopped) {
    hold(true, false);
    const PutFlow::Begun block = begin("k");
    answer_claim(block.generation, Code::kAlreadyExists);
    EXPECT_EQ(node.store->stats().reservations, 1u) << "its writer may still be copying";
    EXPECT_EQ(told(commit({block})), Code::kAlreadyExists);
    expect_no_trace("k");
    EXPECT_EQ(node.metrics.puts_exist.get(), 1u);
    EXPECT_TRUE(master.heard().abandoned.empty()) << "a refused claim has ended at the master";
}

TEST_F(PutFlowTest, ARefusalAfterTheCommitEndsTheWrite) {
    hold(true, false);
    const PutFlow::Begun block = begin("k");
    const auto answer = commit({block});
    answer_claim(block.generation, Code::kDeadlineExceeded);
    EXPECT_EQ(told(answer), Code::kUnavailable) << "the wait for the key ran out at the master";
    expect_no_trace("k");
}

TEST_F(PutFlowTest, AGrantWithoutAVersionIsRefused) {
    hold(true, false);
    const PutFlow::Begun block = begin("k");
    const auto answer = commit({block});
    answer_claim(block.generation, Code::kOk, 0);
    EXPECT_EQ(told(answer), Code::kProtocolError);
    expect_no_trace("k");
}

TEST_F(PutFlowTest, ARefusedAnnounceIsTakenBack) {
    hold(false, true);
    const auto answer = commit({begin("k")});
    ASSERT_TRUE(announced(1));
    EXPECT_TRUE(readable("k"));
    master.answer_announce(Code::kRemoved);
    EXPECT_EQ(told(answer), Code::kRemoved);
    expect_no_trace("k");
}

TEST_F(PutFlowTest, ACommitIsTakenOnceAndFromItsWriterAlone) {
    hold(true, false);
    const PutFlow::Begun block = begin("k");
    const auto answer = commit({block});
    EXPECT_EQ(told(commit({block})), Code::kInvalidArgument);
    const PutFlow::Begun other = begin("other");
    EXPECT_EQ(told(commit({other}, kSocket)), Code::kExpired) << "not its writer";
    EXPECT_EQ(told(commit({{Code::kOk, other.generation + 1, 0, nullptr}})), Code::kExpired);
    answer_claim(block.generation, Code::kOk);
    EXPECT_EQ(told(answer), Code::kOk);
    answer_claim(other.generation, Code::kOk, 2);
    EXPECT_EQ(told(commit({other})), Code::kOk) << "as if nobody else had spoken";
}

TEST_F(PutFlowTest, AMessageWithoutRowsIsAnswered) {
    const auto answer = std::make_shared<Answer>();
    PutReply(answer, 1, 0).send_if_empty();
    ASSERT_TRUE(answer->codes().has_value());
    EXPECT_TRUE(answer->codes()->empty());
}

// ---- aborts ----------------------------------------------------------------------------------

TEST_F(PutFlowTest, AnAbortFreesTheBlockAndTheKey) {
    hold(true, false);
    const PutFlow::Begun block = begin("k");
    EXPECT_EQ(node.flow.abort(kSocket, block.generation), Code::kInvalidArgument);
    EXPECT_EQ(node.flow.abort(kEngine, block.generation), Code::kOk);
    EXPECT_TRUE(abandoned(block.generation));
    expect_no_trace("k");
    // A grant that was on its way is given back, too.
    answer_claim(block.generation, Code::kOk);
    EXPECT_TRUE(eventually([&] { return master.heard().abandoned.size() == 2; }));
    expect_no_trace("k");
}

TEST_F(PutFlowTest, WhatIsPublishedCannotBeAborted) {
    hold(false, true);
    const PutFlow::Begun block = begin("k");
    const auto answer = commit({block});
    ASSERT_TRUE(announced(1));
    EXPECT_EQ(node.flow.abort(kEngine, block.generation), Code::kInvalidArgument);
    master.answer_announce();
    EXPECT_EQ(told(answer), Code::kOk);
    EXPECT_TRUE(readable("k"));
}

// ---- the writer is gone ----------------------------------------------------------------------

TEST_F(PutFlowTest, AClosedSessionGivesItsKeyBackBeforeTheGrant) {
    hold(true, false);
    const PutFlow::Begun block = begin("k", kSocket);
    ASSERT_TRUE(claimed(block.generation));
    node.flow.on_session_closed(kSocket.session);
    node.store->on_session_closed(kSocket.session);
    EXPECT_TRUE(abandoned(block.generation));
    expect_no_trace("k");
}

TEST_F(PutFlowTest, AClosedSessionGivesItsKeyBackAfterTheGrant) {
    hold(true, false);
    const PutFlow::Begun block = begin("k");
    answer_claim(block.generation, Code::kOk);
    node.flow.on_session_closed(kEngine.session);
    node.store->on_session_closed(kEngine.session);
    EXPECT_TRUE(abandoned(block.generation));
    EXPECT_EQ(node.flow.under_way(), 0u);
    EXPECT_EQ(node.store->stats().quarantined, 1u) << "its process lives, and may still write";
    EXPECT_EQ(told(commit({block}, {3, kEngine.slot})), Code::kExpired);
    expect_no_trace("k");
}

TEST_F(PutFlowTest, WhatAClosedSessionHasCommittedIsFreedAndNotQuarantined) {
    hold(true, false);
    const PutFlow::Begun block = begin("k");
    const auto answer = commit({block});
    ASSERT_TRUE(claimed(block.generation));
    node.flow.on_session_closed(kEngine.session);
    EXPECT_EQ(told(answer), Code::kClosed);
    EXPECT_TRUE(abandoned(block.generation));
    expect_no_trace("k");
}

TEST_F(PutFlowTest, WhatIsPublishedOutlivesItsSession) {
    hold(false, true);
    const auto answer = commit({begin("k")});
    ASSERT_TRUE(announced(1));
    node.flow.on_session_closed(kEngine.session);
    node.store->on_session_closed(kEngine.session);
    EXPECT_TRUE(readable("k"));
    master.answer_announce();
    EXPECT_EQ(told(answer), Code::kOk);
    EXPECT_TRUE(readable("k"));
}

// ---- the link is lost ------------------------------------------------------------------------

TEST_F(PutFlowTest, WithoutALinkNothingIsReserved) {
    master.set({.refuse = true});
    lose_link();
    EXPECT_EQ(begin("k").code, Code::kUnavailable);
    const PutFlow::Row row = row_of("k");
    EXPECT_EQ(node.flow.begin_copy(kSocket, node.ns, row, 7).code, Code::kUnavailable);
    expect_no_trace("k");
}

TEST_F(PutFlowTest, ALinkLostWhileTheWriterCopiesIsToldToItsCommit) {
    hold(true, false);
    const PutFlow::Begun claiming = begin("claiming");
    const PutFlow::Begun granted = begin("granted");
    answer_claim(granted.generation, Code::kOk);
    lose_link();
    EXPECT_EQ(node.store->stats().reservations, 2u) << "their writers may still be copying";
    EXPECT_EQ(told(commit({claiming})), Code::kUnavailable);
    EXPECT_EQ(told(commit({granted})), Code::kUnavailable);
    expect_no_trace("claiming");
    expect_no_trace("granted");
}

TEST_F(PutFlowTest, ALinkLostAfterTheCommitEndsTheWrite) {
    hold(true, false);
    const PutFlow::Begun block = begin("k");
    const auto answer = commit({block});
    ASSERT_TRUE(claimed(block.generation));
    lose_link();
    EXPECT_EQ(told(answer), Code::kUnavailable);
    expect_no_trace("k");
}

TEST_F(PutFlowTest, ALinkLostBeforeTheAcknowledgementTakesTheObjectBack) {
    hold(false, true);
    const auto answer = commit({begin("k")});
    ASSERT_TRUE(announced(1));
    EXPECT_TRUE(readable("k"));
    lose_link();
    EXPECT_EQ(told(answer), Code::kUnavailable);
    expect_no_trace("k");
}

TEST_F(PutFlowTest, AnAnswerOnANewLinkIsNotForAClaimOfTheOldOne) {
    hold(true, false);
    const PutFlow::Begun block = begin("k");
    ASSERT_TRUE(claimed(block.generation));
    lose_link();
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    answer_claim(block.generation, Code::kOk);
    EXPECT_TRUE(abandoned(block.generation));
    EXPECT_EQ(told(commit({block})), Code::kUnavailable);
    expect_no_trace("k");
}

// ---- time ------------------------------------------------------------------------------------

TEST_F(PutFlowTest, TheCommitsDeadlineEndsAWriteWithoutAGrant) {
    hold(true, false);
    const PutFlow::Begun block = begin("k");
    const auto answer = commit({block}, kEngine, 1);
    ASSERT_TRUE(claimed(block.generation));
    EXPECT_FALSE(answer->codes().has_value());
    EXPECT_TRUE(eventually([&] {
        node.flow.tick();
        return answer->codes().has_value();
    }));
    EXPECT_EQ(told(answer), Code::kUnavailable);
    EXPECT_TRUE(abandoned(block.generation));
    answer_claim(block.generation, Code::kOk);
    EXPECT_TRUE(eventually([&] { return master.heard().abandoned.size() == 2; }));
    expect_no_trace("k");
}

TEST_F(PutFlowTest, TheCommitsDeadlineWithdrawsWhatIsNotAcknowledged) {
    hold(false, true);
    const auto answer = commit({begin("k")}, kEngine, 1);
    ASSERT_TRUE(announced(1));
    EXPECT_TRUE(eventually([&] {
        node.flow.tick();
        return answer->codes().has_value();
    }));
    EXPECT_EQ(told(answer), Code::kUnavailable);
    expect_no_trace("k");
    ASSERT_TRUE(eventually([&] { return !master.heard().withdrawn.empty(); }));
    EXPECT_EQ(master.heard().withdrawn[0], std::pair(std::string("k"), Version{1}));
    hold(false, false);
    master.answer_announce();  // too late: nothing is answered twice
    EXPECT_EQ(told(commit({begin("next")})), Code::kOk);
}

class PutFlowExpiryTest : public PutFlowTest {
  protected:
    PutFlowExpiryTest() : PutFlowTest(20) {}
};

TEST_F(PutFlowExpiryTest, AReservationThatIsNotCommittedExpires) {
    hold(true, false);
    const PutFlow::Begun block = begin("k");
    ASSERT_TRUE(claimed(block.generation));
    ASSERT_TRUE(eventually([&] {
        node.store->tick();
        node.flow.tick();
        return node.flow.under_way() == 0;
    }));
    EXPECT_TRUE(abandoned(block.generation));
    EXPECT_EQ(node.store->stats().quarantined, 1u) << "its writer may still be copying";
    EXPECT_EQ(told(commit({block})), Code::kExpired);
    expect_no_trace("k");
}

TEST_F(PutFlowExpiryTest, AGrantForAnExpiredReservationIsNotPublished) {
    hold(true, false);
    const PutFlow::Begun block = begin("k");
    const auto answer = commit({block});  // in time; it is the grant that comes late
    ASSERT_TRUE(claimed(block.generation));
    ASSERT_TRUE(eventually([&] {
        node.store->tick();
        return node.store->stats().quarantined == 1;
    }));
    answer_claim(block.generation, Code::kOk);
    EXPECT_EQ(told(answer), Code::kExpired);
    EXPECT_TRUE(abandoned(block.generation));
    expect_no_trace("k");
}

}  // namespace
}  // namespace kvstore
