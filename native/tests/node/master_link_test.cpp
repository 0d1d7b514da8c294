// A node's link alone, against a made-up master on a real event server.
#include "node/master_link.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "node/announce_stream.h"
#include "tests/node/made_up_master.h"

namespace kvstore {
namespace {

using Announced = MasterLink::Announced;

using testing::eventually;
using testing::link_options;
using testing::LinkedNode;
using testing::MadeUpMaster;

const NamespaceRef kSpace =
    std::make_shared<const NamespaceEpoch>(NamespaceEpoch{.tenant = "tenant", .name = "space"});

// The node behind the link: lists `objects` in the full announce, and counts what it is told.
class TestNode final : public LinkedNode {
  public:
    explicit TestNode(MasterLink::Options options, int listed = 0)
        : LinkedNode(std::move(options)), objects(listed) {
        start();
    }
    ~TestNode() override { stop(); }

    void on_link_down(uint64_t) override { ++downs; }
    void on_claims(uint64_t from, std::span<const ClaimAnswer> results) override {
        const std::lock_guard lock(mutex_);
        for (const ClaimAnswer& result : results) {
            EXPECT_EQ(result.link, from);
            claims_.push_back(result);
        }
    }
    void on_announced(uint64_t, const NamespaceRef&,
                      std::span<const AnnounceResult> results) override {
        announced += static_cast<int>(results.size());
    }
    void on_ops(std::span<const OpView> ops) override { applied += static_cast<int>(ops.size()); }
    void on_applied(uint64_t seq) override { link.acknowledge(seq); }
    void on_copy(CopyOrder order) override {
        const std::lock_guard lock(mutex_);
        copies_.push_back(std::move(order));
    }
    uint32_t list_objects(uint32_t cursor, size_t limit, std::vector<AnnounceGroup>& out) override {
        applied_when_listed = applied.load();
        ++listings;
        const int first = static_cast<int>(cursor);
        const int end = std::min(objects, first + static_cast<int>(limit));
        AnnounceGroup group{.ns = kSpace, .items = {}};
        for (int i = first; i < end; ++i) {
            group.items.push_back({.key = "k" + std::to_string(i), .version = 1, .size_bytes = 1});
        }
        if (!group.items.empty()) {
            out.push_back(std::move(group));
        }
        return end < objects ? static_cast<uint32_t>(end) : 0;
    }
    std::vector<ClaimAnswer> claims() const {
        const std::lock_guard lock(mutex_);
        return claims_;
    }
    std::vector<CopyOrder> copies() const {
        const std::lock_guard lock(mutex_);
        return copies_;
    }

    using Heard = std::future<Result<std::string>>;
    Heard heartbeat(const std::string& request) {
        const auto promise = std::make_shared<std::promise<Result<std::string>>>();
        link.heartbeat(request, [promise](Result<std::string> heard) {
            promise->set_value(std::move(heard));
        });
        return promise->get_future();
    }

    Announced announce(uint64_t on, Version version) {
        const Announced how =
            link.announce(on, kSpace, {{.ticket = version, .key = "k", .version = version}});
        link.flush(on);
        return how;
    }

    const int objects;
    std::atomic<int> downs{0};
    std::atomic<int> applied{0};
    std::atomic<int> applied_when_listed{-1};
    std::atomic<int> announced{0};
    std::atomic<int> listings{0};

  private:
    mutable std::mutex mutex_;
    std::vector<ClaimAnswer> claims_;
    std::vector<CopyOrder> copies_;
};

constexpr uint32_t kWaitMs = 30'000;

TEST(MasterLinkTest, AnnouncesEverythingBeforeItIsUp) {
    MadeUpMaster master;
    TestNode node(link_options(master), 3);
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    EXPECT_EQ(master.heard().session_id, 7u);
    const auto announces = master.heard().announces;
    ASSERT_GE(announces.size(), 2u);
    EXPECT_EQ(announces.front().phase, AnnouncePhase::kBegin);
    EXPECT_EQ(announces.back().phase, AnnouncePhase::kEnd);
    for (size_t i = 1; i < announces.size(); ++i) {
        EXPECT_EQ(announces[i].seq, announces[i - 1].seq + 1);
    }
}

TEST(MasterLinkTest, ARefusalIsRememberedAndTriedAgain) {
    MadeUpMaster master;
    master.set({.refuse = true});
    TestNode node(link_options(master));
    ASSERT_TRUE(eventually([&] { return master.hellos() >= 3; }));
    EXPECT_EQ(node.link.state(), LinkState::kDown);
    EXPECT_NE(node.link.last_error().find("register first"), std::string::npos);
    EXPECT_EQ(node.downs, 0);
    master.set({});
    EXPECT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
}

TEST(MasterLinkTest, WithoutARegistrationNothingIsTried) {
    MadeUpMaster master;
    MasterLink::Options options = link_options(master);
    options.session_id = 0;
    TestNode node(options);
    EXPECT_FALSE(node.link.wait_state(LinkState::kUp, 100));
    EXPECT_EQ(master.hellos(), 0u);
    node.link.set_session(9, {master.endpoint});
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    EXPECT_EQ(master.heard().session_id, 9u);
}

TEST(MasterLinkTest, OperationsAreAppliedOnceAndAcknowledged) {
    MadeUpMaster master;
    TestNode node(link_options(master));
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    master.push_removes(1, 3);
    master.push_removes(2, 4);  // 2 and 3 come again
    ASSERT_TRUE(eventually([&] { return master.heard().acked_seq == 5; }));
    EXPECT_EQ(node.applied, 5);
    EXPECT_EQ(node.link.applied_seq(), 5u);
    // The next connection says so.
    master.drop_link();
    ASSERT_TRUE(eventually([&] { return master.hellos() == 2; }));
    EXPECT_EQ(master.heard().applied_seq, 5u);
}

TEST(MasterLinkTest, MissedOperationsComeBeforeTheAnnounce) {
    MadeUpMaster master;
    master.set({.ops_seq = 2});
    TestNode node(link_options(master));
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    EXPECT_EQ(node.applied, 2);
    EXPECT_EQ(node.applied_when_listed, 2);
}

TEST(MasterLinkTest, ALostLinkVoidsWhatWasSentOnIt) {
    MadeUpMaster master;
    TestNode node(link_options(master));
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    const uint64_t link = node.link.up();
    ASSERT_EQ(node.announce(link, 1), Announced::kNext);
    ASSERT_TRUE(eventually([&] { return node.announced == 1; }));
    master.drop_link();
    ASSERT_TRUE(eventually([&] { return node.downs == 1; }));
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    EXPECT_GT(node.link.up(), link);
    EXPECT_EQ(node.link.losses(), 1u);
    EXPECT_EQ(node.announce(link, 2), Announced::kLost);
    EXPECT_FALSE(node.link.claim(link, *kSpace, {}, 0));
}

TEST(MasterLinkTest, TheWaitBetweenAttemptsDoublesUpToItsLimit) {
    MadeUpMaster master;
    master.set({.refuse = true});
    MasterLink::Options options = link_options(master);
    options.backoff_max_ms = 160;
    TestNode node(options);
    ASSERT_TRUE(eventually([&] { return master.hellos() >= 7; }));
    const std::vector<uint64_t> at_ms = master.heard().hello_ms;
    uint64_t wait_ms = 10;
    for (size_t i = 1; i < 7; ++i) {
        EXPECT_GE(at_ms[i] - at_ms[i - 1], wait_ms - 1) << "attempt " << i;
        wait_ms = std::min<uint64_t>(wait_ms * 2, 160);
    }
}

TEST(MasterLinkTest, ALinkThatWasUpIsRestoredAtOnce) {
    MadeUpMaster master;
    MasterLink::Options options = link_options(master);
    options.backoff_max_ms = 600'000;  // a wait that had grown to it would outlast the test
    TestNode node(options);
    for (size_t hellos = 1; hellos <= 12; ++hellos) {
        ASSERT_TRUE(eventually([&] { return master.hellos() >= hellos; }));
        ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
        master.drop_link();
        ASSERT_TRUE(eventually([&] { return node.link.losses() == hellos; }));
    }
}

TEST(MasterLinkTest, ANewRegistrationDoesNotWaitForTheBackoff) {
    MadeUpMaster master;
    master.set({.refuse = true});
    MasterLink::Options options = link_options(master);
    options.backoff_max_ms = 600'000;
    TestNode node(options);
    ASSERT_TRUE(eventually([&] { return master.hellos() >= 5; }));
    master.set({});
    node.link.set_session(8, {master.endpoint});
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    EXPECT_EQ(master.heard().session_id, 8u);
}

TEST(MasterLinkTest, ASecondAddressIsTriedWhenTheFirstDoesNotAnswer) {
    MadeUpMaster refuses;
    refuses.set({.refuse = true});
    MadeUpMaster master;
    MasterLink::Options options = link_options(master);
    options.endpoints = {refuses.endpoint, master.endpoint};
    TestNode node(options);
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    EXPECT_GE(refuses.hellos(), 1u);
    EXPECT_GE(master.hellos(), 1u);
}

TEST(MasterLinkTest, ASilentMasterIsAskedThenGivenUp) {
    MadeUpMaster master;
    MasterLink::Options options = link_options(master);
    options.ping_ms = 20;
    options.silent_ms = 1'500;
    TestNode node(options);
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    // It answers pings: nothing else is said, and the link stays.
    const uint64_t up_ms = boottime_ms();
    ASSERT_TRUE(eventually([&] { return boottime_ms() > up_ms + options.silent_ms + 300; }));
    EXPECT_EQ(node.link.losses(), 0u);
    {
        const std::shared_ptr<void> hanging = master.hang();
        ASSERT_TRUE(eventually([&] { return node.downs == 1; }));
        EXPECT_EQ(node.link.losses(), 1u);
        EXPECT_NE(node.link.last_error().find("the master is silent"), std::string::npos)
            << node.link.last_error();
    }
    EXPECT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
}

TEST(MasterLinkTest, ClaimsAreAnsweredRowByRow) {
    MadeUpMaster master;
    master.set({.hold_claims = true});
    TestNode node(link_options(master));
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    const uint64_t link = node.link.up();
    const std::vector<ClaimItem> items{{.claim_id = 1, .key = "a"},
                                       {.claim_id = 2, .key = "b", .upsert = true}};
    ASSERT_TRUE(node.link.claim(link, *kSpace, items, 1'000));
    ASSERT_TRUE(eventually([&] { return master.heard().claims.size() == 2; }));
    const auto claims = master.heard().claims;
    EXPECT_EQ(claims[0].key, "a");
    EXPECT_EQ(claims[0].flags, 0);
    EXPECT_EQ(claims[1].key, "b");
    EXPECT_EQ(claims[1].flags, kPutUpsert);
    master.answer_claim(2, Code::kOk, 9);
    master.answer_claim(1, Code::kAlreadyExists, 5);
    ASSERT_TRUE(eventually([&] { return node.claims().size() == 2; }));
    EXPECT_EQ(node.claims()[0].claim_id, 2u);
    EXPECT_EQ(node.claims()[0].code, Code::kOk);
    EXPECT_EQ(node.claims()[0].version, 9u);
    EXPECT_EQ(node.claims()[1].claim_id, 1u);
    EXPECT_EQ(node.claims()[1].code, Code::kAlreadyExists);
    node.link.abandon(link, std::vector<uint64_t>{1, 2});
    ASSERT_TRUE(eventually([&] { return master.heard().abandoned.size() == 2; }));
    node.link.abandon(link + 1, std::vector<uint64_t>{3});
    node.link.abandon(link, std::vector<uint64_t>{4});
    ASSERT_TRUE(eventually([&] { return master.heard().abandoned.size() == 3; }));
    EXPECT_EQ(master.heard().abandoned, (std::vector<uint64_t>{1, 2, 4})) << "3 is of another link";
}

TEST(MasterLinkTest, AMessageOfAnyNumberOfAbandonedClaimsIsSplit) {
    MadeUpMaster master;
    TestNode node(link_options(master));
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    const std::vector<uint64_t> ids(limits::kMaxBatchKeys + 1, 6);
    node.link.abandon(node.link.up(), ids);
    EXPECT_TRUE(eventually([&] { return master.heard().abandoned.size() == ids.size(); }));
}

TEST(MasterLinkTest, AnnouncesAndWithdrawsShareOneNumberLine) {
    MadeUpMaster master;
    TestNode node(link_options(master));
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    const uint64_t link = node.link.up();
    const uint64_t last_seq = master.heard().announces.back().seq;
    ASSERT_EQ(node.announce(link, 4), Announced::kNext);
    node.link.withdraw(kSpace, {{.key = "k", .version = 4, .reason = MissReason::kEvicted}});
    ASSERT_EQ(node.announce(link, 5), Announced::kNext);
    ASSERT_TRUE(eventually([&] { return node.announced == 2; }));
    const MadeUpMaster::Heard heard = master.heard();
    ASSERT_EQ(heard.withdrawn.size(), 1u);
    EXPECT_EQ(heard.withdrawn[0], std::pair(std::string("k"), Version{4}));
    EXPECT_EQ(heard.announces.back().seq, last_seq + 3) << "the withdraw lies between the two";
}

TEST(MasterLinkTest, AFullWindowGathersAnnouncesIntoOneFrame) {
    constexpr size_t kWindow = AnnounceStream::kWindow;
    MadeUpMaster master;
    master.set({.hold_announces = true});
    TestNode node(link_options(master));
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    const uint64_t link = node.link.up();
    const size_t before = master.heard().announces.size();
    for (uint64_t i = 0; i < kWindow + 10; ++i) {
        ASSERT_EQ(node.announce(link, i + 1), Announced::kNext);
    }
    ASSERT_TRUE(eventually([&] { return master.heard().announces.size() == before + kWindow; }));
    master.answer_announce();
    ASSERT_TRUE(
        eventually([&] { return master.heard().announces.size() == before + kWindow + 1; }));
    EXPECT_EQ(master.heard().announces.back().keys.size(), 10u);
    for (size_t i = 0; i < kWindow; ++i) {
        master.answer_announce();
    }
    EXPECT_TRUE(eventually([&] { return node.announced == kWindow + 10; }));
}

TEST(MasterLinkTest, APingHasWhatIsQueuedSentBeforeItsPong) {
    constexpr size_t kWindow = AnnounceStream::kWindow;
    MadeUpMaster master;
    master.set({.hold_announces = true});
    TestNode node(link_options(master));
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    const uint64_t link = node.link.up();
    const size_t before = master.heard().announces.size();
    for (uint64_t i = 0; i < kWindow + 1; ++i) {
        ASSERT_EQ(node.announce(link, i + 1), Announced::kNext);
    }
    // Not even flushed: its thread has just answered the writer.
    ASSERT_EQ(node.link.announce(link, kSpace, {{.ticket = 99, .key = "k", .version = 99}}),
              Announced::kNext);
    master.ping();
    ASSERT_TRUE(eventually([&] { return !master.heard().pongs.empty(); }));
    EXPECT_EQ(master.heard().pongs[0], before + kWindow + 1);
    EXPECT_EQ(master.heard().announces.back().keys.size(), 2u);
}

// A Ping must not have any number of frames sent at once, so not every writer is answered early.
TEST(MasterLinkTest, WhatWaitsBehindMoreThanTwoFramesIsNotNext) {
    MadeUpMaster master;
    master.set({.hold_announces = true});
    TestNode node(link_options(master));
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    const uint64_t link = node.link.up();
    const auto a_frame = [&](Version version) {
        std::vector<AnnounceItem> items(limits::kMaxBatchKeys);
        for (AnnounceItem& item : items) {
            item = {.ticket = version, .key = "k", .version = version};
        }
        const Announced announced = node.link.announce(link, kSpace, std::move(items));
        node.link.flush(link);
        return announced;
    };
    for (size_t i = 0; i < AnnounceStream::kWindow + 2; ++i) {
        ASSERT_EQ(a_frame(i + 1), Announced::kNext);
    }
    EXPECT_EQ(a_frame(99), Announced::kWaits);
}

TEST(MasterLinkTest, AFullAnnounceIsListedAsTheWindowTakesIt) {
    constexpr int kObjects = 512 * 6 + 1;  // seven frames of the full announce
    MadeUpMaster master;
    TestNode node(link_options(master), kObjects);
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    size_t keys = 0;
    for (const MadeUpMaster::Announced& one : master.heard().announces) {
        keys += one.keys.size();
    }
    EXPECT_EQ(keys, static_cast<size_t>(kObjects));
    EXPECT_EQ(node.listings, 7);
}

TEST(MasterLinkTest, CopyOrdersNameTheirLinkAndAreAnsweredOnItAlone) {
    MadeUpMaster master;
    TestNode node(link_options(master));
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    const uint64_t link = node.link.up();
    master.order_copy(11, "k", 3);
    ASSERT_TRUE(eventually([&] { return node.copies().size() == 1; }));
    const CopyOrder order = node.copies()[0];
    EXPECT_EQ(order.link, link);
    EXPECT_EQ(order.copy_id, 11u);
    EXPECT_EQ(order.ns, (LinkNamespace{"tenant", "space", 0}));
    EXPECT_EQ(order.key, "k");
    EXPECT_EQ(order.version, 3u);
    EXPECT_EQ(order.target_node, "b");
    EXPECT_EQ(order.target_endpoint, "tcp://127.0.0.1:1");
    node.link.copy_done(link + 1, 10, Code::kOk);
    node.link.copy_done(link, 11, Code::kNoSpace);
    ASSERT_TRUE(eventually([&] { return !master.heard().copies.empty(); }));
    ASSERT_EQ(master.heard().copies.size(), 1u) << "10 is of another link";
    EXPECT_EQ(master.heard().copies[0].copy_id, 11u);
    EXPECT_EQ(master.heard().copies[0].code, Code::kNoSpace);
}

TEST(MasterLinkTest, HeartbeatsAreAnsweredOneByOne) {
    MadeUpMaster master;
    TestNode node(link_options(master));
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    EXPECT_EQ(node.heartbeat("one").get().value(), "to one");
    EXPECT_EQ(node.heartbeat("refuse").get().code(), Code::kNotFound);
    EXPECT_EQ(node.heartbeat("two").get().value(), "to two");
    EXPECT_EQ(node.link.last_error(), "") << "a refused heartbeat is no error of the link";
}

TEST(MasterLinkTest, AHeartbeatDoesNotWaitForTheLink) {
    MadeUpMaster master;
    master.set({.hold_end = true});
    MasterLink::Options options = link_options(master);
    options.session_id = 0;
    TestNode node(options);
    EXPECT_EQ(node.heartbeat("down").get().code(), Code::kUnavailable);
    node.link.set_session(7, {master.endpoint});
    ASSERT_TRUE(node.link.wait_state(LinkState::kSyncing, kWaitMs));
    EXPECT_EQ(node.heartbeat("syncing").get().code(), Code::kUnavailable);
    ASSERT_TRUE(eventually([&] { return master.heard().announces.size() == 2; }));
    master.answer_announce();
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    EXPECT_EQ(node.heartbeat("up").get().value(), "to up");
    EXPECT_EQ(master.heard().heartbeats, std::vector<std::string>{"up"});
}

TEST(MasterLinkTest, AnOlderMasterIsSentNoHeartbeat) {
    MadeUpMaster master(kAllFeatures & ~kFeatureHeartbeats);
    TestNode node(link_options(master));
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    EXPECT_EQ(node.heartbeat("one").get().code(), Code::kUnavailable);
    master.ping();
    ASSERT_TRUE(eventually([&] { return !master.heard().pongs.empty(); }));
    EXPECT_TRUE(master.heard().heartbeats.empty());
}

TEST(MasterLinkTest, AHeartbeatAboveTheLimitDoesNotEndTheLink) {
    MadeUpMaster master;
    TestNode node(link_options(master));
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    const std::string most(limits::kMaxHeartbeatBytes, 'x');
    EXPECT_EQ(node.heartbeat(most + "x").get().code(), Code::kUnavailable);
    // Its answer is above the limit of replies.
    master.set({.hold_heartbeats = true});
    const TestNode::Heard heard = node.heartbeat(most);
    ASSERT_TRUE(eventually([&] { return master.heard().heartbeats.size() == 1; }));
    EXPECT_EQ(master.heard().heartbeats[0], most);
    EXPECT_EQ(node.link.losses(), 0u);
}

TEST(MasterLinkTest, AHeartbeatEndsWithItsLinkOrTheNextOne) {
    MadeUpMaster master;
    master.set({.hold_heartbeats = true});
    TestNode node(link_options(master));
    ASSERT_TRUE(node.link.wait_state(LinkState::kUp, kWaitMs));
    TestNode::Heard first = node.heartbeat("one");
    TestNode::Heard second = node.heartbeat("two");
    EXPECT_EQ(first.get().code(), Code::kUnavailable);
    ASSERT_TRUE(eventually([&] { return master.heard().heartbeats.size() == 2; }));
    master.drop_link();
    EXPECT_EQ(second.get().code(), Code::kUnavailable);
}

}  // namespace
}  // namespace kvstore
