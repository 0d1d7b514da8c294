// What breaks a connection must not break the server: garbage, slow and silent peers, abrupt ends.
#include <sys/syscall.h>

#include <cstdio>
#include <random>

#include "tests/net/event_server_fixture.h"
#include "tests/wire/message_samples.h"

namespace kvstore::testing {
namespace {

Fd connected(const Endpoint& endpoint) { return connect_to(endpoint, soon()).value(); }

Bytes hello_frame() {
    HelloParams params;
    params.features = 0;
    return frame_of(params.hello({}), kHelloMagic);
}

Bytes text_bytes(std::string_view text) { return {text.begin(), text.end()}; }

// Sends `bytes`, says that nothing follows, and waits for the end. The end must come soon.
void expect_ended(const Fd& fd, const Bytes& bytes) {
    (void)send_bytes(fd, bytes);
    (void)shutdown(fd.get(), SHUT_WR);
    uint8_t waste[4096];
    const Deadline deadline = soon();
    for (;;) {
        const ssize_t count = recv(fd.get(), waste, sizeof waste, 0);
        if (count == 0 || (count < 0 && errno != EAGAIN)) {
            return;
        }
        ASSERT_FALSE(deadline.expired()) << "the server neither answered nor closed";
        if (count < 0) {
            std::this_thread::sleep_for(std::chrono::microseconds(100));
        }
    }
}

TEST_F(EventServerTest, OtherProtocolsAndEarlyFramesAreRefusedByName) {
    serve();
    const Fd http = connected(tcp_);
    ASSERT_TRUE(send_bytes(http, text_bytes("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).ok());
    EXPECT_EQ(closing_code(http), Code::kProtocolError);
    const Fd early = connected(tcp_);
    const std::string_view key = "k";
    ASSERT_TRUE(send_bytes(early, frame_of(Lookup{.keys = key})).ok());
    const std::optional<RawFrame> frame = next_frame(early);
    ASSERT_TRUE(frame.has_value());
    EXPECT_EQ(frame->header.message(), MessageType::kRefused);
    Refused refused;
    ASSERT_TRUE(decode_message(frame->body, &refused).ok());
    EXPECT_EQ(refused.message, "Lookup before the session is open");
    const Fd magicless = connected(tcp_);
    HelloParams params;
    ASSERT_TRUE(send_bytes(magicless, frame_of(params.hello({}), 1)).ok());
    EXPECT_EQ(closing_code(magicless), Code::kProtocolError);
    EXPECT_TRUE(logged("wrong magic"));
    EXPECT_EQ(refusals(Code::kProtocolError), 3u);
    EXPECT_EQ(service_.hellos + service_.frames, 0);
    expect_serving();
}

TEST_F(EventServerTest, AnAuthWithoutAHelloAndAFrameInPlaceOfAuth) {
    require_tokens();
    serve();
    const Fd first = connected(unix_);
    ASSERT_TRUE(send_bytes(first, frame_of(Auth{})).ok());
    EXPECT_EQ(closing_code(first), Code::kProtocolError);
    EXPECT_TRUE(logged("Auth instead of Hello"));
    const Fd again = connected(unix_);
    const Bytes hello = frame_of(with_token("engine", "s3cret").hello({}), kHelloMagic);
    ASSERT_TRUE(send_bytes(again, hello).ok());
    ASSERT_TRUE(next_frame(again).has_value());
    ASSERT_TRUE(send_bytes(again, frame_of(Welcome{})).ok());
    EXPECT_EQ(closing_code(again), Code::kProtocolError);
    const Fd second = connected(unix_);
    Bytes both = hello;
    const std::string_view key = "k";
    const Bytes lookup = frame_of(Lookup{.keys = key});
    both.insert(both.end(), lookup.begin(), lookup.end());
    ASSERT_TRUE(send_bytes(second, both).ok());
    EXPECT_EQ(closing_code(second), Code::kProtocolError);
    EXPECT_EQ(service_.hellos + service_.frames, 0);
    expect_serving(with_token("engine", "s3cret"));
}

TEST_F(EventServerTest, BrokenFramesInASessionEndItWithANamedError) {
    serve();
    const auto ends_with = [this](const Bytes& bytes) {
        const Fd fd = raw_session(tcp_);
        EXPECT_TRUE(send_bytes(fd, bytes).ok());
        return closing_code(fd);
    };
    const auto header = [](FrameHeader fields) {
        const FrameHeaderBytes bytes = encode_header(fields);
        return Bytes(bytes.begin(), bytes.end());
    };
    const auto put = static_cast<uint16_t>(MessageType::kPut);
    EXPECT_EQ(ends_with(header({.type = 0x7777})), Code::kProtocolError);
    EXPECT_EQ(ends_with(header({.body_bytes = UINT32_MAX, .type = put})), Code::kTooLarge);
    EXPECT_EQ(ends_with(header({.type = put, .payload_bytes = UINT64_MAX})), Code::kTooLarge);
    EXPECT_EQ(ends_with(hello_frame()), Code::kProtocolError);
    Bytes lookup = frame_of(Abort{.generations = samples::u64s()});
    lookup[0] = 7;  // the body is cut
    lookup[4] = static_cast<uint8_t>(MessageType::kLookup);
    EXPECT_EQ(ends_with(lookup), Code::kProtocolError);
    EXPECT_EQ(refusals(Code::kTooLarge), 2u);
    EXPECT_TRUE(eventually([&] { return service_.closes == 5; }));
    expect_serving();
}

// A connection that has come as far as `stage`: 0 nothing sent, 1 challenged, 2 in session.
Fd connected_up_to(int stage, const Endpoint& endpoint, const HelloParams& params) {
    if (stage == 2) {
        return Channel::connect(endpoint, params, soon()).value()->release().take_fd();
    }
    Fd fd = connected(endpoint);
    if (stage == 1) {
        EXPECT_TRUE(send_bytes(fd, frame_of(params.hello({}), kHelloMagic)).ok());
        EXPECT_TRUE(next_frame(fd).has_value());
    }
    return fd;
}

TEST_F(EventServerTest, MutatedFramesNeverDisturbTheServer) {
    require_tokens();
    serve();
    const uint64_t seed = 99;
    const HelloParams engine = with_token("engine", "s3cret");
    std::mt19937_64 random(seed);
    std::vector<Bytes> frames;
    samples::all_messages([&frames](const auto& message) { frames.push_back(frame_of(message)); });
    for (int round = 0; round < 3000; ++round) {
        SCOPED_TRACE("seed 99 round " + std::to_string(round));
        const int stage = static_cast<int>(random() % 3);
        Bytes bytes = stage == 0   ? frame_of(engine.hello({}), kHelloMagic)
                      : stage == 1 ? frame_of(Auth{.mac = {7}})
                                   : frames[random() % frames.size()];
        for (size_t count = 1 + random() % 3; count > 0; --count) {
            const size_t at = random() % bytes.size();
            random() % 4 == 0 ? bytes.resize(at + 1)
                              : void(bytes[at] = static_cast<uint8_t>(random()));
        }
        expect_ended(connected_up_to(stage, random() % 2 == 0 ? tcp_ : unix_, engine), bytes);
        if (round % 500 == 0) {
            expect_serving(engine);
        }
    }
    expect_serving(engine);
    EXPECT_TRUE(eventually([&] { return server_->stats().open == 0; }));
    EXPECT_EQ(service_.opens, service_.closes);
    std::printf("seed %llu: %llu protocol errors, %llu unauthenticated\n",
                static_cast<unsigned long long>(seed),
                static_cast<unsigned long long>(refusals(Code::kProtocolError)),
                static_cast<unsigned long long>(refusals(Code::kUnauthenticated)));
}

TEST_F(EventServerTest, AUnixSocketServesItsOwnerOnlyUnlessTokensDo) {
    if (geteuid() != 0) {
        GTEST_SKIP() << "only root can come as somebody else";
    }
    require_tokens();
    const std::shared_ptr<Authenticator> tokens = std::exchange(options_.authenticator, nullptr);
    for (const bool with_tokens : {false, true}) {
        options_.authenticator = with_tokens ? tokens : nullptr;
        serve();
        const Endpoint abstract =
            server_->listen(*Endpoint::parse("unix:@" + folder_ + std::to_string(with_tokens)))
                .value();
        Status status;
        std::thread([&] {  // the raw call changes the ids of this thread alone
            ASSERT_EQ(syscall(SYS_setresuid, 65534, 65534, 65534), 0);
            status = refusal(abstract, with_tokens ? with_token("engine", "s3cret") : params());
        })
            .join();
        EXPECT_EQ(status.code(), with_tokens ? Code::kOk : Code::kPermissionDenied);
    }
}

TEST_F(EventServerTest, ASlowReaderIsClosedAndOthersAreServed) {
    options_.loops = 1;
    options_.max_queued_bytes = 8 << 20;
    serve();
    const Fd slow = raw_session(tcp_);
    ASSERT_TRUE(send_bytes(slow, frame_of(List{.limit = 100})).ok());  // and it never reads
    EXPECT_TRUE(eventually([&] { return service_.closes == 1; }));
    EXPECT_EQ(refusals(Code::kOverloaded), 1u);
    EXPECT_TRUE(logged("slow reader"));
    expect_serving();
}

TEST_F(EventServerTest, RepliesThatDoNotMoveEndTheSession) {
    options_.write_stall_ms = 50;
    serve();
    const Fd slow = raw_session(tcp_);
    ASSERT_TRUE(send_bytes(slow, frame_of(List{.limit = 20})).ok());  // within the queue's bound
    EXPECT_TRUE(eventually([&] { return service_.closes == 1; }));
    EXPECT_TRUE(logged("do not move"));
}

TEST_F(EventServerTest, APeerThatAsksWithoutReadingIsNotReadFurther) {
    options_.loops = 1;
    options_.max_queued_bytes = 32 << 20;
    serve();
    const Fd fd = raw_session(unix_);
    Bytes requests;
    constexpr int kRequests = 24;
    for (int i = 0; i < kRequests; ++i) {
        const Bytes frame = frame_of(List{.limit = 2});
        requests.insert(requests.end(), frame.begin(), frame.end());
    }
    ASSERT_TRUE(send_bytes(fd, requests).ok());
    expect_serving();
    EXPECT_LT(service_.frames, kRequests) << "reading has paused half-way to the bound";
    int replies = 0;
    while (replies < 2 * kRequests && next_frame(fd)) {
        ++replies;
    }
    EXPECT_EQ(replies, 2 * kRequests) << "it goes on once the peer reads";
    EXPECT_EQ(service_.closes, 1) << "only the one that asked whether it serves";
}

TEST_F(EventServerTest, SilentPeersAreGivenUp) {
    options_.handshake_ms = 50;
    options_.read_stall_ms = 50;
    serve();
    const Fd silent = connected(tcp_);
    EXPECT_EQ(closing_code(silent), Code::kDeadlineExceeded);
    const Fd half = raw_session(tcp_);
    Bytes put = frame_of(Put{}, 1, 1000);
    put.resize(put.size() + 10);
    ASSERT_TRUE(send_bytes(half, put).ok());
    EXPECT_EQ(closing_code(half), Code::kDeadlineExceeded);
    const Fd header_only = raw_session(tcp_);
    Bytes ping = frame_of(Ping{.token = 1});
    ping.resize(kFrameHeaderBytes);
    ASSERT_TRUE(send_bytes(header_only, ping).ok());
    EXPECT_EQ(closing_code(header_only), Code::kDeadlineExceeded);
    EXPECT_TRUE(logged("no complete handshake"));
    EXPECT_TRUE(logged("does not go on"));
    const Fd idle = raw_session(tcp_);  // silence between frames is fine
    EXPECT_TRUE(eventually([&, until = service_.ticks + 30] { return service_.ticks > until; }));
    ASSERT_TRUE(send_bytes(idle, frame_of(Ping{.token = 1})).ok());
    const std::optional<RawFrame> pong = next_frame(idle);
    ASSERT_TRUE(pong.has_value());
    EXPECT_EQ(pong->header.message(), MessageType::kPong);
}

TEST_F(EventServerTest, AFloodOfNewcomersIsLetInSlowly) {
    constexpr uint64_t kPlaces = 4;
    constexpr uint64_t kPerTick = 3;
    options_.loops = 1;
    options_.max_handshakes = kPlaces;
    serve();
    std::vector<Fd> flood;
    for (int i = 0; i < 200; ++i) {
        flood.push_back(connected(tcp_));
    }
    const auto most = [&] {
        return kPlaces + kPerTick * (static_cast<uint64_t>(service_.ticks) + 2);
    };
    EXPECT_TRUE(eventually([&, until = service_.ticks + 6] { return service_.ticks > until; }));
    const uint64_t accepted = server_->stats().accepted;
    EXPECT_GT(accepted, kPlaces);
    EXPECT_LE(accepted, most());
    expect_serving();  // behind all of them
}

TEST_F(EventServerTest, TheOldestHalfOpenConnectionGivesWayToANewOne) {
    options_.max_handshakes = 3;
    serve();
    std::vector<Fd> waiting;
    for (uint64_t i = 0; i < 3; ++i) {
        waiting.push_back(connected(tcp_));
        ASSERT_TRUE(eventually([&] { return server_->stats().open == i + 1; }));
    }
    const Fd fourth = connected(tcp_);
    EXPECT_EQ(closing_code(waiting.front()), Code::kOverloaded);
    expect_serving();  // which takes the place of the next one
    EXPECT_EQ(closing_code(waiting[1]), Code::kOverloaded);
    EXPECT_TRUE(send_bytes(fourth, frame_of(params().hello({}), kHelloMagic)).ok());
    const std::optional<RawFrame> welcome = next_frame(fourth);
    ASSERT_TRUE(welcome);
    EXPECT_EQ(welcome->header.message(), MessageType::kWelcome);
    EXPECT_TRUE(logged("before their Welcome"));
}

// Refused ones linger for a second for their peers to read why, but not in the place of others.
TEST_F(EventServerTest, RefusedConnectionsShutNobodyOut) {
    options_.max_handshakes = 4;
    serve();
    const uint64_t began_ms = boottime_ms();
    std::vector<Fd> refused;
    for (uint64_t i = 0; i < 40; ++i) {
        refused.push_back(connected(tcp_));
        ASSERT_TRUE(send_bytes(refused.back(), frame_of(Flush{})).ok());
    }
    EXPECT_TRUE(eventually([&] { return server_->stats().open <= 4; }));
    EXPECT_LT(boottime_ms() - began_ms, 900u);
    expect_serving();
}

TEST_F(EventServerTest, SessionsAreBounded) {
    options_.max_handshakes = 3;
    options_.max_connections = 9;
    serve();
    std::vector<Fd> sessions;
    for (int i = 0; i < 6; ++i) {
        sessions.push_back(raw_session(tcp_));
    }
    const Status refused = refusal(tcp_, params());
    EXPECT_EQ(refused.code(), Code::kOverloaded) << refused.to_string();
    sessions.pop_back();
    ASSERT_TRUE(eventually([&] { return server_->stats().sessions == 5; }));
    EXPECT_TRUE(eventually([&] { return refusal(tcp_, params()).ok(); }));
}

TEST_F(EventServerTest, ClientsLeaveAReserveToNodesAndOneAnother) {
    require_tokens();
    options_.max_handshakes = 4;
    options_.max_connections = 20;  // 16 sessions, 2 of them reserved
    options_.reserved_connections = 2;
    options_.principal_share = 0.5;
    serve();
    std::vector<std::unique_ptr<Channel>> sessions;
    for (int i = 0; i < 7; ++i) {
        sessions.push_back(connect(tcp_, with_token("engine", "s3cret")));
    }
    const Status share = refusal(tcp_, with_token("engine", "s3cret"));
    EXPECT_EQ(share.code(), Code::kOverloaded);
    EXPECT_NE(share.message().find("principal engine has 7 sessions here, as many as "
                                   "principal_share allows"),
              std::string::npos)
        << share.message();
    HelloParams administrator = with_token("admin", "adm1n");
    for (int i = 0; i < 7; ++i) {
        sessions.push_back(connect(tcp_, administrator));
    }
    HelloParams node = with_token("node-a", "n0de");
    node.role = Role::kNode;
    sessions.push_back(connect(tcp_, node));
    sessions.push_back(connect(tcp_, node));
    server_->set_principal_share(1);
    EXPECT_EQ(refusal(tcp_, with_token("engine", "s3cret")).message(), "too many sessions");
}

TEST_F(EventServerTest, AbruptEndsAreNoticedWhereverTheyCome) {
    serve();
    Bytes put = frame_of(Put{}, 1, 1 << 20);
    for (const size_t cut : {size_t{0}, size_t{5}, kFrameHeaderBytes, put.size() + 5000}) {
        const int closes = service_.closes;
        Bytes bytes = put;
        bytes.resize(cut);
        {
            const Fd fd = raw_session(cut % 2 == 0 ? tcp_ : unix_);
            ASSERT_TRUE(send_bytes(fd, bytes).ok());
        }
        EXPECT_TRUE(eventually([&] { return service_.closes == closes + 1; })) << cut;
    }
    const Fd reset = raw_session(tcp_);
    const linger at_once{1, 0};
    ASSERT_EQ(setsockopt(reset.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
    ASSERT_TRUE(send_bytes(reset, frame_of(List{.limit = 30})).ok());
    const_cast<Fd&>(reset).reset();
    EXPECT_TRUE(eventually([&] { return server_->stats().open == 0; }));
    EXPECT_EQ(service_.opens, service_.closes);
    expect_serving();
}

}  // namespace
}  // namespace kvstore::testing
