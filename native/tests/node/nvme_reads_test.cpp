// Reads of the tier over a device that answers when the test says so: what somebody waits for goes
// before what is read ahead, and nothing is read twice.
#include "tests/node/node_fixture.h"
#include "tests/nvme/fixture.h"
#include "tests/temp_dir.h"

namespace kvstore::testing {
namespace {

constexpr size_t kObjectBytes = 64 << 10;
constexpr int kObjects = 12;
constexpr int kAheadAtOnce = 2;

class NvmeReadsTest : public ::testing::Test {
  protected:
    void SetUp() override {
        write_objects();
        NodeOptions options = node_options("a");
        options.nvme_dirs = {dir.path() + "/nvme"};
        auto created = Domains::create(options, {});
        ASSERT_TRUE(created.ok()) << created.status().to_string();
        domains = std::move(*created);
        NvmeTier::Options tier_options;
        NvmeOptions& log = tier_options.devices.emplace_back();
        log.directory = options.nvme_dirs.front();
        log.size_bytes = 8 << 20;
        log.node_id = "a";
        log.cluster_check = cluster_check(test_secret());
        log.reads.way = NvmeReadEngine::Way::kPool;
        log.io = &io;
        auto opened = NvmeTier::open(tier_options, *domains);
        ASSERT_TRUE(opened.ok()) << opened.status().to_string();
        tier = std::move(*opened);
        tier->start(
            {[](const NamespaceRef&, const std::vector<WithdrawItem>&) {}, [](uint64_t) {}});
        ASSERT_EQ(tier->namespaces().size(), 1u);
        ns = tier->namespaces().front();
        io.hold_reads = true;
    }
    void TearDown() override { release(); }
    // By a node that ends with all of it on NVMe.
    void write_objects() {
        TestMaster master;
        master.start();
        NodeOptions options = node_options("a");
        options.nvme_dirs = {dir.path() + "/nvme"};
        options.nvme_bytes = 8 << 20;
        TestNode node(options);
        node.join(master);
        NodeClient client(node.at.tcp);
        for (int i = 0; i < kObjects; ++i) {
            ASSERT_EQ(client.put(key(i), bytes_of(key(i), kObjectBytes)), Code::kOk);
        }
        ASSERT_EQ(node.core->nvme()->snapshot(Deadline::after_ms(20'000)).left, 0u);
    }
    void release() {
        io.hold_reads = false;
        io.hold_reads.notify_all();
    }
    static std::string key(int number) { return "key " + std::to_string(number); }
    BlockStore::Key at(int number) {
        names.push_back(key(number));
        return {names.back(), key_hash(test_secret(), ns->id, names.back())};
    }
    void prefetch(int first, int end) {
        std::vector<BlockStore::Key> keys;
        for (int i = first; i < end; ++i) {
            keys.push_back(at(i));
        }
        tier->prefetch(ns, keys);
    }
    std::future<NvmeTier::Object> get(int number) {
        auto answer = std::make_shared<std::promise<NvmeTier::Object>>();
        const BlockStore::Key wanted = at(number);
        tier->read(ns, {&wanted, 1}, [answer](std::vector<NvmeTier::Object> objects) {
            answer->set_value(objects.front());
        });
        return answer->get_future();
    }
    static void expect_whole(const NvmeTier::Object& object, int number) {
        ASSERT_EQ(object.code, Code::kOk);
        EXPECT_EQ(std::string(reinterpret_cast<const char*>(object.bytes.get()), object.length),
                  bytes_of(key(number), kObjectBytes));
    }
    bool reads_reach_the_device(int count) {
        return eventually([&] { return io.held == count; });
    }

    TempDir dir;
    FaultyIo io;
    std::deque<std::string> names;
    std::unique_ptr<Domains> domains;
    std::unique_ptr<NvmeTier> tier;
    NamespaceRef ns;
};

TEST_F(NvmeReadsTest, AGetDoesNotWaitBehindReadsAhead) {
    prefetch(0, 8);
    ASSERT_TRUE(reads_reach_the_device(kAheadAtOnce));
    auto answer = get(9);
    EXPECT_TRUE(reads_reach_the_device(kAheadAtOnce + 1));
    release();
    expect_whole(answer.get(), 9);
    EXPECT_TRUE(eventually([&] { return tier->stats().prefetched_objects == 8; }));
}

TEST_F(NvmeReadsTest, ReadsAheadWaitUntilNobodyElseReads) {
    auto first = get(9);
    ASSERT_TRUE(reads_reach_the_device(1));
    prefetch(0, 8);
    auto second = get(10);
    ASSERT_TRUE(reads_reach_the_device(2)) << "those ahead would have come before";
    release();
    expect_whole(first.get(), 9);
    expect_whole(second.get(), 10);
    EXPECT_TRUE(eventually([&] { return tier->stats().prefetched_objects == 8; }));
}

TEST_F(NvmeReadsTest, AGetTakesWhatIsBeingReadAhead) {
    prefetch(0, 8);
    ASSERT_TRUE(reads_reach_the_device(kAheadAtOnce));
    auto begun = get(0);
    auto again = get(0);
    auto waiting = get(7);  // does not wait for its turn any more
    ASSERT_TRUE(reads_reach_the_device(kAheadAtOnce + 1));
    release();
    expect_whole(begun.get(), 0);
    expect_whole(again.get(), 0);
    expect_whole(waiting.get(), 7);
    EXPECT_TRUE(eventually([&] { return tier->stats().promoted_objects == 8; }));
    EXPECT_EQ(tier->stats().log.reads, 8u);
    EXPECT_EQ(tier->stats().hits, 3u);
    EXPECT_EQ(tier->stats().prefetched_objects, 6u);  // the two were asked for
}

TEST_F(NvmeReadsTest, AGetHearsThatTheReadAheadFailed) {
    prefetch(0, 4);
    ASSERT_TRUE(reads_reach_the_device(kAheadAtOnce));
    auto answer = get(3);
    ASSERT_TRUE(reads_reach_the_device(kAheadAtOnce + 1));
    io.fail_reads = true;
    release();
    const NvmeTier::Object object = answer.get();
    EXPECT_EQ(object.code, Code::kIoError);
    EXPECT_EQ(object.reason, MissReason::kIoError);
    EXPECT_EQ(object.bytes, nullptr);
}

}  // namespace
}  // namespace kvstore::testing
