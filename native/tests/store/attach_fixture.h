// A folder on /dev/shm, and the lives of a store in it, each on the memory of the one before.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "base/checksum.h"
#include "index/slot_registry.h"
#include "store/store_files.h"
#include "store/store_state.h"
#include "tests/store/store_harness.h"
#include "tests/temp_dir.h"

namespace kvstore {

inline constexpr uint64_t kMiB = 1u << 20;

// A folder on /dev/shm, and the lives of one node in it.
class Attach : public ::testing::Test {
  protected:
    void SetUp() override { ASSERT_FALSE(directory_.empty()); }
    void TearDown() override { store_.reset(); }

    Result<std::unique_ptr<StoreFiles>> files(bool discard = false) {
        StoreFiles::Options options;
        options.directory = directory_;
        options.discard_foreign = discard;
        return StoreFiles::open(options);
    }
    Status open(bool discard = false) {
        auto opened = files(discard);
        if (!opened.ok()) {
            return opened.status();
        }
        BlockStore::Options options;
        options.size_bytes = size_bytes_;
        options.index_entries = 64;
        options.max_index_entries = max_entries_;
        options.node_id = node_id_;
        options.node_epoch = ++epoch_;
        options.secret = secret_;
        options.now_ms = [this] { return now_ms_; };
        options.slot_alive = [this](int slot) { return slot >= 0 && slot < 4 && alive_[slot]; };
        auto created = BlockStore::create(options, std::move(*opened));
        if (!created.ok()) {
            return created.status();
        }
        store_ = std::move(*created);
        return {};
    }
    // As after kill -9: nothing is said, nothing is cleaned up.
    void end_life() { store_.reset(); }
    void next_life() {
        end_life();
        const Status status = open();
        ASSERT_TRUE(status.ok()) << status.to_string();
        ASSERT_TRUE(store_->audit().ok()) << store_->audit().to_string();
    }

    static std::vector<uint8_t> bytes_of(const std::string& key, uint64_t size) {
        std::mt19937_64 random(std::hash<std::string>{}(key) + size);
        std::vector<uint8_t> bytes(size);
        for (uint8_t& byte : bytes) {
            byte = static_cast<uint8_t>(random());
        }
        return bytes;
    }
    BlockStore::Reserved reserve(const std::string& key, uint64_t size, const Owner& owner,
                                 uint64_t ttl_ms = 0) {
        BlockStore::ReserveItem item;
        item.key = key;
        item.hash = key_hash(secret_, ns_->id, key);
        item.size_bytes = size;
        item.ttl_ms = ttl_ms;
        return store_->reserve(owner, ns_, item);
    }
    Code publish(const BlockStore::Reserved& reserved, const std::string& key, uint64_t size,
                 const Owner& owner) {
        const std::vector<uint8_t> bytes = bytes_of(key, size);
        std::memcpy(reserved.data, bytes.data(), size);
        const BlockStore::PublishItem item{reserved.generation, crc32c(bytes.data(), size),
                                           ++version_};
        return store_->publish(owner, {&item, 1})[0].code;
    }
    Code put(const std::string& key, uint64_t size, uint64_t ttl_ms = 0) {
        const Owner owner{7, -1};
        const auto reserved = reserve(key, size, owner, ttl_ms);
        if (reserved.code != Code::kOk) {
            return reserved.code;
        }
        return publish(reserved, key, size, owner);
    }
    BlockStore::Found find(const std::string& key) {
        return store_->find(ns_, {key, key_hash(secret_, ns_->id, key), 0});
    }
    // Whether the object is here with its bytes and a good seal.
    bool reads(const std::string& key, uint64_t size) {
        const auto found = find(key);
        if (found.hold == nullptr || found.length != size) {
            return false;
        }
        const Identity identity{ns_->tenant_id, ns_->id, key_hash(secret_, ns_->id, key),
                                found.version, size};
        const std::vector<uint8_t> bytes = bytes_of(key, size);
        return std::equal(bytes.begin(), bytes.end(), found.data) &&
               seal_checksum(crc32c(found.data, size), identity) == found.sealed_crc;
    }
    Code upsert(const std::string& key, uint64_t size) {
        BlockStore::ReserveItem item;
        item.key = key;
        item.hash = key_hash(secret_, ns_->id, key);
        item.size_bytes = size;
        item.force = true;
        const Owner owner{7, -1};
        return publish(store_->reserve(owner, ns_, item), key, size, owner);
    }
    std::string path(const std::string& name) const { return directory_ + "/" + name; }
    void flip(const std::string& name, uint64_t at) {
        std::fstream file(path(name), std::ios::in | std::ios::out | std::ios::binary);
        char byte = 0;
        file.seekg(static_cast<std::streamoff>(at)).read(&byte, 1);
        byte = static_cast<char>(byte ^ 0x10);
        file.seekp(static_cast<std::streamoff>(at)).write(&byte, 1);
    }

    IndexGeometry geometry() const {
        std::ifstream file(path("index"), std::ios::binary);
        IndexHeader header{};
        file.read(reinterpret_cast<char*>(&header), sizeof header);
        return *IndexGeometry::of(header.bucket_count, header.heap_bytes, header.all_buckets);
    }
    // Where the index file has the entry of this generation; 0: nowhere.
    uint64_t entry_at(Generation wanted) const {
        std::ifstream file(path("index"), std::ios::binary);
        const IndexGeometry g = geometry();
        const std::pair<uint64_t, uint64_t> parts[] = {
            {g.entries_offset, g.heap_offset}, {g.growth_entries_offset, g.growth_recency_offset}};
        for (const auto& [begin, end] : parts) {
            for (uint64_t at = begin; at < end; at += sizeof(IndexEntry)) {
                Generation gen = 0;
                file.seekg(static_cast<std::streamoff>(at)).read(reinterpret_cast<char*>(&gen), 8);
                if (gen == wanted) {
                    return at;
                }
            }
        }
        return 0;
    }
    void write_generation(uint64_t at, Generation gen) const {
        std::fstream file(path("index"), std::ios::in | std::ios::out | std::ios::binary);
        file.seekp(static_cast<std::streamoff>(at)).write(reinterpret_cast<const char*>(&gen), 8);
    }

    TempDir folder_{/*shared_memory=*/true};
    const std::string directory_ = folder_.path();
    std::string node_id_ = "node-a";
    uint64_t size_bytes_ = 4 * kMiB;
    uint32_t max_entries_ = 0;
    HashSecret secret_{1, 2, 3};
    uint32_t epoch_ = 0;
    uint64_t now_ms_ = 1000;
    uint64_t version_ = 0;
    bool alive_[4] = {};
    NamespaceRef ns_ = make_namespace(secret_, "tenant", "space", 0);
    std::unique_ptr<BlockStore> store_;
};

}  // namespace kvstore
