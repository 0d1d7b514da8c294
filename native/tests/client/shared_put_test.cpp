// The life of a put by shared memory against a real node: reserved, copied, committed, or all of it
// in one message; a spare used or handed back; the node gone and the deadline expired in the middle
// of a copy.
#include "client/shared_put.h"

#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <functional>
#include <thread>

#include "tests/client/client_fixture.h"

namespace kvstore::testing {
namespace {

// Bytes whose first reader is interrupted: while the copy of them has begun and cannot go on,
// `meanwhile` runs on a thread of its own. One at a time.
class InterruptingBytes {
  public:
    InterruptingBytes(size_t size, const std::function<void()>& meanwhile)
        : size_(size),
          memory_(static_cast<uint8_t*>(
              mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
        EXPECT_NE(memory_, MAP_FAILED);
        std::fill_n(memory_, size_, uint8_t{7});
        EXPECT_EQ(mprotect(memory_, size_, PROT_NONE), 0);
        EXPECT_EQ(sem_init(&touched_, 0, 0), 0);
        EXPECT_EQ(sem_init(&open_, 0, 0), 0);
        current_ = this;
        struct sigaction action{};
        action.sa_handler = [](int) {
            current_->was_read_ = 1;
            sem_post(&current_->touched_);
            wait_for(&current_->open_);
        };
        EXPECT_EQ(sigaction(SIGSEGV, &action, &before_), 0);
        thread_ = std::thread([this, meanwhile] {
            wait_for(&touched_);
            if (!cancelled_) {
                meanwhile();
            }
            (void)mprotect(memory_, size_, PROT_READ);
            sem_post(&open_);
        });
    }
    ~InterruptingBytes() {
        if (was_read_ == 0) {
            cancelled_ = true;
            sem_post(&touched_);
        }
        thread_.join();
        (void)sigaction(SIGSEGV, &before_, nullptr);
        (void)munmap(memory_, size_);
    }
    InterruptingBytes(const InterruptingBytes&) = delete;
    InterruptingBytes& operator=(const InterruptingBytes&) = delete;
    Pieces pieces() const { return {memory_, size_}; }
    bool was_read() const { return was_read_ != 0; }

  private:
    static void wait_for(sem_t* semaphore) {
        while (sem_wait(semaphore) != 0) {  // interrupted
        }
    }
    static inline InterruptingBytes* current_ = nullptr;
    const size_t size_;
    uint8_t* const memory_;
    sem_t touched_{};
    sem_t open_{};
    std::atomic<bool> cancelled_{false};
    volatile sig_atomic_t was_read_ = 0;
    struct sigaction before_{};
    std::thread thread_;
};

// The parameter is the size of the objects.
class SharedPutTest : public ::testing::TestWithParam<size_t> {
  protected:
    const size_t kSize = GetParam();

    void SetUp() override {
        master.start();
        node = std::make_unique<TestNode>("a");
        node->join(master);
        attach();
    }
    void attach() {
        AttachCause cause = AttachCause::kNone;
        auto attached = LocalNode::attach(*Endpoint::parse(node->at.unix_socket), HelloParams{},
                                          "a", &cause, soon());
        ASSERT_TRUE(attached.ok()) << attached.status().to_string();
        local = std::move(*attached);
    }
    static PutItem item_of(std::string_view key, const Pieces& data) {
        PutItem item;
        item.key = key;
        item.data = data;
        item.result = kPutOpen;
        return item;
    }
    // One put; `answered` says what run() did.
    Code put(std::string_view key, const Pieces& data, Deadline deadline = soon()) {
        PutItem item = item_of(key, data);
        PutItem* one[] = {&item};
        answered = SharedPut(*local, options, deadline, 5000, &tally).run(one);
        return item.result;
    }
    Code put(std::string_view key, const std::string& bytes) {
        return put(key, Pieces(bytes.data(), bytes.size()));
    }
    std::optional<std::string> get(const std::string& key) {
        return TestClient(master.endpoint).get(key);
    }
    // The spare of this size, left where it is.
    std::optional<SpareBlocks::Block> spare() {
        const auto found = local->spares().take(local->slot(), kSize, boottime_ms());
        if (found) {
            local->abandon(local->spares().put(local->slot(), *found, boottime_ms()));
        }
        return found;
    }
    std::string at(uint64_t offset) const {
        return {reinterpret_cast<const char*>(local->segment()) + offset, kSize};
    }
    uint64_t counted(ClientCounter which) const { return tally.values[static_cast<size_t>(which)]; }
    BlockStore::Stats store_stats() const { return node->core->stats().store; }

    TestMaster master;
    std::unique_ptr<TestNode> node;
    std::shared_ptr<LocalNode> local;
    PutOptions options;
    CallTally tally;
    bool answered = false;
};

TEST_P(SharedPutTest, AListIsPublishedWhole) {
    const std::vector<std::string> keys = numbered("k", 50);
    std::vector<std::string> values;
    for (const std::string& key : keys) {
        values.push_back(bytes_of(key, kSize));  // 5 MB: several groups
    }
    std::vector<PutItem> items;
    std::vector<PutItem*> open;
    for (size_t i = 0; i < keys.size(); ++i) {
        items.push_back(item_of(keys[i], {values[i].data(), values[i].size()}));
    }
    for (PutItem& item : items) {
        open.push_back(&item);
    }
    EXPECT_TRUE(SharedPut(*local, options, soon(), 5000, &tally).run(open));
    for (size_t i = 0; i < keys.size(); ++i) {
        EXPECT_EQ(items[i].result, Code::kOk) << keys[i];
        EXPECT_EQ(get(keys[i]), values[i]);
    }
    EXPECT_EQ(counted(ClientCounter::kBytesPutShm), keys.size() * kSize);
    EXPECT_EQ(store_stats().reservations, 0u);
    EXPECT_EQ(store_stats().quarantined, 0u);
}

TEST_P(SharedPutTest, OneRefusalInAListIsThatRowsAlone) {
    ASSERT_EQ(put("k1", bytes_of("first", 1000)), Code::kOk);
    const std::string other = bytes_of("other", 1000);
    std::vector<PutItem> items;
    for (const char* key : {"k0", "k1", "k2"}) {
        items.push_back(item_of(key, {other.data(), other.size()}));
    }
    std::vector<PutItem*> open{&items[0], &items[1], &items[2]};
    EXPECT_TRUE(SharedPut(*local, options, soon(), 5000, &tally).run(open));
    EXPECT_EQ(items[0].result, Code::kOk);
    EXPECT_EQ(items[1].result, Code::kAlreadyExists);
    EXPECT_EQ(items[2].result, Code::kOk);
    EXPECT_EQ(get("k1"), bytes_of("first", 1000));
    EXPECT_EQ(get("k2"), other);
}

TEST_P(SharedPutTest, TheNextPutOfThisSizeIsWrittenIntoTheSpare) {
    ASSERT_EQ(put("k0", bytes_of("k0", kSize)), Code::kOk);
    const auto granted = spare();
    ASSERT_TRUE(granted);
    EXPECT_EQ(put("k1", bytes_of("k1", kSize)), Code::kOk);
    EXPECT_EQ(at(granted->offset), bytes_of("k1", kSize));
    EXPECT_EQ(get("k1"), bytes_of("k1", kSize));
    ASSERT_TRUE(spare()) << "another one for the next put";
    EXPECT_NE(spare()->generation, granted->generation);
}

TEST_P(SharedPutTest, SmallObjectsAskForNoSpare) {
    ASSERT_EQ(put("small", bytes_of("small", 1000)), Code::kOk);
    EXPECT_EQ(store_stats().spares, 0u);
}

TEST_P(SharedPutTest, ARefusalGivesTheSpareBackAndKeepsTheOldBytes) {
    ASSERT_EQ(put("k", bytes_of("k", kSize)), Code::kOk);
    const auto granted = spare();
    ASSERT_TRUE(granted);
    EXPECT_EQ(put("k", bytes_of("other", kSize)), Code::kAlreadyExists);
    EXPECT_TRUE(answered);
    EXPECT_EQ(at(granted->offset), bytes_of("other", kSize)) << "it was copied first";
    EXPECT_EQ(get("k"), bytes_of("k", kSize));
    EXPECT_LE(store_stats().spares, 1u) << "the one that came with the refusal";
    EXPECT_EQ(put("next", bytes_of("next", kSize)), Code::kOk);
    EXPECT_EQ(get("next"), bytes_of("next", kSize));
    EXPECT_EQ(store_stats().reservations, 0u);
}

TEST_P(SharedPutTest, ASpareThatTheNodeNoLongerKnowsLeavesTheItemOpen) {
    const SpareBlocks::Block stranger{kSize, Generation{12345}, 0, boottime_ms() + 10'000};
    local->abandon(local->spares().put(local->slot(), stranger, boottime_ms()));
    const Code code = put("k", bytes_of("k", kSize));
    EXPECT_TRUE(code == kPutOpen || code == Code::kExpired) << static_cast<int>(code);
    EXPECT_EQ(get("k"), std::nullopt);
    EXPECT_EQ(put("k", bytes_of("k", kSize)), Code::kOk);
    EXPECT_EQ(get("k"), bytes_of("k", kSize));
}

TEST_P(SharedPutTest, ANodeThatGoesDuringTheCopyLeavesTheItemOpen) {
    ASSERT_EQ(put("earlier", bytes_of("earlier", kSize)), Code::kOk);
    ASSERT_TRUE(spare());
    tally = {};
    InterruptingBytes bytes(kSize, [&] { node.reset(); });
    EXPECT_EQ(put("k", bytes.pieces()), kPutOpen);
    EXPECT_TRUE(bytes.was_read());
    EXPECT_FALSE(answered) << "to be tried elsewhere";
    EXPECT_EQ(counted(ClientCounter::kBytesPutShm), 0u);
}

// The outcome is unknown then: the commit may have reached the node, whose answer may even be here
// before anybody waits for it. But it is one of two.
TEST_P(SharedPutTest, ADeadlineThatExpiresDuringTheCopyLeavesTheseBytesOrNone) {
    ASSERT_EQ(put("earlier", bytes_of("earlier", kSize)), Code::kOk);
    ASSERT_TRUE(spare());
    const Deadline deadline = Deadline::after_ms(200);
    Code first{};
    {
        InterruptingBytes bytes(
            kSize, [&] { EXPECT_TRUE(eventually([&] { return deadline.expired(); })); });
        first = put("k", bytes.pieces(), deadline);
        EXPECT_TRUE(first == Code::kDeadlineExceeded || first == Code::kOk) << code_name(first);
        EXPECT_TRUE(bytes.was_read());
        EXPECT_TRUE(answered) << "the node did nothing wrong";
    }
    const std::string late(kSize, '\7');
    const std::string other = bytes_of("k", kSize);
    TestClient client(master.endpoint);
    const Code second = client.put("k", other);
    EXPECT_TRUE(second == Code::kAlreadyExists ||
                (second == Code::kOk && first == Code::kDeadlineExceeded));
    EXPECT_TRUE(client.get("k") == (second == Code::kOk ? other : late));
    EXPECT_TRUE(eventually([&] { return store_stats().reservations == 0; }));
}

TEST_P(SharedPutTest, AnotherProcessesBytesAreNotPublishedByNamingItsSpare) {
    ASSERT_EQ(put("k0", bytes_of("k0", kSize)), Code::kOk);
    const auto granted = spare();
    ASSERT_TRUE(granted);
    auto channel = Channel::connect(*Endpoint::parse(node->at.unix_socket), HelloParams{}, soon());
    ASSERT_TRUE(channel.ok());
    const std::vector<std::string_view> keys{"stolen"};
    const std::vector<uint64_t> sizes{kSize};
    const std::vector<uint32_t> crcs{1};
    const std::vector<uint64_t> spares{granted->generation};
    StatusReply reply;
    const Status status = (*channel)->exchange(
        Put{.keys = keys, .sizes = sizes, .crcs = crcs, .spares = spares}, &reply, soon());
    EXPECT_EQ(status.code(), Code::kPermissionDenied) << "without a slot of its own";
    EXPECT_EQ(get("stolen"), std::nullopt);
    EXPECT_EQ(put("k1", bytes_of("k1", kSize)), Code::kOk);
    EXPECT_EQ(get("k1"), bytes_of("k1", kSize));
}

// A row with a spare has its checksum and no bytes, and so has every other row.
TEST_P(SharedPutTest, APutOfSparesThatContradictsItselfEndsTheConnection) {
    const std::vector<std::string_view> keys{"k0", "k1"};
    const std::vector<uint64_t> sizes{kSize, kSize};
    const std::vector<uint32_t> crcs{1, 2};
    const std::vector<uint64_t> both{7, 8};
    const std::vector<uint64_t> one{7, 0};
    for (const Put& wrong : {Put{.keys = keys, .sizes = sizes, .spares = both},
                             Put{.keys = keys, .sizes = sizes, .crcs = crcs, .spares = one}}) {
        auto channel = local->channels().checkout(soon());
        ASSERT_TRUE(channel.ok());
        StatusReply reply;
        EXPECT_EQ((*channel)->exchange(wrong, &reply, soon()).code(), Code::kProtocolError);
    }
    EXPECT_EQ(put("k0", bytes_of("k0", kSize)), Code::kOk);
    EXPECT_EQ(store_stats().reservations, 0u);
}

INSTANTIATE_TEST_SUITE_P(OneMessage, SharedPutTest, ::testing::Values(20'000));
INSTANTIATE_TEST_SUITE_P(Pipelined, SharedPutTest, ::testing::Values(100'000));

}  // namespace
}  // namespace kvstore::testing
