// Refusals as a log hears of them.
#include "net/refusals.h"

#include <gtest/gtest.h>

#include <string>

namespace kvstore {
namespace {

TEST(Refusals, OneHostWithOneReasonIsOneEntry) {
    Refusals refusals;
    for (int port = 1000; port < 2000; ++port) {
        refusals.add(Code::kUnauthenticated, "10.0.0.7:" + std::to_string(port), "wrong token");
    }
    refusals.add(Code::kUnauthenticated, "10.0.0.7:7", "a token is required");
    refusals.add(Code::kOverloaded, "10.0.0.7:7", "too many connections");
    refusals.add(Code::kUnauthenticated, "[::1]:7", "wrong token");
    const auto taken = refusals.take();
    ASSERT_EQ(taken.size(), 4u);
    uint64_t count = 0;
    for (const Refusal& refusal : taken) {
        count += refusal.count;
        if (refusal.count == 1000) {
            EXPECT_EQ(refusal.host, "10.0.0.7");
            EXPECT_EQ(refusal.reason, "wrong token");
        }
    }
    EXPECT_EQ(count, 1003u);
    EXPECT_TRUE(refusals.take().empty());
}

TEST(Refusals, ManyHostsAreCountedTogether) {
    Refusals refusals;
    constexpr size_t kHosts = 10'000;
    for (size_t host = 0; host < kHosts; ++host) {
        refusals.add(Code::kUnauthenticated, "host-" + std::to_string(host) + ":1", "wrong token");
    }
    const auto taken = refusals.take();
    EXPECT_LE(taken.size(), Refusals::kMostEntries + 1);
    uint64_t count = 0;
    for (const Refusal& refusal : taken) {
        count += refusal.count;
    }
    EXPECT_EQ(count, kHosts);
}

}  // namespace
}  // namespace kvstore
