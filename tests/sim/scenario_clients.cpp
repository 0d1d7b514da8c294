// The clients: the product's client library in fibers, every call recorded.
#include <algorithm>

#include "client/client_core.h"
#include "net/channel.h"
#include "scenario.h"

namespace kvstore::sim {
namespace {

constexpr size_t kReadBytes = 600 * 1024;

ClientOptions client_options(size_t index, const std::string& ns, uint32_t timeout_ms) {
    ClientOptions options;
    options.masters = {kMasterEndpoint};
    options.ns = ns;
    options.transport = Transport::kTcp;
    options.timeout_ms = timeout_ms;
    options.client_name = "c" + std::to_string(index + 1);
    return options;
}

}  // namespace

void Scenario::start_client(size_t index) {
    auto client = std::make_shared<Client>();
    client->index = index;
    const std::string name = "c" + std::to_string(index + 1);
    client->process = network_.start_process(kFirstClientHost + static_cast<Host>(index), name);
    clients_[index] = client;
    runtime_.spawn(client->process, name, [this, client] {
        client_loop(client);
        client->busy = false;
        client->ended = true;
    });
}

void Scenario::client_loop(const ClientPtr& client) {
    const std::string ns = client->index % 3 == 2 ? "b" : "a";
    while (!client->dead && !over_) {
        while (!calling_ && !client->dead && !over_) {
            client->busy = false;
            runtime_.sleep_ms(50);
        }
        client->busy = true;
        if (client->core == nullptr) {
            auto connected = ClientCore::connect(client_options(client->index, ns, timeout_ms_));
            if (!connected.ok()) {
                runtime_.sleep_ms(100);
                continue;
            }
            client->core = std::move(*connected);
        }
        one_call(*client, *client->core, ns);
        client->busy = false;
        runtime_.sleep_ns(runtime_.random().between(kMs, plan_.pause_max_ms * kMs));
    }
    client->core.reset();
}

void Scenario::one_call(Client& client, ClientCore& core, const std::string& ns) {
    Random& random = runtime_.random();
    std::vector<KeyName> own;
    std::copy_if(checker_.names.begin(), checker_.names.end(), std::back_inserter(own),
                 [&](const KeyName& name) { return name.ns == ns; });
    const KeyName name = own.empty() ? checker_.names.front() : random.pick(own);
    if (name.ns != ns) {
        return;  // no key of this plan is in the client's namespace
    }
    const uint64_t draw = random.below(1000);
    if (draw < 300) {
        put(client, core, name);
    } else if (draw < 380) {
        raw_put(client, name, random.chance(600));
    } else if (draw < 820) {
        get(client, core, name);
    } else if (draw < 990) {
        remove(client, core, name);
    } else {
        flush(client, core, ns);
    }
}

uint64_t Scenario::draw_size() {
    Random& random = runtime_.random();
    if (plan_.evictions && random.chance(500)) {
        return random.between(64 * 1024, 400 * 1024);
    }
    return random.between(8, 3'000);
}

void Scenario::put(Client& client, ClientCore& core, const KeyName& name) {
    const uint64_t deadline_ns = runtime_.now_ns() + timeout_ms_ * kMs;
    const uint64_t size = draw_size();
    PutOptions options;
    options.replicas = runtime_.random().chance(300) ? 2 : 1;
    const uint64_t id = checker_.begin_write(name, size, false, false, 0);
    const std::string bytes = Checker::bytes_of(id, size);
    PutItem item;
    item.key = name.key;
    item.data = Pieces(bytes.data(), bytes.size());
    const Status status = core.put({&item, 1}, options);
    if (!client.dead) {
        checker_.end_write(id, status.ok() ? item.result : status.code(), deadline_ns);
    }
}

// One message to one node, an upsert or a put; as no client of the library does, it is not tried
// again, so that its refusal is final.
void Scenario::raw_put(Client& client, const KeyName& name, bool upsert) {
    NodeLife& life = cluster_.node(runtime_.random().below(cluster_.node_count()));
    if (life.endpoint.empty()) {
        return;
    }
    const uint64_t deadline_ns = runtime_.now_ns() + timeout_ms_ * kMs;
    const Deadline deadline = Deadline::after_ms(timeout_ms_);
    HelloParams hello;
    hello.ns = name.ns;
    const auto channel = Channel::connect(*Endpoint::parse(life.endpoint), hello, deadline);
    if (!channel.ok() || client.dead) {
        return;
    }
    const uint64_t size = draw_size();
    const uint64_t id = checker_.begin_write(name, size, upsert, true, 0);
    const std::string bytes = Checker::bytes_of(id, size);
    const std::vector<std::string_view> keys{name.key};
    const std::vector<uint64_t> sizes{bytes.size()};
    const std::vector<uint8_t> flags{upsert ? kPutUpsert : uint8_t{0}};
    Put message;
    message.keys = keys;
    message.sizes = sizes;
    message.flags = flags;
    message.timeout_ms = timeout_ms_ - 100;
    const iovec part{const_cast<char*>(bytes.data()), bytes.size()};
    StatusReply reply;
    const Status status = (*channel)->exchange(message, &reply, deadline, {{&part, 1}, {}});
    if (!client.dead) {
        const bool answered = status.ok() && reply.status.size() == 1;
        checker_.end_write(id,
                           answered ? static_cast<Code>(reply.status[0])
                                    : (status.ok() ? Code::kProtocolError : status.code()),
                           deadline_ns);
    }
}

void Scenario::get(Client& client, ClientCore& core, const KeyName& name) {
    const uint64_t deadline_ns = runtime_.now_ns() + timeout_ms_ * kMs;
    const Moment begun = checker_.moment(name);
    std::string bytes(kReadBytes, '\0');
    GetItem item;
    item.key = name.key;
    item.data = Pieces(bytes.data(), bytes.size());
    const Status status = core.get({&item, 1}, nullptr);
    if (client.dead) {
        return;
    }
    const Code code = !status.ok()       ? status.code()
                      : item.result >= 0 ? Code::kOk
                                         : static_cast<Code>(item.result);
    runtime_.log("c%zu reads %s/%s: %s %s", client.index + 1, name.ns.c_str(), name.key.c_str(),
                 std::string(code_name(code)).c_str(),
                 code == Code::kOk ? "" : std::string(miss_reason_name(item.reason)).c_str());
    bytes.resize(code == Code::kOk ? static_cast<size_t>(item.result) : 0);
    checker_.end_read(begun, name, code == Code::kOk ? &bytes : nullptr, item.reason, code,
                      deadline_ns);
}

void Scenario::remove(Client& client, ClientCore& core, const KeyName& name) {
    const uint64_t deadline_ns = runtime_.now_ns() + timeout_ms_ * kMs;
    const size_t id = checker_.begin_removal(name, false);
    const std::vector<std::string_view> keys{name.key};
    std::vector<Code> codes;
    std::vector<std::string> unreached;
    const Status status = core.remove(keys, &codes, &unreached);
    if (!client.dead) {
        checker_.end_removal(id, status.ok() ? codes.at(0) : status.code(), unreached, deadline_ns);
    } else {
        checker_.abandon_call(name);
    }
}

void Scenario::flush(Client& client, ClientCore& core, const std::string& ns) {
    const uint64_t deadline_ns = runtime_.now_ns() + timeout_ms_ * kMs;
    const size_t id = checker_.begin_removal({ns, ""}, true);
    const Status status = core.flush();
    if (!client.dead) {
        // The library's flush does not name the unreached nodes one by one.
        std::vector<std::string> unreached;
        for (size_t i = 0; status.code() == Code::kPartial && i < cluster_.node_count(); ++i) {
            unreached.push_back("n" + std::to_string(i + 1));
        }
        checker_.end_removal(id, status.code(), unreached, deadline_ns);
    } else {
        checker_.abandon_call({ns, ""});
    }
}

// After everything: what was acknowledged and not lost is there, for everybody; and the cluster
// serves as if nothing had happened.
void Scenario::final_reads() {
    const std::set<KeyName> expected = checker_.must_be_readable();
    for (const std::string ns : {"a", "b"}) {
        const Process process = network_.start_process(kFirstClientHost + 50, "last");
        bool done = false;
        runtime_.spawn(process, "last", [&, ns] {
            auto connected = ClientCore::connect(client_options(50, ns, 5'000));
            if (!connected.ok()) {
                runtime_.fail("serves in the end", connected.status().to_string());
            }
            for (const KeyName& name : checker_.names) {
                std::string bytes(kReadBytes, '\0');
                GetItem item;
                item.key = name.key;
                item.data = Pieces(bytes.data(), bytes.size());
                if (name.ns != ns) {
                    continue;
                }
                const Moment begun = checker_.moment(name);
                const Status status = (*connected)->get({&item, 1}, nullptr);
                const bool hit = status.ok() && item.result >= 0;
                if (expected.contains(name) && !hit) {
                    runtime_.fail("found until removed",
                                  "in the end " + name.ns + "/" + name.key +
                                      " is missing: " + std::string(miss_reason_name(item.reason)));
                }
                if (hit) {
                    bytes.resize(static_cast<size_t>(item.result));
                    checker_.end_read(begun, name, &bytes, MissReason::kNone, Code::kOk,
                                      kNever - kSecond);
                }
            }
            const std::string bytes = Checker::bytes_of(0, 100);
            PutItem item;
            item.key = "last";
            item.data = Pieces(bytes.data(), bytes.size());
            const Status put = (*connected)->put({&item, 1}, {});
            if (!put.ok() || item.result != Code::kOk) {
                runtime_.fail("serves in the end",
                              "a put ends with " + std::string(code_name(item.result)));
            }
            connected->reset();
            done = true;
        });
        while (!done) {
            runtime_.sleep_ms(10);
        }
    }
}

}  // namespace kvstore::sim
