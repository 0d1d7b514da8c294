// The event server and channels over real TCP and Unix sockets: sessions, tokens, payload, pushes.
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include <numeric>
#include <random>

#include "tests/net/event_server_fixture.h"

namespace kvstore::testing {
namespace {

Bytes pattern(size_t size, uint32_t seed) {
    Bytes bytes(size);
    std::mt19937 random(seed);
    for (size_t i = 0; i + 4 <= size; i += 4) {
        const uint32_t word = static_cast<uint32_t>(random());
        std::memcpy(bytes.data() + i, &word, 4);
    }
    return bytes;
}

iovec view_of(Bytes& bytes) { return {bytes.data(), bytes.size()}; }

bool serves(Channel& channel) {
    Pong pong;
    return channel.exchange(Ping{.token = 1}, &pong, soon()).ok();
}

TEST_F(EventServerTest, HelloAndRequestsOverBothTransports) {
    serve();
    for (const Endpoint& endpoint : {tcp_, unix_}) {
        const std::unique_ptr<Channel> channel = connect(endpoint);
        ASSERT_NE(channel, nullptr);
        EXPECT_EQ(channel->welcome().cluster_id, "test-cluster");
        EXPECT_EQ(channel->welcome().version, kProtocolVersionMax);
        EXPECT_EQ(channel->welcome().peers, (std::vector<std::string>{"tcp://a:1", "tcp://b:2"}));
        EXPECT_EQ(channel->welcome().slot, 4);
        const std::vector<std::string_view> keys = {"a", "", "ccc"};
        for (int i = 0; i < 100; ++i) {
            LookupReply reply;
            ASSERT_TRUE(channel->exchange(Lookup{.keys = keys}, &reply, soon()).ok());
            ASSERT_EQ(reply.sizes.size(), 3u);
            EXPECT_EQ(reply.sizes[2], 3u);
        }
        Pong pong;
        ASSERT_TRUE(channel->exchange(Ping{.token = 5}, &pong, soon()).ok());
        EXPECT_EQ(pong.token, 5u);
        EXPECT_TRUE(channel->usable());
    }
    EXPECT_TRUE(eventually([&] { return service_.closes == 2; }));
    EXPECT_GE(server_->stats().frames_in, 204u);
    EXPECT_EQ(server_->stats().sessions, 0u);
}

TEST_F(EventServerTest, ErrorsAreAnswersAndOnlyFatalOnesEndTheSession) {
    serve();
    const std::unique_ptr<Channel> channel = connect(tcp_);
    FlushReply reply;
    const Status status = channel->exchange(Flush{}, &reply, soon());
    EXPECT_EQ(status.code(), Code::kUnavailable);
    EXPECT_EQ(status.message(), "not now");
    EXPECT_TRUE(channel->usable());
    RemoveReply removed;
    const std::string_view key = "k";
    EXPECT_EQ(channel->exchange(Remove{.keys = key}, &removed, soon()).code(), Code::kRemoved);
    EXPECT_FALSE(channel->alive());
    EXPECT_TRUE(eventually([&] { return service_.closes == 1; }));
    EXPECT_EQ(refusals(Code::kRemoved), 1u);
    EXPECT_TRUE(logged("as asked"));
}

TEST_F(EventServerTest, ALargeBodyGrowsTheBufferAndArrives) {
    serve();
    const std::unique_ptr<Channel> channel = connect(unix_);
    const std::string text(1000, 'x');
    const std::vector<std::string_view> keys(limits::kMaxBatchKeys, text);
    LookupReply reply;
    ASSERT_TRUE(channel->exchange(Lookup{.keys = keys}, &reply, soon()).ok());
    EXPECT_EQ(reply.sizes.size(), keys.size());
    EXPECT_EQ(reply.sizes[4095], 1000u);
}

// ----------------------------------------------------------------------------------- payload

TEST_F(EventServerTest, LargePayloadGoesBothWaysIntact) {
    serve();
    for (const Endpoint& endpoint : {tcp_, unix_}) {
        for (const size_t size : {size_t{1}, size_t{4096}, size_t{40} << 20}) {
            const std::unique_ptr<Channel> channel = connect(endpoint);
            Bytes sent = pattern(size, 7);
            const iovec out = view_of(sent);
            const std::string_view key = "k";
            StatusReply stored;
            const Status put =
                channel->exchange(Put{.keys = key}, &stored, soon(), {std::span(&out, 1)});
            ASSERT_TRUE(put.ok()) << put.to_string();
            EXPECT_EQ(stored.status.size(), 1u);
            GetReply reply;
            ASSERT_TRUE(channel->exchange(Get{.keys = key}, &reply, soon()).ok());
            ASSERT_EQ(channel->payload_left(), size);
            Bytes received(size);
            const size_t cut = size / 3;
            const iovec in[2] = {{received.data(), cut}, {received.data() + cut, size - cut}};
            ASSERT_TRUE(channel->recv_payload(in, soon()).ok());
            EXPECT_TRUE(received == sent);
            EXPECT_TRUE(channel->usable());
        }
    }
}

TEST_F(EventServerTest, PayloadCanBeDiscardedOnBothSides) {
    service_.discard_puts = true;
    serve();
    const std::unique_ptr<Channel> channel = connect(tcp_);
    Bytes sent = pattern(3 << 20, 1);
    const iovec out = view_of(sent);
    const std::string_view key = "k";
    StatusReply stored;
    ASSERT_TRUE(channel->exchange(Put{.keys = key}, &stored, soon(), {std::span(&out, 1)}).ok());
    service_.discard_puts = false;
    ASSERT_TRUE(channel->exchange(Put{.keys = key}, &stored, soon(), {std::span(&out, 1)}).ok());
    GetReply reply;
    ASSERT_TRUE(channel->exchange(Get{.keys = key}, &reply, soon()).ok());
    ASSERT_TRUE(channel->discard_payload(soon()).ok());
    ASSERT_TRUE(channel->exchange(Get{.keys = key}, &reply, soon()).ok());
    EXPECT_EQ(channel->payload_left(), sent.size());
    LookupReply lookup;  // the payload was forgotten: the stream would be out of step
    EXPECT_EQ(channel->exchange(Lookup{.keys = key}, &lookup, soon()).code(), Code::kInternal);
    EXPECT_FALSE(channel->alive());
}

TEST_F(EventServerTest, KeepaliveLastsUntilThePayloadIsWritten) {
    serve();
    const std::unique_ptr<Channel> channel = connect(unix_);
    Bytes sent = pattern(8 << 20, 3);
    const iovec out = view_of(sent);
    const std::string_view key = "k";
    StatusReply stored;
    ASSERT_TRUE(channel->exchange(Put{.keys = key}, &stored, soon(), {std::span(&out, 1)}).ok());
    GetReply reply;
    ASSERT_TRUE(channel->exchange(Get{.keys = key}, &reply, soon()).ok());
    std::weak_ptr<std::vector<uint8_t>> held;
    {
        std::lock_guard lock(service_.mutex);
        held = service_.stored;
        service_.stored.reset();
    }
    EXPECT_FALSE(held.expired()) << "most of the payload is still to be written";
    Bytes received(sent.size());
    const iovec in = view_of(received);
    ASSERT_TRUE(channel->recv_payload(std::span(&in, 1), soon()).ok());
    EXPECT_TRUE(received == sent);
    EXPECT_TRUE(eventually([&] { return held.expired(); }));
}

// ----------------------------------------------------------------------------------- descriptors

TEST_F(EventServerTest, DescriptorsComeWithTheWelcomeOnUnixOnly) {
    serve();
    const std::unique_ptr<Channel> local = connect(unix_);
    std::vector<Fd> fds = local->take_fds();
    ASSERT_EQ(fds.size(), 1u);
    char text[13] = {};
    EXPECT_EQ(pread(fds[0].get(), text, 12, 0), 12);
    EXPECT_STREQ(text, "shared bytes");
    EXPECT_NE(local->welcome().features & kFeatureSharedMemory, 0u);
    const std::unique_ptr<Channel> remote = connect(tcp_);
    EXPECT_TRUE(remote->take_fds().empty());
    EXPECT_EQ(remote->welcome().features & kFeatureSharedMemory, 0u);
    HelloParams insisting = params();
    insisting.required = kFeatureSharedMemory;
    EXPECT_NE(refusal(tcp_, insisting).message().find("shared memory"), std::string::npos);
}

// ----------------------------------------------------------------------------------- the hello

TEST_F(EventServerTest, TokensDecideWhoComesIn) {
    require_tokens();
    serve();
    for (const Endpoint& endpoint : {tcp_, unix_}) {
        EXPECT_NE(connect(endpoint, with_token("engine", "s3cret")), nullptr);
        EXPECT_EQ(refusal(endpoint, with_token("engine", "wrong")).code(), Code::kUnauthenticated);
        EXPECT_EQ(refusal(endpoint, with_token("nobody", "s3cret")).code(), Code::kUnauthenticated);
        EXPECT_EQ(refusal(endpoint, params()).code(), Code::kUnauthenticated);
    }
    HelloParams other_tenant = with_token("engine", "s3cret");
    other_tenant.tenant = "rival";
    EXPECT_EQ(refusal(tcp_, other_tenant).code(), Code::kPermissionDenied);
    HelloParams as_node = with_token("engine", "s3cret");
    as_node.role = Role::kNode;
    EXPECT_EQ(refusal(tcp_, as_node).code(), Code::kPermissionDenied);
    HelloParams admin = with_token("admin", "adm1n");
    admin.tenant = "rival";
    EXPECT_NE(connect(tcp_, admin), nullptr) << "an operator may come as a client of any tenant";
    HelloParams node = with_token("node-a", "n0de");
    node.role = Role::kNode;
    EXPECT_NE(connect(tcp_, node), nullptr);
    EXPECT_TRUE(eventually([&] { return refusals(Code::kUnauthenticated) == 6; }));
    EXPECT_TRUE(logged("wrong token"));
    EXPECT_FALSE(logged("s3cret"));
}

TEST_F(EventServerTest, PrincipalsCanBeReplacedWhileServing) {
    require_tokens();
    serve();
    EXPECT_NE(connect(tcp_, with_token("engine", "s3cret")), nullptr);
    options_.authenticator->replace({{"engine", Role::kClient, {"*"}, "rotated"}});
    EXPECT_EQ(refusal(tcp_, with_token("engine", "s3cret")).code(), Code::kUnauthenticated);
    EXPECT_NE(connect(tcp_, with_token("engine", "rotated")), nullptr);
}

TEST_F(EventServerTest, SessionsOfChangedPrincipalsEndAndOthersStay) {
    require_tokens();
    serve();
    const auto engine = connect(tcp_, with_token("engine", "s3cret"));
    const auto local = connect(unix_, with_token("engine", "s3cret"));
    const auto admin = connect(tcp_, with_token("admin", "adm1n"));
    const std::vector<Principal> rest = {{"admin", Role::kOperator, {"*"}, "adm1n"}};
    const auto with = [&](std::vector<Principal> more) {
        more.insert(more.end(), rest.begin(), rest.end());
        options_.authenticator->replace(std::move(more));
    };
    const auto ended = [&](Channel& channel) {
        return channel.receive_any(soon()).code() == Code::kUnauthenticated;
    };
    // A second secret for the same name, so that clients can change over.
    with({{"engine", Role::kClient, {"default"}, "s3cret"},
          {"engine", Role::kClient, {"default"}, "rotated"}});
    const auto rotated = connect(tcp_, with_token("engine", "rotated"));
    EXPECT_TRUE(serves(*engine) && serves(*local) && serves(*rotated) && serves(*admin));
    with({{"engine", Role::kClient, {"default"}, "rotated"}});
    EXPECT_TRUE(ended(*engine) && ended(*local));
    EXPECT_TRUE(serves(*rotated) && serves(*admin));
    with({{"engine", Role::kClient, {"rival"}, "rotated"}});
    EXPECT_TRUE(ended(*rotated)) << "its tenants are others";
    EXPECT_TRUE(serves(*admin));
    options_.authenticator->replace({{"admin", Role::kClient, {"*"}, "adm1n"}});
    EXPECT_TRUE(ended(*admin)) << "its role is another";
    EXPECT_TRUE(eventually([&] { return server_->stats().sessions == 0; }));
}

TEST_F(EventServerTest, TokensThatAreSwitchedOnEndSessionsWithoutOne) {
    options_.authenticator = std::make_shared<Authenticator>();
    serve();
    const auto anybody = connect(tcp_);
    int pair[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    const Fd other_end(pair[1]);
    const auto ours = server_->adopt(Fd(pair[0]), Peer{}, std::make_shared<std::string>()).value();
    ASSERT_TRUE(eventually([&] { return server_->stats().sessions == 2; }));
    options_.authenticator->replace({{"engine", Role::kClient, {"default"}, "s3cret"}});
    EXPECT_TRUE(eventually([&] { return server_->stats().sessions == 1; }));
    EXPECT_TRUE(ours->open()) << "a connection of our own has nothing to prove";
    EXPECT_FALSE(serves(*anybody));
}

TEST_F(EventServerTest, SessionsAreListedAndEnded) {
    require_tokens();
    serve();
    EXPECT_TRUE(server_->sessions().empty());
    const auto engine = connect(unix_, with_token("engine", "s3cret"));
    const auto admin = connect(tcp_, with_token("admin", "adm1n"));
    const Fd silent = connect_to(tcp_, soon()).value();  // no session
    std::vector<uint8_t> body;
    encode_message(Inspect{.key = "k"}, body);
    ASSERT_TRUE(engine->send(MessageType::kInspect, body, {}, soon()).ok());  // never answered
    ASSERT_TRUE(eventually([&] {
        const std::vector<SessionView> views = server_->sessions();
        return views.size() == 2 && views[0].in_progress == 1;
    }));
    const std::vector<SessionView> views = server_->sessions();
    EXPECT_EQ(views[0].peer.principal, "engine");
    EXPECT_EQ(views[0].peer.pid, getpid());
    EXPECT_EQ(views[1].peer.principal, "admin");
    EXPECT_EQ(views[1].in_progress, 0u);
    const uint64_t ids[] = {views[0].ref->id(), 1u << 30};
    EXPECT_EQ(server_->end_sessions(ids, Code::kClosed, "ended by an operator"), 1u);
    EXPECT_TRUE(eventually([&] { return server_->sessions().size() == 1; }));
    EXPECT_TRUE(serves(*admin));
    server_->stop();
    EXPECT_TRUE(server_->sessions().empty());
}

TEST_F(EventServerTest, AServerHasToProveThatItKnowsTheToken) {
    serve();  // without principals: it lets everybody in and cannot prove anything
    const Status status = refusal(tcp_, with_token("engine", "s3cret"));
    EXPECT_EQ(status.code(), Code::kUnauthenticated);
    EXPECT_NE(status.message().find("did not prove"), std::string::npos);
}

TEST_F(EventServerTest, AForgedProofIsRefusedByTheClient) {
    int pair[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    const Fd server(pair[1]);
    std::thread impostor([&server] {
        (void)next_frame(server);
        (void)send_bytes(server, frame_of(Challenge{.nonce = {1}}));
        (void)next_frame(server);
        (void)send_bytes(server,
                         frame_of(Welcome{.version = kProtocolVersionMax, .server_mac = {1}}));
    });
    const auto channel = Channel::handshake(Fd(pair[0]), with_token("engine", "s3cret"), soon());
    impostor.join();
    EXPECT_EQ(channel.code(), Code::kUnauthenticated);
}

TEST_F(EventServerTest, VersionsAndFeaturesAreRefusedByName) {
    serve();
    HelloParams future = params();
    future.version_min = future.version_max = 0x20000;
    EXPECT_NE(refusal(tcp_, future).message().find("2.0"), std::string::npos);
    HelloParams next_minor = params();
    next_minor.version_max = kProtocolVersionMax + 1;
    EXPECT_EQ(connect(tcp_, next_minor)->welcome().version, kProtocolVersionMax);
    HelloParams insisting = params();
    insisting.required = uint64_t{1} << 40;
    const Status status = refusal(tcp_, insisting);
    EXPECT_EQ(status.code(), Code::kVersionMismatch);
    EXPECT_NE(status.message().find("bit 40"), std::string::npos);
    EXPECT_TRUE(eventually([&] { return refusals(Code::kVersionMismatch) == 2; }));
}

TEST_F(EventServerTest, TheWrongClusterAndBadNamesAreRefused) {
    serve();
    HelloParams elsewhere = params();
    elsewhere.cluster_id = "prod";
    EXPECT_NE(refusal(tcp_, elsewhere).message().find("this is cluster test-cluster"),
              std::string::npos);
    elsewhere.cluster_id = "test-cluster";
    EXPECT_NE(connect(tcp_, elsewhere), nullptr);
    HelloParams odd = params();
    odd.tenant = "a\nb";
    EXPECT_EQ(refusal(tcp_, odd).code(), Code::kInvalidArgument);
    HelloParams forbidden = params();
    forbidden.ns = "forbidden";
    EXPECT_EQ(refusal(tcp_, forbidden).message(), "not this namespace");
    EXPECT_TRUE(eventually([&] { return service_.closes == 1; }));
    EXPECT_EQ(service_.closes, 1) << "a refused hello is no session";
}

// ----------------------------------------------------------------------------------- threads

TEST_F(EventServerTest, AnyThreadMayAnswerAndPush) {
    options_.loops = 1;
    serve();
    const std::unique_ptr<Channel> channel = connect(tcp_);
    StatsReply stats;
    for (int i = 0; i < 20; ++i) {
        ASSERT_TRUE(channel->exchange(Stats{}, &stats, soon()).ok());
    }
}

TEST_F(EventServerTest, ManyThreadsSendingKeepFramesWhole) {
    serve();
    const Fd fd = raw_session(unix_);
    std::shared_ptr<ConnectionRef> ref;
    ASSERT_TRUE(eventually([&] { return (ref = service_.first_ref()) != nullptr; }));
    constexpr uint64_t kPerThread = 300;
    std::vector<std::thread> threads;
    for (uint64_t thread = 0; thread < 4; ++thread) {
        threads.emplace_back([&ref, thread] {
            auto payload =
                std::make_shared<Bytes>(5000 + 1000 * thread, static_cast<uint8_t>(thread));
            const iovec part = view_of(*payload);
            for (uint64_t i = 0; i < kPerThread; ++i) {
                EXPECT_TRUE(ref->send_message(GetReply{}, thread << 32 | i, 0, std::span(&part, 1),
                                              payload));
            }
        });
    }
    std::map<uint64_t, uint64_t> next;
    for (uint64_t i = 0; i < 4 * kPerThread; ++i) {
        const std::optional<RawFrame> frame = next_frame(fd);
        ASSERT_TRUE(frame.has_value());
        const uint64_t thread = frame->header.request_id >> 32;
        EXPECT_EQ(frame->header.request_id & 0xFFFFFFFF, next[thread]++) << "order of one sender";
        Bytes payload(frame->header.payload_bytes);
        ASSERT_TRUE(recv_all(fd.get(), std::span<uint8_t>(payload), soon()).ok());
        EXPECT_EQ(payload, Bytes(5000 + 1000 * thread, static_cast<uint8_t>(thread)));
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
}

TEST_F(EventServerTest, PipelinedRequestsAreAnsweredInOrder) {
    serve();
    const Fd fd = raw_session(tcp_);
    Bytes all;
    const std::string_view key = "k";
    for (uint64_t id = 1; id <= 2000; ++id) {
        const Bytes frame = frame_of(Lookup{.keys = key}, id);
        all.insert(all.end(), frame.begin(), frame.end());
    }
    std::thread sender([&] { EXPECT_TRUE(send_bytes(fd, all).ok()); });
    for (uint64_t id = 1; id <= 2000; ++id) {
        const std::optional<RawFrame> frame = next_frame(fd);
        ASSERT_TRUE(frame.has_value());
        ASSERT_EQ(frame->header.request_id, id);
    }
    sender.join();
}

TEST_F(EventServerTest, AnAdoptedLinkIsServedLikeAnyOther) {
    serve();
    TestService node_block_port;
    EventServer node({.loops = 1, .tick_ms = 10}, node_block_port);
    ASSERT_TRUE(node.start().ok());
    HelloParams hello = params();
    hello.role = Role::kNode;
    hello.node_id = "node-a";
    const std::unique_ptr<Channel> channel = connect(tcp_, hello);
    auto adopted =
        node.adopt(channel->release(), Peer{.node_id = "master"}, std::make_shared<int>(5));
    ASSERT_TRUE(adopted.ok());
    ASSERT_TRUE(eventually([&] { return node_block_port.opens == 1 && service_.opens == 1; }));
    {
        std::lock_guard lock(service_.mutex);
        EXPECT_EQ(service_.peers.front().node_id, "node-a");
        EXPECT_EQ(service_.peers.front().role, Role::kNode);
        EXPECT_TRUE(service_.refs.front()->send_message(Ops{.first_seq = 9}, 0));
    }
    EXPECT_TRUE(eventually([&] { return node_block_port.others == 1; }));
    EXPECT_TRUE((*adopted)->send_message(OpsAck{.seq = 9}, 0));
    EXPECT_TRUE(eventually([&] { return service_.others == 1; }));
    (*adopted)->close(Code::kExpired, "a new session");
    EXPECT_TRUE(eventually([&] { return service_.closes == 1 && node_block_port.closes == 1; }));
    std::lock_guard lock(service_.mutex);
    EXPECT_EQ(service_.last_close, Code::kExpired) << "the reason reaches the other side";
    EXPECT_FALSE((*adopted)->open());
}

TEST_F(EventServerTest, PostRunsOnTheConnectionsLoop) {
    serve();
    const std::unique_ptr<Channel> channel = connect(tcp_);
    ASSERT_TRUE(eventually([&] { return service_.opens == 1; }));
    std::atomic<uint64_t> seen{0};
    service_.first_ref()->post([&seen](Connection& connection) { seen = connection.id(); });
    EXPECT_TRUE(eventually([&] { return seen == service_.first_ref()->id(); }));
    std::atomic<bool> ran{false};
    server_->post(1, [&ran] { ran = true; });
    EXPECT_TRUE(eventually([&] { return ran.load() && service_.ticks > 3; }));
}

TEST_F(EventServerTest, StopClosesEverythingAndIsFinal) {
    serve();
    std::vector<std::unique_ptr<Channel>> channels;
    for (int i = 0; i < 8; ++i) {
        channels.push_back(connect(i % 2 == 0 ? tcp_ : unix_));
    }
    std::thread waiting([&] {
        InspectReply reply;
        EXPECT_EQ(channels[0]->exchange(Inspect{}, &reply, soon()).code(), Code::kClosed);
    });
    ASSERT_TRUE(eventually([&] { return service_.frames == 1; }));
    server_->stop();
    server_->stop();
    waiting.join();
    EXPECT_EQ(service_.closes, 8);
    EXPECT_FALSE(channels[1]->usable());
    EXPECT_FALSE(service_.first_ref()->send_message(Pong{}, 1));
    EXPECT_NE(access((folder_ + "/socket").c_str(), F_OK), 0) << "the socket file is gone";
    EXPECT_FALSE(server_->listen(*Endpoint::parse("tcp://127.0.0.1:0")).ok());
}

// ----------------------------------------------------------------------------------- channels

TEST_F(EventServerTest, ATimeOutKillsTheChannel) {
    serve();
    const std::unique_ptr<Channel> channel = connect(tcp_);
    InspectReply reply;
    EXPECT_EQ(channel->exchange(Inspect{}, &reply, Deadline::after_ms(20)).code(),
              Code::kDeadlineExceeded);
    EXPECT_FALSE(channel->alive());
    EXPECT_EQ(channel->exchange(Inspect{}, &reply, soon()).code(), Code::kClosed);
}

TEST_F(EventServerTest, ShutdownFromAnotherThreadEndsACall) {
    serve();
    const std::unique_ptr<Channel> channel = connect(tcp_);
    std::thread closer([&] {
        EXPECT_TRUE(eventually([&] { return service_.frames == 1; }));
        channel->shutdown();
    });
    InspectReply reply;
    EXPECT_EQ(channel->exchange(Inspect{}, &reply, soon()).code(), Code::kClosed);
    closer.join();
}

TEST_F(EventServerTest, ConnectingToNobodyFailsFast) {
    EXPECT_EQ(refusal(*Endpoint::parse("tcp://127.0.0.1:1"), params()).code(), Code::kUnavailable);
    EXPECT_EQ(refusal(*Endpoint::parse("unix:///nonexistent/kv"), params()).code(),
              Code::kUnavailable);
    const Fd mute = listen_on(*Endpoint::parse("tcp://127.0.0.1:0")).value();
    const Endpoint silent =
        bound_endpoint(mute.get(), *Endpoint::parse("tcp://127.0.0.1:0")).value();
    EXPECT_EQ(Channel::connect(silent, params(), Deadline::after_ms(50)).code(),
              Code::kDeadlineExceeded);
}

TEST(Endpoint, ParsesWhatItPrints) {
    for (const std::string text :
         {"tcp://127.0.0.1:50051", "tcp://[::1]:7", "tcp://host-1.example:0", "unix:///run/kv/node",
          "unix:@abstract name"}) {
        const Result<Endpoint> endpoint = Endpoint::parse(text);
        ASSERT_TRUE(endpoint.ok()) << text;
        EXPECT_EQ(endpoint->to_string(), text);
    }
    EXPECT_EQ(Endpoint::parse("localhost:50051")->to_string(), "tcp://localhost:50051");
    EXPECT_EQ(Endpoint::parse("::1:5")->to_string(), "tcp://[::1]:5");
    for (const std::string text : {"", "tcp://", "host", "host:", ":5", "host:70000", "host:5x",
                                   "::1", "::x:5", "unix:", "unix:relative", "http://h:1"}) {
        EXPECT_EQ(Endpoint::parse(text).code(), Code::kInvalidArgument) << text;
    }
    EXPECT_FALSE(Endpoint::parse(std::string(600, 'h') + ":1").ok());
    EXPECT_FALSE(Endpoint::parse(std::string_view("unix:/a\0b", 9)).ok());
}

TEST_F(EventServerTest, TheSocketsPathGetsTheModeAndGroupThatItIsGiven) {
    const Endpoint place = *Endpoint::parse("unix://" + folder_ + "/shared");
    struct stat info{};
    for (const mode_t mode : {0600u, 0660u, 0666u}) {
        const Fd listener = listen_on(place, {.mode = mode, .gid = getegid()}).value();
        ASSERT_EQ(lstat(place.path.c_str(), &info), 0);
        EXPECT_EQ(info.st_mode & 07777, mode);
        EXPECT_EQ(info.st_gid, getegid());
        const Fd client = connect_to(place, soon()).value();
        EXPECT_TRUE(peer_in_group(client.get(), getegid()));  // the listener is this process
        EXPECT_FALSE(peer_in_group(client.get(), 4'000'000'000));
    }
    unlink(place.path.c_str());
    int error = 0;
    EXPECT_FALSE(connect_to(place, soon(), &error).ok());
    EXPECT_EQ(error, ENOENT);
}

TEST_F(EventServerTest, AStaleSocketFileIsReplacedALiveOneIsNot) {
    serve();
    EXPECT_EQ(listen_on(unix_).code(), Code::kUnavailable);
    const Endpoint stale = *Endpoint::parse("unix://" + folder_ + "/stale");
    {
        const Fd gone = listen_on(stale).value();
    }
    EXPECT_TRUE(listen_on(stale).ok());
    unlink(stale.path.c_str());
}

}  // namespace
}  // namespace kvstore::testing
