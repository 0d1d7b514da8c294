// A node's link alone, against a made-up master on a real event server.
#include "node/master_link.h"

#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "node/connection_state.h"
#include "tests/node/node_fixture.h"

namespace kvstore {
namespace {

using testing::eventually;

// Welcomes links, records what they say, answers announces with Ok.
class TestMaster final : public ConnectionHandler {
  public:
    TestMaster() : server_({.loops = 1}, *this) {
        endpoint_ = server_.listen(*Endpoint::parse("tcp://127.0.0.1:0"))->to_string();
        EXPECT_TRUE(server_.start().ok());
    }
    ~TestMaster() override { server_.stop(); }

    Result<HelloAnswer> on_hello(Connection&, const Hello& hello) override {
        const std::lock_guard lock(mutex_);
        ++hellos_;
        session_id_ = hello.session_id;
        applied_seq_ = hello.applied_seq;
        if (refuse_) {
            return Status(Code::kExpired, "register first");
        }
        HelloAnswer answer;
        answer.welcome.ops_seq = ops_seq_;
        return answer;
    }
    void on_open(Connection& connection) override {
        const std::lock_guard lock(mutex_);
        link_ = connection.ref();
        announces_.clear();
        if (ops_seq_ > 0) {
            send_removes(1, ops_seq_);
        }
    }
    void on_frame(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body,
                  PayloadPlan*) override {
        const std::lock_guard lock(mutex_);
        if (header.message() == MessageType::kAnnounce) {
            Announce message;
            ASSERT_TRUE(connection.decode(body, &message));
            announces_.push_back({message.seq, message.phase, message.keys.size()});
            const std::vector<int32_t> status(message.keys.size(), 0);
            connection.ref()->send_message(AnnounceReply{message.seq, status}, 0);
        } else if (header.message() == MessageType::kOpsAck) {
            OpsAck message;
            ASSERT_TRUE(connection.decode(body, &message));
            acked_seq_ = message.seq;
        }
    }
    void on_close(Connection&, Code, std::string_view) override {
        const std::lock_guard lock(mutex_);
        link_ = nullptr;
    }

    void push_removes(uint64_t first_seq, size_t count) {
        const std::lock_guard lock(mutex_);
        ASSERT_NE(link_, nullptr);
        send_removes(first_seq, count);
    }
    void send_removes(uint64_t first_seq, size_t count) {  // with the mutex held
        const std::vector<uint8_t> kinds(count, static_cast<uint8_t>(OpKind::kRemove));
        const std::vector<std::string_view> tenants(count, "tenant");
        const std::vector<std::string_view> names(count, "space");
        const std::vector<std::string_view> keys(count, "key");
        const std::vector<uint32_t> epochs(count, 0);
        const std::vector<uint64_t> numbers(count, 1);
        link_->send_message(Ops{.first_seq = first_seq,
                                .kinds = kinds,
                                .tenants = tenants,
                                .namespaces = names,
                                .epochs = epochs,
                                .keys = keys,
                                .versions = numbers,
                                .args = numbers},
                            0);
    }
    void drop_link() {
        const std::lock_guard lock(mutex_);
        ASSERT_NE(link_, nullptr);
        link_->close(Code::kClosed, "a test");
    }

    struct Announced {
        uint64_t seq = 0;
        AnnouncePhase phase = AnnouncePhase::kIncremental;
        size_t keys = 0;
    };
    template <class T>
    T read(T TestMaster::* member) {
        const std::lock_guard lock(mutex_);
        return this->*member;
    }
    void set_refuse(bool refuse) {
        const std::lock_guard lock(mutex_);
        refuse_ = refuse;
    }
    void set_ops_seq(uint64_t seq) {
        const std::lock_guard lock(mutex_);
        ops_seq_ = seq;
    }

    std::string endpoint_;
    int hellos_ = 0;
    uint64_t session_id_ = 0;
    uint64_t applied_seq_ = 0;
    uint64_t acked_seq_ = 0;
    std::vector<Announced> announces_;

  private:
    std::mutex mutex_;
    bool refuse_ = false;
    uint64_t ops_seq_ = 0;
    std::shared_ptr<ConnectionRef> link_;
    EventServer server_;
};

// The node behind the link: routes its server's calls, lists `objects` in the full announce.
class TestNode final : public ConnectionHandler, public MasterLink::Handler {
  public:
    explicit TestNode(MasterLink::Options options, int listed = 0)
        : objects(listed), server_({.loops = 1}, *this), link_(std::move(options), server_, *this) {
        EXPECT_TRUE(server_.start().ok());
        link_.start();
    }
    ~TestNode() override {
        link_.stop();
        server_.stop();
    }

    Result<HelloAnswer> on_hello(Connection&, const Hello&) override { return Code::kUnsupported; }
    void on_open(Connection& connection) override { link_.on_open(connection); }
    void on_frame(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body,
                  PayloadPlan*) override {
        link_.on_frame(connection, header, body);
    }
    void on_close(Connection& connection, Code, std::string_view reason) override {
        link_.on_close(connection, reason);
    }
    void on_tick(size_t) override { link_.tick(); }

    void on_link_down(uint64_t) override { ++downs; }
    void on_claims(uint64_t, std::span<const ClaimAnswer>) override {}
    void on_announced(uint64_t, const LinkNamespace&,
                      std::span<const AnnounceResult> results) override {
        announced += static_cast<int>(results.size());
    }
    void on_ops(std::span<const OpView> ops) override { applied += static_cast<int>(ops.size()); }
    void on_applied(uint64_t seq) override { link_.acknowledge(seq); }
    void on_copy(CopyOrder) override {}
    uint32_t list_objects(uint32_t, size_t, std::vector<AnnounceGroup>& out) override {
        applied_when_listed = applied.load();
        AnnounceGroup group{.ns = {"tenant", "space", 0}, .items = {}};
        for (int i = 0; i < objects; ++i) {
            group.items.push_back({.key = "k" + std::to_string(i), .version = 1, .size_bytes = 1});
        }
        if (objects > 0) {
            out.push_back(std::move(group));
        }
        return 0;
    }

    const int objects;
    std::atomic<int> downs{0};
    std::atomic<int> applied{0};
    std::atomic<int> applied_when_listed{-1};
    std::atomic<int> announced{0};

  private:
    EventServer server_;

  public:
    MasterLink link_;
};

MasterLink::Options options_for(const TestMaster& master) {
    MasterLink::Options options;
    options.node_id = "a";
    options.session_id = 7;
    options.endpoints = {master.endpoint_};
    options.backoff_max_ms = 20;
    return options;
}

constexpr uint32_t kWaitMs = 30'000;

TEST(MasterLinkTest, AnnouncesEverythingBeforeItIsUp) {
    TestMaster master;
    TestNode node(options_for(master), 3);
    ASSERT_TRUE(node.link_.wait_state(LinkState::kUp, kWaitMs));
    EXPECT_EQ(master.read(&TestMaster::session_id_), 7u);
    const auto announces = master.read(&TestMaster::announces_);
    ASSERT_GE(announces.size(), 2u);
    EXPECT_EQ(announces.front().phase, AnnouncePhase::kBegin);
    EXPECT_EQ(announces.back().phase, AnnouncePhase::kEnd);
    for (size_t i = 1; i < announces.size(); ++i) {
        EXPECT_EQ(announces[i].seq, announces[i - 1].seq + 1);
    }
}

TEST(MasterLinkTest, ARefusalIsRememberedAndTriedAgain) {
    TestMaster master;
    master.set_refuse(true);
    TestNode node(options_for(master));
    ASSERT_TRUE(eventually([&] { return master.read(&TestMaster::hellos_) >= 3; }));
    EXPECT_EQ(node.link_.state(), LinkState::kDown);
    EXPECT_NE(node.link_.last_error().find("register first"), std::string::npos);
    EXPECT_EQ(node.downs, 0);
    master.set_refuse(false);
    EXPECT_TRUE(node.link_.wait_state(LinkState::kUp, kWaitMs));
}

TEST(MasterLinkTest, WithoutARegistrationNothingIsTried) {
    TestMaster master;
    MasterLink::Options options = options_for(master);
    options.session_id = 0;
    TestNode node(options);
    EXPECT_FALSE(node.link_.wait_state(LinkState::kUp, 100));
    EXPECT_EQ(master.read(&TestMaster::hellos_), 0);
    node.link_.set_session(9, {master.endpoint_});
    ASSERT_TRUE(node.link_.wait_state(LinkState::kUp, kWaitMs));
    EXPECT_EQ(master.read(&TestMaster::session_id_), 9u);
}

TEST(MasterLinkTest, OperationsAreAppliedOnceAndAcknowledged) {
    TestMaster master;
    TestNode node(options_for(master));
    ASSERT_TRUE(node.link_.wait_state(LinkState::kUp, kWaitMs));
    master.push_removes(1, 3);
    master.push_removes(2, 4);  // 2 and 3 come again
    ASSERT_TRUE(eventually([&] { return master.read(&TestMaster::acked_seq_) == 5; }));
    EXPECT_EQ(node.applied, 5);
    EXPECT_EQ(node.link_.applied_seq(), 5u);
    // The next connection says so.
    master.drop_link();
    ASSERT_TRUE(eventually([&] { return master.read(&TestMaster::hellos_) == 2; }));
    EXPECT_EQ(master.read(&TestMaster::applied_seq_), 5u);
}

TEST(MasterLinkTest, MissedOperationsComeBeforeTheAnnounce) {
    TestMaster master;
    master.set_ops_seq(2);
    TestNode node(options_for(master));
    ASSERT_TRUE(node.link_.wait_state(LinkState::kUp, kWaitMs));
    EXPECT_EQ(node.applied, 2);
    EXPECT_EQ(node.applied_when_listed, 2);
}

TEST(MasterLinkTest, ALostLinkVoidsWhatWasSentOnIt) {
    TestMaster master;
    TestNode node(options_for(master));
    ASSERT_TRUE(node.link_.wait_state(LinkState::kUp, kWaitMs));
    const uint64_t link = node.link_.up();
    const LinkNamespace ns{"tenant", "space", 0};
    ASSERT_TRUE(node.link_.announce(link, ns, {{.ticket = 1, .key = "k", .version = 1}}));
    ASSERT_TRUE(eventually([&] { return node.announced == 1; }));
    master.drop_link();
    ASSERT_TRUE(eventually([&] { return node.downs == 1; }));
    ASSERT_TRUE(node.link_.wait_state(LinkState::kUp, kWaitMs));
    EXPECT_GT(node.link_.up(), link);
    EXPECT_EQ(node.link_.losses(), 1u);
    EXPECT_FALSE(node.link_.announce(link, ns, {{.ticket = 2, .key = "k", .version = 2}}));
    EXPECT_FALSE(node.link_.claim(link, ns, {}, 0));
}

}  // namespace
}  // namespace kvstore
