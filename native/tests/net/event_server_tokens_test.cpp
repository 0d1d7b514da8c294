// Sessions that scopes, minted tokens and wrong proofs limit, over real sockets.
#include "base/clock.h"
#include "net/minted_token.h"
#include "tests/net/event_server_fixture.h"

namespace kvstore::testing {
namespace {

constexpr std::string_view kDenied = "may not";

class EventServerTokensTest : public EventServerTest {
  protected:
    void SetUp() override {
        EventServerTest::SetUp();
        Principal docs{"docs", Role::kClient, {"default", "other"}, "docs-secret"};
        docs.scopes = parse_scopes("verbs=read,write keys=docs/ tenants=default").value();
        options_.authenticator = std::make_shared<Authenticator>(std::vector<Principal>{
            {"engine", Role::kClient, {"default", "rival"}, "s3cret"},
            {"node-a", Role::kNode, {}, "n0de"},
            docs,
        });
        serve();
    }
    static std::string claims_for(int64_t seconds, std::string_view scopes = "") {
        const auto now_s = static_cast<int64_t>(wall_ms() / 1000);
        return "exp=" + std::to_string(now_s + seconds) + std::string(scopes);
    }
    static std::string minted(std::string_view name, std::string_view secret,
                              std::string_view claims) {
        return "kvt1:" + minted_key(secret, name, claims) + ":" + std::string(claims);
    }
    static Status look_up(Channel& channel, std::string_view key) {
        LookupReply reply;
        return channel.exchange(Lookup{.keys = key}, &reply, soon());
    }
};

TEST_F(EventServerTokensTest, ScopesHoldForEachRequestOfASession) {
    const auto docs = connect(tcp_, with_token("docs", "docs-secret"));
    EXPECT_TRUE(look_up(*docs, "docs/a").ok());
    const int before = service_.frames;
    const Status other = look_up(*docs, "chat/a");
    EXPECT_EQ(other.code(), Code::kPermissionDenied);
    EXPECT_NE(other.message().find("may not read key 1"), std::string::npos);
    StatusReply removed;
    EXPECT_EQ(docs->exchange(Remove{}, &removed, soon()).code(), Code::kPermissionDenied);
    EXPECT_EQ(service_.frames, before) << "nothing else has looked at them";
    EXPECT_TRUE(look_up(*docs, "docs/b").ok()) << "the session goes on";
    EXPECT_TRUE(logged(kDenied));
    HelloParams elsewhere = with_token("docs", "docs-secret");
    elsewhere.tenant = "other";
    EXPECT_EQ(refusal(tcp_, elsewhere).code(), Code::kPermissionDenied);
}

TEST_F(EventServerTokensTest, ThePayloadOfWhatIsDeniedIsDiscarded) {
    const auto docs = connect(tcp_, with_token("docs", "docs-secret"));
    Bytes data(3 << 20, 7);
    const iovec part{data.data(), data.size()};
    const uint64_t sizes[] = {data.size()};
    const std::string_view mine = "docs/a";
    const std::string_view others = "chat/a";
    for (const std::string_view key : {others, mine, others}) {
        StatusReply reply;
        const Status put =
            docs->exchange(Put{.keys = key, .sizes = std::span<const uint64_t>(sizes)}, &reply,
                           soon(), Payload{.parts = std::span(&part, 1)});
        EXPECT_EQ(put.code(), key == mine ? Code::kOk : Code::kPermissionDenied);
    }
    EXPECT_TRUE(look_up(*docs, "docs/a").ok());
}

TEST_F(EventServerTokensTest, AMintedTokenProvesItsClaimsAndNoMore) {
    const std::string claims = claims_for(60, "+verbs=read+keys=a+tenants=default");
    HelloParams hello = with_token("engine", minted("engine", "s3cret", claims));
    const auto engine = connect(tcp_, hello);
    ASSERT_NE(engine, nullptr) << "and the server has proven that it knows the secret";
    EXPECT_TRUE(look_up(*engine, "abc").ok());
    EXPECT_EQ(look_up(*engine, "b").code(), Code::kPermissionDenied);
    hello.tenant = "rival";
    EXPECT_EQ(refusal(tcp_, hello).code(), Code::kPermissionDenied) << "not among its tenants";
    const auto code_of = [&](std::string_view name, const std::string& token) {
        return refusal(tcp_, with_token(std::string(name), token)).code();
    };
    const std::string all = claims_for(60);
    EXPECT_EQ(code_of("engine", minted("engine", "s3cret", all)), Code::kOk);
    EXPECT_EQ(code_of("engine", minted("engine", "other", all)), Code::kUnauthenticated);
    EXPECT_EQ(code_of("engine", minted("docs", "s3cret", all)), Code::kUnauthenticated);
    const std::string tampered = "kvt1:" + minted_key("s3cret", "engine", claims) + ":" + all;
    EXPECT_EQ(code_of("engine", tampered), Code::kUnauthenticated);
    EXPECT_EQ(code_of("engine", minted("engine", "s3cret", claims_for(-1))),
              Code::kUnauthenticated);
    EXPECT_EQ(code_of("engine", minted("engine", "s3cret", claims_for(2 * 24 * 3600))),
              Code::kUnauthenticated);
    EXPECT_EQ(code_of("engine", minted("engine", "s3cret", claims_for(60, "+fly"))),
              Code::kUnauthenticated);
    HelloParams node = with_token("node-a", minted("node-a", "n0de", all));
    node.role = Role::kNode;
    EXPECT_EQ(refusal(tcp_, node).code(), Code::kPermissionDenied);
}

TEST_F(EventServerTokensTest, AMintedTokenOnlyNarrows) {
    const std::string claims = claims_for(60, "+verbs=read,remove");
    const auto docs = connect(tcp_, with_token("docs", minted("docs", "docs-secret", claims)));
    EXPECT_TRUE(look_up(*docs, "docs/a").ok());
    EXPECT_EQ(look_up(*docs, "chat/a").code(), Code::kPermissionDenied);
    StatusReply removed;
    EXPECT_EQ(docs->exchange(Remove{}, &removed, soon()).code(), Code::kPermissionDenied);
}

TEST_F(EventServerTokensTest, SessionsEndWhenTheirTokenExpiresOrItsSecretGoes) {
    const auto secret = connect(tcp_, with_token("engine", "s3cret"));
    const auto brief =
        connect(tcp_, with_token("engine", minted("engine", "s3cret", claims_for(2))));
    const auto longer =
        connect(tcp_, with_token("engine", minted("engine", "s3cret", claims_for(600))));
    const uint64_t began_ms = boottime_ms();
    const Status ended = brief->receive_any(soon()).status();
    EXPECT_EQ(ended.code(), Code::kUnauthenticated);
    EXPECT_NE(ended.message().find("expired"), std::string::npos);
    EXPECT_LT(boottime_ms() - began_ms, 2500u);
    EXPECT_TRUE(look_up(*secret, "k").ok() && look_up(*longer, "k").ok());
    options_.authenticator->replace({{"engine", Role::kClient, {"default"}, "rotated"}});
    EXPECT_EQ(longer->receive_any(soon()).code(), Code::kUnauthenticated);
}

TEST_F(EventServerTokensTest, WrongProofsHaveAPrincipalWaitAtThatAddress) {
    const auto code_of = [&](const Endpoint& endpoint, const char* name, const char* secret) {
        return refusal(endpoint, with_token(name, secret)).code();
    };
    for (uint32_t i = 0; i <= FailedProofs::kFree; ++i) {
        EXPECT_EQ(code_of(tcp_, "engine", "guess"), Code::kUnauthenticated);
    }
    const Status paused = refusal(tcp_, with_token("engine", "s3cret"));
    EXPECT_EQ(paused.code(), Code::kUnauthenticated);
    EXPECT_NE(paused.message().find("try again in"), std::string::npos);
    EXPECT_EQ(code_of(unix_, "engine", "s3cret"), Code::kOk) << "another address";
    EXPECT_EQ(code_of(tcp_, "docs", "docs-secret"), Code::kOk) << "another principal";
    EXPECT_EQ(server_->stats().proofs.pauses, 1u);
    EXPECT_TRUE(eventually([&] { return code_of(tcp_, "engine", "s3cret") == Code::kOk; }));
    for (uint32_t i = 0; i <= FailedProofs::kFree; ++i) {
        EXPECT_EQ(code_of(tcp_, "engine", "guess"), Code::kUnauthenticated);
    }
    options_.authenticator->replace({{"engine", Role::kClient, {"default"}, "s3cret"}});
    EXPECT_EQ(code_of(tcp_, "engine", "s3cret"), Code::kOk) << "there are other secrets now";
}

TEST_F(EventServerTokensTest, ManyChallengesAtOnceGiveNoFurtherGuesses) {
    constexpr uint64_t kAtOnce = 20;
    std::vector<Fd> challenged;
    for (uint64_t i = 0; i < kAtOnce; ++i) {
        Fd fd = connect_to(tcp_, soon()).value();
        const HelloParams hello = with_token("engine", "guess");
        ASSERT_TRUE(send_bytes(fd, frame_of(hello.hello({}), kHelloMagic)).ok());
        const std::optional<RawFrame> frame = next_frame(fd);
        ASSERT_TRUE(frame && frame->header.message() == MessageType::kChallenge);
        challenged.push_back(std::move(fd));
    }
    for (const Fd& fd : challenged) {
        ASSERT_TRUE(send_bytes(fd, frame_of(Auth{}, kHelloMagic)).ok());
        EXPECT_EQ(closing_code(fd), Code::kUnauthenticated);
    }
    EXPECT_EQ(server_->stats().proofs.failures, FailedProofs::kFree + 1);
    EXPECT_EQ(server_->stats().proofs.refused, kAtOnce - FailedProofs::kFree - 1);
}

}  // namespace
}  // namespace kvstore::testing
