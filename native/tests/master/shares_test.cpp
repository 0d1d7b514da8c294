// What one principal may hold of a total.
#include "master/shares.h"

#include <gtest/gtest.h>

#include <vector>

namespace kvstore::testing {
namespace {

TEST(SharesTest, OnePrincipalLeavesRoomForOthers) {
    Shares shares("removes", 8);
    shares.set_principal_share(0.5);
    std::vector<Shares::Held> held;
    for (int i = 0; i < 4; ++i) {
        held.push_back(*shares.take("loud"));
    }
    const Status refused = shares.take("loud").status();
    EXPECT_EQ(refused.code(), Code::kOverloaded);
    EXPECT_EQ(refused.message(),
              "as many removes of principal loud wait already as principal_share allows");
    for (int i = 0; i < 4; ++i) {
        held.push_back(*shares.take("quiet"));
    }
    EXPECT_EQ(shares.take("third").status().message(), "too many removes wait already");
    held.erase(held.begin());
    EXPECT_TRUE(shares.take("loud").ok());  // and given back at once
    EXPECT_TRUE(shares.take("third").ok());
}

TEST(SharesTest, WithoutAuthenticationThereIsTheTotalAlone) {
    Shares shares("removes", 3);
    shares.set_principal_share(0.1);
    std::vector<Shares::Held> held;
    for (int i = 0; i < 3; ++i) {
        held.push_back(*shares.take(""));
    }
    EXPECT_FALSE(shares.take("").ok());
}

TEST(SharesTest, EverybodyHasOne) {
    Shares shares("removes", 3);
    shares.set_principal_share(0.1);
    const Shares::Held held = *shares.take("a");
    EXPECT_FALSE(shares.take("a").ok());
}

}  // namespace
}  // namespace kvstore::testing
