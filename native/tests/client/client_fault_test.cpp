// The client when something is unreachable: the master, a node, a replica, or the answer.
#include "tests/client/client_fixture.h"

namespace kvstore::testing {
namespace {

class ClientFaultTest : public ::testing::Test {
  protected:
    void SetUp() override { master.start(); }
    std::unique_ptr<TestNode> start_node(const std::string& id, uint64_t session) {
        auto node = std::make_unique<TestNode>(id);
        node->join(master, session);
        return node;
    }
    TestMaster master;
};

TEST_F(ClientFaultTest, WithoutAnyNodePutsAreUnavailableAndSoonAtOnce) {
    TestClient client(master.endpoint);
    EXPECT_EQ(client.put("k", "bytes"), Code::kUnavailable);
    const uint64_t before = boottime_ms();
    EXPECT_EQ(client.put("k", "bytes"), Code::kUnavailable);
    EXPECT_LT(boottime_ms() - before, 500u);
    EXPECT_EQ(client.get("k"), std::nullopt);
    const auto node = start_node("a", 1);
    EXPECT_TRUE(eventually([&] { return client.put("k", "bytes") == Code::kOk; }));
    EXPECT_EQ(client.get("k"), "bytes");
}

TEST_F(ClientFaultTest, WithTheMasterAwayKnownPlacementsAreReadAndPutsFailFast) {
    const auto node = start_node("a", 1);
    TestClient near(master.endpoint);
    TestClient far(master.endpoint, Transport::kTcp);
    TestClient stranger(master.endpoint, Transport::kTcp);
    ASSERT_EQ(near.put("k", "bytes"), Code::kOk);
    EXPECT_EQ(far.get("k"), "bytes");
    master.stop();
    ASSERT_TRUE(eventually([&] { return node->core->link_state() == LinkState::kDown; }));
    EXPECT_EQ(near.get("k"), "bytes");
    EXPECT_EQ(far.get("k"), "bytes");
    EXPECT_EQ(stranger.get("k"), std::nullopt);
    EXPECT_EQ(stranger.last.reason, MissReason::kUnavailable);
    for (TestClient* client : {&near, &far}) {
        const uint64_t before = boottime_ms();
        EXPECT_EQ(client->put("new", "bytes"), Code::kUnavailable);
        EXPECT_EQ(client->remove("k"), Code::kUnavailable);
        EXPECT_EQ(client->get("nobody"), std::nullopt);
        EXPECT_LT(boottime_ms() - before, 1500u);
    }
}

// The remembered place has it no more; whether another has, only the master could say.
TEST_F(ClientFaultTest, WithTheMasterAwayAnAbsenceAtARememberedPlaceIsUnavailable) {
    const auto node = start_node("a", 1);
    TestClient writer(master.endpoint);
    TestClient far(master.endpoint, Transport::kTcp);
    for (const char* key : {"first", "second"}) {
        ASSERT_EQ(writer.put(key, "bytes"), Code::kOk);
        ASSERT_EQ(far.get(key), "bytes");
        ASSERT_EQ(writer.remove(key), Code::kOk);
    }
    master.stop();
    for (const char* key : {"first", "second"}) {  // finds it out, and knows it already
        EXPECT_EQ(far.get(key), std::nullopt);
        EXPECT_EQ(far.last.result, static_cast<int64_t>(Code::kUnavailable));
        EXPECT_EQ(far.last.reason, MissReason::kUnavailable);
    }
}

TEST_F(ClientFaultTest, AReplicaTakesOverWhenItsNodeIsGone) {
    auto a = start_node("a", 1);
    const auto b = start_node("b", 2);
    PutOptions two;
    two.replicas = 2;
    TestClient far(master.endpoint, Transport::kTcp);
    const std::vector<std::string> keys = numbered("k", 40);
    for (const std::string& key : keys) {
        ASSERT_EQ(far.put(key, bytes_of(key, 2000), two), Code::kOk);
    }
    ASSERT_TRUE(eventually([&] {
        return std::all_of(keys.begin(), keys.end(),
                           [&](const std::string& key) { return master.replicas(key) == 2; });
    }));
    a->core->stop();
    std::vector<std::string> values;
    const std::vector<int64_t> results = far.get_all(keys, &values, 2000);
    for (size_t i = 0; i < keys.size(); ++i) {
        EXPECT_EQ(results[i], 2000) << keys[i];
        EXPECT_EQ(values[i], bytes_of(keys[i], 2000));
    }
}

TEST_F(ClientFaultTest, TwoNodesOfThisHostAreBothReadThroughMemory) {
    const auto a = start_node("a", 1);
    const auto b = start_node("b", 2);
    TestClient near(master.endpoint);
    TestClient far(master.endpoint, Transport::kTcp);
    const std::vector<std::string> keys = numbered("k", 100);
    for (const std::string& key : keys) {
        ASSERT_EQ(far.put(key, bytes_of(key, 500)), Code::kOk);
    }
    EXPECT_GT(a->core->stats().store.objects, 0u);
    EXPECT_GT(b->core->stats().store.objects, 0u);
    std::vector<std::string> values;
    near.get_all(keys, &values, 500);
    EXPECT_EQ(near.count(ClientCounter::kHitsShm), 100u);
    const auto leased = near.lease(keys, 10'000);
    EXPECT_EQ(leased->length(), 100u);
    const auto by_socket = far.lease(keys, 10'000);
    EXPECT_EQ(by_socket->length(), 100u);
}

TEST_F(ClientFaultTest, ARestartedNodeIsAttachedAgain) {
    NodeOptions options = node_options("a");
    auto node = std::make_unique<TestNode>(options);
    node->join(master, 1);
    TestClient client(master.endpoint);
    ASSERT_EQ(client.put("old", "bytes"), Code::kOk);
    auto view = client.core->view("old");
    ASSERT_TRUE(view.ok() && *view != nullptr);
    node.reset();
    EXPECT_EQ(client.get("old"), std::nullopt);
    options.node_epoch = 2;
    node = std::make_unique<TestNode>(options);
    node->join(master, 2);
    EXPECT_TRUE(eventually([&] { return client.put("new", "bytes") == Code::kOk; }));
    EXPECT_EQ(client.get("new"), "bytes");
    EXPECT_GT(client.count(ClientCounter::kHitsShm), 0u);
    EXPECT_EQ(client.count(ClientCounter::kBytesPutSocket), 0u);
    EXPECT_EQ(std::string(reinterpret_cast<const char*>((*view)->data()), (*view)->size()),
              "bytes");
}

// Says hello to clients like a master, then never answers again.
class SilentMaster : public ConnectionHandler {
  public:
    SilentMaster() {
        EventServer::Options options;
        options.cluster_id = "silent";
        server_ = std::make_unique<EventServer>(std::move(options), *this);
        auto bound = server_->listen(*Endpoint::parse("tcp://127.0.0.1:0"));
        EXPECT_TRUE(bound.ok()) << bound.status().to_string();
        endpoint = bound->to_string();
        EXPECT_TRUE(server_->start().ok());
    }
    ~SilentMaster() override { server_->stop(); }
    Result<HelloAnswer> on_hello(Connection&, const Hello&) override {
        HelloAnswer answer;
        answer.welcome.master_epoch = 1;
        return answer;
    }
    void on_open(Connection&) override {}
    void on_frame(Connection& connection, const FrameHeader& header, std::span<const uint8_t>,
                  PayloadPlan*) override {
        if (header.message() == MessageType::kNodes && !silent.load()) {
            connection.ref()->send_message(NodesReply{}, header.request_id);
        }
    }
    void on_close(Connection&, Code, std::string_view) override {}
    std::string endpoint;
    std::atomic<bool> silent{false};

  private:
    std::unique_ptr<EventServer> server_;
};

// A put waits at its node for the other writer of its key, and that is no sign of a node that
// hangs: it answers Pings.
TEST_F(ClientFaultTest, APutThatWaitsForAnotherWriterStaysAtItsNode) {
    const auto a = start_node("a", 1);
    const auto b = start_node("b", 2);
    ShmClient writer(a->at.unix_socket);
    const ShmClient::Block block = writer.reserve("k", 3, 4000);
    ASSERT_EQ(block.code, Code::kOk);
    TestClient client(master.endpoint, Transport::kTcp, 2000);
    std::thread committing([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(1300));  // patience is 500
        EXPECT_EQ(writer.commit(block, writer.write(block, "abc")), Code::kOk);
    });
    EXPECT_EQ(client.put("k", "xyz"), Code::kAlreadyExists);
    committing.join();
    EXPECT_EQ(client.count(ClientCounter::kRetries), 0u);
    EXPECT_EQ(client.get("k"), "abc");
}

TEST_F(ClientFaultTest, NoCallOutlivesItsDeadline) {
    SilentMaster silent;
    TestClient client(silent.endpoint, Transport::kAuto, 300);
    silent.silent = true;
    uint64_t before = boottime_ms();
    EXPECT_EQ(client.get("k"), std::nullopt);
    EXPECT_LT(boottime_ms() - before, 450u);
    EXPECT_EQ(client.last.reason, MissReason::kUnavailable);
    before = boottime_ms();
    EXPECT_EQ(client.get("k"), std::nullopt);  // the breaker is open now
    EXPECT_LT(boottime_ms() - before, 50u);
    before = boottime_ms();
    EXPECT_LT(static_cast<int>(client.put("k", "bytes")), 0);
    EXPECT_LT(boottime_ms() - before, 1500u);
}

TEST_F(ClientFaultTest, CloseEndsCallsOfOtherThreads) {
    SilentMaster silent;
    TestClient client(silent.endpoint, Transport::kAuto, 60'000);
    silent.silent = true;
    std::thread caller([&] { EXPECT_EQ(client.get("k"), std::nullopt); });
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    const uint64_t before = boottime_ms();
    client.core->close();
    caller.join();
    EXPECT_LT(boottime_ms() - before, 2000u);
    EXPECT_EQ(client.last.result, static_cast<int64_t>(Code::kClosed));
}

}  // namespace
}  // namespace kvstore::testing
