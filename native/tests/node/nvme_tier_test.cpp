// A node with a tier on NVMe: what DRAM evicts stays readable, and nothing that went comes back.
#include "tests/node/node_fixture.h"
#include "tests/temp_dir.h"

namespace kvstore::testing {
namespace {

constexpr size_t kObjectBytes = 64 << 10;
constexpr int kObjects = 96;  // 6 MiB, twice what DRAM holds

class NvmeTierTest : public ::testing::Test {
  protected:
    void SetUp() override {
        master = std::make_unique<TestMaster>();
        master->start();
        start_node();
    }
    NodeOptions options() {
        NodeOptions options = node_options("a");
        options.segment_bytes = 3 << 20;
        options.nvme_dirs = folders();
        options.nvme_bytes = 32 << 20;
        options.node_epoch = epoch;
        options.nvme = tunables;
        return options;
    }
    virtual std::vector<std::string> folders() const { return {dir.path() + "/nvme"}; }
    void start_node() {
        node = std::make_unique<TestNode>(options());
        node->join(*master, session++);
        client = std::make_unique<NodeClient>(node->at.tcp);
    }
    // As after a power loss: DRAM is anonymous memory here, so only the folder remains.
    void lose_dram() {
        client.reset();
        node.reset();
        ++epoch;
        start_node();
    }
    NvmeTierStats nvme() const { return node->core->stats().nvme; }
    static std::string key(int number) { return "key " + std::to_string(number); }
    static std::string value(int number, uint32_t variant = 0) {
        return bytes_of(key(number), kObjectBytes, variant);
    }
    // Never faster than the tier writes.
    void put(int number, uint32_t variant = 0, uint8_t flags = 0) {
        ASSERT_EQ(client->put(key(number), value(number, variant), 5000, flags), Code::kOk);
        if (tunables.demote_ahead == 0) {
            return;
        }
        ASSERT_TRUE(eventually([&] {
            return node->core->stats().store.unwritten_bytes <=
                   node->core->domains().store(0).segment_bytes() / 2;
        }));
    }
    void put_all() {
        for (int i = 0; i < kObjects; ++i) {
            put(i);
        }
    }
    bool in_dram(int number) {
        const NamespaceRef ns = make_namespace(test_secret(), "default", "", 0);
        return node->core->domains().store(0).contains(
            ns, {key(number), key_hash(test_secret(), ns->id, key(number))});
    }
    void push_out_of_dram() {
        for (int i = 1000; i < 1000 + kObjects; ++i) {
            put(i);
        }
    }

    TempDir dir;
    NvmeTierTunables tunables;
    uint32_t epoch = 1;
    uint64_t session = 1;
    std::unique_ptr<TestMaster> master;
    std::unique_ptr<TestNode> node;
    std::unique_ptr<NodeClient> client;
};

TEST_F(NvmeTierTest, WhatDramEvictsIsReadFromNvme) {
    put_all();
    ASSERT_GT(node->core->stats().store.evictions, 0u);
    EXPECT_EQ(node->core->stats().store.evicted_unwritten, 0u);
    for (int i = 0; i < kObjects; ++i) {
        EXPECT_EQ(master->replicas(key(i)), 1u) << i;
        const GetResult got = client->get(key(i));
        ASSERT_EQ(got.code, Code::kOk) << i;
        ASSERT_EQ(got.bytes, value(i)) << i;
    }
    EXPECT_GT(nvme().hits, 0u);
    EXPECT_TRUE(node->core->domains().store(0).audit().ok());
}

TEST_F(NvmeTierTest, WhatIsReadAgainIsPromotedAndAOneTimeReadIsNot) {
    put_all();
    ASSERT_FALSE(in_dram(0));
    EXPECT_EQ(client->get(key(0)).bytes, value(0));
    EXPECT_EQ(nvme().promoted_objects, 0u);
    EXPECT_EQ(nvme().promotions_skipped, 1u);
    EXPECT_EQ(client->get(key(0)).bytes, value(0));
    ASSERT_TRUE(eventually([&] { return in_dram(0); }));
    const uint64_t hits = nvme().hits;
    EXPECT_EQ(client->get(key(0)).bytes, value(0));
    EXPECT_EQ(nvme().hits, hits);  // from DRAM
    EXPECT_TRUE(node->core->domains().store(0).audit().ok());
}

TEST_F(NvmeTierTest, ARemoveReachesNvmeAndLasts) {
    put_all();
    ASSERT_FALSE(in_dram(0));
    EXPECT_EQ(master->remove(key(0)).first, Code::kOk);
    EXPECT_EQ(client->get(key(0)).code, Code::kNotFound);
    lose_dram();
    EXPECT_EQ(client->get(key(0)).code, Code::kNotFound);
    EXPECT_EQ(master->replicas(key(0)), 0u);
    EXPECT_EQ(client->get(key(1)).bytes, value(1));
}

TEST_F(NvmeTierTest, AFlushReachesNvmeAndLasts) {
    put_all();
    EXPECT_EQ(master->flush(), Code::kOk);
    for (int i = 0; i < kObjects; ++i) {
        EXPECT_EQ(client->get(key(i)).code, Code::kNotFound) << i;
    }
    lose_dram();
    EXPECT_EQ(nvme().log.objects, 0u);
    for (int i = 0; i < kObjects; ++i) {
        EXPECT_EQ(master->replicas(key(i)), 0u) << i;
    }
}

TEST_F(NvmeTierTest, AnOlderVersionDoesNotComeBackWhenTheNewOneIsLost) {
    put_all();
    ASSERT_FALSE(in_dram(0));
    tunables.demote_ahead = 0;  // what comes now is never written
    NodeTunables now;
    now.nvme = tunables;
    node->core->set_tunables(now);
    put(0, 1, kPutUpsert);
    EXPECT_EQ(client->get(key(0)).bytes, value(0, 1));
    push_out_of_dram();
    ASSERT_FALSE(in_dram(0));
    EXPECT_EQ(client->get(key(0)).code, Code::kNotFound);
    ASSERT_TRUE(eventually([&] { return master->replicas(key(0)) == 0; }));
    lose_dram();
    EXPECT_EQ(client->get(key(0)).code, Code::kNotFound);
}

TEST_F(NvmeTierTest, ALeaseBringsWhatItPromisesToDram) {
    put_all();
    const std::vector<std::string> names{key(0), key(1), key(2)};
    const std::vector<std::string_view> keys(names.begin(), names.end());
    ASSERT_FALSE(in_dram(1));
    Lease message;
    message.keys = keys;
    message.stride = 1;
    message.lease_ms = 10'000;
    LeaseReply reply;
    ASSERT_TRUE(client->channel->exchange(message, &reply, soon()).ok());
    EXPECT_EQ(reply.length, 3u);
    for (int i = 0; i < 3; ++i) {
        EXPECT_TRUE(in_dram(i)) << i;
    }
}

TEST_F(NvmeTierTest, ASnapshotSavesWhatDramAloneHas) {
    for (int i = 0; i < 20; ++i) {
        put(i);
    }
    const NvmeTier::Snapshot saved = node->core->nvme()->snapshot(soon());
    EXPECT_TRUE(saved.status.ok()) << saved.status.to_string();
    EXPECT_EQ(saved.objects, 20u);
    EXPECT_EQ(saved.left, 0u);
    EXPECT_EQ(node->core->stats().store.unwritten, 0u);
    lose_dram();
    EXPECT_EQ(nvme().log.recovered_objects, 20u);
    for (int i = 0; i < 20; ++i) {
        EXPECT_EQ(master->replicas(key(i)), 1u) << i;
        EXPECT_EQ(client->get(key(i)).bytes, value(i)) << i;
    }
    // Nothing is pushed out, so the first read is reason enough.
    EXPECT_TRUE(eventually([&] { return in_dram(19); }));
}

TEST_F(NvmeTierTest, TheLastDurableOperationIsKnownToTheNextLife) {
    put_all();
    EXPECT_EQ(master->remove(key(0)).first, Code::kOk);
    const uint64_t applied = node->core->nvme()->recovered_applied();
    EXPECT_EQ(applied, 0u);
    lose_dram();
    EXPECT_EQ(node->core->nvme()->recovered_applied(), 1u);
    // Without any further operation the next life still knows: it is written anew at each start.
    lose_dram();
    EXPECT_EQ(node->core->nvme()->recovered_applied(), 1u);
    EXPECT_EQ(client->get(key(1)).bytes, value(1));
}

TEST_F(NvmeTierTest, AReadOfSeveralTakesEachFromWhereItIs) {
    put_all();
    const std::vector<std::string> names{key(0), key(kObjects - 1), "never put", key(1)};
    ASSERT_FALSE(in_dram(0));
    ASSERT_TRUE(in_dram(kObjects - 1));
    const std::vector<std::string_view> keys(names.begin(), names.end());
    const std::vector<uint64_t> versions(4, 0);
    const std::vector<uint64_t> max_sizes{kObjectBytes, kObjectBytes, kObjectBytes, 10};
    Get message;
    message.keys = keys;
    message.versions = versions;
    message.max_sizes = max_sizes;
    GetReply reply;
    ASSERT_TRUE(client->channel->exchange(message, &reply, soon()).ok());
    std::string bytes(client->channel->payload_left(), '\0');
    const iovec into{bytes.data(), bytes.size()};
    ASSERT_TRUE(client->channel->recv_payload({&into, 1}, soon()).ok());
    EXPECT_EQ(static_cast<Code>(reply.status[0]), Code::kOk);
    EXPECT_EQ(static_cast<Code>(reply.status[1]), Code::kOk);
    EXPECT_EQ(static_cast<Code>(reply.status[2]), Code::kNotFound);
    EXPECT_EQ(static_cast<Code>(reply.status[3]), Code::kBufferTooSmall);
    EXPECT_EQ(reply.sizes[3], kObjectBytes);
    EXPECT_EQ(bytes, value(0) + value(kObjects - 1));
}

// The same over two devices, one of which is not there in the next life.
class TwoDevicesTest : public NvmeTierTest {
  protected:
    std::vector<std::string> folders() const override {
        std::vector<std::string> all{dir.path() + "/nvme"};
        if (both) {
            all.push_back(dir.path() + "/second");
        }
        return all;
    }
    int readable() {
        int count = 0;
        for (int i = 0; i < kObjects; ++i) {
            const GetResult got = client->get(key(i));
            if (got.code == Code::kOk) {
                EXPECT_EQ(got.bytes, value(i)) << i;
                ++count;
            }
        }
        return count;
    }
    bool both = true;
};

TEST_F(TwoDevicesTest, WhatOneOfThemHasIsReadWithoutTheOther) {
    put_all();
    EXPECT_EQ(readable(), kObjects);
    EXPECT_EQ(node->core->nvme()->snapshot(Deadline::after_ms(20'000)).left, 0u);
    lose_dram();
    EXPECT_EQ(readable(), kObjects);
    both = false;
    lose_dram();
    const int left = readable();
    EXPECT_GT(left, kObjects / 4);
    EXPECT_LT(left, kObjects * 3 / 4);
    both = true;
    lose_dram();
    EXPECT_EQ(readable(), kObjects);
}

}  // namespace
}  // namespace kvstore::testing
