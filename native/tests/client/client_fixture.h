// A client core on top of node_fixture.h's master and nodes, with the calls that tests make.
#pragma once

#include "client/client_core.h"
#include "tests/node/node_fixture.h"

namespace kvstore::testing {

class TestClient {
  public:
    explicit TestClient(const std::string& master, Transport transport = Transport::kAuto,
                        uint32_t timeout_ms = 5000, const std::string& ns = "") {
        ClientOptions options;
        options.masters = {master};
        options.transport = transport;
        options.timeout_ms = timeout_ms;
        options.ns = ns;
        options.client_name = "test";
        auto connected = ClientCore::connect(options);
        EXPECT_TRUE(connected.ok()) << connected.status().to_string();
        core = std::move(*connected);
    }
    Code put(const std::string& key, const std::string& bytes, const PutOptions& options = {}) {
        return put_all({key}, {bytes}, options).at(0);
    }
    std::vector<Code> put_all(const std::vector<std::string>& keys,
                              const std::vector<std::string>& values,
                              const PutOptions& options = {}) {
        std::vector<PutItem> items(keys.size());
        for (size_t i = 0; i < keys.size(); ++i) {
            items[i].key = keys[i];
            items[i].data = Pieces(values[i].data(), values[i].size());
        }
        const Status status = core->put(items, options);
        std::vector<Code> codes;
        for (const PutItem& item : items) {
            codes.push_back(status.ok() ? item.result : status.code());
        }
        return codes;
    }
    // The bytes, or nothing; `last` keeps result and reason.
    std::optional<std::string> get(const std::string& key, size_t capacity = 1 << 22) {
        std::string out(capacity, '\0');
        last = {};
        last.key = key;
        last.data = Pieces(out.data(), capacity);
        const Status status = core->get({&last, 1}, nullptr);
        if (!status.ok()) {
            last.result = static_cast<int64_t>(status.code());
        }
        if (last.result < 0) {
            return std::nullopt;
        }
        out.resize(static_cast<size_t>(last.result));
        return out;
    }
    std::vector<int64_t> get_all(const std::vector<std::string>& keys,
                                 std::vector<std::string>* values, size_t capacity) {
        std::vector<GetItem> items(keys.size());
        values->assign(keys.size(), std::string(capacity, '\0'));
        for (size_t i = 0; i < keys.size(); ++i) {
            items[i].key = keys[i];
            items[i].data = Pieces((*values)[i].data(), capacity);
        }
        EXPECT_TRUE(core->get(items, nullptr).ok());
        std::vector<int64_t> results;
        for (size_t i = 0; i < keys.size(); ++i) {
            results.push_back(items[i].result);
            (*values)[i].resize(static_cast<size_t>(std::max<int64_t>(items[i].result, 0)));
        }
        return results;
    }
    size_t prefix(const std::vector<std::string>& keys, size_t stride = 1, uint32_t wait_ms = 0) {
        const std::vector<std::string_view> views(keys.begin(), keys.end());
        const auto length = core->prefix_length(views, stride, wait_ms);
        EXPECT_TRUE(length.ok()) << length.status().to_string();
        return length.ok() ? *length : 0;
    }
    std::unique_ptr<LeasedPrefix> lease(const std::vector<std::string>& keys, uint32_t lease_ms,
                                        size_t stride = 1, uint32_t wait_ms = 0) {
        const std::vector<std::string_view> views(keys.begin(), keys.end());
        auto leased = core->lease_prefix(views, stride, lease_ms, wait_ms);
        EXPECT_TRUE(leased.ok()) << leased.status().to_string();
        return std::move(*leased);
    }
    Code remove(const std::string& key) {
        const std::vector<std::string_view> keys{key};
        std::vector<Code> codes;
        std::vector<std::string> unreached;
        EXPECT_TRUE(core->remove(keys, &codes, &unreached).ok());
        return codes.at(0);
    }
    uint64_t count(ClientCounter which) const { return core->context().counter(which); }

    std::unique_ptr<ClientCore> core;
    GetItem last;
};

inline std::vector<std::string> numbered(const std::string& name, size_t count) {
    std::vector<std::string> keys;
    for (size_t i = 0; i < count; ++i) {
        keys.push_back(name + std::to_string(i));
    }
    return keys;
}

}  // namespace kvstore::testing
