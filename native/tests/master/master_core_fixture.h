// A MasterCore whose nodes are objects. For tests.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "base/clock.h"
#include "master/master_core.h"
#include "wire/messages.h"

namespace kvstore {

// What a node has been sent; acknowledges operations only when told to.
class FakeLink final : public NodeLink {
  public:
    void send_claims(std::span<const ClaimAnswer> answers) override {
        std::lock_guard lock(mutex_);
        claims.insert(claims.end(), answers.begin(), answers.end());
    }
    void send_ops(std::span<const Op> run) override {
        std::lock_guard lock(mutex_);
        ops.insert(ops.end(), run.begin(), run.end());
    }
    void send_copy(const CopyOrder& order) override {
        std::lock_guard lock(mutex_);
        copies.push_back(order);
    }
    void send_ping(uint64_t token) override {
        std::lock_guard lock(mutex_);
        pings.push_back(token);
    }
    void send_heartbeat_answer(uint64_t request_id, Code code, std::string_view text) override {
        std::lock_guard lock(mutex_);
        heartbeat_answers.emplace_back(request_id, code, text);
    }
    void close(const std::string& reason) override { closed = reason; }
    uint64_t heard_ms() const override { return heard; }

    std::mutex mutex_;
    std::vector<ClaimAnswer> claims;
    std::vector<Op> ops;
    std::deque<CopyOrder> copies;
    std::vector<uint64_t> pings;
    std::vector<std::tuple<uint64_t, Code, std::string>> heartbeat_answers;
    std::string closed;
    std::atomic<uint64_t> heard{boottime_ms()};
};

struct Answer {
    int calls = 0;
    std::vector<Code> codes;
    std::vector<std::string> unreached;
    MasterCore::RemoveDone done() {
        return [this](std::vector<Code> c, std::vector<std::string> u) {
            ++calls;
            codes = std::move(c);
            unreached = std::move(u);
        };
    }
};

class MasterCoreTest : public testing::Test {
  protected:
    struct Node {
        std::string id;
        uint64_t session = 0;
        LinkId link = 0;
        uint64_t seq = 0;
        uint64_t claim_id = 0;
        std::shared_ptr<FakeLink> to;
    };

    static MasterCore::Options options(uint32_t epoch = 1) {
        MasterCore::Options out;
        out.secret = {9};
        out.epoch = epoch;
        out.journal_auto_ack = true;
        out.maintenance_ms = 0;
        return out;
    }
    void restart(MasterCore::Options with) {
        core_ = std::make_unique<MasterCore>(with);
        ns_ = *core_->directory().namespaces().open("tenant", "space");
    }
    void SetUp() override { restart(options()); }

    Node add_node(const std::string& id, uint64_t session = 1, const std::string& host = "") {
        Node node{.id = id, .session = session, .to = nullptr};
        EXPECT_TRUE(core_
                        ->register_node({.node_id = id,
                                         .session_id = session,
                                         .tcp_endpoint = "tcp://" + id,
                                         .host = host.empty() ? id : host,
                                         .weight = 100,
                                         .state = NodeState::kAlive},
                                        false)
                        .ok());
        connect(node);
        announce_all(node, {});
        return node;
    }
    void connect(Node& node, uint64_t applied_seq = 0) {
        node.to = std::make_shared<FakeLink>();
        node.seq = 100;
        const MasterCore::LinkHello hello{
            .node_id = node.id, .session_id = node.session, .applied_seq = applied_seq};
        ASSERT_TRUE(core_->check_link(hello).ok());
        node.link = *core_->open_link(hello, node.to);
    }
    std::vector<int32_t> announce(Node& node, AnnouncePhase phase,
                                  const std::vector<std::pair<std::string, Version>>& objects,
                                  uint8_t replicas = 1) {
        std::vector<std::string_view> keys;
        std::vector<uint64_t> versions;
        std::vector<uint64_t> sizes(objects.size(), 10);
        std::vector<uint8_t> wanted(objects.size(), replicas);
        for (const auto& [key, version] : objects) {
            keys.push_back(key);
            versions.push_back(version);
        }
        const Announce message{.seq = node.seq++,
                               .phase = phase,
                               .tenant = "tenant",
                               .ns = "space",
                               .epoch = epoch().epoch,
                               .keys = keys,
                               .versions = versions,
                               .sizes = sizes,
                               .replicas = wanted};
        std::vector<int32_t> codes;
        const auto count = [this](const std::vector<int32_t>&) { ++announces_answered_; };
        EXPECT_TRUE(core_->announce(node.link, message, codes, count).ok());
        return codes;
    }
    std::vector<int32_t> announce_all(Node& node,
                                      const std::vector<std::pair<std::string, Version>>& objects) {
        announce(node, AnnouncePhase::kBegin, {});
        const std::vector<int32_t> codes = announce(node, AnnouncePhase::kMiddle, objects);
        announce(node, AnnouncePhase::kEnd, {});
        return codes;
    }
    // The answer given at once, or kInternal.
    ClaimAnswer claim(Node& node, std::string_view key, uint32_t timeout_ms = 60'000) {
        const std::vector<uint64_t> ids{++node.claim_id};
        const Claim message{.tenant = "tenant",
                            .ns = "space",
                            .epoch = epoch().epoch,
                            .claim_ids = ids,
                            .keys = key,
                            .timeout_ms = timeout_ms};
        std::vector<ClaimAnswer> out;
        static_cast<void>(core_->claim(node.link, message, out));
        return out.empty() ? ClaimAnswer{.code = Code::kInternal} : out[0];
    }
    Version put(Node& node, const std::string& key, uint8_t replicas = 1) {
        const ClaimAnswer granted = claim(node, key);
        EXPECT_EQ(granted.code, Code::kOk);
        EXPECT_EQ(announce(node, AnnouncePhase::kIncremental, {{key, granted.version}}, replicas),
                  std::vector<int32_t>{0});
        return granted.version;
    }
    Version upsert(Node& node, std::string_view key) {
        const std::vector<uint64_t> ids{++node.claim_id};
        const uint8_t flags = kPutUpsert;
        const Claim message{.tenant = "tenant",
                            .ns = "space",
                            .epoch = epoch().epoch,
                            .claim_ids = ids,
                            .keys = key,
                            .flags = std::span(&flags, 1)};
        std::vector<ClaimAnswer> out;
        EXPECT_TRUE(core_->claim(node.link, message, out).ok());
        EXPECT_EQ(out.at(0).code, Code::kOk);
        announce(node, AnnouncePhase::kIncremental, {{std::string(key), out[0].version}});
        return out[0].version;
    }
    void withdraw(Node& node, std::string_view key, Version version) {
        const std::vector<uint64_t> versions{version};
        const std::vector<uint8_t> reasons{static_cast<uint8_t>(MissReason::kEvicted)};
        EXPECT_TRUE(core_
                        ->withdraw(node.link, {.seq = node.seq++,
                                               .tenant = "tenant",
                                               .ns = "space",
                                               .keys = key,
                                               .versions = versions,
                                               .reasons = reasons})
                        .ok());
    }
    void ack(Node& node) {
        if (!node.to->ops.empty()) {
            core_->ops_ack(node.link, node.to->ops.back().seq);
        }
    }
    ObjectPlace find(std::string_view key) { return core_->directory().lookup_one(epoch(), key); }
    const DirectoryEpoch& epoch() const { return *ns_->current.load(); }
    // Carries out the copy orders of all the nodes until none is left; returns how many.
    size_t copy(std::vector<Node*> nodes, uint64_t& now_ms) {
        size_t done = 0;
        for (int idle = 0; idle < 5;) {
            core_->maintain(now_ms += 100);
            ++idle;
            for (Node* node : nodes) {
                while (!node->to->copies.empty()) {
                    const CopyOrder order = node->to->copies.front();
                    node->to->copies.pop_front();
                    for (Node* target : nodes) {
                        if (target->id == order.target_node) {
                            announce(*target, AnnouncePhase::kIncremental,
                                     {{order.key, order.version}}, 1);
                        }
                    }
                    core_->copy_done(node->link, order.copy_id, Code::kOk);
                    ++done;
                    idle = 0;
                }
            }
        }
        return done;
    }

    std::atomic<int> announces_answered_{0};
    std::unique_ptr<MasterCore> core_;
    NamespacePtr ns_;
};

}  // namespace kvstore
