// Nodes and a master that come and go: lost links, missed operations, copies, concurrent writers.
#include <set>
#include <thread>

#include "tests/node/node_fixture.h"

namespace kvstore::testing {
namespace {

class ClusterTest : public ::testing::Test {
  protected:
    void SetUp() override {
        master = std::make_unique<TestMaster>();
        master->start();
        a = std::make_unique<TestNode>("a");
        a->join(*master, 1);
    }
    void add_b() {
        b = std::make_unique<TestNode>("b");
        b->join(*master, 2);
    }
    // A new master at the old address that knows nothing of the objects.
    void restart_master(uint32_t epoch) {
        const std::string endpoint = master->endpoint;
        master->stop();
        master = std::make_unique<TestMaster>(epoch, endpoint);
        master->start();
    }
    // Ends a's link as its master sees it; until `session` is given to the node it stays
    // disconnected.
    void cut_off(uint64_t session) {
        master->admit("a", session, a->at);
        ASSERT_TRUE(a->core->wait_link(LinkState::kDown, 30'000));
    }
    void let_back(uint64_t session) {
        a->core->set_session(session, {master->endpoint});
        ASSERT_TRUE(a->core->wait_link(LinkState::kUp, 30'000)) << a->core->stats().link_error;
    }

    std::unique_ptr<TestMaster> master;
    std::unique_ptr<TestNode> a;
    std::unique_ptr<TestNode> b;
};

TEST_F(ClusterTest, WithoutAMasterPutsFailAtOnceAndReadsGoOn) {
    ShmClient client(a->at.unix_socket);
    EXPECT_EQ(client.put_shm("k", "bytes"), Code::kOk);
    const ShmClient::Block granted = client.reserve("granted", 5);
    ASSERT_TRUE(eventually([&] { return a->core->stats().claim_us.total == 2; }));
    master->stop();
    ASSERT_TRUE(a->core->wait_link(LinkState::kDown, 30'000));
    const uint64_t before = boottime_ms();
    EXPECT_EQ(client.put("l", "bytes"), Code::kUnavailable);
    EXPECT_EQ(client.reserve("l", 5).code, Code::kUnavailable);
    EXPECT_EQ(client.commit(granted, client.write(granted, "bytes")), Code::kUnavailable);
    EXPECT_LT(boottime_ms() - before, 1'000u);
    EXPECT_EQ(client.read("granted"), std::nullopt);
    EXPECT_EQ(client.get("k").bytes, "bytes");
    EXPECT_EQ(client.read("k"), "bytes");
    EXPECT_EQ(a->core->stats().store.reservations, 0u);
    EXPECT_EQ(a->core->stats().link_losses, 1u);
}

TEST_F(ClusterTest, ARestartedMasterLearnsEverythingBack) {
    NodeClient client(a->at.tcp);
    constexpr int kObjects = 3000;  // more than a frame of the announce holds
    std::vector<std::string> keys;
    for (int i = 0; i < kObjects; ++i) {
        keys.push_back("key " + std::to_string(i));
    }
    for (size_t first = 0; first < keys.size(); first += 500) {
        const std::vector<std::string> some(keys.begin() + static_cast<long>(first),
                                            keys.begin() + static_cast<long>(first) + 500);
        for (const Code code : client.put_all(some, some)) {
            ASSERT_EQ(code, Code::kOk);
        }
    }
    EXPECT_EQ(client.put("soft", "bytes", 5000, 0, 1, Pin::kSoft), Code::kOk);
    EXPECT_EQ(client.put("twice", "bytes", 5000, 0, 2), Code::kOk);
    restart_master(2);
    ASSERT_TRUE(a->core->wait_link(LinkState::kDown, 30'000));
    a->join(*master, 7);
    for (const std::string& key : keys) {
        ASSERT_EQ(master->replicas(key), 1u) << key;
    }
    ObjectInfo info;
    ASSERT_TRUE(master->core->directory().inspect(*master->ns().current, "soft", info));
    EXPECT_EQ(info.pin, Pin::kSoft);
    ASSERT_TRUE(master->core->directory().inspect(*master->ns().current, "twice", info));
    EXPECT_EQ(info.replicas_wanted, 2);
    EXPECT_EQ(client.put("key 0", "other"), Code::kAlreadyExists);
    EXPECT_EQ(client.put("new", "bytes"), Code::kOk);
}

TEST_F(ClusterTest, MissedRemovesAreAppliedBeforeAnythingIsAnnounced) {
    NodeClient client(a->at.tcp);
    for (const char* key : {"gone", "stays"}) {
        EXPECT_EQ(client.put(key, key), Code::kOk);
    }
    cut_off(2);
    const auto [code, unreached] = master->remove("gone", 300);
    EXPECT_EQ(code, Code::kPartial);
    EXPECT_EQ(unreached, std::vector<std::string>{"a"});
    EXPECT_EQ(client.get("gone").code, Code::kOk);  // cut off, and its own host still reads it
    let_back(2);
    EXPECT_EQ(client.get("gone").reason, MissReason::kRemoved);
    EXPECT_EQ(master->replicas("gone"), 0u);
    EXPECT_EQ(master->replicas("stays"), 1u);
    EXPECT_EQ(client.get("stays").bytes, "stays");
    EXPECT_EQ(a->core->stats().applied_seq, 1u);
}

TEST_F(ClusterTest, WhatWasPublishedButNotAcknowledgedIsTakenBack) {
    // Many writers while the link is cut again and again: an Ok holds, anything else leaves
    // nothing.
    constexpr int kWriters = 3;
    constexpr int kCuts = 12;
    std::atomic<bool> stop{false};
    std::vector<std::vector<std::string>> stored(kWriters);
    std::vector<std::vector<std::string>> failed(kWriters);
    std::vector<std::thread> writers;
    for (size_t w = 0; w < kWriters; ++w) {
        writers.emplace_back([&, w] {
            ShmClient client(a->at.unix_socket);
            for (int i = 0; !stop.load(); ++i) {
                const std::string key = std::to_string(w) + "/" + std::to_string(i % 2000);
                const Code code = i % 2 == 0 ? client.put_shm(key, key) : client.put(key, key);
                if (code == Code::kOk) {
                    stored[w].push_back(key);
                } else if (code != Code::kAlreadyExists) {
                    EXPECT_EQ(code, Code::kUnavailable);
                    failed[w].push_back(key);
                }
            }
        });
    }
    for (uint64_t cut = 0; cut < kCuts; ++cut) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        cut_off(10 + cut);
        let_back(10 + cut);
    }
    stop = true;
    for (std::thread& writer : writers) {
        writer.join();
    }
    EXPECT_TRUE(eventually([&] { return a->core->stats().puts_under_way == 0; }));
    NodeClient reader(a->at.tcp);
    size_t ok = 0;
    for (const auto& keys : stored) {
        for (const std::string& key : keys) {
            EXPECT_EQ(reader.get(key).bytes, key);
            EXPECT_EQ(master->replicas(key), 1u) << key;
            ++ok;
        }
    }
    EXPECT_GT(ok, 0u);
    size_t taken_back = 0;
    for (size_t w = 0; w < kWriters; ++w) {
        const std::set<std::string> kept(stored[w].begin(), stored[w].end());
        for (const std::string& key : failed[w]) {
            if (!kept.contains(key)) {
                EXPECT_EQ(reader.get(key).code, Code::kNotFound) << key;
                EXPECT_EQ(master->replicas(key), 0u) << key;
                ++taken_back;
            }
        }
    }
    EXPECT_GT(taken_back, 0u);
    EXPECT_EQ(master->core->stats().directory.objects, a->core->stats().store.objects);
    EXPECT_TRUE(a->core->domains().store(0).audit().ok());
}

TEST_F(ClusterTest, OkMeansThatEverybodyFindsIt) {
    add_b();
    NodeClient writer(a->at.tcp);
    HelloParams hello;
    auto lookup = std::move(*Channel::connect(*Endpoint::parse(master->endpoint), hello, soon()));
    NodeClient reader(a->at.tcp);
    for (int i = 0; i < 2000; ++i) {
        const std::string key = std::to_string(i);
        ASSERT_EQ(writer.put(key, key), Code::kOk);
        const std::vector<std::string_view> keys{key};
        Lookup message;
        message.keys = keys;
        LookupReply reply;
        ASSERT_TRUE(lookup->exchange(message, &reply, soon()).ok());
        ASSERT_EQ(reply.status[0], 0) << key;
        ASSERT_EQ(reader.get(key, 100, reply.versions[0]).bytes, key);
    }
}

TEST_F(ClusterTest, TwoNodesPutOneKey) {
    add_b();
    for (int round = 0; round < 200; ++round) {
        const std::string key = "key " + std::to_string(round);
        std::vector<Code> codes(2);
        std::thread other([&] { codes[1] = NodeClient(b->at.tcp).put(key, "by b"); });
        codes[0] = NodeClient(a->at.tcp).put(key, "by a");
        other.join();
        ASSERT_EQ(codes[0] == Code::kOk, codes[1] == Code::kAlreadyExists);
        ASSERT_EQ(codes[1] == Code::kOk, codes[0] == Code::kAlreadyExists);
        EXPECT_EQ(NodeClient(a->at.tcp).get(key).bytes, codes[0] == Code::kOk ? "by a" : "");
        EXPECT_EQ(NodeClient(b->at.tcp).get(key).bytes, codes[1] == Code::kOk ? "by b" : "");
    }
}

TEST_F(ClusterTest, FlushesReachSessionsAndNewNodes) {
    NodeClient client(a->at.tcp);
    ShmClient mapped(a->at.unix_socket);
    EXPECT_EQ(client.put("k", "old"), Code::kOk);
    EXPECT_EQ(master->flush(), Code::kOk);
    EXPECT_EQ(client.get("k").reason, MissReason::kFlushed);
    EXPECT_EQ(mapped.index->flush_counter(), 1u);
    ResolveReply resolved;
    ASSERT_TRUE(mapped.channel->exchange(Resolve{}, &resolved, soon()).ok());
    EXPECT_EQ(resolved.ns_epoch, 1u);
    EXPECT_EQ(resolved.flush_counter, 1u);
    EXPECT_EQ(resolved.namespace_id, namespace_id(test_secret(), "default", "", 1));
    EXPECT_EQ(client.put("k", "new"), Code::kOk);
    EXPECT_EQ(client.get("k").bytes, "new");
    // A node that was not there when it was flushed.
    add_b();
    NodeClient other(b->at.tcp);
    EXPECT_EQ(other.put("l", "bytes"), Code::kOk);
    EXPECT_EQ(master->replicas("l"), 1u);
    EXPECT_TRUE(eventually([&] { return a->core->stats().store.objects == 1; }));
}

TEST_F(ClusterTest, AFlushOvertakesAPutUnderWay) {
    ShmClient client(a->at.unix_socket);
    const ShmClient::Block block = client.reserve("k", 3);
    ASSERT_TRUE(eventually([&] { return a->core->stats().claim_us.total == 1; }));
    EXPECT_EQ(master->flush(), Code::kOk);
    EXPECT_EQ(client.commit(block, client.write(block, "abc")), Code::kRemoved);
    EXPECT_EQ(a->core->stats().store.used_bytes, 0u);
}

TEST_F(ClusterTest, ReplicasAreCopiedByTheNode) {
    add_b();
    NodeClient client(a->at.tcp);
    for (const size_t size : {size_t{0}, size_t{5000}, size_t{2'000'000}}) {
        const std::string key = "key " + std::to_string(size);
        EXPECT_EQ(client.put(key, bytes_of(key, size), 5000, 0, 2), Code::kOk);
        ASSERT_TRUE(eventually([&] { return master->replicas(key) == 2; })) << key;
        const GetResult copy = NodeClient(b->at.tcp).get(key);
        EXPECT_EQ(copy.bytes, bytes_of(key, size));
        EXPECT_EQ(copy.version, client.get(key).version);
        EXPECT_EQ(copy.sealed_crc, client.get(key).sealed_crc);
    }
    EXPECT_EQ(a->core->stats().copies_out, 3u);
    EXPECT_EQ(b->core->stats().copies_in, 3u);
    EXPECT_EQ(b->core->stats().puts_ok, 0u);
    // A remove reaches both.
    EXPECT_EQ(master->remove("key 5000").first, Code::kOk);
    EXPECT_EQ(NodeClient(b->at.tcp).get("key 5000").reason, MissReason::kRemoved);
}

TEST_F(ClusterTest, ACopyKeepsItsPlaceInTheChain) {
    add_b();
    NodeClient client(a->at.tcp);
    EXPECT_EQ(client.put("head", "bytes", 5000, 0, 2), Code::kOk);
    ASSERT_TRUE(eventually([&] { return master->replicas("head") == 2; }));
    client.parent = "head";
    EXPECT_EQ(client.put("tail", "bytes", 5000, 0, 2), Code::kOk);
    ASSERT_TRUE(eventually([&] { return master->replicas("tail") == 2; }));
    for (const auto* node : {a.get(), b.get()}) {
        std::vector<BlockStore::ObjectInfo> objects;
        node->core->domains().store(0).list_objects(0, 10, objects);
        ASSERT_EQ(objects.size(), 2u);
        for (const BlockStore::ObjectInfo& object : objects) {
            EXPECT_EQ(node->core->domains().store(0).parent_key(object.generation),
                      object.key == "tail" ? "head" : "");
        }
    }
}

TEST_F(ClusterTest, ADrainMovesTheData) {
    NodeClient client(a->at.tcp);
    constexpr int kObjects = 300;
    for (int i = 0; i < kObjects; ++i) {
        const std::string key = std::to_string(i);
        ASSERT_EQ(client.put(key, bytes_of(key, 3000)), Code::kOk);
    }
    add_b();
    a->core->set_draining(true);
    ASSERT_TRUE(master->core->set_node("a", NodeState::kDraining, 0, 0, 1 << 24).ok());
    ASSERT_TRUE(eventually([&] { return master->core->drain_left("a").objects == 0; }));
    NodeClient other(b->at.tcp);
    for (int i = 0; i < kObjects; ++i) {
        EXPECT_EQ(other.get(std::to_string(i)).bytes, bytes_of(std::to_string(i), 3000));
    }
}

TEST_F(ClusterTest, ACopyIsVerifiedAndNotOlderThanARemove) {
    NodeClient peer(a->at.tcp, NodeClient::peer());
    std::string bytes = "bytes";
    const std::vector<std::string_view> keys{"k"};
    const std::vector<uint64_t> sizes{bytes.size()}, versions{pack_epoch(1, 1)};
    std::vector<uint32_t> crcs{crc32c(bytes.data(), bytes.size()) + 1};
    CopyPut copy;
    copy.tenant = "default";
    copy.keys = keys;
    copy.sizes = sizes;
    copy.versions = versions;
    copy.crcs = crcs;
    copy.timeout_ms = 2000;
    const iovec payload{bytes.data(), bytes.size()};
    StatusReply reply;
    ASSERT_TRUE(peer.channel->exchange(copy, &reply, soon(), {.parts = {&payload, 1}}).ok());
    EXPECT_EQ(reply.status[0], static_cast<int32_t>(Code::kChecksumMismatch));
    EXPECT_EQ(a->core->stats().store.used_bytes, 0u);
    // The version was removed since: the master knows, and the node takes it back.
    NodeClient client(a->at.tcp);
    EXPECT_EQ(client.put("k", "mine"), Code::kOk);
    const Version removed = client.get("k").version;
    EXPECT_EQ(master->remove("k").first, Code::kOk);
    const std::vector<uint64_t> old{removed};
    copy.versions = old;
    crcs[0] -= 1;
    copy.crcs = crcs;
    ASSERT_TRUE(peer.channel->exchange(copy, &reply, soon(), {.parts = {&payload, 1}}).ok());
    EXPECT_EQ(reply.status[0], static_cast<int32_t>(Code::kRemoved));
    EXPECT_EQ(client.get("k").code, Code::kNotFound);
    EXPECT_EQ(a->core->stats().store.used_bytes, 0u);
}

TEST_F(ClusterTest, AnUpsertEverywhereReplacesTheOlderReplicas) {
    add_b();
    NodeClient at_a(a->at.tcp);
    NodeClient at_b(b->at.tcp);
    EXPECT_EQ(at_a.put("k", "old"), Code::kOk);
    EXPECT_EQ(at_b.put("k", "new", 5000, kPutUpsert), Code::kOk);
    EXPECT_EQ(at_b.get("k").bytes, "new");
    EXPECT_TRUE(eventually([&] { return at_a.get("k").code == Code::kNotFound; }));
    EXPECT_EQ(master->replicas("k"), 1u);
}

TEST_F(ClusterTest, AnUpsertIsNeverAMiss) {
    NodeClient writer(a->at.tcp);
    EXPECT_EQ(writer.put("k", "0"), Code::kOk);
    std::atomic<bool> stop{false};
    std::atomic<int> misses{0};
    std::thread looking([&] {
        while (!stop.load()) {
            misses += master->replicas("k") == 0 ? 1 : 0;
            misses += NodeClient(a->at.tcp).get("k").code == Code::kOk ? 0 : 1;
        }
    });
    for (int i = 1; i <= 500; ++i) {
        EXPECT_EQ(writer.put("k", std::to_string(i), 5000, kPutUpsert), Code::kOk);
    }
    stop = true;
    looking.join();
    EXPECT_EQ(misses, 0);
    EXPECT_EQ(writer.get("k").bytes, "500");
}

TEST_F(ClusterTest, PinsArriveAsOperations) {
    NodeClient client(a->at.tcp);
    EXPECT_EQ(client.put("k", bytes_of("k", 4096)), Code::kOk);
    master->settle(master->ns());
    std::atomic<bool> done{false};
    master->core->set_pins(master->ns(), {"k"}, {Pin::kHard}, 5000,
                           [&](std::vector<Code> codes, auto) {
                               EXPECT_EQ(codes.at(0), Code::kOk);
                               done = true;
                           });
    ASSERT_TRUE(eventually([&] { return done.load(); }));
    EXPECT_EQ(a->core->stats().store.hard_pinned_bytes, 4096u);
}

TEST_F(ClusterTest, AHeartbeatThatNobodyAnswersIsGivenUp) {
    EXPECT_EQ(a->core->heartbeat("first", 20).code(), Code::kUnavailable);
    std::thread control([&] {
        // The first one waits for it, too, or has given its place to the second.
        for (std::string request; request != "second";) {
            for (const NodeHeartbeat& one : master->core->take_heartbeats(30'000)) {
                request = one.request;
                master->core->answer_heartbeat(one.link, one.request_id, Code::kOk,
                                               "to " + request);
            }
        }
    });
    EXPECT_EQ(a->core->heartbeat("second", 30'000).value(), "to second");
    control.join();
    master->stop();
    ASSERT_TRUE(a->core->wait_link(LinkState::kDown, 30'000));
    EXPECT_EQ(a->core->heartbeat("third", 30'000).code(), Code::kUnavailable);
}

TEST_F(ClusterTest, AnotherClusterIsNotJoined) {
    NodeOptions options = node_options("c");
    options.hash_secret.fill(9);
    TestNode stranger(options);
    master->admit("c", 5, stranger.at);
    stranger.core->set_session(5, {master->endpoint});
    EXPECT_TRUE(eventually(
        [&] { return stranger.core->stats().link_error.find("secret") != std::string::npos; }));
    EXPECT_EQ(stranger.core->link_state(), LinkState::kDown);
}

TEST_F(ClusterTest, TokensAreAskedOfClientsAndPeers) {
    NodeOptions options = node_options("c");
    options.principals = {{"ann", Role::kClient, {"default"}, "her secret"},
                          {"node", Role::kNode, {"*"}, "node secret"}};
    TestNode guarded(options);
    guarded.join(*master, 5);
    HelloParams hello;
    const Endpoint endpoint = *Endpoint::parse(guarded.at.tcp);
    EXPECT_EQ(Channel::connect(endpoint, hello, soon()).code(), Code::kUnauthenticated);
    hello.principal = "ann";
    hello.token = "wrong";
    EXPECT_EQ(Channel::connect(endpoint, hello, soon()).code(), Code::kUnauthenticated);
    hello.token = "her secret";
    NodeClient client(guarded.at.tcp, hello);
    EXPECT_EQ(client.put("k", "bytes"), Code::kOk);
    hello.role = Role::kNode;
    EXPECT_FALSE(Channel::connect(endpoint, hello, soon()).ok());
}

}  // namespace
}  // namespace kvstore::testing
