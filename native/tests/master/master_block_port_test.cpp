// The master's block port over real sockets: client requests, a node's link, refusals.
#include "master/master_block_port.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <thread>

#include "base/clock.h"
#include "net/channel.h"
#include "tests/waiting.h"

namespace kvstore {
namespace {

using testing::soon;

// A node's end of its link after the handshake. Unlike a Channel it also takes frames that nobody
// asked for.
class Link {
  public:
    explicit Link(Fd fd) : fd_(std::move(fd)) {}

    template <class M>
    void send(const M& message) {
        std::vector<uint8_t> body;
        encode_message(message, body);
        FrameHeader header;
        header.type = static_cast<uint16_t>(M::kType);
        header.body_bytes = static_cast<uint32_t>(body.size());
        header.request_id = ++request_id_;
        FrameHeaderBytes head = encode_header(header);
        iovec parts[] = {{head.data(), head.size()}, {body.data(), body.size()}};
        ASSERT_TRUE(send_all(fd_.get(), parts, soon()).ok());
    }
    int fd() const { return fd_.get(); }
    // Reads one frame; a Ping is answered.
    void serve_one() {
        FrameHeader header;
        ASSERT_TRUE(next(&header).ok());
        Ping ping;
        if (header.message() == MessageType::kPing && decode_message(body_, &ping).ok()) {
            send(Pong{.token = ping.token});
        }
    }
    // The next frame of this type; views live until the next call.
    template <class M>
    Status receive(M* message) {
        while (true) {
            FrameHeader header;
            const Status status = next(&header);
            if (!status.ok()) {
                return status;
            }
            if (header.message() == MessageType::kError) {
                Error error;
                EXPECT_TRUE(decode_message(body_, &error).ok());
                return Status(static_cast<Code>(error.code), std::string(error.message));
            }
            if (header.message() == M::kType) {
                return decode_message(body_, message);
            }
        }
    }
    template <class M, class R>
    Status exchange(const M& message, R* reply) {
        send(message);
        return receive(reply);
    }

  private:
    Status next(FrameHeader* header) {
        FrameHeaderBytes head;
        Status status = recv_all(fd_.get(), head, soon());
        if (status.ok()) {
            status = decode_header(head, header);
        }
        if (status.ok()) {
            body_.resize(header->body_bytes);
            status = recv_all(fd_.get(), body_, soon());
        }
        return status;
    }
    Fd fd_;
    uint64_t request_id_ = 0;
    std::vector<uint8_t> body_;
};

class MasterServiceTest : public ::testing::Test {
  protected:
    MasterServiceTest() : core_(core_options()), service_(core_, service_options()) {
        Result<std::vector<std::string>> bound = service_.start();
        EXPECT_TRUE(bound.ok());
        endpoint_ = *Endpoint::parse(bound->at(0));
    }
    static MasterCore::Options core_options() {
        MasterCore::Options out;
        out.secret = {4};
        out.epoch = 5;
        out.journal_auto_ack = true;
        out.maintenance_ms = 2;
        return out;
    }
    static MasterBlockPort::Options service_options() {
        MasterBlockPort::Options out;
        static std::atomic<int> number{0};
        out.listen = {"unix:@kvstore-master-test-" + std::to_string(getpid()) + "-" +
                      std::to_string(++number)};
        out.cluster_id = "cluster";
        out.grpc_endpoint = "tcp://grpc:1";
        out.peers = {"tcp://peer:2"};
        return out;
    }
    std::unique_ptr<Channel> client() {
        HelloParams hello;
        hello.tenant = "tenant";
        hello.ns = "space";
        Result<std::unique_ptr<Channel>> channel = Channel::connect(endpoint_, hello, soon());
        EXPECT_TRUE(channel.ok()) << channel.status().to_string();
        return std::move(*channel);
    }
    // A registered node's link, synced, with nothing announced.
    std::unique_ptr<Link> node(const std::string& id, uint64_t session = 1) {
        const NodeInfo info{.node_id = id,
                            .session_id = session,
                            .tcp_endpoint = "tcp://" + id,
                            .host = id,
                            .weight = 10,
                            .free_bytes = 3,
                            .capacity_bytes = 5,
                            .state = NodeState::kAlive};
        EXPECT_TRUE(core_.register_node(info, false).ok());
        HelloParams hello;
        hello.role = Role::kNode;
        hello.node_id = id;
        hello.session_id = session;
        hello.node_epoch = 9;
        Result<std::unique_ptr<Channel>> channel = Channel::connect(endpoint_, hello, soon());
        EXPECT_TRUE(channel.ok()) << channel.status().to_string();
        auto link = std::make_unique<Link>((*channel)->release().take_fd());
        for (const AnnouncePhase phase : {AnnouncePhase::kBegin, AnnouncePhase::kEnd}) {
            AnnounceReply reply;
            EXPECT_TRUE(link->exchange(Announce{.seq = ++seq_, .phase = phase}, &reply).ok());
        }
        return link;
    }
    struct Granted {
        Version version = 0;
        uint8_t flags = 0;
    };
    Granted claim(Link& link, std::string_view key) {
        const std::vector<uint64_t> ids{++claim_id_};
        const std::vector<std::string_view> keys{key};
        const Claim message{
            .tenant = "tenant", .ns = "space", .claim_ids = ids, .keys = keys, .timeout_ms = 1000};
        ClaimReply granted;
        EXPECT_TRUE(link.exchange(message, &granted).ok());
        EXPECT_EQ(granted.status[0], 0);
        return {granted.versions[0], granted.flags[0]};
    }
    void announce(Link& link, std::string_view key, Version version, uint64_t size) {
        const std::vector<std::string_view> keys{key};
        const std::vector<uint64_t> versions{version};
        const std::vector<uint64_t> sizes{size};
        link.send(Announce{.seq = ++seq_,
                           .tenant = "tenant",
                           .ns = "space",
                           .keys = keys,
                           .versions = versions,
                           .sizes = sizes});
    }
    Version put(Link& link, std::string_view key, uint64_t size) {
        const Version version = claim(link, key).version;
        announce(link, key, version, size);
        AnnounceReply reply;
        EXPECT_TRUE(link.receive(&reply).ok());
        EXPECT_EQ(reply.seq, seq_);
        EXPECT_EQ(reply.status[0], 0);
        return version;
    }
    // Waits for pushed operations, acknowledges them and returns their number.
    static size_t serve_ops(Link& link) {
        Ops ops;
        EXPECT_TRUE(link.receive(&ops).ok());
        link.send(OpsAck{.seq = ops.first_seq + ops.kinds.size() - 1});
        return ops.kinds.size();
    }

    uint64_t seq_ = 0;
    uint64_t claim_id_ = 0;
    MasterCore core_;
    MasterBlockPort service_;
    Endpoint endpoint_;
};

TEST_F(MasterServiceTest, TheHelloNamesWhatAClientNeeds) {
    const std::unique_ptr<Channel> channel = client();
    EXPECT_EQ(channel->welcome().cluster_id, "cluster");
    EXPECT_EQ(channel->welcome().master_epoch, 5u);
    EXPECT_EQ(channel->welcome().hash_secret, HashSecret{4});
    EXPECT_EQ(channel->welcome().grpc_endpoint, "tcp://grpc:1");
    EXPECT_EQ(channel->welcome().peers, std::vector<std::string>{"tcp://peer:2"});
    Pong pong;
    EXPECT_TRUE(channel->exchange(Ping{.token = 7}, &pong, soon()).ok());
    EXPECT_EQ(pong.token, 7u);
}

TEST_F(MasterServiceTest, ALookupWaitsForTheAnnouncementOfAGrantedKey) {
    const std::unique_ptr<Link> link = node("n1");
    const std::vector<std::string_view> keys{"k"};
    const Granted granted = claim(*link, "k");
    ASSERT_EQ(granted.flags, kClaimFirst);
    LookupReply found;
    std::thread asker(
        [&] { EXPECT_TRUE(client()->exchange(Lookup{.keys = keys}, &found, soon()).ok()); });
    Ping ping;
    ASSERT_TRUE(link->receive(&ping).ok());
    announce(*link, "k", granted.version, 5);
    link->send(Pong{.token = ping.token});
    asker.join();
    EXPECT_EQ(found.status[0], 0);
    EXPECT_EQ(found.versions[0], granted.version);
}

TEST_F(MasterServiceTest, WhatIsOnItsWayIsFoundWhateverComesFirst) {
    const std::unique_ptr<Link> link = node("n1");
    Link asker(client()->release().take_fd());
    for (int i = 0; i < 3000; ++i) {
        const std::string key = "k" + std::to_string(i);
        const std::vector<std::string_view> keys{key};
        announce(*link, key, claim(*link, key).version, 5);
        asker.send(Lookup{.keys = keys});
        std::array<pollfd, 2> ends{pollfd{link->fd(), POLLIN, 0}, pollfd{asker.fd(), POLLIN, 0}};
        while (ends[1].revents == 0) {
            ASSERT_GT(poll(ends.data(), ends.size(), 30'000), 0);
            if (ends[0].revents != 0) {
                link->serve_one();
            }
        }
        LookupReply found;
        ASSERT_TRUE(asker.receive(&found).ok());
        ASSERT_EQ(found.status[0], 0) << "round " << i;
    }
}

TEST_F(MasterServiceTest, ALookupDoesNotCallAbsentWhatAHungNodeMayHave) {
    const std::unique_ptr<Link> link = node("n1");
    const std::vector<std::string_view> keys{"k"};
    claim(*link, "k");
    const std::unique_ptr<Channel> channel = client();
    LookupReply found;
    ASSERT_TRUE(channel->exchange(Lookup{.keys = keys}, &found, soon()).ok());
    EXPECT_EQ(found.status[0], static_cast<int32_t>(Code::kUnavailable));
    EXPECT_EQ(found.reasons[0], static_cast<uint8_t>(MissReason::kUnavailable));
    InspectReply inspected;
    EXPECT_EQ(channel->exchange(Inspect{.key = "k"}, &inspected, soon()).code(),
              Code::kUnavailable);
}

TEST_F(MasterServiceTest, LookupNodesInspectList) {
    const std::unique_ptr<Link> link = node("n1");
    const Version version = put(*link, "here", 77);
    const std::unique_ptr<Channel> channel = client();
    const std::vector<std::string_view> keys{"absent", "here"};
    LookupReply found;
    ASSERT_TRUE(channel->exchange(Lookup{.keys = keys}, &found, soon()).ok());
    EXPECT_EQ(found.status[0], static_cast<int32_t>(Code::kNotFound));
    EXPECT_EQ(found.reasons[0], static_cast<uint8_t>(MissReason::kAbsent));
    EXPECT_EQ(found.versions[1], version);
    EXPECT_EQ(found.sizes[1], 77u);
    ASSERT_EQ(found.replica_counts[1], 1);
    const uint32_t index = found.nodes[0];
    const uint64_t nodes_id = found.nodes_id;
    NodesReply nodes;
    ASSERT_TRUE(channel->exchange(Nodes{}, &nodes, soon()).ok());
    EXPECT_EQ(nodes.nodes_id, nodes_id);
    ASSERT_EQ(nodes.indexes[0], index);
    EXPECT_EQ(nodes.ids[0], "n1");
    EXPECT_EQ(nodes.tcp_endpoints[0], "tcp://n1");
    EXPECT_EQ(nodes.states[0], static_cast<uint8_t>(NodeState::kAlive));
    EXPECT_EQ(nodes.epochs[0], 9u);
    InspectReply inspected;
    ASSERT_TRUE(channel->exchange(Inspect{.key = "here"}, &inspected, soon()).ok());
    EXPECT_TRUE(inspected.found);
    EXPECT_EQ(inspected.replica_node_ids[0], "n1");
    ASSERT_TRUE(channel->exchange(Inspect{.key = "absent"}, &inspected, soon()).ok());
    EXPECT_FALSE(inspected.found);
    for (int i = 0; i < 20; ++i) {
        put(*link, "list/" + std::to_string(i), 1);
    }
    size_t listed = 0;
    std::string cursor;
    do {
        ListReply page;
        ASSERT_TRUE(
            channel->exchange(List{.prefix = "list/", .cursor = cursor, .limit = 3}, &page, soon())
                .ok());
        listed += page.keys.size();
        cursor = page.cursor;
    } while (!cursor.empty());
    EXPECT_EQ(listed, 20u);
    ListReply page;
    EXPECT_EQ(channel->exchange(List{.cursor = "zz"}, &page, soon()).code(),
              Code::kInvalidArgument);
    EXPECT_TRUE(channel->alive());
}

// What a waiting lookup is asked with; `keys` outlives it.
Lookup waiting(std::span<const std::string_view> keys, uint32_t wait_ms = 60'000) {
    return {.keys = keys, .wait_ms = wait_ms};
}

// Waits until the master counts so many waiting lookups.
void wait_for_parked(MasterCore& core, size_t count) {
    ASSERT_TRUE(testing::eventually([&] { return core.stats().waiting_lookups == count; }))
        << core.stats().waiting_lookups << " lookups wait";
}

TEST_F(MasterServiceTest, WhoAsksForThemHearsOfNodesThatRestart) {
    const auto link = node("node-a");
    const Version version = put(*link, "a", 77);
    const std::unique_ptr<Channel> channel = client();
    const std::vector<std::string_view> keys{"a", "nowhere"};
    const auto ask = [&](uint32_t flags, LookupReply* reply) {
        EXPECT_TRUE(
            channel
                ->exchange(Lookup{.keys = keys, .flags = flags, .timeout_ms = 3000}, reply, soon())
                .ok());
    };
    LookupReply reply;
    EXPECT_TRUE(core_.set_node("node-a", NodeState::kRestarting, 0, 3, 5).ok());
    ask(kLookupRestarting, &reply);
    EXPECT_EQ(reply.status[0], 0);
    EXPECT_EQ(reply.versions[0], version);
    EXPECT_EQ(reply.replica_counts[0], 1);
    EXPECT_EQ(reply.replica_counts[1], 0);
    // An older client hears of a dead node, and of an object that nobody has.
    ask(0, &reply);
    EXPECT_EQ(static_cast<Code>(reply.status[0]), Code::kNotFound);
    EXPECT_EQ(static_cast<MissReason>(reply.reasons[0]), MissReason::kNodeDown);
    EXPECT_EQ(reply.replica_counts[0], 0);
    NodesReply nodes;
    ASSERT_TRUE(channel->exchange(Nodes{.timeout_ms = 3000}, &nodes, soon()).ok());
    EXPECT_EQ(static_cast<NodeState>(nodes.states[0]), NodeState::kDead);
    EXPECT_EQ(nodes.restarting[0], 1);
    // It does not return in time.
    EXPECT_TRUE(core_.set_node("node-a", NodeState::kDead, 0, 3, 5).ok());
    ask(kLookupRestarting, &reply);
    EXPECT_EQ(reply.replica_counts[0], 0);
    ASSERT_TRUE(channel->exchange(Nodes{.timeout_ms = 3000}, &nodes, soon()).ok());
    EXPECT_EQ(nodes.restarting[0], 0);
}

TEST_F(MasterServiceTest, ClientsAreToldTheLabelsOfNodes) {
    const std::unique_ptr<Link> link = node("n1");
    const std::unique_ptr<Channel> channel = client();
    NodesReply before;
    ASSERT_TRUE(channel->exchange(Nodes{}, &before, soon()).ok());
    EXPECT_EQ(before.racks[0], "");
    const uint64_t nodes_id = before.nodes_id;
    const Locality given{.numa = "1", .rack = std::string(129, 'r'), .rdma_domain = "a+b"};
    ASSERT_TRUE(core_.set_endpoints("n1", "tcp://n1", "", "n1", given).ok());
    NodesReply after;
    ASSERT_TRUE(channel->exchange(Nodes{}, &after, soon()).ok());
    EXPECT_NE(after.nodes_id, nodes_id) << "clients ask again";
    EXPECT_EQ(after.numas[0], "1");
    EXPECT_EQ(after.racks[0], "") << "too long to be told";
    EXPECT_EQ(after.rdma_domains[0], "a+b");
}

TEST_F(MasterServiceTest, ALookupWaitsForTheLastOfItsKeys) {
    const std::unique_ptr<Link> link = node("n1");
    put(*link, "a", 1);
    const std::unique_ptr<Channel> channel = client();
    const std::vector<std::string_view> keys{"a", "b", "c"};
    LookupReply found;
    std::thread asking([&] { EXPECT_TRUE(channel->exchange(waiting(keys), &found, soon()).ok()); });
    wait_for_parked(core_, 1);
    put(*link, "c", 3);
    wait_for_parked(core_, 1);
    put(*link, "b", 2);
    asking.join();
    for (size_t i = 0; i < 3; ++i) {
        EXPECT_EQ(found.status[i], 0) << i;
        EXPECT_EQ(found.sizes[i], i + 1);
        EXPECT_EQ(found.replica_counts[i], 1);
    }
    wait_for_parked(core_, 0);
    // Complete by now: nothing to wait for.
    EXPECT_TRUE(channel->exchange(waiting(keys), &found, soon()).ok());
}

TEST_F(MasterServiceTest, AFullAnnounceAndANodeThatComesBackEndAWait) {
    std::unique_ptr<Link> link = node("n1");
    const Version version = put(*link, "a", 1);
    ASSERT_TRUE(core_.set_node("n1", NodeState::kDead, 10, 3, 5).ok());
    const std::unique_ptr<Channel> channel = client();
    const std::vector<std::string_view> keys{"a"};
    LookupReply found;
    std::thread asking([&] { EXPECT_TRUE(channel->exchange(waiting(keys), &found, soon()).ok()); });
    wait_for_parked(core_, 1);
    ASSERT_TRUE(core_.set_node("n1", NodeState::kAlive, 10, 3, 5).ok());
    asking.join();
    EXPECT_EQ(found.status[0], 0);

    link = node("n1", 2);  // with nothing: what it had is dropped
    std::thread again([&] { EXPECT_TRUE(channel->exchange(waiting(keys), &found, soon()).ok()); });
    wait_for_parked(core_, 1);
    AnnounceReply reply;
    EXPECT_TRUE(
        link->exchange(Announce{.seq = ++seq_, .phase = AnnouncePhase::kBegin}, &reply).ok());
    const std::vector<uint64_t> versions{version};
    const std::vector<uint64_t> sizes{7};
    EXPECT_TRUE(link->exchange(Announce{.seq = ++seq_,
                                        .phase = AnnouncePhase::kMiddle,
                                        .tenant = "tenant",
                                        .ns = "space",
                                        .keys = keys[0],
                                        .versions = versions,
                                        .sizes = sizes},
                               &reply)
                    .ok());
    again.join();
    EXPECT_EQ(found.sizes[0], 7u);
}

TEST_F(MasterServiceTest, AWaitIsOverAtItsTimeOrTheClients) {
    const std::unique_ptr<Link> link = node("n1");
    put(*link, "a", 1);
    const std::unique_ptr<Channel> channel = client();
    const std::vector<std::string_view> keys{"a", "absent"};
    for (const auto& [wait_ms, timeout_ms] : {std::pair{50u, 60'000u}, {60'000u, 50u}}) {
        LookupReply found;
        const uint64_t start_ms = boottime_ms();
        ASSERT_TRUE(
            channel
                ->exchange(Lookup{.keys = keys, .wait_ms = wait_ms, .timeout_ms = timeout_ms},
                           &found, soon())
                .ok());
        EXPECT_GE(boottime_ms() - start_ms, 50u);
        EXPECT_EQ(found.status[0], 0);
        EXPECT_EQ(found.status[1], static_cast<int32_t>(Code::kNotFound));
    }
}

TEST_F(MasterServiceTest, AWaitEndsWithItsConnectionOrTheMaster) {
    const std::unique_ptr<Link> link = node("n1");
    std::unique_ptr<Channel> channel = client();
    const std::vector<std::string_view> keys{"absent"};
    std::vector<uint8_t> body;
    encode_message(waiting(keys), body);
    ASSERT_TRUE(channel->send(MessageType::kLookup, body, {}, soon()).ok());
    wait_for_parked(core_, 1);
    channel.reset();
    wait_for_parked(core_, 0);

    channel = client();
    LookupReply found;
    std::thread asking([&] { EXPECT_TRUE(channel->exchange(waiting(keys), &found, soon()).ok()); });
    wait_for_parked(core_, 1);
    core_.stop();
    asking.join();
    EXPECT_EQ(found.status[0], static_cast<int32_t>(Code::kNotFound));
}

TEST_F(MasterServiceTest, TooManyWaitsOfOneConnectionAreRefused) {
    const std::unique_ptr<Channel> channel = client();
    const std::vector<std::string_view> keys{"absent"};
    std::vector<uint8_t> body;
    encode_message(waiting(keys), body);
    for (size_t i = 0; i < limits::kMaxWaitingLookupsPerConnection; ++i) {
        ASSERT_TRUE(channel->send(MessageType::kLookup, body, {}, soon()).ok());
    }
    LookupReply found;
    EXPECT_EQ(channel->exchange(waiting(keys), &found, soon()).code(), Code::kOverloaded);
    ASSERT_TRUE(channel->alive());
    EXPECT_TRUE(channel->exchange(Lookup{.keys = keys}, &found, soon()).ok());
}

TEST_F(MasterServiceTest, RemovePinAndFlushWaitForTheNode) {
    const std::unique_ptr<Link> link = node("n1");
    put(*link, "k", 1);
    const std::unique_ptr<Channel> channel = client();
    std::thread serving([&] {
        for (size_t ops = 0; ops < 3;) {
            ops += serve_ops(*link);
        }
    });
    const std::string_view key = "k";
    const std::vector<uint8_t> level{1};
    StatusReply pinned;
    ASSERT_TRUE(channel->exchange(SetPin{.keys = key, .levels = level}, &pinned, soon()).ok());
    EXPECT_EQ(pinned.status[0], 0);
    const std::vector<std::string_view> keys{"absent", "bad\xff", "k"};
    RemoveReply removed;
    ASSERT_TRUE(channel->exchange(Remove{.keys = keys}, &removed, soon()).ok());
    EXPECT_EQ(removed.status[0], static_cast<int32_t>(Code::kNotFound));
    EXPECT_EQ(removed.status[1], static_cast<int32_t>(Code::kInvalidArgument));
    EXPECT_EQ(removed.status[2], 0);
    FlushReply flushed;
    ASSERT_TRUE(channel->exchange(Flush{}, &flushed, soon()).ok());
    EXPECT_EQ(flushed.code, 0);
    EXPECT_EQ(flushed.ns_epoch, 1u);
    serving.join();
}

TEST_F(MasterServiceTest, AClosedNodeMakesARemovePartial) {
    std::unique_ptr<Link> link = node("n1");
    put(*link, "k", 1);
    const std::unique_ptr<Channel> channel = client();
    std::thread closing([&] {
        Ops ops;
        EXPECT_TRUE(link->receive(&ops).ok());  // it dies before it answers
        link.reset();
    });
    const std::string_view key = "k";
    RemoveReply removed;
    ASSERT_TRUE(
        channel->exchange(Remove{.keys = key, .timeout_ms = 60'000}, &removed, soon()).ok());
    EXPECT_EQ(removed.status[0], static_cast<int32_t>(Code::kPartial));
    EXPECT_EQ(removed.unreached[0], "n1");
    closing.join();
}

TEST_F(MasterServiceTest, AWaitingClaimIsAnsweredLater) {
    const std::unique_ptr<Link> a = node("a");
    const std::unique_ptr<Link> b = node("b");
    const std::vector<uint64_t> ids{1};
    const std::string_view key = "k";
    const Claim claim{
        .tenant = "tenant", .ns = "space", .claim_ids = ids, .keys = key, .timeout_ms = 9000};
    ClaimReply reply;
    ASSERT_TRUE(a->exchange(claim, &reply).ok());
    b->send(claim);
    // Answered in order, so the claim waits by now.
    Pong pong;
    ASSERT_TRUE(b->exchange(Ping{}, &pong).ok());
    a->send(Abandon{.claim_ids = ids});
    ASSERT_TRUE(b->receive(&reply).ok());
    EXPECT_EQ(reply.claim_ids[0], 1u);
    EXPECT_EQ(reply.status[0], 0);
}

TEST_F(MasterServiceTest, StrangersAreRefusedByName) {
    HelloParams hello;
    hello.role = Role::kNode;
    hello.node_id = "unknown";
    hello.session_id = 3;
    EXPECT_EQ(Channel::connect(endpoint_, hello, soon()).code(), Code::kExpired);
    HelloParams stray;
    stray.cluster_id = "other";
    EXPECT_FALSE(Channel::connect(endpoint_, stray, soon()).ok());
    const std::unique_ptr<Channel> channel = client();
    EXPECT_EQ(channel->call(MessageType::kReserve, {}, {}, soon()).code(), Code::kUnsupported);
    EXPECT_TRUE(channel->alive());
    char byte = 'x';
    const iovec payload{&byte, 1};
    EXPECT_EQ(channel->call(MessageType::kLookup, {}, {std::span(&payload, 1)}, soon()).code(),
              Code::kProtocolError);
}

TEST_F(MasterServiceTest, AGapClosesTheLink) {
    const std::unique_ptr<Link> link = node("n1");
    AnnounceReply reply;
    const Status status = link->exchange(Announce{.seq = seq_ + 2}, &reply);
    EXPECT_EQ(status.code(), Code::kProtocolError);
    EXPECT_NE(status.message().find("gap"), std::string::npos);
}

TEST_F(MasterServiceTest, AHeartbeatHasTheIdentityOfItsLink) {
    const std::unique_ptr<Link> link = node("n1", 3);
    link->send(Heartbeat{"request"});
    const std::vector<NodeHeartbeat> taken = core_.take_heartbeats(30'000);
    ASSERT_EQ(taken.size(), 1u);
    EXPECT_EQ(taken[0].node_id, "n1");
    EXPECT_EQ(taken[0].session_id, 3u);
    EXPECT_EQ(taken[0].request, "request");
    core_.answer_heartbeat(taken[0].link, taken[0].request_id, Code::kOk, "reply");
    HeartbeatReply reply;
    ASSERT_TRUE(link->receive(&reply).ok());
    EXPECT_EQ(reply.reply, "reply");
}

TEST_F(MasterServiceTest, WhatAHeartbeatIsRefusedWithIsItsAnswer) {
    const std::unique_ptr<Link> link = node("n1");
    const auto answered = [&](Code code, const std::string& text) {
        link->send(Heartbeat{"request"});
        const std::vector<NodeHeartbeat> taken = core_.take_heartbeats(30'000);
        EXPECT_EQ(taken.size(), 1u);
        core_.answer_heartbeat(taken[0].link, taken[0].request_id, code, text);
        HeartbeatReply reply;
        return link->receive(&reply).code();
    };
    EXPECT_EQ(answered(Code::kNotFound, "no such session"), Code::kNotFound);
    const std::string most(limits::kMaxHeartbeatReplyBytes, 'x');
    EXPECT_EQ(answered(Code::kOk, most), Code::kOk);
    EXPECT_EQ(answered(Code::kOk, most + "x"), Code::kTooLarge);
}

TEST_F(MasterServiceTest, OneHeartbeatOfALinkWaits) {
    const std::unique_ptr<Link> link = node("n1");
    link->send(Heartbeat{"older"});
    link->send(Heartbeat{"newer"});
    HeartbeatReply reply;
    EXPECT_EQ(link->receive(&reply).code(), Code::kOverloaded);
    const std::vector<NodeHeartbeat> taken = core_.take_heartbeats(30'000);
    ASSERT_EQ(taken.size(), 1u);
    EXPECT_EQ(taken[0].request, "newer");
}

TEST_F(MasterServiceTest, AHeartbeatIsForgottenWithItsLink) {
    std::unique_ptr<Link> link = node("n1");
    link->send(Heartbeat{"request"});
    link->send(Heartbeat{"another"});
    HeartbeatReply reply;
    ASSERT_EQ(link->receive(&reply).code(), Code::kOverloaded);  // both have come
    link = nullptr;
    ASSERT_TRUE(testing::eventually([&] { return !core_.link_of("n1").first; }));
    EXPECT_TRUE(core_.take_heartbeats(0).empty());
    core_.answer_heartbeat(1, 1, Code::kOk, "to nobody");
}

TEST_F(MasterServiceTest, AHeartbeatAboveTheLimitEndsTheLink) {
    const std::unique_ptr<Link> link = node("n1");
    const std::string most(limits::kMaxHeartbeatBytes + 1, 'x');
    link->send(Heartbeat{most});
    HeartbeatReply reply;
    EXPECT_FALSE(link->receive(&reply).ok());
    EXPECT_TRUE(core_.take_heartbeats(0).empty());
}

TEST_F(MasterServiceTest, AClientSendsNoHeartbeat) {
    HeartbeatReply reply;
    EXPECT_EQ(client()->exchange(Heartbeat{"request"}, &reply, soon()).code(), Code::kUnsupported);
    EXPECT_TRUE(core_.take_heartbeats(0).empty());
}

}  // namespace
}  // namespace kvstore
