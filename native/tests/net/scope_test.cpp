// Scopes: what their text means, what they allow, and what each message needs.
#include "net/scope.h"

#include <gtest/gtest.h>

#include "wire/messages.h"

namespace kvstore::testing {
namespace {

std::vector<Scope> parsed(std::string_view text) {
    Result<std::vector<Scope>> scopes = parse_scopes(text);
    EXPECT_TRUE(scopes.ok()) << text << ": " << scopes.status().to_string();
    return scopes.ok() ? std::move(*scopes) : std::vector<Scope>();
}

std::shared_ptr<const Grant> grant_of(std::string_view text, std::string_view tenant = "default",
                                      std::string_view more = "") {
    const std::vector<Scope> own = parsed(text);
    const std::vector<Scope> minted = parsed(more);
    const std::span<const Scope> layers[] = {own, minted};
    return Grant::of("reader", tenant, layers);
}

bool may(const Grant& grant, Verb verb, std::string_view key) {
    return grant.check(verb, key).ok();
}

TEST(Scope, TextSaysVerbsTenantsAndKeys) {
    EXPECT_TRUE(parsed("").empty());
    EXPECT_TRUE(parsed("  ").empty());
    const std::vector<Scope> one = parsed("verbs=read,list keys=docs/");
    ASSERT_EQ(one.size(), 1u);
    EXPECT_EQ(one[0].verbs, 1 | 8);
    EXPECT_EQ(one[0].prefix, "docs/");
    EXPECT_TRUE(one[0].tenants.empty());
    const std::vector<Scope> two = parsed("verbs=admin | tenants=a,b%20c keys=%25%E2%82%AC");
    ASSERT_EQ(two.size(), 2u);
    EXPECT_EQ(two[0].verbs, 32);
    EXPECT_EQ(two[1].verbs, kAllVerbs);
    EXPECT_EQ(two[1].tenants, (std::vector<std::string>{"a", "b c"}));
    EXPECT_EQ(two[1].prefix, "%\xE2\x82\xAC");
    const Result<std::vector<Scope>> joined = parse_scopes("+verbs=read+|+keys=a%2Bb", '+');
    ASSERT_TRUE(joined.ok());
    EXPECT_EQ((*joined)[1].prefix, "a+b");
}

TEST(Scope, WrongTextIsRefused) {
    for (const std::string_view text : {"verbs=",
                                        "verbs=fly",
                                        "verbs=read,,list",
                                        "verbs=READ",
                                        "verbs",
                                        "=",
                                        "read",
                                        "keys=",
                                        "keys=%",
                                        "keys=%4",
                                        "keys=%zz",
                                        "keys=%ff",
                                        "keys=a keys=b",
                                        "verbs=read verbs=list",
                                        "tenants=",
                                        "tenants=a,,b",
                                        "tenants=%0a",
                                        "|",
                                        "| verbs=read",
                                        "verbs=read |",
                                        "verbs=read | | keys=a",
                                        "verbs=read\n"}) {
        EXPECT_EQ(parse_scopes(text).code(), Code::kInvalidArgument) << text;
    }
    std::string many = "keys=a";
    for (size_t i = 1; i < kMaxScopes; ++i) {
        many += " | keys=a";
    }
    EXPECT_TRUE(parse_scopes(many).ok());
    EXPECT_FALSE(parse_scopes(many + " | keys=a").ok());
    EXPECT_FALSE(parse_scopes("keys=" + std::string(1025, 'k')).ok());
    EXPECT_FALSE(parse_scopes(std::string(kMaxScopesBytes + 1, ' ')).ok());
}

TEST(Scope, WithoutScopesThereIsNoGrant) { EXPECT_EQ(grant_of(""), nullptr); }

TEST(Scope, AVerbAndThePrefixOfOneScopeAreNeeded) {
    const auto grant = grant_of("verbs=read,list keys=docs/ | verbs=write keys=docs/drafts/");
    EXPECT_TRUE(may(*grant, Verb::kRead, "docs/a"));
    EXPECT_TRUE(may(*grant, Verb::kRead, "docs/"));
    EXPECT_FALSE(may(*grant, Verb::kRead, "docs"));
    EXPECT_FALSE(may(*grant, Verb::kWrite, "docs/a"));
    EXPECT_TRUE(may(*grant, Verb::kWrite, "docs/drafts/a"));
    EXPECT_FALSE(may(*grant, Verb::kRemove, "docs/drafts/a"));
    EXPECT_FALSE(grant->covers_every_key(Verb::kRead));
    EXPECT_TRUE(grant->check(Verb::kWrite, {}).ok());
    EXPECT_FALSE(grant->check(Verb::kRemove, {}).ok());
    EXPECT_TRUE(grant->check_prefix(Verb::kList, "docs/x").ok());
    EXPECT_FALSE(grant->check_prefix(Verb::kList, "doc").ok());
    EXPECT_FALSE(grant->check_prefix(Verb::kList, "").ok());
    const auto reader = grant_of("verbs=read");
    EXPECT_TRUE(reader->covers_every_key(Verb::kRead));
    EXPECT_FALSE(reader->covers_every_key(Verb::kWrite));
}

TEST(Scope, ARefusalNamesVerbRowAndSetting) {
    const auto grant = grant_of("verbs=read keys=docs/");
    const std::vector<std::string_view> keys = {"docs/a", "chat/a"};
    const Status other = grant->check(Verb::kRead, keys);
    EXPECT_EQ(other.code(), Code::kPermissionDenied);
    for (const std::string_view word : {"reader", "read", "key 2", "`keys`", "token file"}) {
        EXPECT_NE(other.message().find(word), std::string::npos) << other.message();
    }
    EXPECT_EQ(other.message().find("chat/a"), std::string::npos) << "a key may be anything";
    const Status verb = grant->check(Verb::kRemove, {});
    EXPECT_NE(verb.message().find("remove"), std::string::npos);
    EXPECT_NE(verb.message().find("`verbs`"), std::string::npos);
}

TEST(Scope, OnlyScopesOfTheTenantCount) {
    const std::string_view text = "verbs=read tenants=a | verbs=write tenants=b,* keys=x";
    EXPECT_TRUE(may(*grant_of(text, "a"), Verb::kRead, "k"));
    EXPECT_TRUE(may(*grant_of(text, "a"), Verb::kWrite, "x"));
    EXPECT_FALSE(may(*grant_of(text, "c"), Verb::kRead, "k"));
    EXPECT_TRUE(grant_of("verbs=read tenants=a", "b")->is_empty());
    EXPECT_FALSE(grant_of("verbs=read tenants=a", "a")->is_empty());
}

TEST(Scope, EveryLayerHasToAllow) {
    const auto grant =
        grant_of("keys=docs/", "default", "verbs=read keys=docs/a | verbs=read keys=x");
    EXPECT_TRUE(may(*grant, Verb::kRead, "docs/a1"));
    EXPECT_FALSE(may(*grant, Verb::kRead, "docs/b"));
    EXPECT_FALSE(may(*grant, Verb::kRead, "x")) << "a minted token cannot widen";
    EXPECT_FALSE(may(*grant, Verb::kWrite, "docs/a1"));
    EXPECT_FALSE(grant_of("", "default", "verbs=read") == nullptr);
}

template <class M>
Status checked(const Grant& grant, const M& message) {
    std::vector<uint8_t> body;
    encode_message(message, body);
    return check_request(grant, M::kType, body);
}

TEST(Scope, EveryKeyOfAMessageIsChecked) {
    const auto grant = grant_of("verbs=read,write,list keys=docs/");
    const std::vector<std::string_view> mine = {"docs/a", "docs/b"};
    const std::vector<std::string_view> mixed = {"docs/a", "chat/b"};
    EXPECT_TRUE(checked(*grant, Lookup{.keys = mine}).ok());
    EXPECT_FALSE(checked(*grant, Lookup{.keys = mixed}).ok());
    EXPECT_TRUE(checked(*grant, Put{.keys = mine}).ok());
    EXPECT_FALSE(checked(*grant, Put{.keys = mixed}).ok());
    EXPECT_FALSE(checked(*grant, Remove{.keys = mine}).ok());
    EXPECT_FALSE(checked(*grant, Flush{}).ok());
    EXPECT_TRUE(checked(*grant, List{.prefix = "docs/"}).ok());
    EXPECT_FALSE(checked(*grant, List{}).ok());
    EXPECT_FALSE(checked(*grant, Inspect{.key = "chat/a"}).ok());
    EXPECT_TRUE(checked(*grant, Nodes{}).ok());
    EXPECT_FALSE(checked(*grant, Claim{}).ok()) << "not a message of a client";
}

TEST(Scope, AMalformedMessageIsForItsReaderToRefuse) {
    const auto grant = grant_of("verbs=read keys=docs/");
    const std::vector<uint8_t> odd = {1, 0, 255, 255, 255, 255};
    EXPECT_TRUE(check_request(*grant, MessageType::kLookup, odd).ok());
}

}  // namespace
}  // namespace kvstore::testing
