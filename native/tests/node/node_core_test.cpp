// One node under one master: what its clients see, by socket and through shared memory.
#include "net/host_identity.h"
#include "tests/node/node_fixture.h"

namespace kvstore::testing {
namespace {

class NodeTest : public ::testing::Test {
  protected:
    void SetUp() override {
        master.start();
        node = std::make_unique<TestNode>("a");
        node->join(master);
    }
    void TearDown() override {
        const Status audit = node->core->domains().store(0).audit();
        EXPECT_TRUE(audit.ok()) << audit.to_string();
    }
    NodeClient tcp() { return NodeClient(node->at.tcp); }
    ShmClient shm() { return ShmClient(node->at.unix_socket); }
    NodeStats stats() { return node->core->stats(); }
    // The time of a client's call that must not wait for anything.
    static constexpr uint64_t kAtOnceMs = 1'000;

    TestMaster master;
    std::unique_ptr<TestNode> node;
};

TEST_F(NodeTest, PutBySocketIsReadableAndKnownToTheMaster) {
    NodeClient client = tcp();
    for (const size_t size : {size_t{0}, size_t{1}, size_t{4096}, size_t{1'000'003}}) {
        const std::string key = "key " + std::to_string(size);
        EXPECT_EQ(client.put(key, bytes_of(key, size)), Code::kOk);
        EXPECT_EQ(master.replicas(key), 1u);
        const GetResult got = client.get(key);
        EXPECT_EQ(got.code, Code::kOk);
        EXPECT_EQ(got.bytes, bytes_of(key, size));
        const NamespaceId ns = namespace_id(test_secret(), "default", "", 0);
        const Identity identity{tenant_id(test_secret(), "default"), ns,
                                key_hash(test_secret(), ns, key), got.version, size};
        EXPECT_EQ(got.sealed_crc,
                  seal_checksum(crc32c(got.bytes.data(), got.bytes.size()), identity));
    }
    const NodeStats counted = stats();
    EXPECT_EQ(counted.puts_ok, 4u);
    EXPECT_EQ(counted.hits_dram, 4u);
    EXPECT_EQ(counted.put_bytes_tcp, counted.get_bytes_tcp);
    EXPECT_EQ(counted.put_us.total, 4u);
    EXPECT_EQ(counted.claim_us.total, 4u);
}

TEST_F(NodeTest, PutThroughSharedMemoryMovesNoBytesOverTheSocket) {
    ShmClient client = shm();
    ASSERT_TRUE(client.attached());
    const std::string bytes = bytes_of("page", 900'000);
    EXPECT_EQ(client.put_shm("page", bytes), Code::kOk);
    EXPECT_EQ(client.read("page"), bytes);
    EXPECT_EQ(master.replicas("page"), 1u);
    EXPECT_EQ(tcp().get("page").bytes, bytes);
    EXPECT_EQ(stats().put_bytes_shm, bytes.size());
    EXPECT_EQ(stats().put_bytes_tcp, 0u);
    EXPECT_LT(stats().server.bytes_in, 10'000u);
}

TEST_F(NodeTest, NothingIsVisibleBeforeTheCommit) {
    ShmClient client = shm();
    const ShmClient::Block block = client.reserve("page", 4096);
    ASSERT_EQ(block.code, Code::kOk);
    const uint32_t crc = client.write(block, bytes_of("page", 4096));
    EXPECT_EQ(client.read("page"), std::nullopt);
    EXPECT_EQ(tcp().get("page").reason, MissReason::kAbsent);
    EXPECT_EQ(client.commit(block, crc), Code::kOk);
    EXPECT_EQ(client.read("page"), bytes_of("page", 4096));
    EXPECT_EQ(client.commit(block, crc), Code::kExpired);  // once
}

TEST_F(NodeTest, ASecondPutOfAKeyAlreadyExists) {
    NodeClient client = tcp();
    EXPECT_EQ(client.put("k", "first"), Code::kOk);
    EXPECT_EQ(client.put("k", "second"), Code::kAlreadyExists);
    EXPECT_EQ(client.get("k").bytes, "first");
    const Version version = client.get("k").version;
    EXPECT_EQ(client.put("k", "third", 5000, kPutUpsert), Code::kOk);
    EXPECT_EQ(client.get("k").bytes, "third");
    EXPECT_GT(client.get("k").version, version);
    EXPECT_EQ(master.replicas("k"), 1u);
    EXPECT_EQ(client.get("k", 1 << 20, version).reason, MissReason::kVersion);
}

TEST_F(NodeTest, ABatchAnswersEveryRowForItself) {
    NodeClient client = tcp();
    EXPECT_EQ(client.put("b", bytes_of("b", 3000)), Code::kOk);
    const std::string large = bytes_of("large", 17u << 20);  // more than the segment
    const auto codes =
        client.put_all({"a", "b", "large", "c"},
                       {bytes_of("a", 1000), bytes_of("b", 3000, 1), large, bytes_of("c", 2000)});
    EXPECT_EQ(codes, (std::vector{Code::kOk, Code::kAlreadyExists, Code::kTooLarge, Code::kOk}));
    EXPECT_EQ(client.get("a").bytes, bytes_of("a", 1000));
    EXPECT_EQ(client.get("b").bytes, bytes_of("b", 3000));
    EXPECT_EQ(client.get("c").bytes, bytes_of("c", 2000));
    // The same key twice in one batch: one is published, the other waits for it.
    const auto twice = client.put_all({"d", "d"}, {bytes_of("d", 10), bytes_of("d", 10, 1)});
    EXPECT_EQ(twice, (std::vector{Code::kOk, Code::kAlreadyExists}));
    EXPECT_EQ(client.get("d").bytes, bytes_of("d", 10));
}

TEST_F(NodeTest, DamagedBytesAreRefused) {
    NodeClient client = tcp();
    client.crc_damage = 1;
    EXPECT_EQ(client.put("k", "bytes"), Code::kChecksumMismatch);
    client.crc_damage = 0;
    EXPECT_EQ(client.get("k").code, Code::kNotFound);
    EXPECT_EQ(client.put("k", "bytes"), Code::kOk);  // the claim was given up
}

TEST_F(NodeTest, ChecksumsBehindTheBytesCount) {
    NodeClient client = tcp();
    std::string bytes = "bytes";
    const std::vector<std::string_view> keys{"k"};
    const std::vector<uint64_t> sizes{bytes.size()};
    Put put;
    put.keys = keys;
    put.sizes = sizes;
    put.crcs_behind = true;
    StatusReply reply;
    for (const uint32_t damage : {1u, 0u}) {
        uint32_t crc = crc32c(bytes.data(), bytes.size()) ^ damage;
        const iovec parts[] = {{bytes.data(), bytes.size()}, {&crc, sizeof crc}};
        ASSERT_TRUE(client.channel->exchange(put, &reply, soon(), {.parts = parts}).ok());
        EXPECT_EQ(NodeClient::codes(reply)[0], damage == 0 ? Code::kOk : Code::kChecksumMismatch);
    }
    EXPECT_EQ(client.get("k").bytes, bytes);
    const iovec alone{bytes.data(), bytes.size()};
    EXPECT_EQ(client.channel->exchange(put, &reply, soon(), {.parts = {&alone, 1}}).code(),
              Code::kProtocolError);
}

TEST_F(NodeTest, GetSaysWhyAndHowLarge) {
    NodeClient client = tcp();
    EXPECT_EQ(client.put("k", bytes_of("k", 5000)), Code::kOk);
    const GetResult small = client.get("k", 4999);
    EXPECT_EQ(small.code, Code::kBufferTooSmall);
    EXPECT_EQ(small.size, 5000u);
    EXPECT_TRUE(small.bytes.empty());
    EXPECT_EQ(client.get("k", 5000).code, Code::kOk);
    EXPECT_EQ(client.get("other").reason, MissReason::kAbsent);
    EXPECT_EQ(master.remove("k").first, Code::kOk);
    EXPECT_EQ(client.get("k").reason, MissReason::kRemoved);
    EXPECT_EQ(stats().misses[static_cast<size_t>(MissReason::kRemoved)], 1u);
}

TEST_F(NodeTest, ARemoveOvertakesAPutUnderWay) {
    ShmClient client = shm();
    const ShmClient::Block block = client.reserve("k", 100);
    const uint32_t crc = client.write(block, bytes_of("k", 100));
    ASSERT_TRUE(eventually([&] { return stats().claim_us.total == 1; }));
    master.remove("k");
    EXPECT_EQ(client.commit(block, crc), Code::kRemoved);
    EXPECT_EQ(client.read("k"), std::nullopt);
    EXPECT_EQ(master.replicas("k"), 0u);
    EXPECT_EQ(client.put_shm("k", "again"), Code::kOk);
    EXPECT_EQ(client.read("k"), "again");
    EXPECT_TRUE(eventually([&] { return stats().puts_under_way == 0; }));
}

TEST_F(NodeTest, OfTwoConcurrentPutsOneWins) {
    constexpr int kRounds = 400;
    NodeClient reader = tcp();
    for (int round = 0; round < kRounds; ++round) {
        const std::string key = "key " + std::to_string(round);
        std::vector<Code> codes(2);
        std::vector<std::thread> writers;
        for (uint32_t i = 0; i < 2; ++i) {
            writers.emplace_back(
                [&, i] { codes[i] = NodeClient(node->at.tcp).put(key, bytes_of(key, 777, i)); });
        }
        for (std::thread& writer : writers) {
            writer.join();
        }
        const uint32_t winner = codes[0] == Code::kOk ? 0 : 1;
        EXPECT_EQ(codes[winner], Code::kOk);
        EXPECT_EQ(codes[1 - winner], Code::kAlreadyExists);
        EXPECT_EQ(reader.get(key).bytes, bytes_of(key, 777, winner));
    }
}

TEST_F(NodeTest, AWaitingPutHasItsDeadlineAndInheritsTheKey) {
    ShmClient first = shm();
    const ShmClient::Block block = first.reserve("k", 10);
    ASSERT_EQ(block.code, Code::kOk);
    NodeClient second = tcp();
    const uint64_t before = boottime_ms();
    EXPECT_EQ(second.put("k", "second", 200), Code::kUnavailable);
    EXPECT_GE(boottime_ms() - before, 150u);
    EXPECT_EQ(second.get("k").code, Code::kNotFound);
    std::thread giving_up([&] { EXPECT_EQ(first.abort(block), Code::kOk); });
    EXPECT_EQ(second.put("k", "second"), Code::kOk);
    giving_up.join();
    EXPECT_EQ(second.get("k").bytes, "second");
}

TEST_F(NodeTest, AWriterThatGoesAwayLeavesTheKeyToTheNext) {
    auto first = std::make_unique<ShmClient>(node->at.unix_socket);
    ASSERT_EQ(first->reserve("k", 1 << 20).code, Code::kOk);
    const uint64_t used = stats().store.used_bytes;
    EXPECT_GE(used, uint64_t{1} << 20);
    // Its socket is closed but its process lives: the block is kept, the claim is not.
    first->channel = nullptr;
    EXPECT_EQ(tcp().put("k", "second"), Code::kOk);
    ASSERT_TRUE(eventually([&] { return stats().store.quarantined == 1; }));
    EXPECT_GE(stats().store.used_bytes, used);
    // Its lock is gone: the block is free within two seconds.
    const uint64_t died_ms = boottime_ms();
    first = nullptr;
    EXPECT_TRUE(eventually([&] { return stats().store.quarantined == 0; }));
    EXPECT_LT(boottime_ms() - died_ms, 2'000u);
    EXPECT_LT(stats().store.used_bytes, used);
}

TEST_F(NodeTest, ALateCommitIsRefusedAndFreesTheBlock) {
    NodeOptions options = node_options("b");
    options.reservation_ms = 100;
    TestNode brief(options);
    brief.join(master, 2);
    ShmClient client(brief.at.unix_socket);
    const ShmClient::Block block = client.reserve("k", 100);
    const uint32_t crc = client.write(block, bytes_of("k", 100));
    ASSERT_TRUE(eventually([&] { return brief.core->stats().store.quarantined == 1; }));
    EXPECT_EQ(client.commit(block, crc), Code::kExpired);
    EXPECT_EQ(brief.core->stats().store.used_bytes, 0u);
    EXPECT_EQ(client.read("k"), std::nullopt);
    EXPECT_TRUE(brief.core->domains().store(0).audit().ok());
}

TEST_F(NodeTest, OnlyListedTenantsMapTheSegment) {
    HelloParams hello;
    hello.tenant = "stranger";
    ShmClient client(node->at.unix_socket, hello);
    EXPECT_FALSE(client.attached());
    EXPECT_EQ(client.put("k", "bytes"), Code::kOk);  // by socket
    EXPECT_EQ(client.get("k").bytes, "bytes");
    EXPECT_EQ(tcp().get("k").code, Code::kNotFound);  // another tenant's
    Reserve message;
    ReserveReply reply;
    EXPECT_EQ(client.channel->exchange(message, &reply, soon()).code(), Code::kPermissionDenied);
    EXPECT_FALSE(ShmClient(node->at.tcp).attached());
}

TEST_F(NodeTest, AClientThatMapsNothingIsToldWhyAndCounted) {
    const auto refused = [&](AttachCause cause) {
        return stats().attaches_refused[static_cast<size_t>(cause)];
    };
    HelloParams hello;
    hello.tenant = "stranger";
    ShmClient told(node->at.unix_socket, hello);
    EXPECT_EQ(told.channel->welcome().attach_cause, AttachCause::kTenant);
    EXPECT_EQ(told.channel->welcome().host_identity, host_identity());
    EXPECT_NE(host_identity(), 0u);
    EXPECT_EQ(refused(AttachCause::kTenant), 1u);
    // By TCP the client has to say it: believed of this host, and of causes the node cannot see.
    const auto say = [&](uint64_t host, uint8_t cause) {
        HelloParams tcp;
        tcp.host_identity = host;
        tcp.attach_cause = static_cast<AttachCause>(cause);
        ShmClient client(node->at.tcp, tcp);
        EXPECT_EQ(client.channel->welcome().attach_cause, AttachCause::kNone);
    };
    say(host_identity(), static_cast<uint8_t>(AttachCause::kNotFound));
    say(host_identity() + 1, static_cast<uint8_t>(AttachCause::kNotFound));
    say(0, static_cast<uint8_t>(AttachCause::kNotFound));
    say(host_identity(), static_cast<uint8_t>(AttachCause::kTenant));
    say(host_identity(), 255);
    EXPECT_EQ(refused(AttachCause::kNotFound), 1u);
    EXPECT_EQ(refused(AttachCause::kTenant), 1u);
    EXPECT_EQ(refused(AttachCause::kOther), 0u);
}

TEST_F(NodeTest, TunablesChangeWhileItServes) {
    HelloParams hello;
    hello.tenant = "late";
    EXPECT_FALSE(ShmClient(node->at.unix_socket, hello).attached());
    NodeTunables tunables;
    tunables.shm_write = {"default", "late"};
    tunables.reservation_ms = 100;
    node->core->set_tunables(tunables);
    ShmClient client(node->at.unix_socket, hello);
    EXPECT_TRUE(client.attached());
    const ShmClient::Block block = client.reserve("k", 100);
    const uint32_t crc = client.write(block, bytes_of("k", 100));
    ASSERT_TRUE(eventually([&] { return stats().store.quarantined == 1; }));
    EXPECT_EQ(client.commit(block, crc), Code::kExpired);
    node->core->set_tunables({});
    EXPECT_FALSE(ShmClient(node->at.unix_socket, hello).attached());
    EXPECT_EQ(client.put("k", "bytes"), Code::kOk);  // what is mapped stays so
    EXPECT_TRUE(node->core->domains().store(0).audit().ok());
}

TEST_F(NodeTest, SessionsOfOneProcessShareASlot) {
    ShmClient one = shm();
    ShmClient two = shm();
    EXPECT_EQ(one.slot->number(), two.slot->number());
    EXPECT_EQ(stats().live_slots, 1u);
    // Reserved by one session, committed by the other.
    const ShmClient::Block block = one.reserve("k", 3);
    EXPECT_EQ(two.commit(block, one.write(block, "abc")), Code::kOk);
    EXPECT_EQ(two.read("k"), "abc");
    SlotReady ready;  // nobody speaks for a slot that is not his
    ready.slot = one.slot->number() + 5;
    EXPECT_EQ(shm().ask(ready), std::vector{Code::kUnsupported});
}

TEST_F(NodeTest, AProcessThatHoldsASlotGetsNoSecondDescriptorOfIt) {
    const ShmClient first(node->at.unix_socket);
    HelloParams hello;
    hello.slot_plus_one = first.slot->number() + 1;
    hello.slot_device = first.slot->file().device;
    hello.slot_inode = first.slot->file().inode;
    const auto fds_of = [&](const HelloParams& said) {
        NodeClient client(node->at.unix_socket, said);
        EXPECT_GE(client.channel->welcome().slot, 0);
        std::vector<Fd> fds = client.channel->take_fds();
        if (fds.size() == 3) {
            SlotRegistry::instance().dispose(std::move(fds[2]));
        }
        return fds.size();
    };
    EXPECT_EQ(fds_of(hello), 2u);
    hello.mapped_epoch = first.channel->welcome().node_epoch;
    EXPECT_EQ(fds_of(hello), 0u);
    // What is not this process's slot in this file counts for nothing.
    HelloParams other_slot = hello;
    other_slot.slot_plus_one += 1;
    EXPECT_EQ(fds_of(other_slot), 3u);
    HelloParams other_file = hello;
    ++other_file.slot_inode;
    EXPECT_EQ(fds_of(other_file), 3u);
}

TEST_F(NodeTest, LeasesProtectAndEnd) {
    NodeClient client = tcp();
    const std::vector<std::string_view> keys{"p0", "p1", "p2"};
    EXPECT_EQ(client.put_all({"p0", "p1"}, {bytes_of("p0", 4000), bytes_of("p1", 4000)}),
              (std::vector{Code::kOk, Code::kOk}));
    Lease message;
    message.keys = keys;
    message.lease_ms = 60'000;
    LeaseReply reply;
    ASSERT_TRUE(client.channel->exchange(message, &reply, soon()).ok());
    EXPECT_EQ(reply.length, 2u);
    EXPECT_EQ(reply.node_epoch, 1u);
    EXPECT_EQ(stats().store.leases, 1u);
    const std::vector<uint64_t> ids{reply.lease_id};
    LeaseRenew renew;
    renew.lease_ids = ids;
    renew.lease_ms = 60'000;
    EXPECT_EQ(client.ask(renew), std::vector{Code::kOk});
    EXPECT_EQ(tcp().ask(renew), std::vector{Code::kExpired});  // another session's
    LeaseRelease release;
    release.lease_ids = ids;
    EXPECT_EQ(client.ask(release), std::vector{Code::kOk});
    EXPECT_EQ(client.ask(release), std::vector{Code::kExpired});
    ASSERT_TRUE(client.channel->exchange(message, &reply, soon()).ok());
    client.channel = nullptr;
    EXPECT_TRUE(eventually([&] { return stats().store.leases == 0; }));
}

TEST_F(NodeTest, AHoldBySocketKeepsTheBlock) {
    ShmClient client = shm();
    EXPECT_EQ(client.put_shm("k", bytes_of("k", 5000)), Code::kOk);
    const auto found =
        client.index->probe(client.ns, key_hash(test_secret(), client.ns, "k"), "k", boottime_ms());
    ASSERT_TRUE(found.has_value());
    const std::vector<uint64_t> generations{found->gen};
    Hold hold;
    hold.generations = generations;
    EXPECT_EQ(client.ask(hold), std::vector{Code::kOk});
    EXPECT_EQ(master.remove("k").first, Code::kOk);
    EXPECT_EQ(stats().store.deferred, 1u);
    EXPECT_EQ(std::memcmp(client.segment.data() + found->offset, bytes_of("k", 5000).data(), 5000),
              0);
    Unhold unhold;
    unhold.generations = generations;
    EXPECT_EQ(client.ask(unhold), std::vector{Code::kOk});
    EXPECT_EQ(stats().store.deferred, 0u);
    EXPECT_EQ(stats().store.used_bytes, 0u);
    EXPECT_EQ(tcp().ask(hold), std::vector{Code::kPermissionDenied});
}

TEST_F(NodeTest, EvictionIsToldToTheMaster) {
    NodeClient client = tcp();
    constexpr int kObjects = 40;  // of 1 MiB, in 16 MiB
    for (int i = 0; i < kObjects; ++i) {
        const std::string key = std::to_string(i);
        ASSERT_EQ(client.put(key, bytes_of(key, 1 << 20)), Code::kOk);
    }
    EXPECT_GE(stats().store.evictions, 24u);
    EXPECT_TRUE(eventually([&] {
        int known = 0;
        for (int i = 0; i < kObjects; ++i) {
            known += static_cast<int>(master.replicas(std::to_string(i)));
        }
        return known == static_cast<int>(stats().store.objects);
    }));
    for (int i = 0; i < kObjects; ++i) {
        const GetResult got = client.get(std::to_string(i));
        EXPECT_EQ(got.code == Code::kOk, master.replicas(std::to_string(i)) == 1);
        EXPECT_TRUE(got.code != Code::kOk || got.bytes == bytes_of(std::to_string(i), 1 << 20));
        EXPECT_TRUE(got.code == Code::kOk || got.reason == MissReason::kEvicted);
    }
}

TEST_F(NodeTest, ADrainingNodeTakesNothingNew) {
    NodeClient client = tcp();
    EXPECT_EQ(client.put("k", "bytes"), Code::kOk);
    node->core->set_draining(true);
    EXPECT_EQ(client.put("l", "bytes"), Code::kUnavailable);
    EXPECT_EQ(shm().reserve("l", 5).code, Code::kUnavailable);
    EXPECT_EQ(client.get("k").bytes, "bytes");
    node->core->set_draining(false);
    EXPECT_EQ(client.put("l", "bytes"), Code::kOk);
}

TEST_F(NodeTest, MessagesOfAnotherRoleAreRefused) {
    NodeClient client = tcp();
    CopyPut copy;
    StatusReply reply;
    EXPECT_EQ(client.channel->exchange(copy, &reply, soon()).code(), Code::kPermissionDenied);
    Claim claim;
    EXPECT_EQ(client.channel->exchange(claim, &reply, soon()).code(), Code::kPermissionDenied);
    NodeClient peer(node->at.tcp, NodeClient::peer());
    Get get;
    EXPECT_EQ(peer.channel->exchange(get, &reply, soon()).code(), Code::kPermissionDenied);
    EXPECT_EQ(client.put("k", "still served"), Code::kOk);
}

TEST_F(NodeTest, SizesThatDoNotAddUpEndTheSession) {
    NodeClient client = tcp();
    const std::vector<std::string_view> keys{"k"};
    const std::vector<uint64_t> sizes{UINT64_MAX};
    Put put;
    put.keys = keys;
    put.sizes = sizes;
    std::string bytes = "bytes";
    const iovec payload{bytes.data(), bytes.size()};
    StatusReply reply;
    EXPECT_EQ(client.channel->exchange(put, &reply, soon(), {.parts = {&payload, 1}}).code(),
              Code::kProtocolError);
    EXPECT_FALSE(client.channel->alive());
    EXPECT_EQ(tcp().put("k", "bytes"), Code::kOk);
}

TEST_F(NodeTest, APutCutOffLeavesNothing) {
    NodeClient client = tcp();
    const std::vector<std::string_view> keys{"k"};
    const std::vector<uint64_t> sizes{4u << 20};
    Put put;
    put.keys = keys;
    put.sizes = sizes;
    std::vector<uint8_t> body;
    encode_message(put, body);
    FrameHeader header;
    header.type = static_cast<uint16_t>(MessageType::kPut);
    header.body_bytes = static_cast<uint32_t>(body.size());
    header.payload_bytes = sizes[0];
    const FrameHeaderBytes head = encode_header(header);
    std::string part(1 << 20, 'x');
    const Fd fd = client.channel->release().take_fd();
    std::vector<iovec> parts{{const_cast<uint8_t*>(head.data()), head.size()},
                             {body.data(), body.size()},
                             {part.data(), part.size()}};
    ASSERT_TRUE(send_all(fd.get(), parts, soon()).ok());
    ASSERT_TRUE(eventually([&] { return stats().store.reservations == 1; }));
    const_cast<Fd&>(fd).reset();
    EXPECT_TRUE(eventually([&] { return stats().store.used_bytes == 0; }));
    EXPECT_EQ(tcp().put("k", "bytes", 2000), Code::kOk);  // the claim is given up, too
}

TEST_F(NodeTest, FiguresComeOverTheSocketToo) {
    NodeClient client = tcp();
    EXPECT_EQ(client.put("k", "bytes"), Code::kOk);
    StatsReply reply;
    ASSERT_TRUE(client.channel->exchange(Stats{}, &reply, soon()).ok());
    bool found = false;
    for (size_t i = 0; i < reply.names.size(); ++i) {
        found |= reply.names[i] == "puts_ok" && reply.values[i] == 1;
    }
    EXPECT_TRUE(found);
    ShmClient mapped = shm();
    mapped.slot->add_counter(static_cast<uint32_t>(ClientCounter::kPutsOk), 3);
    EXPECT_TRUE(eventually([&] {
        const auto counters = node->core->client_counters();
        return counters.size() == 1 && counters[0].tenant == "default" &&
               counters[0].values[static_cast<size_t>(ClientCounter::kPutsOk)] == 3;
    }));
}

TEST(NodeOptionsTest, ErrorsNameTheOption) {
    NodeOptions options = node_options("a");
    options.unix_endpoint = "unix:///" + std::string(120, 'x');
    EXPECT_NE(NodeCore::create(options).status().message().find("unix_endpoint"),
              std::string::npos);
    options = node_options("");
    EXPECT_EQ(NodeCore::create(options).code(), Code::kInvalidArgument);
    options = node_options("a");
    options.segment_bytes = 0;
    EXPECT_EQ(NodeCore::create(options).code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace kvstore::testing
