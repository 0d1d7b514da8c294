// A small service over the event server, and raw sockets to mistreat it with.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "net/channel.h"
#include "net/event_server.h"
#include "tests/waiting.h"

namespace kvstore::testing {

// Lookup answers a row per key; Put stores its payload and Get sends it back; Flush answers an
// Error; Stats is answered by another thread; List floods the asker with `limit` (at most 100)
// replies of 1 MiB; Inspect is never answered; Remove fails the connection.
inline constexpr uint64_t kMaxStoredBytes = 64u << 20;  // greater payload is discarded

class TestService : public ConnectionHandler {
  public:
    TestService() : region_(memfd_create("test region", MFD_CLOEXEC)) {
        (void)!write(region_.get(), "shared bytes", 12);
    }
    ~TestService() override {
        for (std::thread& thread : threads) {
            thread.join();
        }
    }

    Result<HelloAnswer> on_hello(Connection& connection, const Hello& hello) override {
        if (hello.ns == "forbidden") {
            return {Code::kPermissionDenied, "not this namespace"};
        }
        ++hellos;
        HelloAnswer answer;
        answer.welcome.session_id = connection.id();
        answer.welcome.hash_secret = {1, 2, 3};
        answer.welcome.peers = {"tcp://a:1", "tcp://b:2"};
        answer.welcome.slot = 4;
        answer.fds = {region_.get()};
        answer.session = std::make_shared<std::string>(hello.client_name);
        return answer;
    }
    void on_open(Connection& connection) override {
        ++opens;
        std::lock_guard lock(mutex);
        refs.push_back(connection.ref());
        peers.push_back(connection.peer());
    }
    void on_frame(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body,
                  PayloadPlan* plan) override {
        ++frames;
        switch (header.message()) {
            case MessageType::kLookup:
                return lookup(connection, header, body);
            case MessageType::kGet:
                return get(connection, header);
            case MessageType::kPut:
                if (!discard_puts && header.payload_bytes <= kMaxStoredBytes) {
                    auto buffer = std::make_shared<std::vector<uint8_t>>(header.payload_bytes);
                    const size_t half = buffer->size() / 2;
                    plan->into = {{buffer->data(), half},
                                  {buffer->data() + half, buffer->size() - half}};
                    plan->context = buffer;
                }
                return;
            case MessageType::kFlush:
                connection.ref()->send_error(header.request_id, Code::kUnavailable, "not now");
                return;
            case MessageType::kStats: {
                std::lock_guard lock(mutex);
                threads.emplace_back([ref = connection.ref(), id = header.request_id] {
                    ref->send_message(StatsReply{}, id);
                });
                return;
            }
            case MessageType::kList:
                return flood(connection, body);
            case MessageType::kInspect:
                return;
            case MessageType::kRemove:
                return connection.fail(Code::kRemoved, "as asked");
            default:
                ++others;
        }
    }
    void on_payload(Connection& connection, const FrameHeader& header,
                    std::span<const uint8_t> body, const std::shared_ptr<void>& context) override {
        Put put;
        if (!connection.decode(body, &put)) {
            return;
        }
        {
            std::lock_guard lock(mutex);
            stored = std::static_pointer_cast<std::vector<uint8_t>>(context);
        }
        const std::vector<int32_t> status(put.keys.size(), 0);
        connection.ref()->send_message(StatusReply{.status = status}, header.request_id);
    }
    void on_close(Connection&, Code code, std::string_view reason) override {
        ++closes;
        std::lock_guard lock(mutex);
        last_close = code;
        last_reason = reason;
    }
    void on_tick(size_t) override { ++ticks; }

    std::shared_ptr<ConnectionRef> first_ref() {
        std::lock_guard lock(mutex);
        return refs.empty() ? nullptr : refs.front();
    }

    std::atomic<int> hellos{0};
    std::atomic<int> opens{0};
    std::atomic<int> frames{0};
    std::atomic<int> others{0};
    std::atomic<int> closes{0};
    std::atomic<int> ticks{0};
    std::atomic<bool> discard_puts{false};
    std::mutex mutex;  // guards what follows
    std::vector<std::shared_ptr<ConnectionRef>> refs;
    std::vector<Peer> peers;
    std::shared_ptr<std::vector<uint8_t>> stored;
    Code last_close = Code::kOk;
    std::string last_reason;
    std::vector<std::thread> threads;

  private:
    void lookup(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body) {
        Lookup lookup;
        if (!connection.decode(body, &lookup)) {
            return;
        }
        std::vector<uint64_t> sizes;
        for (const std::string_view key : lookup.keys) {
            sizes.push_back(key.size());
        }
        const std::vector<int32_t> status(sizes.size(), 0);
        connection.ref()->send_message(LookupReply{.status = status, .sizes = sizes},
                                       header.request_id);
    }
    void get(Connection& connection, const FrameHeader& header) {
        std::shared_ptr<std::vector<uint8_t>> bytes;
        {
            std::lock_guard lock(mutex);
            bytes = stored;
        }
        if (bytes == nullptr) {
            connection.ref()->send_error(header.request_id, Code::kNotFound, "nothing is stored");
            return;
        }
        const std::vector<int32_t> status = {0};
        const std::vector<uint64_t> sizes = {bytes->size()};
        const iovec part{bytes->data(), bytes->size()};
        connection.ref()->send_message(GetReply{.status = status, .sizes = sizes},
                                       header.request_id, 0, std::span(&part, 1), bytes);
    }
    void flood(Connection& connection, std::span<const uint8_t> body) {
        List list;
        if (!connection.decode(body, &list)) {
            return;
        }
        const std::vector<uint8_t> text(1 << 20);
        for (uint32_t i = 0; i < std::min(list.limit, 100u); ++i) {
            connection.ref()->send(MessageType::kListReply, 0, 0, text);
        }
    }

    Fd region_;
};

class EventServerTest : public ::testing::Test {
  protected:
    void SetUp() override {
        char folder[] = "/tmp/kvwire.XXXXXX";
        ASSERT_NE(mkdtemp(folder), nullptr);
        folder_ = folder;
        options_.loops = 2;
        options_.tick_ms = 10;
        options_.cluster_id = "test-cluster";
    }
    void TearDown() override {
        server_.reset();
        rmdir(folder_.c_str());
    }
    void serve() {
        server_ = std::make_unique<EventServer>(options_, service_);
        tcp_ = server_->listen(*Endpoint::parse("tcp://127.0.0.1:0")).value();
        unix_ = server_->listen(*Endpoint::parse("unix://" + folder_ + "/socket")).value();
        ASSERT_TRUE(server_->start().ok());
    }
    void require_tokens() {
        options_.authenticator = std::make_shared<Authenticator>(std::vector<Principal>{
            {"engine", Role::kClient, {"default"}, "s3cret"},
            {"admin", Role::kOperator, {"*"}, "adm1n"},
            {"node-a", Role::kNode, {}, "n0de"},
        });
    }
    static HelloParams params() {
        HelloParams params;
        params.client_name = "test";
        return params;
    }
    static HelloParams with_token(std::string principal, std::string token) {
        HelloParams params;
        params.principal = std::move(principal);
        params.token = std::move(token);
        return params;
    }
    std::unique_ptr<Channel> connect(const Endpoint& endpoint,
                                     const HelloParams& hello = params()) {
        Result<std::unique_ptr<Channel>> channel = Channel::connect(endpoint, hello, soon());
        EXPECT_TRUE(channel.ok()) << channel.status().to_string();
        return channel.ok() ? std::move(*channel) : nullptr;
    }
    Status refusal(const Endpoint& endpoint, const HelloParams& hello) {
        return Channel::connect(endpoint, hello, soon()).status();
    }
    // That the server still serves others.
    void expect_serving(const HelloParams& hello = params()) {
        const std::unique_ptr<Channel> channel = connect(tcp_, hello);
        ASSERT_NE(channel, nullptr);
        const std::string_view key = "alive";
        LookupReply reply;
        const Status status = channel->exchange(Lookup{.keys = key}, &reply, soon());
        EXPECT_TRUE(status.ok()) << status.to_string();
    }
    uint64_t refusals(Code code) const {
        return server_->stats().refusals[static_cast<size_t>(-static_cast<int32_t>(code))];
    }
    bool logged(std::string_view text) {
        for (Refusal& refusal : server_->take_refusals()) {
            log_.push_back(std::move(refusal.reason));
        }
        return std::ranges::any_of(
            log_, [&](const std::string& line) { return line.find(text) != std::string::npos; });
    }

    std::string folder_;
    EventServer::Options options_;
    std::vector<std::string> log_;
    TestService service_;
    std::unique_ptr<EventServer> server_;
    Endpoint tcp_;
    Endpoint unix_;
};

// ------------------------------------------------------------------------------- raw sockets

using Bytes = std::vector<uint8_t>;

template <class M>
Bytes frame_of(const M& message, uint64_t request_id = 1, uint64_t payload_bytes = 0) {
    Bytes body;
    encode_message(message, body);
    const FrameHeaderBytes head = encode_header({.body_bytes = static_cast<uint32_t>(body.size()),
                                                 .type = static_cast<uint16_t>(M::kType),
                                                 .request_id = request_id,
                                                 .payload_bytes = payload_bytes});
    body.insert(body.begin(), head.begin(), head.end());
    return body;
}

inline Status send_bytes(const Fd& fd, const Bytes& bytes) {
    iovec part{const_cast<uint8_t*>(bytes.data()), bytes.size()};
    return send_all(fd.get(), std::span(&part, 1), soon());
}

struct RawFrame {
    FrameHeader header;
    Bytes body;
};
// The next frame, or nothing when the server has closed.
inline std::optional<RawFrame> next_frame(const Fd& fd) {
    RawFrame frame;
    FrameHeaderBytes head;
    if (!recv_all(fd.get(), head, soon()).ok() || !decode_header(head, &frame.header).ok()) {
        return std::nullopt;
    }
    frame.body.resize(frame.header.body_bytes);
    if (!recv_all(fd.get(), std::span<uint8_t>(frame.body), soon()).ok()) {
        return std::nullopt;
    }
    return frame;
}
// Reads until the server closes; the code of the Refused or fatal Error on the way.
inline Code closing_code(const Fd& fd) {
    Code code = Code::kOk;
    while (const std::optional<RawFrame> frame = next_frame(fd)) {
        Refused refused;
        if ((frame->header.flags & kFlagFatal) != 0 && decode_message(frame->body, &refused).ok()) {
            code = static_cast<Code>(refused.code);
        }
    }
    return code;
}
// A session without any Channel, through an open (token-less) server.
inline Fd raw_session(const Endpoint& endpoint) {
    Fd fd = connect_to(endpoint, soon()).value();
    HelloParams params;
    params.features = 0;
    EXPECT_TRUE(send_bytes(fd, frame_of(params.hello({}), kHelloMagic)).ok());
    const std::optional<RawFrame> frame = next_frame(fd);
    EXPECT_TRUE(frame && frame->header.message() == MessageType::kWelcome);
    return fd;
}

}  // namespace kvstore::testing
