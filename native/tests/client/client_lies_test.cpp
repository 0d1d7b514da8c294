// The client against a master and a node that lie: every lie is a miss or a code, never other
// bytes, never a crash, and the client goes on afterwards. And against one that speaks the truth at
// a bad moment, which is no lie.
#include <poll.h>
#include <sys/socket.h>

#include <ctime>
#include <thread>

#include "tests/client/client_fixture.h"

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
    // Not lies: the bytes are those of an earlier epoch of the namespace than the client knows of,
    // and the question which one it is now …
    kHangUpAtResolve,  // … breaks the link
    kFlushedTwice,     // … is answered after another flush
    kOvertaken,        // the first two versions that a lookup names are replaced before the read
    kUnannounced,      // the node has a newer version than the master has heard of
};
constexpr Lie kGetLies[] = {Lie::kRowsMissing,       Lie::kTooLong,          Lie::kPayloadTooShort,
                            Lie::kPayloadMissing,    Lie::kOtherBytes,       Lie::kOtherObject,
                            Lie::kOtherType,         Lie::kGarbage,          Lie::kHangUp,
                            Lie::kLookupRowsMissing, Lie::kLookupUnknownNode};

// Master and only node at once; has every object: bytes_of(key, 100).
class Liar : public ConnectionHandler {
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
                if (lie.load() == Lie::kHangUpAtResolve) {
                    return connection.ref()->close(Code::kInternal, "no more");
                }
                ResolveReply reply;
                reply.ns_epoch = lie.load() == Lie::kFlushedTwice ? 2 : 0;
                reply.namespace_id = namespace_id(test_secret(), "default", "", reply.ns_epoch);
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
    std::string node_endpoint;  // empty: the same
    std::atomic<Lie> lie{Lie::kNone};
    std::atomic<uint64_t> reads{0};

  private:
    void nodes(Connection& connection, const FrameHeader& header) {
        const std::vector<uint32_t> zero{0}, weight{1000}, epoch{1};
        const std::vector<uint8_t> alive{static_cast<uint8_t>(NodeState::kAlive)};
        const std::vector<std::string_view> ids{"liar"}, none{""};
        const std::vector<std::string_view> tcp{node_endpoint.empty() ? endpoint : node_endpoint};
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
        const std::vector<uint64_t> versions(rows, now == Lie::kOvertaken ? 5 + reads.load() : 7);
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
        const bool early = reads.fetch_add(1) < 2;
        if ((now == Lie::kOvertaken && early) ||
            (now == Lie::kUnannounced && request.versions[0] != 0)) {
            const std::vector<int32_t> none(request.keys.size(),
                                            static_cast<int32_t>(Code::kNotFound));
            const std::vector<uint8_t> reasons(
                request.keys.size(),
                static_cast<uint8_t>(now == Lie::kOvertaken ? MissReason::kRemoved
                                                            : MissReason::kVersion));
            GetReply reply;
            reply.status = none;
            reply.reasons = reasons;
            connection.ref()->send_message(reply, header.request_id);
            return;
        }
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
        const bool other_epoch = now == Lie::kHangUpAtResolve || now == Lie::kFlushedTwice;
        const NamespaceId ns = namespace_id(test_secret(), "default", "", other_epoch ? 1 : 0);
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

TEST(ClientLiesTest, BytesOfAnUnknownEpochAreNoWrongChecksum) {
    for (const Lie lie : {Lie::kHangUpAtResolve, Lie::kFlushedTwice}) {
        Liar liar;
        TestClient client(liar.endpoint, Transport::kAuto, 1000);
        liar.lie = lie;
        EXPECT_EQ(client.get("k", 100), std::nullopt);
        EXPECT_EQ(client.last.result, static_cast<int64_t>(Code::kNotFound));
        EXPECT_NE(client.last.reason, MissReason::kChecksum);
        EXPECT_EQ(client.count(ClientCounter::kWrongChecksums), 0u);
    }
}

TEST(ClientLiesTest, AReadFollowsVersionsThatOvertakeIt) {
    Liar liar;
    TestClient client(liar.endpoint, Transport::kAuto, 1000);
    liar.lie = Lie::kOvertaken;
    EXPECT_EQ(client.get("k", 100), bytes_of("k", 100));
    EXPECT_EQ(liar.reads.load(), 3u);
}

TEST(ClientLiesTest, AVersionThatIsNotAnnouncedYetIsReadWhereTheOldOneWas) {
    Liar liar;
    TestClient client(liar.endpoint, Transport::kAuto, 1000);
    liar.lie = Lie::kUnannounced;
    EXPECT_EQ(client.get("k", 100), bytes_of("k", 100));
}

// Passes everything on, but waits in the middle of the answers.
class HalfwayProxy {
  public:
    explicit HalfwayProxy(const std::string& to) : to_(*Endpoint::parse(to)) {
        const Endpoint asked = *Endpoint::parse("tcp://127.0.0.1:0");
        listener_ = std::move(*listen_on(asked));
        endpoint = bound_endpoint(listener_.get(), asked)->to_string();
        thread_ = std::thread([this] { run(); });
    }
    ~HalfwayProxy() {
        stopping_ = true;
        thread_.join();
    }
    std::string endpoint;
    std::atomic<bool> pause{false};

  private:
    static constexpr ssize_t kFirstBytes = 12;  // not even a whole header

    static bool readable(int fd) {
        pollfd entry{fd, POLLIN, 0};
        return poll(&entry, 1, 5) == 1;
    }
    // One step; false when the connection has ended.
    bool pass(int from, int to, bool answers) {
        char bytes[4096];
        const ssize_t count = recv(from, bytes, sizeof bytes, MSG_DONTWAIT);
        if (count <= 0) {
            return false;
        }
        const ssize_t first = answers && pause ? std::min<ssize_t>(count, kFirstBytes) : count;
        (void)!send(to, bytes, static_cast<size_t>(first), MSG_NOSIGNAL);
        if (first != count) {
            std::this_thread::sleep_for(std::chrono::milliseconds(500));
            (void)!send(to, bytes + first, static_cast<size_t>(count - first), MSG_NOSIGNAL);
        }
        return true;
    }
    void run() {
        std::vector<std::pair<Fd, Fd>> pairs;
        while (!stopping_) {
            if (readable(listener_.get())) {
                Fd client(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
                pairs.emplace_back(std::move(client),
                                   std::move(*connect_to(to_, Deadline::after_ms(1000))));
            }
            std::erase_if(pairs, [this](const auto& pair) {
                const int client = pair.first.get();
                const int server = pair.second.get();
                return (readable(client) && !pass(client, server, false)) ||
                       (readable(server) && !pass(server, client, true));
            });
        }
    }

    const Endpoint to_;
    Fd listener_;
    std::atomic<bool> stopping_{false};
    std::thread thread_;
};

uint64_t cpu_ms_of_this_thread() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1000 + static_cast<uint64_t>(now.tv_nsec) / 1000000;
}

TEST(ClientLiesTest, HalfAReplyIsWaitedForWithoutWork) {
    Liar liar;
    HalfwayProxy proxy(liar.endpoint);
    liar.node_endpoint = proxy.endpoint;
    TestClient client(liar.endpoint, Transport::kTcp, 5000);
    ASSERT_EQ(client.get("k", 100), bytes_of("k", 100));
    proxy.pause = true;
    const uint64_t begin_ms = boottime_ms();
    const uint64_t cpu_ms = cpu_ms_of_this_thread();
    EXPECT_EQ(client.get("k", 100), bytes_of("k", 100));
    EXPECT_GE(boottime_ms() - begin_ms, 450u) << "the answer came in one piece";
    EXPECT_LT(cpu_ms_of_this_thread() - cpu_ms, 100u);
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
