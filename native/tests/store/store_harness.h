// A block store with a clock of its own, and payloads that tell whose they are. For tests.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/checksum.h"
#include "base/hash.h"
#include "store/block_store.h"

namespace kvstore {

inline std::vector<uint8_t> payload_of(const std::string& key, Version version, uint64_t size) {
    std::mt19937_64 random(std::hash<std::string>{}(key) ^ version);
    std::vector<uint8_t> bytes(size);
    for (uint64_t at = 0; at < size; at += 8) {
        const uint64_t word = random();
        std::memcpy(bytes.data() + at, &word, std::min<uint64_t>(8, size - at));
    }
    return bytes;
}

class StoreHarness {
  public:
    explicit StoreHarness(uint64_t size_bytes, BlockStore::Options given = {}) {
        options = std::move(given);
        options.size_bytes = size_bytes;
        options.node_id = "node-1";
        options.seed = options.seed == 0 ? 1 : options.seed;
        options.now_ms = [this] { return clock_ms; };
        auto created = BlockStore::create(options);
        EXPECT_TRUE(created.ok()) << created.status().to_string();
        store = std::move(*created);
        ns = namespace_at(0);
        store->set_on_withdraw([this](std::span<const BlockStore::Withdrawn> batch) {
            withdrawn.insert(withdrawn.end(), batch.begin(), batch.end());
        });
    }

    NamespaceRef namespace_at(uint32_t epoch) const {
        return make_namespace(options.secret, "default", "model", epoch);
    }
    BlockStore::Key key(const std::string& name, Version wanted = 0) const {
        return {intern(name), key_hash(options.secret, ns->id, name), wanted};
    }
    BlockStore::ReserveItem item(const std::string& name, uint64_t size) const {
        BlockStore::ReserveItem reserve;
        reserve.key = intern(name);
        reserve.hash = key_hash(options.secret, ns->id, name);
        reserve.size_bytes = size;
        return reserve;
    }
    BlockStore::Reserved reserve(const std::string& name, uint64_t size, bool force = false) {
        BlockStore::ReserveItem one = item(name, size);
        one.force = force;
        return store->reserve(owner, ns, one);
    }
    // Writes what belongs to (name, version) and publishes.
    BlockStore::Published finish(const BlockStore::Reserved& reserved, const std::string& name,
                                 Version granted, uint64_t size) {
        const auto bytes = payload_of(name, granted, size);
        if (size > 0) {
            std::memcpy(reserved.data, bytes.data(), size);
        }
        const BlockStore::PublishItem publish{reserved.generation, crc32c(bytes.data(), size),
                                              granted};
        return std::move(store->publish(owner, {&publish, 1}).front());
    }
    Code put_item(BlockStore::ReserveItem reserve_item, bool force = false) {
        reserve_item.force = force;
        const auto reserved = store->reserve(owner, ns, reserve_item);
        if (reserved.code != Code::kOk) {
            return reserved.code;
        }
        return finish(reserved, std::string(reserve_item.key), ++version, reserve_item.size_bytes)
            .code;
    }
    Code put(const std::string& name, uint64_t size, bool force = false) {
        return put_item(item(name, size), force);
    }
    // Misses count as false; wrong bytes fail the test.
    bool get(const std::string& name) {
        const auto found = store->find(ns, key(name));
        if (!found.hold) {
            return false;
        }
        const auto bytes = payload_of(name, found.version, found.length);
        EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), found.data)) << name;
        const Identity identity{ns->tenant_id, ns->id, key(name).hash, found.version, found.length};
        EXPECT_EQ(found.sealed_crc, seal_checksum(crc32c(found.data, found.length), identity));
        return true;
    }
    MissReason miss(const std::string& name) { return store->find(ns, key(name), false).reason; }
    bool has(const std::string& name) { return store->contains(ns, key(name)); }
    void expect_sound() {
        const Status status = store->audit();
        EXPECT_TRUE(status.ok()) << status.to_string();
    }

    // Keys and items are views: the names that they show live as long as the harness.
    std::string_view intern(const std::string& name) const {
        const std::lock_guard guard(names_mutex_);
        return *names_.insert(name).first;
    }

    uint64_t clock_ms = 1'000'000;
    BlockStore::Options options;
    std::vector<BlockStore::Withdrawn> withdrawn;
    std::unique_ptr<BlockStore> store;
    NamespaceRef ns;
    Owner owner{1, -1};
    Version version = pack_epoch(1, 0);

  private:
    mutable std::mutex names_mutex_;
    mutable std::set<std::string> names_;
};

}  // namespace kvstore
