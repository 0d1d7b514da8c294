// Claims: grants, waits and their outcomes, limbo, rebuild, removes, flushes, deadlines.
#include "master/claim_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <thread>

#include "base/clock.h"

namespace kvstore {
namespace {

constexpr uint64_t kFar = UINT64_MAX;

class ClaimTableTest : public testing::Test {
  protected:
    ClaimTableTest() {
        directory_.set_readable(1, true);
        directory_.set_readable(2, true);
    }
    const DirectoryEpoch& epoch() const { return *ns_.current.load(); }
    void claim(LinkId link, uint64_t id, std::string_view key, bool upsert = false,
               uint64_t deadline_ms = kFar) {
        const ClaimRequest request{.link = link,
                                   .node = static_cast<NodeNumber>(link % 10),
                                   .claim_id = id,
                                   .key = key,
                                   .upsert = upsert};
        claims_.claim(epoch(), std::span(&request, 1), deadline_ms, answers_);
    }
    // The answer to this claim so far; kInternal while it waits.
    ClaimAnswer answer(LinkId link, uint64_t id) const {
        for (const ClaimAnswer& one : answers_) {
            if (one.link == link && one.claim_id == id) {
                return one;
            }
        }
        return {link, id, Code::kInternal, 0};
    }
    void publish(std::string_view key, Version version, NodeNumber node = 1) {
        const Code code =
            directory_.announce(epoch(), node, {.key = key, .version = version, .size = 1}).code;
        claims_.settle(epoch(), key, version, code == Code::kOk, answers_);
    }

    Directory directory_{HashSecret{7}, 1};
    Namespace& ns_ = **directory_.namespaces().open("tenant", "space");
    ClaimTable claims_{directory_};
    std::vector<ClaimAnswer> answers_;
};

TEST_F(ClaimTableTest, TheFirstIsGrantedTheOthersHearOfItsPublication) {
    claim(1, 1, "k");
    claim(2, 1, "k");
    claim(1, 2, "k");
    EXPECT_EQ(answer(1, 1).code, Code::kOk);
    EXPECT_EQ(answer(2, 1).code, Code::kInternal);
    const Version version = answer(1, 1).version;
    publish("k", version);
    EXPECT_EQ(answer(2, 1).code, Code::kAlreadyExists);
    EXPECT_EQ(answer(2, 1).version, version);
    EXPECT_EQ(answer(1, 2).code, Code::kAlreadyExists);
    claim(2, 3, "k");
    EXPECT_EQ(answer(2, 3).code, Code::kAlreadyExists);
    EXPECT_EQ(claims_.stats().granted + claims_.stats().waiting, 0u);
}

TEST_F(ClaimTableTest, AWaiterInheritsWhatIsAbandoned) {
    claim(1, 1, "k");
    claim(2, 1, "k");
    claim(2, 2, "k");
    const uint64_t id = 1;
    claims_.abandon(1, std::span(&id, 1), answers_);
    EXPECT_EQ(answer(2, 1).code, Code::kOk);
    EXPECT_GT(answer(2, 1).version, answer(1, 1).version);
    EXPECT_EQ(answer(2, 2).code, Code::kInternal);
    claims_.abandon(2, std::span(&id, 1), answers_);
    EXPECT_EQ(answer(2, 2).code, Code::kOk);
}

TEST_F(ClaimTableTest, UpsertsAreGrantedOneAfterTheOther) {
    claim(1, 1, "k");
    claim(2, 1, "k", true);
    claim(2, 2, "k", true);
    claim(2, 3, "k");
    publish("k", answer(1, 1).version);
    EXPECT_EQ(answer(2, 1).code, Code::kOk);
    EXPECT_EQ(answer(2, 2).code, Code::kInternal);
    EXPECT_EQ(answer(2, 3).code, Code::kAlreadyExists);
    publish("k", answer(2, 1).version, 2);
    EXPECT_EQ(answer(2, 2).code, Code::kOk);
    publish("k", answer(2, 2).version, 2);
    claim(1, 9, "k", true);
    EXPECT_EQ(answer(1, 9).code, Code::kOk);
}

TEST_F(ClaimTableTest, ALostLinkLeavesItsClaimsInLimbo) {
    claim(1, 1, "resynced");
    claim(1, 2, "lost");
    claim(2, 1, "resynced");
    claim(2, 2, "lost");
    claim(2, 3, "other");
    claim(1, 3, "other");
    claims_.link_lost(1);
    EXPECT_EQ(claims_.stats().limbo, 2u);
    EXPECT_EQ(claims_.stats().waiting, 2u);
    EXPECT_EQ(answer(2, 1).code, Code::kInternal);
    publish("resynced", answer(1, 1).version);  // the node is back and announces it
    EXPECT_EQ(answer(2, 1).code, Code::kAlreadyExists);
    claims_.end_limbo(1, answers_);
    EXPECT_EQ(answer(2, 2).code, Code::kOk);
    EXPECT_EQ(claims_.stats().limbo, 0u);
    publish("other", answer(2, 3).version, 2);
    EXPECT_EQ(answer(1, 3).code, Code::kInternal);  // nobody is there to hear
}

TEST_F(ClaimTableTest, AnExpiredWaitIsAnswered) {
    claim(1, 1, "k");
    claim(2, 1, "k", false, 1000);
    claims_.expire(999, answers_);
    EXPECT_EQ(answer(2, 1).code, Code::kInternal);
    claims_.expire(1000, answers_);
    EXPECT_EQ(answer(2, 1).code, Code::kDeadlineExceeded);
    publish("k", answer(1, 1).version);
    EXPECT_EQ(answers_.size(), 2u);
}

TEST_F(ClaimTableTest, ARebuildParksWhatIsNotKnownYet) {
    const Version old = directory_.next_version();
    directory_.set_rebuilding(true);
    claim(1, 1, "late");
    claim(1, 2, "appears");
    claim(1, 3, "timeout", false, 1000);
    EXPECT_TRUE(answers_.empty());
    publish("appears", old, 2);
    EXPECT_EQ(answer(1, 2).code, Code::kAlreadyExists);
    claims_.expire(1000, answers_);
    EXPECT_EQ(answer(1, 3).code, Code::kRebuilding);
    directory_.set_rebuilding(false);
    claims_.finish_rebuild(answers_);
    EXPECT_EQ(answer(1, 1).code, Code::kOk);
    EXPECT_EQ(claims_.stats().parked, 0u);
}

TEST_F(ClaimTableTest, ARemoveCancelsAndNamesTheHolder) {
    claim(2, 1, "k");
    claim(1, 1, "k");
    EXPECT_EQ(claims_.claimed_by(epoch(), "k"), 2);
    EXPECT_FALSE(claims_.claimed_by(epoch(), "other").has_value());
    const RemoveOutcome removed = directory_.remove(epoch(), "k", true);
    EXPECT_EQ(claims_.removed(epoch(), "k", removed.tombstone, answers_), 2);
    EXPECT_EQ(answer(1, 1).code, Code::kOk);
    EXPECT_GT(answer(1, 1).version, removed.tombstone);
    publish("k", answer(2, 1).version, 2);  // too late
    EXPECT_EQ(directory_.lookup_one(epoch(), "k").code, Code::kNotFound);
    publish("k", answer(1, 1).version);
    EXPECT_EQ(directory_.lookup_one(epoch(), "k").code, Code::kOk);
}

TEST_F(ClaimTableTest, AFlushEndsTheClaimsOfItsEpoch) {
    claim(1, 1, "k");
    claim(2, 1, "k");
    const DirectoryEpoch& old = epoch();
    directory_.flush(ns_);
    claims_.flushed(old, answers_);
    EXPECT_EQ(answer(2, 1).code, Code::kRemoved);
    const ClaimRequest request{.link = 2, .node = 2, .claim_id = 5, .key = "k"};
    claims_.claim(old, std::span(&request, 1), kFar, answers_);
    EXPECT_EQ(answer(2, 5).code, Code::kRemoved);
    claim(2, 6, "k");
    EXPECT_EQ(answer(2, 6).code, Code::kOk);
}

TEST_F(ClaimTableTest, AnUnreadableObjectDoesNotBlockAPut) {
    claim(1, 1, "k");
    publish("k", answer(1, 1).version);
    directory_.set_readable(1, false);
    claim(2, 1, "k");
    EXPECT_EQ(answer(2, 1).code, Code::kOk);
    EXPECT_GT(answer(2, 1).version, answer(1, 1).version);
    EXPECT_EQ(answer(2, 1).code, Code::kOk);
    claim(2, 1, "again");
    EXPECT_EQ(std::count_if(answers_.begin(), answers_.end(),
                            [](const ClaimAnswer& a) { return a.code == Code::kInvalidArgument; }),
              1);  // an id in use
}

// At any time at most one grant a key.
TEST_F(ClaimTableTest, ThreadsNeverHoldOneKeyTwice) {
    std::array<std::atomic<int>, 8> holders{};
    std::atomic<uint64_t> granted{0};
    std::vector<std::thread> threads;
    for (LinkId link = 1; link <= 3; ++link) {
        threads.emplace_back([&, link] {
            std::mt19937_64 random(link);
            for (uint64_t id = 1; id <= 20'000; ++id) {
                const size_t k = random() % holders.size();
                const std::string key = "key" + std::to_string(k);
                std::vector<ClaimAnswer> out;
                const ClaimRequest request{.link = link, .node = 1, .claim_id = id, .key = key};
                // A deadline that has passed: what would have to wait is answered by expire().
                claims_.claim(epoch(), std::span(&request, 1), 0, out);
                if (!out.empty() && out[0].code == Code::kOk) {
                    EXPECT_EQ(holders[k].fetch_add(1), 0);
                    ++granted;
                    holders[k].fetch_sub(1);
                    std::vector<ClaimAnswer> expired;
                    claims_.expire(1, expired);
                }
                claims_.abandon(link, std::span(&id, 1), out);
                for (const ClaimAnswer& one : out) {
                    if (one.code == Code::kOk && one.claim_id != id) {
                        // Somebody inherited it through this thread: it gives up at once.
                        std::vector<ClaimAnswer> more;
                        claims_.abandon(one.link, std::span(&one.claim_id, 1), more);
                    }
                }
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    EXPECT_GT(granted, 0u);
}

TEST_F(ClaimTableTest, TheFirstOfAKeyIsUnannouncedUntilItIsSettled) {
    const std::vector<std::string_view> k{"k"};
    const std::vector<std::string_view> other{"other"};
    EXPECT_FALSE(claims_.has_unannounced());
    claim(1, 1, "k");
    claim(2, 1, "other");
    EXPECT_TRUE(answer(1, 1).first);
    EXPECT_EQ(claims_.unannounced(epoch(), k), std::vector<LinkId>{1});
    EXPECT_EQ(claims_.unannounced(epoch(), {}).size(), 2u) << "of any key";
    publish("k", answer(1, 1).version);
    EXPECT_TRUE(claims_.unannounced(epoch(), k).empty());
    EXPECT_TRUE(claims_.has_unannounced());
    claims_.link_lost(2);
    EXPECT_TRUE(claims_.unannounced(epoch(), other).empty()) << "its link says nothing more";
    claims_.end_limbo(2, answers_);
    EXPECT_FALSE(claims_.has_unannounced());
}

TEST_F(ClaimTableTest, WhatIsRecordedSomewhereIsNotTheFirst) {
    claim(1, 1, "k");
    publish("k", answer(1, 1).version);
    claim(1, 2, "k", true);
    EXPECT_EQ(answer(1, 2).code, Code::kOk);
    EXPECT_FALSE(answer(1, 2).first) << "an upsert waits for the replicas that it overtakes";
    claims_.abandon(1, std::vector<uint64_t>{2}, answers_);
    directory_.set_readable(1, false);
    claim(2, 3, "k");
    EXPECT_EQ(answer(2, 3).code, Code::kOk);
    EXPECT_FALSE(answer(2, 3).first) << "the node that does not answer may show it on its host";
    EXPECT_FALSE(claims_.has_unannounced());
}

TEST_F(ClaimTableTest, WhoInheritsMayBeTheFirst) {
    claim(1, 1, "k");
    claim(2, 1, "k");
    claims_.abandon(1, std::vector<uint64_t>{1}, answers_);
    EXPECT_TRUE(answer(2, 1).first);
    claims_.abandon(2, std::vector<uint64_t>{1}, answers_);
    EXPECT_FALSE(claims_.has_unannounced());
}

}  // namespace
}  // namespace kvstore
