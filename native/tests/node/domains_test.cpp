// One node whose tenants do not share memory: what each of them can map, write and find.
#include "node/domains.h"

#include <algorithm>
#include <set>

#include "tests/node/node_fixture.h"
#include "tests/temp_dir.h"

namespace kvstore::testing {
namespace {

HelloParams of(const std::string& tenant) {
    HelloParams hello;
    hello.tenant = tenant;
    return hello;
}

// Tenants: a and its reader share the first domain, b has one of its own, everybody else none that
// can be mapped.
NodeOptions divided(const std::string& id) {
    NodeOptions options = node_options(id);
    options.shm_write = {"a", "b"};
    options.shm_read = {"reader"};
    options.domains = {{"", {"a", "reader"}, false, false, 8u << 20},
                       {"b", {"b"}, false, false, 4u << 20},
                       {"private", {}, true, true, 4u << 20}};
    return options;
}

const std::vector<std::string> kTenants = {"a", "reader", "b", "c"};

class DomainsTest : public ::testing::Test {
  protected:
    void SetUp() override {
        master.start();
        node = std::make_unique<TestNode>(divided("n"));
        node->join(master);
    }
    void TearDown() override {
        for (const auto& domain : node->core->domains().all()) {
            const Status audit = domain->store->audit();
            EXPECT_TRUE(audit.ok()) << audit.to_string();
        }
    }
    NodeClient tcp(const std::string& tenant) { return NodeClient(node->at.tcp, of(tenant)); }
    ShmClient shm(const std::string& tenant) { return ShmClient(node->at.unix_socket, of(tenant)); }
    // Of each domain.
    std::vector<uint64_t> objects() {
        std::vector<uint64_t> counts;
        for (const NodeStats::InDomain& domain : node->core->stats().domains) {
            counts.push_back(domain.objects);
        }
        return counts;
    }

    TestMaster master;
    std::unique_ptr<TestNode> node;
};

TEST_F(DomainsTest, EachTenantMapsItsOwnMemoryOrNone) {
    const ShmClient a = shm("a");
    const ShmClient reader = shm("reader");
    const ShmClient b = shm("b");
    ASSERT_TRUE(a.attached() && reader.attached() && b.attached());
    EXPECT_FALSE(shm("c").attached());
    EXPECT_EQ(a.inode, reader.inode);
    EXPECT_NE(a.inode, b.inode);
    EXPECT_TRUE(a.is_writable && b.is_writable);
    EXPECT_FALSE(reader.is_writable);
    EXPECT_EQ(a.segment.size(), 8u << 20);
    EXPECT_EQ(b.segment.size(), 4u << 20);
    EXPECT_NE(a.slot->file(), b.slot->file());
}

TEST_F(DomainsTest, ObjectsLieInTheMemoryOfTheirTenant) {
    for (const std::string& tenant : kTenants) {
        const std::string bytes = bytes_of(tenant, 50'000);
        NodeClient client = tcp(tenant);
        ASSERT_EQ(client.put("k", bytes), Code::kOk) << tenant;
        EXPECT_EQ(client.get("k").bytes, bytes);
        EXPECT_EQ(master.replicas("k", "", tenant), 1u);
    }
    EXPECT_EQ(objects(), (std::vector<uint64_t>{2, 1, 1}));
    // No byte of another domain's objects is in what a tenant maps.
    for (const std::string mapping : {"a", "reader", "b"}) {
        ShmClient client = shm(mapping);
        const std::string_view memory(reinterpret_cast<const char*>(client.segment.data()),
                                      client.segment.size());
        for (const std::string& tenant : kTenants) {
            const bool together = (mapping == "b") == (tenant == "b") && tenant != "c";
            EXPECT_EQ(memory.find(bytes_of(tenant, 50'000).substr(20'000, 64)) != memory.npos,
                      together)
                << mapping << " " << tenant;
        }
    }
}

TEST_F(DomainsTest, AReaderReservesNothingAndReads) {
    ShmClient a = shm("a");
    ASSERT_EQ(a.put_shm("k", "of a"), Code::kOk);
    ShmClient reader = shm("reader");
    Reserve request;
    const std::vector<std::string_view> keys{"mine"};
    const std::vector<uint64_t> sizes{100};
    const std::vector<uint8_t> flags{0};
    request.keys = keys;
    request.sizes = sizes;
    request.flags = flags;
    ReserveReply reply;
    const Status refused = reader.channel->exchange(request, &reply, soon());
    EXPECT_EQ(refused.code(), Code::kPermissionDenied);
    EXPECT_NE(refused.message().find("shm_write"), std::string::npos);
    ASSERT_EQ(reader.put("mine", "by socket"), Code::kOk);
    EXPECT_EQ(reader.read("mine"), "by socket");
}

// Generations and slot numbers may be guessed; they are worth nothing in another domain.
TEST_F(DomainsTest, NobodyCommitsAbortsOrHoldsForAnotherDomain) {
    ShmClient a = shm("a");
    ShmClient b = shm("b");
    ASSERT_EQ(a.slot->number(), b.slot->number());
    const ShmClient::Block block = a.reserve("k", 100);
    ASSERT_EQ(block.code, Code::kOk);
    EXPECT_EQ(b.commit(block, 0), Code::kExpired);
    EXPECT_EQ(b.abort(block), Code::kInvalidArgument);
    EXPECT_EQ(a.commit(block, a.write(block, std::string(100, 'x'))), Code::kOk);
    const std::vector<Generation> generations{block.generation};
    Hold hold;
    hold.generations = generations;
    EXPECT_NE(b.ask(hold).at(0), Code::kOk);
    EXPECT_EQ(a.ask(hold).at(0), Code::kOk);
}

TEST_F(DomainsTest, GenerationsAreDrawnOnce) {
    ShmClient a = shm("a");
    ShmClient b = shm("b");
    std::set<Generation> drawn;
    for (int i = 0; i < 50; ++i) {
        const ShmClient::Block one = a.reserve("a" + std::to_string(i), 10);
        const ShmClient::Block two = b.reserve("b" + std::to_string(i), 10);
        EXPECT_TRUE(drawn.insert(one.generation).second);
        EXPECT_TRUE(drawn.insert(two.generation).second);
        EXPECT_EQ(&node->core->domains().at(one.generation), node->core->domains().all()[0].get());
        EXPECT_EQ(a.commit(one, a.write(one, std::string(10, 'a'))), Code::kOk);
        EXPECT_EQ(b.commit(two, b.write(two, std::string(10, 'b'))), Code::kOk);
    }
}

TEST_F(DomainsTest, OneDomainFillsWithoutAnother) {
    NodeClient a = tcp("a");
    ASSERT_EQ(a.put("k", bytes_of("k", 1000)), Code::kOk);
    NodeClient b = tcp("b");
    for (int i = 0; i < 40; ++i) {
        ASSERT_EQ(b.put("b" + std::to_string(i), bytes_of("b", 500'000)), Code::kOk);
    }
    EXPECT_GT(node->core->stats().store.evictions, 0u);
    EXPECT_EQ(a.get("k").bytes, bytes_of("k", 1000));
    EXPECT_EQ(b.put("large", bytes_of("large", 5u << 20)), Code::kTooLarge);
}

TEST_F(DomainsTest, RemovesAndNewMastersReachAllDomains) {
    for (const std::string& tenant : kTenants) {
        NodeClient client = tcp(tenant);
        for (int i = 0; i < 300; ++i) {
            ASSERT_EQ(client.put(std::to_string(i), tenant), Code::kOk);
        }
    }
    const std::string endpoint = master.endpoint;
    master.stop();
    ASSERT_TRUE(node->core->wait_link(LinkState::kDown, 30'000));
    TestMaster next(2, endpoint);
    next.start();
    next.admit("n", 7, node->at);
    node->core->set_session(7, {next.endpoint});
    ASSERT_TRUE(node->core->wait_link(LinkState::kUp, 30'000));
    for (const std::string& tenant : kTenants) {
        for (int i = 0; i < 300; ++i) {
            EXPECT_EQ(next.replicas(std::to_string(i), "", tenant), 1u) << tenant << " " << i;
        }
    }
    next.stop();
    node->core->stop();
}

TEST_F(DomainsTest, AccessChangesWhileTheNodeServes) {
    NodeTunables tunables = divided("n");
    tunables.shm_write = {"reader", "c"};
    tunables.shm_read = {"b"};
    node->core->set_tunables(tunables);
    EXPECT_FALSE(shm("a").attached());
    EXPECT_TRUE(shm("reader").is_writable);
    EXPECT_TRUE(shm("b").attached());
    EXPECT_FALSE(shm("b").is_writable);
    EXPECT_FALSE(shm("c").attached()) << "it lies in private memory";
}

TEST(Domains, ATenantWithoutMemoryIsTurnedAway) {
    NodeOptions options = divided("n");
    options.domains.pop_back();
    const TestNode node(options);
    auto refused = Channel::connect(*Endpoint::parse(node.at.tcp), of("c"), soon());
    EXPECT_EQ(refused.code(), Code::kPermissionDenied);
    EXPECT_NE(refused.status().message().find("tenant c has no memory on node n"),
              std::string::npos)
        << refused.status().message();
}

// One log for all; what it brings back goes to the memory of its own tenant.
TEST(Domains, ShareTheDiskAndNothingElse) {
    constexpr int kCount = 96;
    constexpr size_t kBytes = 64 << 10;
    const TempDir folder;
    TestMaster master;
    master.start();
    NodeOptions options = divided("n");
    for (DomainOptions& domain : options.domains) {
        domain.segment_bytes = 3 << 20;  // half of what each tenant puts
    }
    options.nvme_dirs = {folder.path() + "/nvme"};
    options.nvme_bytes = 64 << 20;
    const std::vector<std::string> tenants = {"a", "b", "c"};
    const auto key = [](int number) { return "key " + std::to_string(number); };
    const auto reads_all = [&](const TestNode& node) {
        for (int i = 0; i < kCount; ++i) {
            for (const std::string& tenant : tenants) {
                NodeClient client(node.at.tcp, of(tenant));
                ASSERT_EQ(client.get(key(i)).bytes, bytes_of(tenant + key(i), kBytes));
            }
        }
    };
    {
        TestNode node(options);
        node.join(master);
        for (int i = 0; i < kCount; ++i) {
            for (const std::string& tenant : tenants) {
                NodeClient client(node.at.tcp, of(tenant));
                ASSERT_EQ(client.put(key(i), bytes_of(tenant + key(i), kBytes)), Code::kOk);
            }
            const uint64_t kept = node.core->domains().segment_bytes() / 2;
            ASSERT_TRUE(
                eventually([&] { return node.core->stats().store.unwritten_bytes <= kept; }));
        }
        EXPECT_GT(node.core->stats().store.evictions, 0u);
        reads_all(node);
        const NvmeTier::Snapshot saved = node.core->nvme()->snapshot(soon());
        EXPECT_EQ(saved.left, 0u);
    }
    options.node_epoch = 2;
    TestNode node(options);
    node.join(master, 2);
    reads_all(node);
    reads_all(node);  // a second read promotes
    ASSERT_TRUE(eventually([&] { return node.core->stats().nvme.promoted_objects > kCount; }));
    for (const auto& domain : node.core->domains().all()) {
        EXPECT_TRUE(domain->store->audit().ok());
        domain->store->for_each_object([&](std::span<const BlockStore::ObjectInfo> objects) {
            for (const BlockStore::ObjectInfo& object : objects) {
                EXPECT_EQ(&node.core->domains().of(object.ns), domain.get());
            }
        });
    }
}

std::vector<std::unique_ptr<StoreFiles>> files_of(const NodeOptions& options,
                                                  const std::string& folder) {
    std::vector<std::unique_ptr<StoreFiles>> files;
    for (const DomainOptions& domain : options.domains) {
        StoreFiles::Options one;
        one.directory = folder;
        one.domain = domain.name;
        files.push_back(std::move(*StoreFiles::open(one)));
    }
    return files;
}

// What moves to another domain is not taken over into it: clients may still map where it was.
TEST(Domains, ARestartKeepsWhatStaysInItsDomain) {
    const TempDir folder(true);
    TestMaster master;
    master.start();
    NodeOptions options = divided("n");
    const auto start = [&](uint32_t epoch) {
        options.node_epoch = epoch;
        auto core = std::move(*NodeCore::create(options, files_of(options, folder.path())));
        const NodeEndpoints at = *core->start();
        master.admit("n", epoch, at, epoch);
        core->set_session(epoch, {master.endpoint});
        EXPECT_TRUE(core->wait_link(LinkState::kUp, 30'000)) << core->stats().link_error;
        return std::pair(std::move(core), at);
    };
    {
        const auto [core, at] = start(1);
        for (const std::string& tenant : kTenants) {
            ASSERT_EQ(NodeClient(at.tcp, of(tenant)).put("k", tenant), Code::kOk);
        }
    }
    options.domains[0].tenants = {"a"};  // the reader goes to the private domain
    const auto [core, at] = start(2);
    EXPECT_TRUE(core->domains().beginning().warm);
    for (const std::string& tenant : kTenants) {
        const GetResult got = NodeClient(at.tcp, of(tenant)).get("k");
        EXPECT_EQ(got.code, tenant == "reader" ? Code::kNotFound : Code::kOk) << tenant;
    }
    for (const auto& domain : core->domains().all()) {
        EXPECT_TRUE(domain->store->audit().ok());
    }
    const std::set<std::string> kept{"segment",         "index",         "clients",
                                     "segment-b",       "index-b",       "clients-b",
                                     "segment-private", "index-private", "clients-private"};
    std::set<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
        found.insert(entry.path().filename());
    }
    EXPECT_EQ(found, kept);
    StoreFiles::remove_other_domains(folder.path(), {"", "private"});
    EXPECT_FALSE(std::filesystem::exists(folder.path() + "/segment-b"));
    EXPECT_TRUE(std::filesystem::exists(folder.path() + "/clients-private"));
    EXPECT_TRUE(std::filesystem::exists(folder.path() + "/segment"));
}

}  // namespace
}  // namespace kvstore::testing
