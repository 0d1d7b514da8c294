// MasterCore with nodes that are objects: links, removes, flushes, restart.
#include "master/master_core.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <thread>

#include "base/clock.h"
#include "tests/master/master_core_fixture.h"

namespace kvstore {
namespace {

TEST_F(MasterCoreTest, ALinkThatBringsNothingIsEnded) {
    Node a = add_node("a");
    Node b = add_node("b");
    put(a, "of a");
    put(b, "of b");
    const uint64_t start_ms = boottime_ms();
    uint64_t now_ms = start_ms;
    const auto pass = [&](uint64_t upto_ms) {
        for (; now_ms < start_ms + upto_ms; now_ms += 500) {
            b.to->heard = now_ms;
            core_->maintain(now_ms);
        }
    };
    pass(20'000);
    EXPECT_EQ(a.to->closed, "") << "nobody has asked for it";
    core_->set_link_silence(5'000);
    pass(25'000);
    EXPECT_EQ(a.to->closed, "") << "silent before it was looked at";
    core_->maintain(now_ms += 30'000);  // the master itself did not run
    EXPECT_EQ(a.to->closed, "");
    const uint64_t links = core_->links_id();
    pass(now_ms - start_ms + 5'001);
    EXPECT_NE(a.to->closed, "");
    EXPECT_NE(core_->links_id(), links);
    EXPECT_EQ(core_->link_of("a"), std::pair(false, true));
    EXPECT_EQ(find("of a").reason, MissReason::kNodeDown);
    EXPECT_EQ(b.to->closed, "");
    EXPECT_EQ(find("of b").code, Code::kOk);
    core_->heard("a");  // its heartbeat
    EXPECT_EQ(find("of a").code, Code::kOk);
}

TEST_F(MasterCoreTest, OnlyARegisteredSessionGetsALink) {
    Node a = add_node("a");
    EXPECT_EQ(core_->check_link({.node_id = "a", .session_id = 2}).code(), Code::kExpired);
    EXPECT_EQ(core_->check_link({.node_id = "b", .session_id = 1}).code(), Code::kExpired);
    const std::shared_ptr<FakeLink> first = a.to;
    connect(a);
    EXPECT_FALSE(first->closed.empty());
    EXPECT_TRUE(a.to->closed.empty());
    EXPECT_TRUE(
        core_->register_node({.node_id = "a", .session_id = 2, .state = NodeState::kAlive}, false)
            .ok());
    EXPECT_FALSE(a.to->closed.empty());
    std::vector<int32_t> codes;
    EXPECT_FALSE(core_->announce(a.link, {}, codes).ok());
}

// A client that took one life's table for another's would read from the wrong nodes.
TEST_F(MasterCoreTest, TheNodeTablesOfTwoLivesAreTwo) {
    std::set<uint64_t> seen;
    for (const uint32_t epoch : {1u, 2u}) {
        restart(options(epoch));
        for (const char* id : {"a", "b"}) {
            add_node(epoch == 1 ? id : id[0] == 'a' ? "b" : "a");
            EXPECT_TRUE(seen.insert(core_->nodes_id()).second);
        }
    }
}

// Its puts are Ok from then on, so everybody has to find them.
TEST_F(MasterCoreTest, AJoiningNodeIsReadOnceItHasAnnouncedEverything) {
    Node a{.id = "a", .session = 1, .to = nullptr};
    const NodeInfo joining{.node_id = "a", .session_id = 1, .state = NodeState::kJoining};
    ASSERT_TRUE(core_->register_node(joining, false).ok());
    connect(a);
    const Version version = core_->directory().next_version();
    announce(a, AnnouncePhase::kBegin, {});
    announce(a, AnnouncePhase::kMiddle, {{"k", version}});
    EXPECT_EQ(find("k").reason, MissReason::kNodeDown);
    announce(a, AnnouncePhase::kEnd, {});
    EXPECT_EQ(find("k").code, Code::kOk);
    put(a, "new");
    EXPECT_EQ(find("new").code, Code::kOk);
    core_->close_link(a.link);
    EXPECT_EQ(find("k").reason, MissReason::kNodeDown);
}

// A killed node's link breaks at once, seconds before its heartbeats are missed.
TEST_F(MasterCoreTest, ABrokenLinkMakesWhatItsNodeHoldsAMissUntilItIsHeardOf) {
    Node a = add_node("a");
    Node b = add_node("b");
    const Version both = put(a, "both");
    announce(b, AnnouncePhase::kIncremental, {{"both", both}});
    put(a, "k");
    core_->close_link(a.link);
    EXPECT_EQ(find("k").reason, MissReason::kNodeDown);
    EXPECT_EQ(find("both").code, Code::kOk);
    EXPECT_EQ(core_->stats().directory.unreachable_objects, 1u);
    core_->heard("a");
    EXPECT_EQ(find("k").code, Code::kOk) << "it lives: only its link is down";
    EXPECT_EQ(core_->stats().directory.unreachable_objects, 0u);
    connect(a);
    core_->close_link(a.link);
    EXPECT_EQ(find("k").reason, MissReason::kNodeDown);
    connect(a);
    EXPECT_EQ(find("k").code, Code::kOk) << "a new link is as good as a heartbeat";
    core_->heard("nobody");
}

TEST_F(MasterCoreTest, AGapEndsTheLink) {
    Node a = add_node("a");
    put(a, "k");
    a.seq += 1;
    std::vector<int32_t> codes;
    EXPECT_EQ(core_->announce(a.link, {.seq = a.seq}, codes).code(), Code::kProtocolError);
    EXPECT_EQ(core_->withdraw(a.link, {.seq = a.seq}).code(), Code::kProtocolError);
}

TEST_F(MasterCoreTest, RemoveIsOkWhenAllHoldersHaveAcknowledged) {
    Node a = add_node("a");
    Node b = add_node("b");
    Node c = add_node("c");
    const Version version = put(a, "k");
    announce(b, AnnouncePhase::kIncremental, {{"k", version}});
    EXPECT_EQ(claim(c, "pending").code, Code::kOk);
    Answer answer;
    core_->remove(*ns_, {"k", "absent", "pending"}, 1000, answer.done());
    EXPECT_EQ(find("k").reason, MissReason::kRemoved);
    EXPECT_EQ(answer.calls, 0);
    for (Node* node : {&a, &b, &c}) {
        ASSERT_EQ(node->to->ops.size(), 2u) << "every node hears of it";
        EXPECT_EQ(node->to->ops[0].key, "k");
        EXPECT_GT(node->to->ops[0].version, version);
    }
    ack(a);
    ack(b);
    EXPECT_EQ(answer.calls, 0) << "a granted claim is a holder";
    ack(c);
    EXPECT_EQ(answer.codes, (std::vector<Code>{Code::kOk, Code::kNotFound, Code::kOk}));
    EXPECT_TRUE(answer.unreached.empty());
    EXPECT_EQ(announce(a, AnnouncePhase::kIncremental, {{"k", version}})[0],
              static_cast<int32_t>(Code::kRemoved));
    EXPECT_EQ(core_->stats().log_ops, 0u) << "all known nodes acknowledged";
    core_->maintain(boottime_ms() + 11'000);
    EXPECT_EQ(core_->stats().directory.tombstones, 0u);
}

TEST_F(MasterCoreTest, ARemoveIsPartialWhileAHolderIsAway) {
    Node a = add_node("a");
    Node b = add_node("b");
    const Version version = put(a, "k");
    announce(b, AnnouncePhase::kIncremental, {{"k", version}});
    core_->close_link(b.link);
    Answer answer;
    core_->remove(*ns_, {"k"}, 1000, answer.done());
    EXPECT_EQ(answer.calls, 0);
    ack(a);
    EXPECT_EQ(answer.codes, std::vector<Code>{Code::kPartial});
    EXPECT_EQ(answer.unreached, std::vector<std::string>{"b"});
    EXPECT_EQ(core_->stats().directory.tombstones, 1u);
    // Back again: it hears of the remove first, and its copy is refused whatever it has done.
    connect(b);
    ASSERT_EQ(b.to->ops.size(), 1u);
    EXPECT_EQ(announce_all(b, {{"k", version}})[0], static_cast<int32_t>(Code::kRemoved));
    EXPECT_EQ(core_->stats().log_ops, 1u);
    ack(b);
    EXPECT_EQ(core_->stats().log_ops, 0u);
}

TEST_F(MasterCoreTest, ARemoveEndsAtItsDeadlineAndAtALostLink) {
    Node a = add_node("a");
    put(a, "k");
    put(a, "l");
    Answer timed;
    Answer lost;
    core_->remove(*ns_, {"k"}, 50, timed.done());
    core_->remove(*ns_, {"l"}, 50'000, lost.done());
    core_->maintain(boottime_ms() + 60);
    EXPECT_EQ(timed.codes, std::vector<Code>{Code::kPartial});
    EXPECT_EQ(lost.calls, 0);
    core_->close_link(a.link);
    EXPECT_EQ(lost.codes, std::vector<Code>{Code::kPartial});
    EXPECT_EQ(lost.unreached, std::vector<std::string>{"a"});
}

TEST_F(MasterCoreTest, NothingIsPushedOrAnsweredBeforeTheJournalHasIt) {
    MasterCore::Options with = options();
    with.journal_auto_ack = false;
    restart(with);
    Node a = add_node("a");
    put(a, "k");
    Answer answer;
    core_->remove(*ns_, {"k"}, 60'000, answer.done());
    EXPECT_TRUE(a.to->ops.empty());
    const auto records = core_->wait_journal(1000);
    ASSERT_EQ(records.size(), 1u);
    EXPECT_TRUE(core_->wait_journal(0).empty());
    core_->journal_done(records[0].first);
    EXPECT_EQ(a.to->ops.size(), 1u);
    EXPECT_EQ(answer.calls, 0);
    ack(a);
    EXPECT_EQ(answer.codes, std::vector<Code>{Code::kOk});
    EXPECT_EQ(core_->journal_trimmed().first, 1u);
}

TEST_F(MasterCoreTest, WhatTheDiskHasNoRoomForHasNoEffect) {
    MasterCore::Options with = options();
    with.journal_auto_ack = false;
    restart(with);
    Node a = add_node("a");
    const Version version = put(a, "k");
    put(a, "other");
    const uint64_t one = OpsLog::record_bytes("tenant", "space", "k");
    core_->set_journal_room(2 * one - 1);
    Answer first;
    Answer second;
    core_->remove(*ns_, {"other"}, 60'000, first.done());  // longer than "k"
    core_->remove(*ns_, {"k"}, 60'000, second.done());
    EXPECT_EQ(first.calls, 0);
    EXPECT_EQ(second.codes, std::vector<Code>{Code::kNoSpace}) << "one is waiting for the disk";
    Answer pinned;
    core_->set_pins(*ns_, {"k"}, {Pin::kHard}, 60'000, pinned.done());
    EXPECT_EQ(pinned.codes, std::vector<Code>{Code::kNoSpace});
    Code flushed = Code::kOk;
    core_->flush(*ns_, 60'000,
                 [&](Code code, std::vector<std::string>, uint32_t) { flushed = code; });
    EXPECT_EQ(flushed, Code::kNoSpace);
    EXPECT_EQ(find("k").version, version);
    const auto records = core_->wait_journal(0);
    ASSERT_EQ(records.size(), 1u);

    core_->journal_done(records[0].first);
    ack(a);
    EXPECT_EQ(first.codes, std::vector<Code>{Code::kOk});
    core_->remove(*ns_, {"k"}, 60'000, second.done());
    EXPECT_EQ(second.calls, 1) << "admitted, and waiting for the disk";
    EXPECT_EQ(core_->wait_journal(0).size(), 1u);
    core_->stop();
    EXPECT_EQ(second.calls, 2);
}

TEST_F(MasterCoreTest, NoUpsertIsGrantedWithoutRoomForTheOneThatItOvertakes) {
    Node a = add_node("a");
    put(a, "k");
    core_->set_journal_room(0);
    const uint8_t flags[] = {kPutUpsert, 0};
    const std::vector<uint64_t> ids{77, 78};
    const std::string_view keys[] = {"k", "new"};
    std::vector<ClaimAnswer> out;
    for (const size_t row : {0, 1}) {
        const Claim message{.tenant = "tenant",
                            .ns = "space",
                            .claim_ids = std::span(ids).subspan(row, 1),
                            .keys = keys[row],
                            .flags = std::span(flags).subspan(row, 1)};
        EXPECT_TRUE(core_->claim(a.link, message, out).ok()) << "it is the journal that refuses";
    }
    ASSERT_EQ(out.size(), 2u);
    EXPECT_EQ(out[0].code, Code::kNoSpace);
    EXPECT_EQ(out[1].code, Code::kOk) << "a put of a new key writes nothing to the master's disk";
    core_->set_journal_room(0, Code::kUnavailable);
    Answer removed;
    core_->remove(*ns_, {"k"}, 60'000, removed.done());
    EXPECT_EQ(removed.codes, std::vector<Code>{Code::kUnavailable}) << "it may work a moment later";
}

// A node that knew of an epoch which the next life of the master has never heard of could not
// claim.
TEST_F(MasterCoreTest, AFlushThatIsNotDurableIsToldToNobody) {
    MasterCore::Options with = options();
    with.journal_auto_ack = false;
    restart(with);
    Node a = add_node("a");
    core_->flush(*ns_, 60'000, [](Code, const std::vector<std::string>&, uint32_t) {});
    connect(a);
    EXPECT_TRUE(a.to->ops.empty());
    core_->journal_done(core_->wait_journal(1000).at(0).first);
    ASSERT_EQ(a.to->ops.size(), 1u);
    EXPECT_EQ(a.to->ops[0].kind, OpKind::kFlush);
    connect(a);
    EXPECT_FALSE(a.to->ops.empty()) << "with or without the log";
    EXPECT_EQ(a.to->ops[0].arg, 1u);
}

TEST_F(MasterCoreTest, FlushReachesEveryNode) {
    Node a = add_node("a");
    Node b = add_node("b");
    Node empty = add_node("empty");
    put(a, "k");
    core_->close_link(empty.link);
    const ClaimAnswer pending = claim(b, "pending");
    Code code = Code::kInternal;
    uint32_t ns_epoch = 0;
    core_->flush(*ns_, 1000, [&](Code c, std::vector<std::string> unreached, uint32_t e) {
        code = c;
        ns_epoch = e;
        EXPECT_TRUE(unreached.empty());
    });
    EXPECT_EQ(find("k").reason, MissReason::kAbsent);
    EXPECT_EQ(a.to->ops.at(0).kind, OpKind::kFlush);
    EXPECT_EQ(a.to->ops.at(0).epoch, 0u);
    ack(a);
    EXPECT_EQ(code, Code::kInternal);
    ack(b);
    EXPECT_EQ(code, Code::kOk);
    EXPECT_EQ(ns_epoch, 1u);
    Announce late{.seq = b.seq++, .tenant = "tenant", .ns = "space"};
    const std::string_view key = "pending";
    late.keys = key;
    const std::vector<uint64_t> versions{pending.version};
    late.versions = versions;
    std::vector<int32_t> codes;
    EXPECT_TRUE(core_->announce(b.link, late, codes).ok());
    EXPECT_EQ(codes, std::vector<int32_t>{static_cast<int32_t>(Code::kRemoved)});
    put(b, "k");
}

// What it has not applied covers what it may still show to clients of its host.
TEST_F(MasterCoreTest, NoRemoveIsOkWhileANodeIsBehindAnEarlierEnding) {
    for (const bool flush : {true, false}) {
        restart(options());
        Node a = add_node("a");
        Node b = add_node("b");
        put(b, "k");
        core_->close_link(b.link);
        Answer first;
        if (flush) {
            core_->flush(*ns_, 1000, [&](Code code, std::vector<std::string> unreached, uint32_t) {
                first.done()({code}, std::move(unreached));
            });
        } else {
            core_->remove(*ns_, {"k"}, 1000, first.done());
        }
        ack(a);
        EXPECT_EQ(first.codes, std::vector<Code>{Code::kPartial});
        // With a new object at another node, and with none at all.
        put(a, "k");
        for (int turn = 0; turn < 2; ++turn) {
            Answer answer;
            core_->remove(*ns_, {"k"}, 1000, answer.done());
            ack(a);
            EXPECT_EQ(answer.codes, std::vector<Code>{Code::kPartial});
            EXPECT_EQ(answer.unreached, std::vector<std::string>{"b"});
        }
        connect(b);
        ack(b);
        put(a, "k");
        Answer answer;
        core_->remove(*ns_, {"k"}, 1000, answer.done());
        ack(a);
        EXPECT_EQ(answer.codes, std::vector<Code>{Code::kOk});
    }
}

TEST_F(MasterCoreTest, PinsGoThroughTheLog) {
    Node a = add_node("a");
    put(a, "k");
    Answer answer;
    core_->set_pins(*ns_, {"k", "absent"}, {Pin::kHard, Pin::kSoft}, 1000, answer.done());
    ASSERT_EQ(a.to->ops.size(), 1u);
    EXPECT_EQ(a.to->ops[0].kind, OpKind::kPin);
    EXPECT_EQ(a.to->ops[0].arg, 2u);
    ack(a);
    EXPECT_EQ(answer.codes, (std::vector<Code>{Code::kOk, Code::kNotFound}));
    ObjectInfo info;
    ASSERT_TRUE(core_->directory().inspect(epoch(), "k", info));
    EXPECT_EQ(info.pin, Pin::kHard);
}

TEST_F(MasterCoreTest, TheClaimsOfADeadNodeAreInherited) {
    Node a = add_node("a");
    Node b = add_node("b");
    EXPECT_EQ(claim(a, "k").code, Code::kOk);
    EXPECT_EQ(claim(b, "k").code, Code::kInternal);
    core_->close_link(a.link);
    EXPECT_TRUE(b.to->claims.empty()) << "in limbo";
    EXPECT_TRUE(core_->set_node("a", NodeState::kDead, 0, 0, 0).ok());
    ASSERT_EQ(b.to->claims.size(), 1u);
    EXPECT_EQ(b.to->claims[0].code, Code::kOk);
    EXPECT_EQ(claim(a, "other").code, Code::kInternal) << "its link is gone";
    EXPECT_EQ(core_->stats().claims.granted, 1u);
}

TEST_F(MasterCoreTest, AResyncEndsLimboToo) {
    Node a = add_node("a");
    Node b = add_node("b");
    const ClaimAnswer kept = claim(a, "kept");
    claim(a, "dropped");
    claim(b, "kept");
    claim(b, "dropped");
    core_->close_link(a.link);
    connect(a);
    announce_all(a, {{"kept", kept.version}});
    ASSERT_EQ(b.to->claims.size(), 2u);
    EXPECT_EQ(b.to->claims[0].code, Code::kAlreadyExists);
    EXPECT_EQ(b.to->claims[1].code, Code::kOk);
}

TEST_F(MasterCoreTest, ARestartedMasterLearnsEverythingBack) {
    MasterCore::Options with = options();
    with.journal_auto_ack = false;
    restart(with);
    Node a = add_node("a");
    Node b = add_node("b");
    const Version kept = put(a, "kept");
    const Version gone = put(a, "gone");
    announce(b, AnnouncePhase::kIncremental, {{"gone", gone}});
    core_->close_link(b.link);
    Answer answer;
    core_->remove(*ns_, {"gone"}, 1000, answer.done());
    std::vector<std::vector<uint8_t>> journal;
    for (auto& [seq, record] : core_->wait_journal(0)) {
        journal.push_back(record);
        core_->journal_done(seq);
    }
    ack(a);
    EXPECT_EQ(answer.codes, std::vector<Code>{Code::kPartial});

    MasterCore::Options next = options(2);
    next.rebuilding = true;
    restart(next);
    ASSERT_TRUE(core_->load_ops(journal).ok());
    for (const char* id : {"a", "b"}) {
        const NodeInfo known{.node_id = id, .session_id = 0, .state = NodeState::kDead};
        ASSERT_TRUE(core_->register_node(known, true).ok());
    }
    a = add_node("a", 2);
    EXPECT_EQ(find("kept").reason, MissReason::kRebuilding);
    EXPECT_EQ(announce_all(a, {{"kept", kept}})[0], 0);
    EXPECT_EQ(find("kept").code, Code::kOk);
    EXPECT_EQ(claim(a, "kept").code, Code::kAlreadyExists);
    EXPECT_EQ(claim(a, "new").code, Code::kInternal);
    b = add_node("b", 2);
    ASSERT_EQ(b.to->ops.size(), 1u);
    EXPECT_EQ(b.to->ops[0].key, "gone");
    EXPECT_EQ(announce_all(b, {{"gone", gone}})[0], static_cast<int32_t>(Code::kRemoved));
    core_->finish_rebuild();
    ASSERT_EQ(a.to->claims.size(), 1u);
    EXPECT_EQ(a.to->claims[0].code, Code::kOk);
    EXPECT_GT(a.to->claims[0].version, gone);
    EXPECT_EQ(epoch_of(a.to->claims[0].version), 2u);
}

TEST_F(MasterCoreTest, ANodeBeyondTheLogIsCheckedAgainstTheFloor) {
    Node a = add_node("a");
    Node b = add_node("b");
    const Version removed = put(a, "removed");
    const Version shared = put(a, "shared");
    announce(b, AnnouncePhase::kIncremental, {{"removed", removed}, {"shared", shared}});
    EXPECT_TRUE(core_->remove_node("b").ok());
    Answer answer;
    core_->remove(*ns_, {"removed"}, 1000, answer.done());
    ack(a);
    core_->maintain(boottime_ms() + 11'000);
    EXPECT_EQ(core_->stats().directory.tombstones, 0u);
    EXPECT_EQ(core_->stats().log_ops, 0u);
    b = Node{.id = "b", .session = 5, .to = nullptr};
    EXPECT_TRUE(
        core_->register_node({.node_id = "b", .session_id = 5, .state = NodeState::kAlive}, false)
            .ok());
    connect(b);
    const std::vector<int32_t> codes = announce_all(b, {{"removed", removed}, {"shared", shared}});
    EXPECT_EQ(codes, (std::vector<int32_t>{static_cast<int32_t>(Code::kRemoved), 0}));
    put(b, "fresh");
}

TEST_F(MasterCoreTest, AnUpsertTellsTheHoldersOfTheOldVersion) {
    Node a = add_node("a");
    Node b = add_node("b");
    const Version old = put(a, "k");
    const int answered = announces_answered_;
    const Version changed = upsert(b, "k");
    EXPECT_EQ(announces_answered_, answered) << "a still shows the old version";
    ASSERT_EQ(a.to->ops.size(), 1u);
    EXPECT_EQ(a.to->ops[0].version, changed - 1);
    EXPECT_GE(a.to->ops[0].version, old);
    EXPECT_EQ(find("k").version, changed);
    ack(a);
    EXPECT_EQ(announces_answered_, answered + 1);
    const Version newest = core_->directory().next_version();
    announce(a, AnnouncePhase::kIncremental, {{"k", newest}});
    core_->maintain(boottime_ms() + 500);
    EXPECT_EQ(announces_answered_, answered + 1);
    core_->maintain(boottime_ms() + 1'100);
    EXPECT_EQ(announces_answered_, answered + 2) << "b hangs: it is not waited for";
    withdraw(a, "k", newest);
    EXPECT_EQ(announce(a, AnnouncePhase::kIncremental, {{"k", old}})[0],
              static_cast<int32_t>(Code::kRemoved))
        << "what was overtaken stays so";
}

// The master has started again since, so that it does not know what the node has.
TEST_F(MasterCoreTest, AnUpsertOvertakesWhatANodeHoldsThatIsAway) {
    Node a = add_node("a");
    const Version old = put(a, "k");
    restart(options(2));
    EXPECT_TRUE(
        core_->register_node({.node_id = "a", .session_id = 1, .state = NodeState::kDead}, true)
            .ok());
    Node b = add_node("b");
    const int answered = announces_answered_;
    const Version changed = upsert(b, "k");
    EXPECT_EQ(announces_answered_, answered + 1) << "who is away is not waited for";
    EXPECT_EQ(upsert(b, "other"), changed + 1);
    ack(b);
    withdraw(b, "k", changed);
    EXPECT_EQ(find("k").code, Code::kNotFound);
    EXPECT_TRUE(core_->set_node("a", NodeState::kJoining, 0, 0, 0).ok());
    connect(a);
    ASSERT_EQ(a.to->ops.size(), 2u) << "it applies them before it announces";
    EXPECT_EQ(a.to->ops[0].version, changed - 1);
    EXPECT_EQ(announce_all(a, {{"k", old}})[0], static_cast<int32_t>(Code::kRemoved));
    EXPECT_EQ(find("k").code, Code::kNotFound);
    ack(a);
    put(b, "new");
    upsert(b, "new");
    EXPECT_EQ(a.to->ops.size(), 2u) << "everybody has been heard";
}

class UnusedNamespaceTest : public MasterCoreTest {
  protected:
    // In a namespace that the fixture does not hold.
    Version claim_other(Node& node) {
        const std::vector<uint64_t> ids{++node.claim_id};
        const std::string_view key = "k";
        std::vector<ClaimAnswer> out;
        const Claim message{
            .tenant = "tenant", .ns = "other", .claim_ids = ids, .keys = key, .timeout_ms = 60'000};
        EXPECT_TRUE(core_->claim(node.link, message, out).ok());
        return out.at(0).version;
    }
    void announce_other(Node& node, Version version) {
        const std::string_view key = "k";
        const std::vector<uint64_t> versions{version};
        const std::vector<uint64_t> sizes{10};
        const std::vector<uint8_t> replicas{1};
        std::vector<int32_t> codes;
        EXPECT_TRUE(core_
                        ->announce(node.link,
                                   {.seq = node.seq++,
                                    .phase = AnnouncePhase::kIncremental,
                                    .tenant = "tenant",
                                    .ns = "other",
                                    .keys = key,
                                    .versions = versions,
                                    .sizes = sizes,
                                    .replicas = replicas},
                                   codes)
                        .ok());
        EXPECT_EQ(codes, std::vector<int32_t>{0});
    }
    void withdraw_other(Node& node, Version version) {
        const std::string_view key = "k";
        const std::vector<uint64_t> versions{version};
        const std::vector<uint8_t> reasons{static_cast<uint8_t>(MissReason::kEvicted)};
        EXPECT_TRUE(core_
                        ->withdraw(node.link, {.seq = node.seq++,
                                               .tenant = "tenant",
                                               .ns = "other",
                                               .keys = key,
                                               .versions = versions,
                                               .reasons = reasons})
                        .ok());
    }
    bool exists() {
        core_->maintain(now_ms_ += 10'000);
        return core_->directory().namespaces().find("tenant", "other") != nullptr;
    }
    Code flush_other() {
        Code code = Code::kInternal;
        core_->flush(**core_->directory().namespaces().open("tenant", "other"), 1000,
                     [&](Code c, const std::vector<std::string>&, uint32_t) { code = c; });
        return code;
    }

    uint64_t now_ms_ = 0;
};

TEST_F(UnusedNamespaceTest, GoesWithItsLastObjectAndClaim) {
    Node a = add_node("a");
    const Version version = claim_other(a);
    put(a, "elsewhere");  // the link holds the namespace of its last frame only
    EXPECT_TRUE(exists());
    announce_other(a, version);
    put(a, "elsewhere/2");
    EXPECT_TRUE(exists());
    withdraw_other(a, version);
    put(a, "elsewhere/3");
    EXPECT_FALSE(exists());
    const Version again = claim_other(a);
    EXPECT_GT(again, version);
    announce_other(a, again);
    EXPECT_TRUE(exists());
}

TEST_F(UnusedNamespaceTest, IsNotForgottenByTheNodesThatMayHoldObjectsOfIt) {
    Node a = add_node("a");
    Node b = add_node("b");
    const Version version = claim_other(a);
    announce_other(a, version);
    withdraw_other(a, version);
    put(a, "elsewhere");
    core_->close_link(a.link);
    ASSERT_FALSE(exists());
    // While nobody knows what a holds: the flush cannot be Ok without it.
    EXPECT_EQ(flush_other(), Code::kPartial);
}

TEST_F(UnusedNamespaceTest, OfConnectedNodesIsForgotten) {
    Node a = add_node("a");
    const Version version = claim_other(a);
    announce_other(a, version);
    withdraw_other(a, version);
    put(a, "elsewhere");
    ASSERT_FALSE(exists());
    EXPECT_EQ(flush_other(), Code::kOk);  // nobody may hold anything
}

TEST_F(MasterCoreTest, ATenantsNamespacesAreLimitedForItsClientsOnly) {
    core_->directory().namespaces().set_tenant_limit(1);  // "space" is there
    Node a = add_node("a");
    const std::vector<uint64_t> ids{1};
    const std::string_view key = "k";
    std::vector<ClaimAnswer> out;
    const Claim message{.tenant = "tenant", .ns = "2", .claim_ids = ids, .keys = key};
    EXPECT_EQ(core_->claim(a.link, message, out).code(), Code::kNoSpace);
    EXPECT_EQ(out.at(0).code, Code::kNoSpace);
    EXPECT_EQ(core_->directory().namespaces().find("tenant", "2"), nullptr);
    EXPECT_TRUE(core_->set_namespace_epoch("tenant", "2", 3).ok());  // of an earlier life
    EXPECT_EQ(*core_->space_to_change("tenant", "3"), nullptr);
}

TEST_F(MasterCoreTest, LocateGivesPrefixesPerNode) {
    Node a = add_node("a");
    Node b = add_node("b");
    std::vector<std::string> keys;
    for (int i = 0; i < 300; ++i) {
        keys.push_back("k" + std::to_string(i));
        const Version version = i < 250 ? put(a, keys.back()) : 0;
        if (i < 40 || (i > 50 && i < 250)) {
            announce(b, AnnouncePhase::kIncremental, {{keys.back(), version}});
        }
    }
    const std::vector<std::string_view> views(keys.begin(), keys.end());
    const auto [prefixes, anywhere] = core_->locate(*ns_, views);
    EXPECT_EQ(anywhere, 250u);
    ASSERT_EQ(prefixes.size(), 2u);
    EXPECT_EQ(prefixes[0], (std::pair<std::string, uint32_t>{"a", 250}));
    EXPECT_EQ(prefixes[1], (std::pair<std::string, uint32_t>{"b", 40}));
}

TEST_F(MasterCoreTest, StopAnswersWhatWaits) {
    MasterCore::Options with = options();
    with.maintenance_ms = 1;
    restart(with);
    Node a = add_node("a");
    put(a, "k");
    Answer answer;
    core_->remove(*ns_, {"k"}, 60'000, answer.done());
    core_->stop();
    EXPECT_EQ(answer.codes, std::vector<Code>{Code::kPartial});
}

TEST_F(MasterCoreTest, ThreadsOfNodesAndClients) {
    MasterCore::Options with = options();
    with.maintenance_ms = 1;
    restart(with);
    std::atomic<bool> stop{false};
    std::atomic<uint64_t> removed{0};
    std::vector<Node> nodes;
    for (int i = 0; i < 2; ++i) {
        nodes.push_back(add_node("node" + std::to_string(i)));
    }
    std::vector<std::thread> threads;
    for (Node& node : nodes) {
        threads.emplace_back([&] {
            for (uint64_t i = 0; !stop; ++i) {
                const std::string key = "k" + std::to_string(i % 50);
                const ClaimAnswer granted = claim(node, key, 5);
                if (granted.code == Code::kOk) {
                    announce(node, AnnouncePhase::kIncremental, {{key, granted.version}}, 2);
                }
                uint64_t last = 0;
                {
                    std::lock_guard lock(node.to->mutex_);
                    last = node.to->ops.empty() ? 0 : node.to->ops.back().seq;
                }
                core_->ops_ack(node.link, last);
                if (i % 200 == 199) {
                    core_->close_link(node.link);
                    connect(node, last);
                    announce_all(node, {});
                }
            }
        });
    }
    threads.emplace_back([&] {
        for (int i = 0; !stop; ++i) {
            core_->remove(*ns_, {"k" + std::to_string(i % 50)}, 20,
                          [&](std::vector<Code>, std::vector<std::string>) { ++removed; });
            core_->under_replicated();
            core_->nodes();
            std::this_thread::yield();
        }
    });
    const Deadline deadline = Deadline::after_ms(500);
    while (!deadline.expired()) {
        std::this_thread::yield();
    }
    stop = true;
    for (std::thread& thread : threads) {
        thread.join();
    }
    core_->stop();
    EXPECT_EQ(core_->stats().removes, removed.load());
    EXPECT_EQ(core_->stats().pending_waits, 0u);
}

}  // namespace
}  // namespace kvstore
