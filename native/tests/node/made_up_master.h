// A made-up master on a real event server: welcomes links, records what they say, and answers
// claims and announces at once or when a test says so. And a node's side of the link.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "node/connection_state.h"
#include "node/master_link.h"
#include "tests/node/node_fixture.h"

namespace kvstore::testing {

class MadeUpMaster final : public ConnectionHandler {
  public:
    struct Announced {
        uint64_t seq = 0;
        AnnouncePhase phase = AnnouncePhase::kIncremental;
        std::vector<std::string> keys{};
    };
    struct Claimed {
        uint64_t id = 0;
        std::string key{};
        uint8_t flags = 0;
    };
    struct CopyAnswer {
        uint64_t copy_id = 0;
        Code code = Code::kInternal;
    };
    // What links have said; `announces` on the current link alone, all else since the start.
    struct Heard {
        std::vector<uint64_t> hello_ms{};
        uint64_t session_id = 0;
        uint64_t applied_seq = 0;
        uint64_t acked_seq = 0;
        std::vector<Announced> announces{};
        std::vector<Claimed> claims{};
        std::vector<uint64_t> abandoned{};
        std::vector<std::pair<std::string, Version>> withdrawn{};
        std::vector<CopyAnswer> copies{};
        std::vector<std::string> heartbeats{};
        std::vector<size_t> pongs{};  // for each, how many announces had come before
    };
    struct Manners {
        bool refuse = false;            // hellos
        bool hold_claims = false;       // until answer_claim()
        bool hold_announces = false;    // incremental ones, until answer_announce()
        bool hold_end = false;          // the last one of a full announce, likewise
        bool hold_heartbeats = false;   // never answered
        uint64_t ops_seq = 0;           // sent to whoever links, as removes
        bool first_of_its_key = false;  // says so with every grant
    };

    explicit MadeUpMaster(uint64_t features = kAllFeatures)
        : server_({.loops = 1, .features = features}, *this) {
        endpoint = server_.listen(*Endpoint::parse("tcp://127.0.0.1:0"))->to_string();
        EXPECT_TRUE(server_.start().ok());
    }
    ~MadeUpMaster() override { server_.stop(); }

    Heard heard() const {
        const std::lock_guard lock(mutex_);
        return heard_;
    }
    size_t hellos() const { return heard().hello_ms.size(); }
    void set(const Manners& manners) {
        const std::lock_guard lock(mutex_);
        manners_ = manners;
    }
    void answer_claim(uint64_t id, Code code, Version version) {
        const std::lock_guard lock(mutex_);
        ASSERT_NE(link_, nullptr);
        send_claim_reply(id, code, version);
    }
    // The oldest one that is held, every row with this code.
    void answer_announce(Code code = Code::kOk) {
        const std::lock_guard lock(mutex_);
        ASSERT_FALSE(held_.empty());
        ASSERT_NE(link_, nullptr);
        const auto [seq, rows] = held_.front();
        held_.pop_front();
        send_announce_reply(seq, rows, code);
    }
    void push_removes(uint64_t first_seq, size_t count) {
        const std::lock_guard lock(mutex_);
        ASSERT_NE(link_, nullptr);
        send_removes(first_seq, count);
    }
    void order_copy(uint64_t copy_id, const std::string& key, Version version) {
        const std::lock_guard lock(mutex_);
        ASSERT_NE(link_, nullptr);
        link_->send_message(Copy{.copy_id = copy_id,
                                 .tenant = "tenant",
                                 .ns = "space",
                                 .key = key,
                                 .version = version,
                                 .target_endpoint = "tcp://127.0.0.1:1",
                                 .target_node = "b"},
                            0);
    }
    void ping() {
        const std::lock_guard lock(mutex_);
        ASSERT_NE(link_, nullptr);
        link_->send_message(Ping{1}, 1);
    }
    void drop_link() {
        const std::lock_guard lock(mutex_);
        ASSERT_NE(link_, nullptr);
        link_->close(Code::kClosed, "a test");
    }
    // Stops to read and to answer, pings too, until the returned object is gone.
    std::shared_ptr<void> hang() {
        auto gate = std::make_shared<std::mutex>();
        auto closed = std::make_unique<std::unique_lock<std::mutex>>(*gate);
        server_.post(0, [gate] { const std::lock_guard wait(*gate); });
        return {closed.release(), [gate](std::unique_lock<std::mutex>* held) { delete held; }};
    }

    Result<HelloAnswer> on_hello(Connection&, const Hello& hello) override {
        const std::lock_guard lock(mutex_);
        heard_.hello_ms.push_back(boottime_ms());
        heard_.session_id = hello.session_id;
        heard_.applied_seq = hello.applied_seq;
        if (manners_.refuse) {
            return Status(Code::kExpired, "register first");
        }
        HelloAnswer answer;
        answer.welcome.ops_seq = manners_.ops_seq;
        return answer;
    }
    void on_open(Connection& connection) override {
        const std::lock_guard lock(mutex_);
        link_ = connection.ref();
        heard_.announces.clear();
        held_.clear();
        if (manners_.ops_seq > 0) {
            send_removes(1, manners_.ops_seq);
        }
    }
    void on_frame(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body,
                  PayloadPlan*) override {
        const std::lock_guard lock(mutex_);
        switch (header.message()) {
            case MessageType::kAnnounce:
                return on_announce(connection, body);
            case MessageType::kClaim:
                return on_claim(connection, body);
            case MessageType::kAbandon: {
                Abandon message;
                ASSERT_TRUE(connection.decode(body, &message));
                for (const uint64_t id : message.claim_ids) {
                    heard_.abandoned.push_back(id);
                }
                return;
            }
            case MessageType::kWithdraw: {
                Withdraw message;
                ASSERT_TRUE(connection.decode(body, &message));
                for (size_t i = 0; i < message.keys.size(); ++i) {
                    heard_.withdrawn.emplace_back(message.keys[i], message.versions[i]);
                }
                return;
            }
            case MessageType::kOpsAck: {
                OpsAck message;
                ASSERT_TRUE(connection.decode(body, &message));
                heard_.acked_seq = message.seq;
                return;
            }
            case MessageType::kPong:
                heard_.pongs.push_back(heard_.announces.size());
                return;
            case MessageType::kCopyDone: {
                CopyDone message;
                ASSERT_TRUE(connection.decode(body, &message));
                heard_.copies.push_back({message.copy_id, static_cast<Code>(message.code)});
                return;
            }
            case MessageType::kHeartbeat:
                return on_heartbeat(connection, header, body);
            default:
                ADD_FAILURE() << "a node sent " << message_type_name(header.type);
        }
    }
    void on_close(Connection& connection, Code, std::string_view) override {
        const std::lock_guard lock(mutex_);
        if (link_ == connection.ref()) {
            link_ = nullptr;
        }
    }

    std::string endpoint;

  private:
    // All with the mutex held.
    void on_announce(Connection& connection, std::span<const uint8_t> body) {
        Announce message;
        ASSERT_TRUE(connection.decode(body, &message));
        Announced& announced = heard_.announces.emplace_back();
        announced.seq = message.seq;
        announced.phase = message.phase;
        for (const std::string_view key : message.keys) {
            announced.keys.emplace_back(key);
        }
        if ((manners_.hold_announces && message.phase == AnnouncePhase::kIncremental) ||
            (manners_.hold_end && message.phase == AnnouncePhase::kEnd)) {
            held_.emplace_back(message.seq, message.keys.size());
        } else {
            send_announce_reply(message.seq, message.keys.size(), Code::kOk);
        }
    }
    void on_claim(Connection& connection, std::span<const uint8_t> body) {
        Claim message;
        ASSERT_TRUE(connection.decode(body, &message));
        for (size_t i = 0; i < message.keys.size(); ++i) {
            heard_.claims.push_back(
                {message.claim_ids[i], std::string(message.keys[i]), message.flags[i]});
            if (!manners_.hold_claims) {
                send_claim_reply(message.claim_ids[i], Code::kOk, heard_.claims.size());
            }
        }
    }
    void on_heartbeat(Connection& connection, const FrameHeader& header,
                      std::span<const uint8_t> body) {
        Heartbeat message;
        ASSERT_TRUE(connection.decode(body, &message));
        heard_.heartbeats.emplace_back(message.request);
        if (message.request == "refuse") {
            link_->send_error(header.request_id, Code::kNotFound, "register again");
        } else if (!manners_.hold_heartbeats) {
            const std::string reply = "to " + heard_.heartbeats.back();
            link_->send_message(HeartbeatReply{reply}, header.request_id);
        }
    }
    void send_claim_reply(uint64_t id, Code code, Version version) {
        const std::vector<uint64_t> ids{id};
        const std::vector<int32_t> status{static_cast<int32_t>(code)};
        const std::vector<uint64_t> versions{version};
        const std::vector<uint8_t> flags{manners_.first_of_its_key ? kClaimFirst : uint8_t{0}};
        link_->send_message(
            ClaimReply{.claim_ids = ids, .status = status, .versions = versions, .flags = flags},
            0);
    }
    void send_announce_reply(uint64_t seq, size_t rows, Code code) {
        const std::vector<int32_t> status(rows, static_cast<int32_t>(code));
        link_->send_message(AnnounceReply{seq, status}, 0);
    }
    void send_removes(uint64_t first_seq, size_t count) {
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

    mutable std::mutex mutex_;
    Heard heard_;
    Manners manners_;
    std::deque<std::pair<uint64_t, size_t>> held_;  // announces: number and rows
    std::shared_ptr<ConnectionRef> link_;
    EventServer server_;
};

// The server on the node's side of a link; who derives from it says what the link tells the node.
class LinkedNode : public ConnectionHandler, public MasterLink::Handler {
  public:
    explicit LinkedNode(MasterLink::Options options)
        : server_({.loops = 1, .tick_ms = 10}, *this), link(std::move(options), server_, *this) {}

    Result<HelloAnswer> on_hello(Connection&, const Hello&) override { return Code::kUnsupported; }
    void on_open(Connection& connection) override { link.on_open(connection); }
    void on_frame(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body,
                  PayloadPlan*) override {
        link.on_frame(connection, header, body);
    }
    void on_ping(Connection& connection) override { link.on_ping(connection); }
    void on_close(Connection& connection, Code, std::string_view reason) override {
        link.on_close(connection, reason);
    }
    void on_tick(size_t) override { link.tick(); }

  protected:
    // First and last in the life of who derives: its own members are told of events between.
    void start() {
        EXPECT_TRUE(server_.start().ok());
        link.start();
    }
    void stop() {
        link.stop();
        server_.stop();
    }

  private:
    EventServer server_;

  public:
    MasterLink link;
};

inline MasterLink::Options link_options(const MadeUpMaster& master) {
    MasterLink::Options options;
    options.node_id = "a";
    options.session_id = 7;
    options.endpoints = {master.endpoint};
    options.backoff_max_ms = 20;
    return options;
}

}  // namespace kvstore::testing
