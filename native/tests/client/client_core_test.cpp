// The client on a healthy cluster: shared memory, sockets, batches, leases, views.
#include "tests/client/client_fixture.h"

namespace kvstore::testing {
namespace {

class ClientTest : public ::testing::Test {
  protected:
    void SetUp() override {
        master.start();
        node = std::make_unique<TestNode>("a");
        node->join(master, 1);
    }
    void TearDown() override {
        const Status audit = node->core->domains().store(0).audit();
        EXPECT_TRUE(audit.ok()) << audit.to_string();
    }
    TestClient shm() { return TestClient(master.endpoint); }
    TestClient tcp() { return TestClient(master.endpoint, Transport::kTcp); }

    TestMaster master;
    std::unique_ptr<TestNode> node;
};

TEST_F(ClientTest, SizesAtTheEdgesComeBackOnBothPaths) {
    TestClient near = shm();
    TestClient far = tcp();
    for (const size_t size : std::initializer_list<size_t>{0, 1, 63, 64, 65, 4095, 4096, 4097,
                                                           65536, 1 << 20, 3'000'001}) {
        for (TestClient* writer : {&near, &far}) {
            const std::string key =
                "size " + std::to_string(size) + (writer == &near ? " near" : " far");
            const std::string bytes = bytes_of(key, size);
            EXPECT_EQ(writer->put(key, bytes), Code::kOk) << key;
            EXPECT_EQ(near.get(key), bytes) << key;
            EXPECT_EQ(far.get(key), bytes) << key;
            EXPECT_EQ(writer->put(key, "other"), Code::kAlreadyExists) << key;
        }
    }
    EXPECT_EQ(near.count(ClientCounter::kHitsSocket), 0u);
    EXPECT_EQ(near.count(ClientCounter::kBytesPutSocket), 0u);
    EXPECT_EQ(far.count(ClientCounter::kHitsShm), 0u);
    EXPECT_EQ(far.count(ClientCounter::kBytesPutShm), 0u);
    EXPECT_EQ(near.count(ClientCounter::kBytesReadShm), far.count(ClientCounter::kBytesReadSocket));
}

TEST_F(ClientTest, ALookupWaitsForTheWholeList) {
    TestClient writer = shm();
    for (const Transport transport : {Transport::kAuto, Transport::kTcp}) {
        // The store's own time-out is much shorter than the wait, and does not end it.
        TestClient reader(master.endpoint, transport, 200);
        const std::vector<std::string> keys =
            numbered(transport == Transport::kAuto ? "near/" : "far/", 6);
        ASSERT_EQ(writer.put(keys[0], "page"), Code::kOk);
        std::thread putting([&] {
            EXPECT_TRUE(eventually([&] { return master.core->lookup_waits().size() == 1; }));
            std::this_thread::sleep_for(std::chrono::milliseconds(300));
            for (size_t i = 5; i > 0; --i) {
                EXPECT_EQ(master.core->lookup_waits().size(), 1u);
                EXPECT_EQ(writer.put(keys[i], "page"), Code::kOk);
            }
        });
        EXPECT_EQ(reader.prefix(keys, 2, 30'000), 6u);
        putting.join();
        const uint64_t asked = reader.count(ClientCounter::kLookups);
        EXPECT_EQ(reader.prefix(keys, 2, 30'000), 6u);
        EXPECT_EQ(reader.count(ClientCounter::kLookups) - asked,
                  transport == Transport::kAuto ? 0u : 1u)
            << "what this host has is not asked for";
    }
}

TEST_F(ClientTest, AWaitThatIsOverLeasesWhatThereIs) {
    TestClient writer = shm();
    const std::vector<std::string> keys = numbered("page/", 5);
    writer.put_all({keys[0], keys[1], keys[2], keys[4]}, {"a", "b", "c", "d"});
    for (const Transport transport : {Transport::kAuto, Transport::kTcp}) {
        TestClient reader(master.endpoint, transport);
        const uint64_t start_ms = boottime_ms();
        const std::unique_ptr<LeasedPrefix> leased = reader.lease(keys, 60'000, 2, 100);
        EXPECT_GE(boottime_ms() - start_ms, 100u);
        EXPECT_EQ(leased->length(), 2u);
        EXPECT_TRUE(leased->alive());
    }
}

TEST_F(ClientTest, WhereTooManyWaitAClientIsToldWhatIsThere) {
    TestClient client = tcp();
    const std::vector<std::string> keys = numbered("page/", 3);
    ASSERT_EQ(client.put(keys[0], "page"), Code::kOk);
    LookupWaits& waits = master.core->lookup_waits();
    const std::string_view absent = "absent";
    const Namespace& ns = master.ns();
    const NamespacePtr held = master.core->directory().namespaces().find(ns.tenant, ns.name);
    for (size_t i = 0; i < limits::kMaxWaitingLookups; ++i) {
        ASSERT_TRUE(waits
                        .park({.owner = uint64_t{1} << 60 | i,
                               .ns = held,
                               .keys = KeyList(absent),
                               .deadline_ms = UINT64_MAX,
                               .done = [](const KeyList&) {}})
                        .ok());
    }
    const uint64_t start_ms = boottime_ms();
    EXPECT_EQ(client.prefix(keys, 1, 60'000), 1u);
    EXPECT_LT(boottime_ms() - start_ms, 20'000u) << "it waited all the same";
    EXPECT_EQ(client.count(ClientCounter::kMasterFailures), 0u);
}

TEST_F(ClientTest, ClosingEndsAWait) {
    TestClient client = tcp();
    std::thread closing([&] {
        EXPECT_TRUE(eventually([&] { return master.core->lookup_waits().size() == 1; }));
        client.core->close();
    });
    const std::vector<std::string_view> keys{"absent"};
    EXPECT_EQ(client.core->prefix_length(keys, 1, 60'000).code(), Code::kClosed);
    closing.join();
    EXPECT_TRUE(eventually([&] { return master.core->lookup_waits().size() == 0; }));
}

TEST_F(ClientTest, LargeObjectsGoIntoSpareBlocks) {
    TestClient client = shm();
    const size_t size = 100'000;
    for (int i = 0; i < 20; ++i) {
        const std::string key = "k" + std::to_string(i);
        EXPECT_EQ(client.put(key, bytes_of(key, size)), Code::kOk);
        // Refused, written into the spare all the same: nobody may ever see it.
        EXPECT_EQ(client.put("k0", bytes_of("other", size)), Code::kAlreadyExists);
        EXPECT_LE(node->core->stats().store.spares, 1u) << "for the next write";
    }
    for (int i = 0; i < 20; ++i) {
        const std::string key = "k" + std::to_string(i);
        EXPECT_EQ(client.get(key), bytes_of(key, size));
    }
    EXPECT_GE(node->core->stats().store.spares, 1u);
    EXPECT_EQ(node->core->stats().puts_failed, 0u);
    EXPECT_EQ(node->core->stats().store.quarantined, 0u);
}

TEST_F(ClientTest, MissesSayWhy) {
    for (const Transport transport : {Transport::kAuto, Transport::kTcp}) {
        TestClient client(master.endpoint, transport);
        EXPECT_EQ(client.get("nobody"), std::nullopt);
        EXPECT_EQ(client.last.result, static_cast<int64_t>(Code::kNotFound));
        EXPECT_EQ(client.last.reason, MissReason::kAbsent);
        EXPECT_EQ(client.count(static_cast<ClientCounter>(MissReason::kAbsent)), 1u);
    }
    TestClient client = shm();
    EXPECT_EQ(client.put("k", bytes_of("k", 5000)), Code::kOk);
    for (const Transport transport : {Transport::kAuto, Transport::kTcp}) {
        TestClient reader(master.endpoint, transport);
        EXPECT_EQ(reader.get("k", 4999), std::nullopt);
        EXPECT_EQ(reader.last.result, static_cast<int64_t>(Code::kBufferTooSmall));
        EXPECT_EQ(reader.last.reason, MissReason::kBufferTooSmall);
    }
    EXPECT_EQ(client.remove("k"), Code::kOk);
    EXPECT_EQ(client.get("k"), std::nullopt);
    EXPECT_EQ(client.remove("k"), Code::kNotFound);
}

TEST_F(ClientTest, LongBatchesAreSplitAndKeepTheirOrder) {
    TestClient near = shm();
    TestClient far = tcp();
    const size_t count = limits::kMaxBatchKeys + 700;
    const std::vector<std::string> keys = numbered("batch ", count);
    std::vector<std::string> values;
    for (const std::string& key : keys) {
        values.push_back(bytes_of(key, 30 + key.size()));
    }
    EXPECT_EQ(near.put_all(keys, values), std::vector<Code>(count, Code::kOk));
    std::vector<std::string> asked = keys;
    asked.insert(asked.begin() + 100, "nobody");
    for (TestClient* reader : {&near, &far}) {
        std::vector<std::string> got;
        const std::vector<int64_t> results = reader->get_all(asked, &got, 64);
        EXPECT_EQ(results[100], static_cast<int64_t>(Code::kNotFound));
        got.erase(got.begin() + 100);
        EXPECT_EQ(got, values);
        EXPECT_EQ(reader->prefix(asked), 100u);
        EXPECT_EQ(reader->prefix(keys), count);
        EXPECT_EQ(reader->prefix(keys, 1000), count / 1000 * 1000);
    }
}

TEST_F(ClientTest, AnotherNamespaceIsAnotherStore) {
    TestClient one(master.endpoint, Transport::kAuto, 5000, "one");
    TestClient two(master.endpoint, Transport::kAuto, 5000, "two");
    TestClient far(master.endpoint, Transport::kTcp, 5000, "one");
    EXPECT_EQ(one.put("k", "1"), Code::kOk);
    EXPECT_EQ(two.get("k"), std::nullopt);
    EXPECT_EQ(two.put("k", "2"), Code::kOk);
    EXPECT_EQ(one.get("k"), "1");
    EXPECT_EQ(far.get("k"), "1");
    EXPECT_EQ(master.flush("one"), Code::kOk);
    EXPECT_EQ(one.get("k"), std::nullopt);
    EXPECT_EQ(far.get("k"), std::nullopt);
    EXPECT_EQ(two.get("k"), "2");
    EXPECT_EQ(one.put("k", "3"), Code::kOk);
    EXPECT_EQ(one.get("k"), "3");
    EXPECT_EQ(far.get("k"), "3");
    EXPECT_EQ(far.count(ClientCounter::kWrongChecksums), 0u);
}

TEST_F(ClientTest, AWholeSegmentOfViewsNeverChanges) {
    TestClient client = shm();
    const std::vector<std::string> keys = numbered("view ", kSlotHazards + 20);
    std::vector<std::unique_ptr<ObjectView>> views;
    for (const std::string& key : keys) {
        ASSERT_EQ(client.put(key, bytes_of(key, 10'000)), Code::kOk);
        auto view = client.core->view(key);
        ASSERT_TRUE(view.ok() && *view != nullptr) << key;
        EXPECT_TRUE((*view)->zero_copy());  // by hazard, then by socket
        views.push_back(std::move(*view));
    }
    for (int i = 0; i < 40; ++i) {
        client.put("noise " + std::to_string(i), bytes_of("noise", 1 << 20));
    }
    for (size_t i = 0; i < keys.size(); ++i) {
        EXPECT_EQ(std::string(reinterpret_cast<const char*>(views[i]->data()), views[i]->size()),
                  bytes_of(keys[i], 10'000));
    }
    TestClient far = tcp();
    ASSERT_EQ(far.put("far", "bytes"), Code::kOk);
    auto copied = far.core->view("far");
    ASSERT_TRUE(copied.ok() && *copied != nullptr);
    EXPECT_FALSE((*copied)->zero_copy());
    EXPECT_EQ(std::string(reinterpret_cast<const char*>((*copied)->data()), (*copied)->size()),
              "bytes");
    EXPECT_EQ(far.core->view("nobody")->get(), nullptr);
}

TEST_F(ClientTest, LeasesAreRenewedUntilTheyAreReleased) {
    for (const Transport transport : {Transport::kAuto, Transport::kTcp}) {
        TestClient client(master.endpoint, transport);
        const std::vector<std::string> keys =
            numbered("lease " + std::to_string(static_cast<int>(transport)), 10);
        for (size_t i = 0; i < 7; ++i) {
            ASSERT_EQ(client.put(keys[i], bytes_of(keys[i], 1000)), Code::kOk);
        }
        // Long enough that a busy machine lets it be renewed in time.
        constexpr uint32_t kLeaseMs = 1500;
        const auto leased = client.lease(keys, kLeaseMs, 2);
        EXPECT_EQ(leased->length(), 6u);
        const uint64_t end_ms = boottime_ms() + 2 * kLeaseMs;
        for (int i = 0; boottime_ms() < end_ms; ++i) {
            client.put("noise " + std::to_string(i), bytes_of("noise", 1 << 20));
            std::this_thread::sleep_for(std::chrono::milliseconds(12));
        }
        EXPECT_TRUE(leased->alive());
        EXPECT_EQ(client.prefix(keys), 7u);
        leased->release();
        EXPECT_FALSE(leased->alive());
        EXPECT_EQ(client.lease({"nobody"}, 1000)->length(), 0u);
        EXPECT_EQ(node->core->domains().store(0).stats().leases, 0u);
    }
}

TEST_F(ClientTest, ACorruptedBlockIsACountedMissOnEveryPath) {
    TestClient near = shm();
    TestClient far = tcp();
    const std::string bytes = bytes_of("k", 50'000);
    ASSERT_EQ(near.put("k", bytes), Code::kOk);
    {
        ShmClient vandal(node->at.unix_socket);
        const std::string_view segment(reinterpret_cast<const char*>(vandal.segment.data()),
                                       vandal.segment.size());
        const size_t place = segment.find(std::string_view(bytes).substr(0, 64));
        ASSERT_NE(place, std::string_view::npos);
        vandal.segment.data()[place + 40'000] ^= 1;
    }
    for (TestClient* reader : {&near, &far}) {
        EXPECT_EQ(reader->get("k"), std::nullopt);
        EXPECT_EQ(reader->last.result, static_cast<int64_t>(Code::kChecksumMismatch));
        EXPECT_EQ(reader->last.reason, MissReason::kChecksum);
        EXPECT_EQ(reader->count(ClientCounter::kWrongChecksums), 1u);
        EXPECT_EQ(reader->count(static_cast<ClientCounter>(MissReason::kChecksum)), 1u);
    }
    EXPECT_EQ(near.core->view("k")->get(), nullptr);
}

TEST_F(ClientTest, TheNodeSeesItsClientsCounters) {
    TestClient client = shm();
    ASSERT_EQ(client.put("k", "bytes"), Code::kOk);
    for (int i = 0; i < 5; ++i) {
        EXPECT_EQ(client.get("k"), "bytes");
    }
    const auto& slots = node->core->domains().store(0).client_slots();
    const SlotCounters totals = slots.total_counters();
    EXPECT_EQ(totals[static_cast<size_t>(ClientCounter::kHitsShm)], 5u);
    EXPECT_EQ(totals[static_cast<size_t>(ClientCounter::kPutsOk)], 1u);
}

TEST_F(ClientTest, ManyThreadsShareOneClient) {
    TestClient near = shm();
    TestClient far = tcp();
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 6; ++t) {
        threads.emplace_back([&, t] {
            ClientCore& core = *(t % 2 == 0 ? near : far).core;
            for (int i = 0; i < 100; ++i) {
                const std::string key = "shared " + std::to_string((i * 7 + t) % 50);
                const std::string bytes = bytes_of(key, 3000);
                PutItem put;
                put.key = key;
                put.data = Pieces(bytes.data(), bytes.size());
                std::string out(4000, '\0');
                GetItem get;
                get.key = key;
                get.data = Pieces(out.data(), out.size());
                const bool fine = core.put({&put, 1}, {}).ok() &&
                                  (put.result == Code::kOk || put.result == Code::kAlreadyExists) &&
                                  core.get({&get, 1}, nullptr).ok() && get.result == 3000 &&
                                  out.compare(0, 3000, bytes) == 0;
                wrong += fine ? 0 : 1;
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    EXPECT_EQ(wrong.load(), 0);
}

TEST_F(ClientTest, ListInspectPinAndFlush) {
    TestClient client = shm();
    const std::vector<std::string> keys = numbered("list ", 30);
    for (const std::string& key : keys) {
        PutOptions options;
        options.pin = Pin::kSoft;
        ASSERT_EQ(client.put(key, key, options), Code::kOk);
    }
    std::vector<std::string> listed;
    std::string cursor;
    do {
        auto page = client.core->list("list ", cursor, 7);
        ASSERT_TRUE(page.ok()) << page.status().to_string();
        listed.insert(listed.end(), page->keys.begin(), page->keys.end());
        cursor = page->cursor;
    } while (!cursor.empty());
    std::sort(listed.begin(), listed.end());
    std::vector<std::string> expected = keys;
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(listed, expected);

    auto found = client.core->inspect("list 3");
    ASSERT_TRUE(found.ok());
    EXPECT_TRUE(found->found);
    EXPECT_EQ(found->pin, Pin::kSoft);
    EXPECT_EQ(found->size, 6u);
    ASSERT_EQ(found->replicas.size(), 1u);
    EXPECT_EQ(found->replicas[0].first, "a");
    const std::vector<std::string_view> one{"list 3"};
    std::vector<Code> codes;
    ASSERT_TRUE(client.core->set_pin(one, Pin::kNone, &codes).ok());
    EXPECT_EQ(codes, std::vector<Code>{Code::kOk});
    EXPECT_EQ(client.core->inspect("list 3")->pin, Pin::kNone);
    EXPECT_TRUE(client.core->flush().ok());
    EXPECT_EQ(client.get("list 3"), std::nullopt);
}

TEST_F(ClientTest, AfterCloseEveryCallIsRefused) {
    TestClient client = shm();
    ASSERT_EQ(client.put("k", "bytes"), Code::kOk);
    auto view = client.core->view("k");
    ASSERT_TRUE(view.ok() && *view != nullptr);
    client.core->close();
    client.core->close();
    EXPECT_EQ(client.get("k"), std::nullopt);
    EXPECT_EQ(client.last.result, static_cast<int64_t>(Code::kClosed));
    EXPECT_EQ(client.put("k", "bytes"), Code::kClosed);
    EXPECT_EQ(client.core->view("k").code(), Code::kClosed);
    EXPECT_EQ(client.core->list("", "", 1).code(), Code::kClosed);
    EXPECT_EQ(std::string(reinterpret_cast<const char*>((*view)->data()), (*view)->size()),
              "bytes");
}

}  // namespace
}  // namespace kvstore::testing
