// What a node keeps of its UCX process: pulls until nobody writes any more, holds until they are
// over.
#include "node/ucx_port.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/waiting.h"
#include "wire/messages.h"

namespace kvstore {
namespace {

// Keeps what is sent.
class FakeRef final : public ConnectionRef {
  public:
    bool send(MessageType type, uint16_t, uint64_t request_id, std::span<const uint8_t>,
              std::span<const iovec>, std::shared_ptr<void>) override {
        sent.emplace_back(type, request_id);
        return true;
    }
    void close(Code, std::string_view) override {}
    void post(std::function<void(Connection&)>) override {}
    bool open() const override { return true; }
    uint64_t id() const override { return 1; }
    std::vector<std::pair<MessageType, uint64_t>> sent;
};

struct FakePuller final : UcxPort::Puller {
    void pulled(std::span<const UcxPort::Pulled> rows) override {
        for (const UcxPort::Pulled& row : rows) {
            codes.push_back(row.code);
        }
    }
    void late() override { ++late_calls; }
    std::vector<Code> codes;
    int late_calls = 0;
};

class UcxPortTest : public ::testing::Test {
  protected:
    void serve() {
        UcxReady ready;
        ready.worker = "worker";
        port.connected(ref);
        port.ready(ready);
        slice(0, 100);
        slice(100, 50);
    }
    void slice(uint64_t offset, uint64_t size) {
        UcxSlice message;
        message.offset = offset;
        message.size = size;
        message.key = "key";
        port.slice(message);
    }
    bool pull(const std::shared_ptr<FakePuller>& puller, uint32_t timeout_ms = 60'000) {
        const std::vector<UcxPort::Block> blocks(2);
        return port.pull(blocks, "client", {}, timeout_ms, puller);
    }

    UcxPort port;
    std::shared_ptr<FakeRef> ref = std::make_shared<FakeRef>();
};

TEST_F(UcxPortTest, NothingIsReachableWithoutAProcess) {
    EXPECT_EQ(port.region(), nullptr);
    EXPECT_FALSE(pull(std::make_shared<FakePuller>()));
    serve();
    const auto first = port.region();
    ASSERT_NE(first, nullptr);
    EXPECT_TRUE(first->covers(90, 60));
    EXPECT_FALSE(first->covers(90, 61));
    EXPECT_FALSE(first->covers(UINT64_MAX, 2));
    EXPECT_EQ(first->slice_of(99).offset, 0u);
    EXPECT_EQ(first->slice_of(100).offset, 100u);
    port.disconnected();
    EXPECT_EQ(port.region(), nullptr);
    serve();
    EXPECT_GT(port.region()->life, first->life);
}

TEST_F(UcxPortTest, APullEndsWithItsAnswer) {
    serve();
    const auto puller = std::make_shared<FakePuller>();
    ASSERT_TRUE(pull(puller));
    const std::vector<int32_t> status = {0, static_cast<int32_t>(Code::kUnavailable)};
    const std::vector<uint32_t> crcs = {7, 0};
    UcxPulled message;
    message.status = status;
    message.crcs = crcs;
    ASSERT_EQ(ref->sent.back().first, MessageType::kUcxPull);
    port.pulled(ref->sent.back().second, message);
    port.pulled(ref->sent.back().second, message);  // nobody waits for it any more
    port.ended();
    EXPECT_EQ(puller->codes, (std::vector<Code>{Code::kOk, Code::kUnavailable}));
}

// The end of the socket says nothing: the process may still write.
TEST_F(UcxPortTest, APullOutlivesItsConnectionUntilTheProcessHasEnded) {
    serve();
    const auto puller = std::make_shared<FakePuller>();
    ASSERT_TRUE(pull(puller));
    port.disconnected();
    EXPECT_TRUE(puller->codes.empty());
    port.ended();
    EXPECT_EQ(puller->codes, (std::vector<Code>{Code::kUnavailable, Code::kUnavailable}));
}

TEST_F(UcxPortTest, ALatePullIsSaidOnce) {
    serve();
    const auto puller = std::make_shared<FakePuller>();
    ASSERT_TRUE(pull(puller, 0));
    port.tick();
    EXPECT_EQ(puller->late_calls, 0);  // it has a little more than its time
    ASSERT_TRUE(kvstore::testing::eventually([&] {
        port.tick();
        return puller->late_calls == 1;
    }));
    port.tick();
    EXPECT_EQ(puller->late_calls, 1);
    EXPECT_TRUE(puller->codes.empty());
    port.ended();
    EXPECT_EQ(puller->codes.size(), 2u);
}

TEST_F(UcxPortTest, AHoldEndsWithItsReaderOrItsTime) {
    const auto held = std::make_shared<int>(1);
    const auto holders = [&] { return held.use_count() - 1; };
    for (uint64_t request = 1; request <= 3; ++request) {
        ASSERT_TRUE(port.hold(5, request, held, 60'000));
    }
    ASSERT_TRUE(port.hold(6, 1, held, 60'000));
    const std::vector<uint64_t> over = {1, 3, 99};
    port.release(5, over);
    EXPECT_EQ(holders(), 2);
    port.release_all(5);
    EXPECT_EQ(holders(), 1);
    port.release_all(6);
    ASSERT_TRUE(port.hold(6, 1, held, 1));
    ASSERT_TRUE(kvstore::testing::eventually([&] {
        port.tick();
        return holders() == 0;
    }));
}

TEST_F(UcxPortTest, AConnectionHoldsSoMuchAndNoMore) {
    const auto held = std::make_shared<int>(1);
    uint64_t request = 0;
    while (port.hold(5, request, held, 60'000)) {
        ASSERT_LT(++request, 1000u);
    }
    EXPECT_TRUE(port.hold(6, 1, held, 60'000));
    port.release_all(5);
    EXPECT_TRUE(port.hold(5, 1, held, 60'000));
}

TEST_F(UcxPortTest, TheProcessHearsOfGrowthOnce) {
    serve();
    port.grow(100);
    port.grow(100);
    port.grow(200);
    EXPECT_EQ(ref->sent.size(), 2u);
}

}  // namespace
}  // namespace kvstore
