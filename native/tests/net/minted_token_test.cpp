// Minted tokens: what signs them, what they say, and until when.
#include "net/minted_token.h"

#include <gtest/gtest.h>

#include "base/limits.h"

namespace kvstore::testing {
namespace {

constexpr std::string_view kSecret = "a-long-random-secret";

std::string minted(std::string_view name, std::string_view claims) {
    return "kvt1:" + minted_key(kSecret, name, claims) + ":" + std::string(claims);
}

TEST(MintedToken, HasAKeyAndClaims) {
    const std::string token = minted("engine", "exp=1000+verbs=read+keys=a:b/");
    const std::optional<MintedToken> found = parse_minted(token);
    ASSERT_TRUE(found.has_value());
    EXPECT_EQ(found->key.size(), 64u);
    EXPECT_EQ(found->claims, "exp=1000+verbs=read+keys=a:b/");
    EXPECT_EQ(proving_secret(token), found->key);
    EXPECT_EQ(claims_of(token), found->claims);
    EXPECT_EQ(proving_secret(kSecret), kSecret);
    EXPECT_EQ(claims_of(kSecret), "");
    const std::string key(64, 'a');
    for (const std::string& other : {std::string("kvt1:"), "kvt1:" + key, "kvt1:" + key + ":",
                                     "kvt1:" + key + "exp=1", "kvt2:" + key + ":exp=1"}) {
        EXPECT_FALSE(parse_minted(other).has_value()) << other;
    }
}

TEST(MintedToken, TheKeyIsThatOfSecretNameAndClaims) {
    const std::string key = minted_key(kSecret, "engine", "exp=1000");
    // python3 -c 'import hmac; print(hmac.digest(b"a-long-random-secret",
    //     b"kvstore 1 minted token\nengine\nexp=1000", "sha256").hex())'
    EXPECT_EQ(key, "2df2e718d38b54df003cd14b115deb9ce506e0e302779789918c71920c9db279");
    EXPECT_NE(key, minted_key("another-long-secret!", "engine", "exp=1000"));
    EXPECT_NE(key, minted_key(kSecret, "engine2", "exp=1000"));
    EXPECT_NE(key, minted_key(kSecret, "engine", "exp=1001"));
}

TEST(MintedToken, ClaimsSayUntilWhenAndWhat) {
    const Result<Claims> claims = Claims::read("exp=1000+verbs=read,list+|+keys=a%2Bb");
    ASSERT_TRUE(claims.ok()) << claims.status().to_string();
    EXPECT_EQ(claims->expires_s, 1000u);
    ASSERT_EQ(claims->scopes.size(), 2u);
    EXPECT_EQ(claims->scopes[1].prefix, "a+b");
    EXPECT_TRUE(Claims::read("exp=1000")->scopes.empty());
    EXPECT_TRUE(claims->check_time(999).ok());
    EXPECT_EQ(claims->check_time(1000).code(), Code::kUnauthenticated);
    EXPECT_NE(claims->check_time(1060).message().find("expired 60 s ago"), std::string::npos);
    const Result<Claims> late = Claims::read("exp=" + std::to_string(2 + kMaxMintedSeconds));
    EXPECT_TRUE(late->check_time(2).ok());
    EXPECT_EQ(late->check_time(1).code(), Code::kUnauthenticated) << "valid for too long";
}

TEST(MintedToken, WrongClaimsAreRefused) {
    for (const std::string_view text : {"", "exp=", "exp=x", "exp=-1", "exp=1 verbs=read", "exp=1x",
                                        "exp=1+fly", "exp=99999999999999999999", "verbs=read",
                                        "verbs=read+exp=1", "exp=1+exp=2", "exp=1+verbs=read+|"}) {
        EXPECT_EQ(Claims::read(text).code(), Code::kUnauthenticated) << text;
    }
    const std::string longest = "exp=1+keys=" + std::string(limits::kMaxClaimsBytes, 'k');
    EXPECT_EQ(Claims::read(longest).code(), Code::kUnauthenticated);
}

}  // namespace
}  // namespace kvstore::testing
