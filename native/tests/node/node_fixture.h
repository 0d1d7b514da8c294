// A master, nodes and wire-level clients in one process: real sockets, anonymous memory.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <future>
#include <memory>
#include <string>
#include <vector>

#include "base/checksum.h"
#include "index/index.h"
#include "index/object_reader.h"
#include "index/slot_registry.h"
#include "master/master_block_port.h"
#include "master/master_core.h"
#include "net/channel.h"
#include "node/node_core.h"
#include "tests/waiting.h"

namespace kvstore::testing {

inline HashSecret test_secret() {
    HashSecret secret{};
    secret.fill(7);
    return secret;
}

// Bytes that tell whose they are: derived from key, variant and position.
inline std::string bytes_of(std::string_view key, size_t size, uint32_t variant = 0) {
    std::string out(size, '\0');
    uint64_t state = std::hash<std::string_view>()(key) ^ variant * 0x9E3779B97F4A7C15u;
    for (char& byte : out) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        byte = static_cast<char>(state >> 56);
    }
    return out;
}

class TestMaster {
  public:
    // `port` 0: any; a restarted master takes the port of the one before.
    explicit TestMaster(uint32_t epoch = 1, const std::string& listen = "tcp://127.0.0.1:0") {
        MasterCore::Options options;
        options.secret = test_secret();
        options.epoch = epoch;
        options.journal_auto_ack = true;
        core = std::make_unique<MasterCore>(options);
        MasterBlockPort::Options service_options;
        service_options.listen = {listen};
        service_options.cluster_id = "test";
        service = std::make_unique<MasterBlockPort>(*core, service_options);
    }
    ~TestMaster() { stop(); }
    void start() {
        const auto bound = service->start();
        ASSERT_TRUE(bound.ok()) << bound.status().to_string();
        endpoint = bound->front();
    }
    void stop() {
        core->stop();
        service->stop();
    }
    // The node's registration, which Python does otherwise.
    void admit(const std::string& id, uint64_t session, const NodeEndpoints& at,
               uint32_t epoch = 1) {
        NodeInfo info;
        info.node_id = id;
        info.session_id = session;
        info.node_epoch = epoch;
        info.tcp_endpoint = at.tcp;
        info.unix_endpoint = at.unix_socket;
        info.host = "host of " + id;
        info.weight = 1000;
        info.capacity_bytes = info.free_bytes = 1 << 26;
        info.state = NodeState::kAlive;
        ASSERT_TRUE(core->register_node(info, false).ok());
        ASSERT_TRUE(core->set_node(id, NodeState::kAlive, 1000, 1 << 26, 1 << 26).ok());
    }
    Namespace& ns(const std::string& tenant = "default", const std::string& name = "") {
        return **core->directory().namespaces().open(tenant, name);
    }
    // Until what nodes have answered is recorded.
    void settle(const Namespace& space) {
        std::promise<bool> passed;
        EXPECT_TRUE(core->fence(core->unannounced(space, {}), 0,
                                [&](bool known) { passed.set_value(known); }));
        EXPECT_TRUE(passed.get_future().get());
    }
    size_t replicas(const std::string& key, const std::string& name = "",
                    const std::string& tenant = "default") {
        settle(ns(tenant, name));
        ObjectInfo info;
        return core->directory().inspect(*ns(tenant, name).current, key, info)
                   ? info.replicas.size()
                   : 0;
    }
    // Code and unreached nodes of a remove that is waited for.
    std::pair<Code, std::vector<std::string>> remove(const std::string& key,
                                                     uint32_t timeout_ms = 5000) {
        std::mutex mutex;
        std::condition_variable changed;
        std::optional<std::pair<Code, std::vector<std::string>>> answer;
        core->remove(ns(), {key}, timeout_ms, [&](std::vector<Code> codes, auto unreached) {
            std::lock_guard lock(mutex);
            answer = {codes.at(0), unreached};
            changed.notify_one();
        });
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return answer.has_value(); });
        return *answer;
    }
    Code flush(const std::string& name = "") {
        settle(ns("default", name));
        std::mutex mutex;
        std::condition_variable changed;
        std::optional<Code> answer;
        core->flush(ns("default", name), 5000, [&](Code code, auto, uint32_t) {
            std::lock_guard lock(mutex);
            answer = code;
            changed.notify_one();
        });
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return answer.has_value(); });
        return *answer;
    }

    std::unique_ptr<MasterCore> core;
    std::unique_ptr<MasterBlockPort> service;
    std::string endpoint;
};

inline NodeOptions node_options(const std::string& id) {
    NodeOptions options;
    options.cluster_id = "test";
    options.node_id = id;
    options.hash_secret = test_secret();
    options.tcp_endpoint = "tcp://127.0.0.1:0";
    static std::atomic<int> number{0};
    options.unix_endpoint =
        "unix:@kvstore-test-" + std::to_string(getpid()) + "-" + std::to_string(++number);
    options.segment_bytes = 16u << 20;
    options.backoff_max_ms = 50;
    return options;
}

// A node that runs; join() registers it at a master and waits until it takes puts.
class TestNode {
  public:
    explicit TestNode(const std::string& node_id) : TestNode(node_options(node_id)) {}
    explicit TestNode(const NodeOptions& options) : id(options.node_id), epoch(options.node_epoch) {
        auto created = NodeCore::create(options);
        EXPECT_TRUE(created.ok()) << created.status().to_string();
        core = std::move(*created);
        const auto bound = core->start();
        EXPECT_TRUE(bound.ok()) << bound.status().to_string();
        at = *bound;
    }
    void join(TestMaster& master, uint64_t session = 1) {
        master.admit(id, session, at, epoch);
        core->set_session(session, {master.endpoint});
        ASSERT_TRUE(core->wait_link(LinkState::kUp, 30'000)) << core->stats().link_error;
    }

    std::string id;
    uint32_t epoch;
    std::unique_ptr<NodeCore> core;
    NodeEndpoints at;
};

struct GetResult {
    Code code = Code::kInternal;
    std::string bytes;
    uint64_t size = 0;
    Version version = 0;
    uint32_t sealed_crc = 0;
    MissReason reason = MissReason::kNone;
};

// One session with a node, speaking the protocol itself.
class NodeClient {
  public:
    explicit NodeClient(const std::string& endpoint, HelloParams hello = {}) {
        hello.client_name = "test";
        auto connected = Channel::connect(*Endpoint::parse(endpoint), hello, soon());
        EXPECT_TRUE(connected.ok()) << connected.status().to_string();
        channel = std::move(*connected);
    }
    static HelloParams peer() {
        HelloParams hello;
        hello.role = Role::kNode;
        hello.node_id = "peer";
        return hello;
    }

    Code put(const std::string& key, const std::string& bytes, uint32_t timeout_ms = 5000,
             uint8_t flags = 0, uint8_t replicas = 1, Pin pin = Pin::kNone) {
        return put_all({key}, {bytes}, timeout_ms, flags, replicas, pin).at(0);
    }
    std::vector<Code> put_all(const std::vector<std::string>& names,
                              const std::vector<std::string>& values, uint32_t timeout_ms = 5000,
                              uint8_t flag = 0, uint8_t replica_count = 1, Pin pin = Pin::kNone) {
        const std::vector<std::string_view> keys(names.begin(), names.end());
        std::vector<uint64_t> sizes;
        std::vector<uint32_t> crcs;
        std::vector<iovec> payload;
        for (const std::string& value : values) {
            sizes.push_back(value.size());
            crcs.push_back(crc32c(value.data(), value.size()) ^ crc_damage);
            payload.push_back({const_cast<char*>(value.data()), value.size()});
        }
        const std::vector<uint8_t> flags(keys.size(), flag);
        const std::vector<uint8_t> replicas(keys.size(), replica_count);
        const std::vector<uint8_t> pins(keys.size(), static_cast<uint8_t>(pin));
        Put message;
        message.keys = keys;
        message.sizes = sizes;
        message.crcs = crcs;
        message.flags = flags;
        message.replicas = replicas;
        message.pins = pins;
        const std::vector<std::string_view> parents(parent.empty() ? 0 : keys.size(), parent);
        message.parents = parents;
        message.timeout_ms = timeout_ms;
        StatusReply reply;
        const Status status = channel->exchange(message, &reply, soon(), {payload});
        EXPECT_TRUE(status.ok()) << status.to_string();
        return codes(reply);
    }
    GetResult get(const std::string& name, uint64_t max_size = 1 << 24, Version version = 0) {
        const std::vector<std::string_view> keys{name};
        const std::vector<uint64_t> versions{version}, max_sizes{max_size};
        Get message;
        message.keys = keys;
        message.versions = versions;
        message.max_sizes = max_sizes;
        GetReply reply;
        const Status status = channel->exchange(message, &reply, soon());
        EXPECT_TRUE(status.ok()) << status.to_string();
        GetResult out{static_cast<Code>(reply.status[0]),
                      {},
                      reply.sizes[0],
                      reply.versions[0],
                      reply.crcs[0],
                      static_cast<MissReason>(reply.reasons[0])};
        out.bytes.resize(channel->payload_left());
        const iovec into{out.bytes.data(), out.bytes.size()};
        EXPECT_TRUE(channel->recv_payload({&into, 1}, soon()).ok());
        return out;
    }
    template <class Message>
    std::vector<Code> ask(const Message& message) {
        StatusReply reply;
        const Status status = channel->exchange(message, &reply, soon());
        EXPECT_TRUE(status.ok()) << status.to_string();
        return codes(reply);
    }
    static std::vector<Code> codes(const StatusReply& reply) {
        std::vector<Code> out;
        for (const int32_t code : reply.status) {
            out.push_back(static_cast<Code>(code));
        }
        return out;
    }

    std::unique_ptr<Channel> channel;
    uint32_t crc_damage = 0;  // what a put says its bytes are, wrongly
    std::string parent;       // of what is put; empty: none
};

// A client of the same host: the segment mapped, a slot of its own.
class ShmClient : public NodeClient {
  public:
    explicit ShmClient(const std::string& endpoint, HelloParams hello = {})
        : NodeClient(endpoint, naming_slot(endpoint, hello)) {
        std::vector<Fd> fds = channel->take_fds();
        const WelcomeData& welcome = channel->welcome();
        if (fds.size() < 2) {
            return;
        }
        place = place_of(endpoint, hello);
        slot = SlotRegistry::instance().find(place);
        if (fds.size() == 3) {
            auto acquired = SlotRegistry::instance().acquire(
                std::move(fds[2]), static_cast<uint32_t>(welcome.slot), place);
            EXPECT_TRUE(acquired.ok()) << acquired.status().to_string();
            slot = *acquired;
        }
        is_writable = (fcntl(fds[0].get(), F_GETFL) & O_ACCMODE) == O_RDWR;
        segment = std::move(*Mapping::map(fds[0].get(), welcome.segment_bytes, is_writable));
        struct stat info{};
        EXPECT_EQ(fstat(fds[0].get(), &info), 0);
        inode = info.st_ino;
        index = std::move(*IndexReader::attach(fds[1].get(), welcome.segment_bytes));
        SlotReady ready;
        ready.slot = slot->number();
        EXPECT_EQ(ask(ready), std::vector<Code>{Code::kOk});
        slot->set_confirmed();
        ns = namespace_id(test_secret(), hello.tenant, hello.ns, welcome.ns_epoch);
        tenant = tenant_id(test_secret(), hello.tenant);
    }
    bool attached() const { return slot != nullptr; }
    static std::string place_of(const std::string& endpoint, const HelloParams& hello) {
        return endpoint + ' ' + hello.tenant;
    }
    // The slot that this process has at the node, if it has one.
    static HelloParams naming_slot(const std::string& endpoint, HelloParams hello) {
        const auto held = SlotRegistry::instance().find(place_of(endpoint, hello));
        if (held != nullptr) {
            hello.slot_plus_one = held->number() + 1;
            hello.slot_device = held->file().device;
            hello.slot_inode = held->file().inode;
        }
        return hello;
    }

    struct Block {
        Code code = Code::kInternal;
        Generation generation = 0;
        uint64_t offset = 0;
    };
    Block reserve(const std::string& name, uint64_t size, uint32_t timeout_ms = 5000,
                  uint8_t flag = 0) {
        const std::vector<std::string_view> keys{name};
        const std::vector<uint64_t> sizes{size};
        const std::vector<uint8_t> flags{flag};
        Reserve message;
        message.keys = keys;
        message.sizes = sizes;
        message.flags = flags;
        message.timeout_ms = timeout_ms;
        ReserveReply reply;
        const Status status = channel->exchange(message, &reply, soon());
        EXPECT_TRUE(status.ok()) << status.to_string();
        if (!status.ok()) {
            return {status.code(), 0, 0};  // there is no block: nothing may be written to offset 0
        }
        return {static_cast<Code>(reply.status[0]), reply.generations[0], reply.offsets[0]};
    }
    uint32_t write(const Block& block, const std::string& bytes) {
        return copy_crc32c(segment.data() + block.offset, bytes.data(), bytes.size());
    }
    Code commit(const Block& block, uint32_t crc, uint32_t timeout_ms = 5000) {
        const std::vector<uint64_t> generations{block.generation};
        const std::vector<uint32_t> crcs{crc};
        Commit message;
        message.generations = generations;
        message.crcs = crcs;
        message.timeout_ms = timeout_ms;
        return ask(message).at(0);
    }
    Code abort(const Block& block) {
        const std::vector<uint64_t> generations{block.generation};
        Abort message;
        message.generations = generations;
        return ask(message).at(0);
    }
    Code put_shm(const std::string& key, const std::string& bytes) {
        const Block block = reserve(key, bytes.size());
        return block.code == Code::kOk ? commit(block, write(block, bytes)) : block.code;
    }
    // Through the mapping; empty when it is not there.
    std::optional<std::string> read(const std::string& key) {
        const Identity identity{tenant, ns, key_hash(test_secret(), ns, key), 0, 0};
        std::string out(1 << 20, '\0');
        IndexReader::Found found;
        if (read_object(*index, segment.data(), identity, key, boottime_ms(),
                        Pieces(out.data(), out.size()), &found) != CopyResult::kOk) {
            return std::nullopt;
        }
        out.resize(found.length);
        return out;
    }

    std::string place;
    std::shared_ptr<ClientSlot> slot;
    bool is_writable = false;
    ino_t inode = 0;  // of the segment
    Mapping segment;
    std::unique_ptr<IndexReader> index;
    NamespaceId ns = 0;
    TenantId tenant = 0;
};

}  // namespace kvstore::testing
