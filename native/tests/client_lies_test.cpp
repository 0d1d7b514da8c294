// The client against a master and a node that lie: every lie is a miss or a code, never other
// bytes, never a crash, and the client goes on afterwards.
#include "client_fixture.h"

namespace kvstore::testing {
namespace {

enum class Lie {
    kNone,
    kRowsMissing,
    kTooLong,
    kPayloadTooShort,
    kPayloadMissing,
    kOtherBytes,
    kOtherObject,
    kOtherType,
    kGarbage,
    kHangUp,
    kLookupRowsMissing,
    kLookupUnknownNode,
    kLookupOtherSize,
};
constexpr Lie kGetLies[] = {Lie::kRowsMissing,       Lie::kTooLong,          Lie::kPayloadTooShort,
                            Lie::kPayloadMissing,    Lie::kOtherBytes,       Lie::kOtherObject,
                            Lie::kOtherType,         Lie::kGarbage,          Lie::kHangUp,
                            Lie::kLookupRowsMissing, Lie::kLookupUnknownNode};

// Master and only node at once; has every object: bytes_of(key, 100).
class Liar : public Service {
  public:
    Liar() {
        EventServer::Options options;
        options.cluster_id = "lies";
        server_ = std::make_unique<EventServer>(std::move(options), *this);
        auto bound = server_->listen(*Endpoint::parse("tcp://127.0.0.1:0"));
        EXPECT_TRUE(bound.ok()) << bound.status().to_string();
        endpoint = bound->to_string();
        EXPECT_TRUE(server_->start().ok());
    }
    ~Liar() override { server_->stop(); }

    Result<HelloAnswer> on_hello(Connection&, const Hello&) override {
        HelloAnswer answer;
        answer.welcome.hash_secret = test_secret();
        answer.welcome.node_id = "liar";
        answer.welcome.node_epoch = 1;
        return answer;
    }
    void on_frame(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body,
                  PayloadPlan*) override {
        switch (header.message()) {
            case MessageType::kNodes:
                return nodes(connection, header);
            case MessageType::kLookup:
                return lookup(connection, header, body);
            case MessageType::kGet:
                return get(connection, header, body);
            case MessageType::kResolve: {
                ResolveReply reply;
                reply.namespace_id = namespace_id(test_secret(), "default", "", 0);
                connection.ref()->send_message(reply, header.request_id);
                return;
            }
            default:
                return;
        }
    }
    // Puts come with a payload: answered once it was discarded, with too few rows or with a number
    // that is no code.
    void on_payload(Connection& connection, const FrameHeader& header, std::span<const uint8_t>,
                    const std::shared_ptr<void>&) override {
        const std::vector<int32_t> odd{77};
        StatusReply reply;
        if (lie.load() != Lie::kRowsMissing) {
            reply.status = odd;
        }
        connection.ref()->send_message(reply, header.request_id);
    }

    std::string endpoint;
    std::atomic<Lie> lie{Lie::kNone};

  private:
    void nodes(Connection& connection, const FrameHeader& header) {
        const std::vector<uint32_t> zero{0}, weight{1000}, epoch{1};
        const std::vector<uint8_t> alive{static_cast<uint8_t>(NodeState::kAlive)};
        const std::vector<std::string_view> ids{"liar"}, tcp{endpoint}, none{""};
        const std::vector<uint64_t> bytes{1 << 20};
        NodesReply reply;
        reply.indexes = zero;
        reply.ids = ids;
        reply.states = alive;
        reply.tcp_endpoints = tcp;
        reply.unix_endpoints = none;
        reply.hosts = none;
        reply.weights = weight;
        reply.free_bytes = bytes;
        reply.capacity_bytes = bytes;
        reply.epochs = epoch;
        reply.nodes_id = 1;
        connection.ref()->send_message(reply, header.request_id);
    }
    void lookup(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body) {
        Lookup request;
        ASSERT_TRUE(decode_message(body, &request).ok());
        const Lie now = lie.load();
        const size_t rows = request.keys.size() - (now == Lie::kLookupRowsMissing ? 1 : 0);
        const std::vector<int32_t> status(rows, 0);
        const std::vector<uint64_t> versions(rows, 7);
        const std::vector<uint64_t> sizes(rows, now == Lie::kLookupOtherSize ? 90 : 100);
        const std::vector<uint8_t> counts(rows, 1);
        const std::vector<uint32_t> at(rows, now == Lie::kLookupUnknownNode ? 4711 : 0);
        LookupReply reply;
        reply.status = status;
        reply.versions = versions;
        reply.sizes = sizes;
        reply.replica_counts = counts;
        reply.nodes = at;
        reply.nodes_id = 1;
        connection.ref()->send_message(reply, header.request_id);
    }
    void get(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body) {
        Get request;
        ASSERT_TRUE(decode_message(body, &request).ok());
        const Lie now = lie.load();
        if (now == Lie::kHangUp) {
            return connection.ref()->close(Code::kInternal, "no more");
        }
        if (now == Lie::kOtherType) {
            connection.ref()->send_message(Pong{}, header.request_id);
            return;
        }
        if (now == Lie::kGarbage) {
            const std::vector<uint8_t> noise(100, 0xFF);
            connection.ref()->send(MessageType::kGetReply, 0, header.request_id, noise);
            return;
        }
        const size_t rows = request.keys.size() - (now == Lie::kRowsMissing ? 1 : 0);
        const NamespaceId ns = namespace_id(test_secret(), "default", "", 0);
        auto bytes = std::make_shared<std::vector<std::string>>();
        std::vector<uint64_t> sizes, versions(rows, 7);
        std::vector<uint32_t> crcs;
        std::vector<iovec> payload;
        for (size_t row = 0; row < rows; ++row) {
            const std::string key(now == Lie::kOtherObject ? "another" : request.keys[row]);
            const size_t size = now == Lie::kTooLong ? request.max_sizes[row] + 1 : 100;
            bytes->push_back(bytes_of(key, size));
            const Identity identity{tenant_id(test_secret(), "default"), ns,
                                    key_hash(test_secret(), ns, key), 7, size};
            crcs.push_back(seal_checksum(crc32c(bytes->back().data(), size), identity));
            sizes.push_back(size);
            if (now == Lie::kOtherBytes) {
                bytes->back()[50] ^= 1;
            }
        }
        for (std::string& one : *bytes) {
            payload.push_back({one.data(), one.size() - (now == Lie::kPayloadTooShort ? 1 : 0)});
        }
        if (now == Lie::kPayloadMissing) {
            payload.clear();
        }
        const std::vector<int32_t> status(rows, 0);
        GetReply reply;
        reply.status = status;
        reply.sizes = sizes;
        reply.versions = versions;
        reply.crcs = crcs;
        connection.ref()->send_message(reply, header.request_id, 0, payload, bytes);
    }
    std::unique_ptr<EventServer> server_;
};

TEST(ClientLiesTest, EveryLieIsAMissAndTheNextTruthIsRead) {
    Liar liar;
    TestClient client(liar.endpoint, Transport::kAuto, 2000);
    const std::vector<std::string> keys = numbered("k", 5);
    std::vector<std::string> truth;
    EXPECT_EQ(client.get_all(keys, &truth, 200), std::vector<int64_t>(5, 100));
    for (const Lie lie : kGetLies) {
        liar.lie = lie;
        // Where the master's answer is no use, placements that are known from before still are.
        const bool known = lie == Lie::kLookupRowsMissing || lie == Lie::kLookupUnknownNode;
        std::vector<std::string> values;
        const std::vector<int64_t> results = client.get_all(keys, &values, 200);
        for (size_t i = 0; i < keys.size(); ++i) {
            EXPECT_TRUE(known ? values[i] == bytes_of(keys[i], 100) : results[i] < 0)
                << "lie " << static_cast<int>(lie);
        }
        const std::string unread = "unread " + std::to_string(static_cast<int>(lie));
        for (const int64_t result : client.get_all(numbered(unread, 5), &values, 200)) {
            EXPECT_LT(result, 0) << unread;
        }
        liar.lie = Lie::kNone;
        EXPECT_TRUE(eventually([&] { return client.get("k") == bytes_of("k", 100); }))
            << "after lie " << static_cast<int>(lie);
    }
    // The master may be out of date about a size: what counts is what the node has.
    liar.lie = Lie::kLookupOtherSize;
    EXPECT_EQ(client.get("k", 100), bytes_of("k", 100));
}

TEST(ClientLiesTest, OddAnswersToPutsAreNoSuccess) {
    Liar liar;
    TestClient client(liar.endpoint, Transport::kAuto, 1000);
    for (const Lie lie : {Lie::kNone, Lie::kRowsMissing}) {
        liar.lie = lie;
        const Code code = client.put("k", "bytes");
        EXPECT_NE(code, Code::kOk);
        EXPECT_NE(code, Code::kAlreadyExists);
    }
}

}  // namespace
}  // namespace kvstore::testing
