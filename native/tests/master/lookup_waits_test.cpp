// Lookups that wait for keys, on a bare directory: what wakes them, what ends them, and the limits.
#include "master/lookup_waits.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "base/clock.h"

namespace kvstore {
namespace {

constexpr NodeNumber kNode = 3;
constexpr NodeNumber kDownNode = 4;
constexpr uint64_t kDeadlineMs = 1000;  // of an invented clock

// A request whose keys live as long as it does.
LookupWaits::Request request_for(const NamespacePtr& ns, const std::vector<std::string>& keys,
                                 LookupWaits::Done done, uint64_t owner = 1) {
    const std::vector<std::string_view> views(keys.begin(), keys.end());
    const KeyList list(views);
    LookupWaits::Request out{.owner = owner, .ns = ns, .deadline_ms = kDeadlineMs};
    out.body.resize(list.encoded_bytes());
    list.encode_to(out.body.data());
    EXPECT_TRUE(KeyList::from_bytes(out.body, limits::kMaxBatchKeys, &out.keys));
    out.done = std::move(done);
    return out;
}

class LookupWaitsTest : public testing::Test {
  protected:
    LookupWaitsTest() : directory_({7}, 1), waits_(directory_, {7}) {
        directory_.set_readable(kNode, true);
        ns_ = *directory_.namespaces().open("tenant", "space");
    }
    // Parks a wait; `*answers` counts how often it was answered.
    Status wait(const std::vector<std::string>& keys, std::atomic<int>* answers,
                uint64_t owner = 1) {
        return waits_.park(
            request_for(ns_, keys, [answers](const KeyList&) { ++*answers; }, owner));
    }
    Version announce(const std::string& key, NodeNumber node = kNode, NamespacePtr ns = nullptr) {
        ns = ns == nullptr ? ns_ : ns;
        const Version version = directory_.next_version();
        EXPECT_EQ(directory_.announce(*ns->current, node, {.key = key, .version = version}).code,
                  Code::kOk);
        const std::string_view view = key;
        waits_.announced(*ns, KeyList(view));
        return version;
    }

    Directory directory_;
    LookupWaits waits_;
    NamespacePtr ns_;
};

TEST_F(LookupWaitsTest, ACompleteListIsAnsweredAtOnce) {
    announce("a");
    announce("b");
    std::atomic<int> answers{0};
    EXPECT_TRUE(wait({"a", "b"}, &answers).ok());
    EXPECT_TRUE(wait({}, &answers).ok());
    EXPECT_EQ(answers, 2);
    EXPECT_EQ(waits_.size(), 0u);
}

TEST_F(LookupWaitsTest, TheLastAnnouncementAnswersInWhateverOrderTheyCome) {
    std::vector<std::string> keys{"a", "b", "c", "d"};
    std::vector<std::string> order = keys;
    do {
        const NamespacePtr ns = ns_;
        ns_ = *directory_.namespaces().open("tenant", order[0] + order[1] + order[2]);
        std::atomic<int> answers{0};
        ASSERT_TRUE(wait(keys, &answers).ok());
        for (const std::string& key : order) {
            EXPECT_EQ(answers, 0);
            announce(key);
        }
        EXPECT_EQ(answers, 1);
        EXPECT_EQ(waits_.size(), 0u);
        ns_ = ns;
    } while (std::next_permutation(order.begin(), order.end()));
}

TEST_F(LookupWaitsTest, AnotherNamespacesKeyIsAnotherKey) {
    const NamespacePtr other = *directory_.namespaces().open("tenant", "other");
    std::atomic<int> answers{0};
    ASSERT_TRUE(wait({"a"}, &answers).ok());
    announce("a", kNode, other);
    EXPECT_EQ(answers, 0);
    announce("a");
    EXPECT_EQ(answers, 1);
}

TEST_F(LookupWaitsTest, EverybodyWhoWaitsForAKeyIsWoken) {
    std::atomic<int> answers{0};
    for (uint64_t owner = 0; owner < 10; ++owner) {
        ASSERT_TRUE(wait({"a", "b"}, &answers, owner).ok());
    }
    announce("a");
    EXPECT_EQ(answers, 0);
    announce("b");
    EXPECT_EQ(answers, 10);
}

TEST_F(LookupWaitsTest, WhatWasRemovedWhileItWaitedIsWaitedForAgain) {
    announce("a");
    std::atomic<int> answers{0};
    ASSERT_TRUE(wait({"a", "b"}, &answers).ok());
    directory_.remove(*ns_->current, "a", false);
    announce("b");
    EXPECT_EQ(answers, 0) << "a has gone meanwhile";
    announce("a");
    EXPECT_EQ(answers, 1);
}

TEST_F(LookupWaitsTest, AWaitOutlastsAFlush) {
    announce("a");
    std::atomic<int> answers{0};
    ASSERT_TRUE(wait({"a", "b"}, &answers).ok());
    directory_.flush(*ns_);
    announce("b");
    EXPECT_EQ(answers, 0) << "a was flushed";
    announce("a");
    EXPECT_EQ(answers, 1);
}

TEST_F(LookupWaitsTest, ANodeThatBecomesReadableWakes) {
    std::atomic<int> answers{0};
    ASSERT_TRUE(wait({"a", "b"}, &answers).ok());
    announce("a");
    announce("b", kDownNode);
    EXPECT_EQ(answers, 0);
    waits_.recheck();
    EXPECT_EQ(answers, 0);
    directory_.set_readable(kDownNode, true);
    waits_.recheck();
    EXPECT_EQ(answers, 1);
}

TEST_F(LookupWaitsTest, TheDeadlineAnswers) {
    std::atomic<int> answers{0};
    ASSERT_TRUE(wait({"a"}, &answers).ok());
    waits_.expire(kDeadlineMs - 1);
    EXPECT_EQ(answers, 0);
    waits_.expire(kDeadlineMs);
    EXPECT_EQ(answers, 1);
    EXPECT_EQ(waits_.size(), 0u);
    announce("a");
    EXPECT_EQ(answers, 1) << "once";
}

TEST_F(LookupWaitsTest, AClosedConnectionEndsItsOwnWaitsUnanswered) {
    std::atomic<int> gone{0};
    std::atomic<int> stays{0};
    ASSERT_TRUE(wait({"a"}, &gone, 1).ok());
    ASSERT_TRUE(wait({"a"}, &stays, 2).ok());
    waits_.drop(1);
    waits_.drop(3);
    EXPECT_EQ(waits_.size(), 1u);
    announce("a");
    EXPECT_EQ(gone, 0);
    EXPECT_EQ(stays, 1);
}

TEST_F(LookupWaitsTest, TheEndAnswersEverybodyAndLaterOnesAtOnce) {
    std::atomic<int> answers{0};
    ASSERT_TRUE(wait({"a"}, &answers).ok());
    waits_.end_all();
    EXPECT_EQ(answers, 1);
    EXPECT_TRUE(wait({"a"}, &answers).ok());
    EXPECT_EQ(answers, 2);
    EXPECT_EQ(waits_.size(), 0u);
}

TEST_F(LookupWaitsTest, OneConnectionMayHaveSoManyWaits) {
    std::atomic<int> answers{0};
    for (size_t i = 0; i < limits::kMaxWaitingLookupsPerConnection; ++i) {
        ASSERT_TRUE(wait({"a"}, &answers, 1).ok());
    }
    EXPECT_EQ(wait({"a"}, &answers, 1).code(), Code::kOverloaded);
    EXPECT_TRUE(wait({"a"}, &answers, 2).ok());
    waits_.drop(1);
    EXPECT_TRUE(wait({"a"}, &answers, 1).ok());
    EXPECT_EQ(answers, 0);
}

TEST_F(LookupWaitsTest, OnePrincipalLeavesRoomForOthers) {
    waits_.set_principal_share(0.01);
    int answers = 0;
    const auto wait_as = [&](const std::string& principal, uint64_t owner) {
        LookupWaits::Request request =
            request_for(ns_, {"a"}, [&](const KeyList&) { ++answers; }, owner);
        request.principal = principal;
        return waits_.park(std::move(request));
    };
    for (uint64_t i = 0; i < limits::kMaxWaitingLookups / 100; ++i) {
        ASSERT_TRUE(wait_as("loud", i).ok());
    }
    const Status refused = wait_as("loud", 9999);
    EXPECT_EQ(refused.code(), Code::kOverloaded);
    EXPECT_EQ(refused.message(),
              "as many lookups of principal loud wait already as principal_share allows");
    EXPECT_TRUE(wait_as("quiet", 1).ok());
    EXPECT_TRUE(wait_as("", 2).ok());
    announce("a");
    EXPECT_EQ(answers, static_cast<int>(limits::kMaxWaitingLookups / 100 + 2));
    EXPECT_TRUE(wait_as("loud", 1).ok());
}

TEST_F(LookupWaitsTest, AllTogetherMayBeSoMany) {
    std::atomic<int> answers{0};
    for (size_t i = 0; i < limits::kMaxWaitingLookups; ++i) {
        ASSERT_TRUE(wait({"a"}, &answers, i).ok());
    }
    EXPECT_EQ(wait({"a"}, &answers, limits::kMaxWaitingLookups).code(), Code::kOverloaded);
    announce("a");
    EXPECT_EQ(answers, static_cast<int>(limits::kMaxWaitingLookups));
    EXPECT_TRUE(wait({"b"}, &answers, 1).ok());
}

TEST_F(LookupWaitsTest, TheirKeysMayTakeSoMuchMemory) {
    std::atomic<int> answers{0};
    const std::vector<std::string> keys(limits::kMaxBatchKeys, std::string(1000, 'k'));
    const size_t fits = limits::kMaxWaitingLookupBytes / (limits::kMaxBatchKeys * 1004);
    for (size_t i = 0; i < fits; ++i) {
        ASSERT_TRUE(wait(keys, &answers, i).ok());
    }
    EXPECT_EQ(wait(keys, &answers, fits).code(), Code::kOverloaded);
    waits_.expire(kDeadlineMs);
    EXPECT_EQ(answers, static_cast<int>(fits));
    EXPECT_TRUE(wait(keys, &answers, fits).ok());
}

// A key is announced at the very moment at which somebody begins to wait for it, again and again:
// every wait is answered, once. The odd rounds begin with a key that is there already, so that the
// two threads meet in another place.
TEST_F(LookupWaitsTest, NoAnnouncementIsLost) {
    constexpr int kRounds = 20'000;
    announce("present");
    const auto key_of = [](int round) { return "key/" + std::to_string(round); };
    std::atomic<int> arrived{0};
    const auto meet = [&arrived](int round) {
        for (++arrived; arrived < 2 * (round + 1);) {
            std::this_thread::yield();  // there may be fewer cores than threads
        }
    };
    std::atomic<int> answers{0};
    std::thread announcing([&] {
        for (int round = 0; round < kRounds; ++round) {
            const std::string key = key_of(round);
            meet(round);
            announce(key);
        }
    });
    for (int round = 0; round < kRounds; ++round) {
        std::vector<std::string> keys(round % 2, "present");
        keys.push_back(key_of(round));
        LookupWaits::Request request =
            request_for(ns_, keys, [&answers](const KeyList&) { ++answers; });
        meet(round);
        EXPECT_TRUE(waits_.park(std::move(request)).ok());
    }
    announcing.join();
    EXPECT_EQ(answers, kRounds);
    EXPECT_EQ(waits_.size(), 0u);
}

}  // namespace
}  // namespace kvstore
