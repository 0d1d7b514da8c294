// How many channels a pool keeps open, and what its callers do when no more can be had.
#include "client/channel_pool.h"

#include <thread>

#include "tests/node/node_fixture.h"

namespace kvstore::testing {
namespace {

class ChannelPoolTest : public ::testing::Test {
  protected:
    static constexpr uint64_t kLately = 200;

    ChannelPool::Connect connect() {
        return [this](Deadline deadline) -> Result<std::unique_ptr<Channel>> {
            if (opened >= allowed) {
                return {Code::kOverloaded, "no descriptor"};
            }
            ++opened;
            return Channel::connect(*Endpoint::parse(node.at.tcp), {}, deadline);
        };
    }
    // As many callers at once.
    std::vector<ChannelPool::Lease> take(size_t count) {
        std::vector<ChannelPool::Lease> leases;
        for (size_t i = 0; i < count; ++i) {
            auto lease = pool.checkout(soon());
            EXPECT_TRUE(lease.ok()) << lease.status().to_string();
            leases.push_back(std::move(*lease));
        }
        return leases;
    }
    size_t connections() { return node.core->stats().server.open; }

    TestMaster master;
    TestNode node{"a"};
    std::atomic<int> opened{0};
    std::atomic<int> allowed{1000};
    ChannelPool pool{connect(), kLately};
};

TEST_F(ChannelPoolTest, ManyAtOnceConnectOnce) {
    for (int round = 0; round < 5; ++round) {
        take(40);
    }
    EXPECT_EQ(opened, 40);
}

TEST_F(ChannelPoolTest, OneAfterTheOtherShareOne) {
    for (int round = 0; round < 20; ++round) {
        take(1);
    }
    EXPECT_EQ(opened, 1);
}

TEST_F(ChannelPoolTest, ABurstIsForgottenAfterAWhile) {
    take(30);
    EXPECT_TRUE(eventually([&] {
        take(2);
        return connections() <= 2;
    }));
    const int before = opened;
    take(2);
    EXPECT_EQ(opened, before);
}

TEST_F(ChannelPoolTest, WithoutADescriptorACallerWaitsForAnothersChannel) {
    allowed = 1;
    std::vector<ChannelPool::Lease> first = take(1);
    std::thread other([&] { EXPECT_TRUE(pool.checkout(soon()).ok()); });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    first.clear();
    other.join();
    EXPECT_EQ(opened, 1);
}

TEST_F(ChannelPoolTest, NobodyWaitsWhereNobodyHasAny) {
    allowed = 0;
    const auto refused = pool.checkout(soon());
    EXPECT_EQ(refused.code(), Code::kOverloaded);
}

TEST_F(ChannelPoolTest, ClosingEndsTheWait) {
    allowed = 1;
    const std::vector<ChannelPool::Lease> first = take(1);
    std::thread other([&] { EXPECT_EQ(pool.checkout(soon()).code(), Code::kClosed); });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    pool.shutdown();
    other.join();
}

}  // namespace
}  // namespace kvstore::testing
