// A store on the memory of an earlier one: what is kept, what is protected, what is refused.
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

namespace kvstore {
namespace {

constexpr uint64_t kMiB = 1u << 20;

// A folder on /dev/shm, and the lives of one node in it.
class Attach : public ::testing::Test {
  protected:
    void SetUp() override {
        char path[] = "/dev/shm/kvstore-attach-XXXXXX";
        ASSERT_NE(mkdtemp(path), nullptr);
        directory_ = path;
    }
    void TearDown() override {
        store_.reset();
        std::filesystem::remove_all(directory_);
    }

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

    std::string directory_;
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

TEST_F(Attach, KeepsWhatWasPublished) {
    ASSERT_TRUE(open().ok());
    EXPECT_FALSE(store_->beginning().warm);
    std::mt19937_64 random(1);
    std::vector<std::pair<std::string, uint64_t>> objects;
    for (int i = 0; i < 300; ++i) {
        objects.emplace_back("key-" + std::to_string(i), random() % 9000);
        ASSERT_EQ(put(objects.back().first, objects.back().second), Code::kOk);
    }
    for (int life = 0; life < 3; ++life) {
        next_life();
        EXPECT_TRUE(store_->beginning().warm) << store_->beginning().why_cold;
        EXPECT_EQ(store_->beginning().objects, 300u);
        EXPECT_EQ(store_->beginning().dropped, 0u);
        for (const auto& [key, size] : objects) {
            EXPECT_TRUE(reads(key, size)) << key;
        }
    }
    EXPECT_EQ(put("key-0", 10), Code::kAlreadyExists);
    EXPECT_EQ(put("another", 10), Code::kOk);
    ASSERT_TRUE(store_->audit().ok());
}

TEST_F(Attach, KeepsWhatAGrownIndexHolds) {
    constexpr int kObjects = 3000;
    ASSERT_TRUE(open().ok());
    const auto key = [](int i) { return "key-" + std::to_string(i); };
    for (int i = 0; i < kObjects; ++i) {
        ASSERT_EQ(put(key(i), 64), Code::kOk);
    }
    EXPECT_GT(store_->stats().index_capacity, 64u);
    for (int life = 0; life < 3; ++life) {
        next_life();
        ASSERT_EQ(store_->beginning().objects, kObjects) << store_->beginning().why_cold;
        for (int i = 0; i < kObjects; ++i) {
            ASSERT_TRUE(reads(key(i), 64)) << i;
        }
        // The order of the last uses, too: what is coldest here is what goes below.
        ASSERT_TRUE(reads(key(0), 64));
    }
    max_entries_ = 1024;
    next_life();
    const uint64_t kept = store_->beginning().objects;
    EXPECT_GT(kept, 900u);
    EXPECT_EQ(store_->beginning().dropped, kObjects - kept);
    EXPECT_TRUE(reads(key(0), 64));
    int late = 0;
    for (int i = kObjects - 500; i < kObjects; ++i) {
        late += reads(key(i), 64) ? 1 : 0;
    }
    EXPECT_EQ(late, 500);
    ASSERT_EQ(put("another", 64), Code::kOk);
    ASSERT_TRUE(store_->audit().ok());
}

TEST_F(Attach, GenerationsAreNeverDrawnTwice) {
    ASSERT_TRUE(open().ok());
    ASSERT_EQ(put("a", 100), Code::kOk);
    const Generation before = find("a").generation;
    next_life();
    EXPECT_EQ(find("a").generation, before);
    ASSERT_EQ(put("b", 100), Code::kOk);
    EXPECT_GT(epoch_of(find("b").generation), epoch_of(before));
    end_life();
    --epoch_;  // the master has forgotten the last life
    EXPECT_EQ(open().code(), Code::kInvalidArgument);
}

TEST_F(Attach, KeepsTheOrderOfLastUses) {
    ASSERT_TRUE(open().ok());
    std::vector<std::string> keys;
    while (store_->stats().evictions == 0) {
        keys.push_back("k" + std::to_string(keys.size()));
        ASSERT_EQ(put(keys.back(), 4096), Code::kOk);
    }
    // The first half is touched again, so that the second is colder.
    const size_t half = keys.size() / 2;
    for (size_t i = 0; i < half; ++i) {
        (void)find(keys[i]);
    }
    const auto lost_of_first_half = [&] {
        size_t lost = 0;
        for (size_t i = 0; i < half; ++i) {
            lost += find(keys[i]).hold == nullptr ? 1 : 0;
        }
        return lost;
    };
    const size_t lost = lost_of_first_half();
    next_life();
    for (size_t i = 0; i < half / 2; ++i) {
        ASSERT_EQ(put("new" + std::to_string(i), 4096), Code::kOk);
    }
    EXPECT_EQ(lost_of_first_half(), lost);
}

TEST_F(Attach, ReservedBlocksOfLivingClientsAreQuarantined) {
    ASSERT_TRUE(open().ok());
    alive_[1] = alive_[2] = true;
    const Owner writer{20, 1};
    const Owner other{21, 2};
    const auto sleeping = reserve("sleeping", 64 * 1024, writer);
    const auto dying = reserve("dying", 64 * 1024, other);
    const auto own = reserve("own", 64 * 1024, {22, -1});
    ASSERT_EQ(sleeping.code, Code::kOk);
    ASSERT_EQ(dying.code, Code::kOk);
    ASSERT_EQ(own.code, Code::kOk);
    alive_[2] = false;
    next_life();
    EXPECT_EQ(store_->stats().quarantined, 1u);
    EXPECT_EQ(store_->beginning().quarantined, 1u);
    // However full the store gets, nobody is given that block.
    for (int i = 0; i < 200; ++i) {
        const std::string key = "fill" + std::to_string(i);
        const auto reserved = reserve(key, 64 * 1024, {23, -1});
        ASSERT_EQ(reserved.code, Code::kOk);
        EXPECT_NE(reserved.offset, sleeping.offset);
        ASSERT_EQ(publish(reserved, key, 64 * 1024, {23, -1}), Code::kOk);
    }
    // It cannot be published any more; its writer says that it has stopped.
    const BlockStore::PublishItem item{sleeping.generation, 0, 9};
    EXPECT_NE(store_->publish(writer, {&item, 1})[0].code, Code::kOk);
    EXPECT_EQ(store_->abort({99, 1}, sleeping.generation), Code::kOk);
    EXPECT_EQ(store_->stats().quarantined, 0u);
    EXPECT_TRUE(store_->audit().ok());
}

TEST_F(Attach, AWriterThatLivesOnGivesItsBlocksBack) {
    ASSERT_TRUE(open().ok());
    alive_[1] = true;
    const auto lost = reserve("lost", 64 * 1024, {20, 1});
    ASSERT_EQ(lost.code, Code::kOk);
    next_life();
    ASSERT_EQ(reserve("new", 64 * 1024, {21, 1}).code, Code::kOk);
    store_->end_earlier_writes(1, 0);  // says nothing
    EXPECT_EQ(store_->stats().quarantined, 1u);
    store_->end_earlier_writes(2, 100);  // of another process
    EXPECT_EQ(store_->stats().quarantined, 1u);
    store_->end_earlier_writes(1, 100);  // of this life it may say nothing
    EXPECT_EQ(store_->stats().quarantined, 0u);
    EXPECT_EQ(store_->stats().reservations, 1u);
    EXPECT_TRUE(store_->audit().ok());
}

TEST_F(Attach, HoldsBySocketOfLivingClientsGoOn) {
    ASSERT_TRUE(open().ok());
    alive_[1] = true;
    ASSERT_EQ(put("held", 64 * 1024), Code::kOk);
    ASSERT_EQ(put("removed", 64 * 1024), Code::kOk);
    const Generation held = find("held").generation;
    const Generation removed = find("removed").generation;
    ASSERT_EQ(store_->hold({30, 1}, held), Code::kOk);
    ASSERT_EQ(store_->hold({30, 1}, removed), Code::kOk);
    const Hash128 hash = key_hash(secret_, ns_->id, "removed");
    ASSERT_EQ(store_->remove_upto(ns_, {"removed", hash}, 100), Code::kOk);
    next_life();
    EXPECT_EQ(store_->stats().deferred, 1u);
    EXPECT_EQ(find("removed").hold, nullptr);
    for (int i = 0; i < 200; ++i) {
        ASSERT_EQ(put("fill" + std::to_string(i), 64 * 1024), Code::kOk);
    }
    EXPECT_TRUE(reads("held", 64 * 1024));
    next_life();
    EXPECT_TRUE(reads("held", 64 * 1024));
    EXPECT_EQ(store_->stats().deferred, 1u);
    alive_[1] = false;
    store_->on_slot_dead(1);
    EXPECT_EQ(store_->stats().deferred, 0u);
    EXPECT_TRUE(store_->audit().ok());
}

// The node died after the new entry had gone in and before the old one had gone out.
TEST_F(Attach, AHoldOfAnObjectThatWasBeingReplacedGoesOn) {
    ASSERT_TRUE(open().ok());
    alive_[1] = true;
    ASSERT_EQ(put("key", 3000), Code::kOk);
    const Generation old = find("key").generation;
    const uint64_t at = entry_at(old);
    ASSERT_NE(at, 0u);
    ASSERT_EQ(store_->hold({30, 1}, old), Code::kOk);
    const uint8_t* const bytes = find("key").data;
    ASSERT_EQ(upsert("key", 5000), Code::kOk);
    const ptrdiff_t moved = find("key").data - bytes;
    end_life();
    write_generation(at, old);
    next_life();
    EXPECT_TRUE(store_->beginning().warm);
    EXPECT_TRUE(reads("key", 5000));
    EXPECT_EQ(store_->stats().deferred, 1u);
    const uint8_t* const held = find("key").data - moved;
    const std::vector<uint8_t> expected = bytes_of("key", 3000);
    for (int i = 0; i < 2000; ++i) {
        ASSERT_EQ(put("fill" + std::to_string(i), 3000), Code::kOk);
    }
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), held));
    alive_[1] = false;
    store_->on_slot_dead(1);
    EXPECT_EQ(store_->stats().deferred, 0u);
    EXPECT_TRUE(store_->audit().ok());
}

TEST_F(Attach, WhatWasRemovedOrFlushedStaysAway) {
    ASSERT_TRUE(open().ok());
    ASSERT_EQ(put("removed", 100), Code::kOk);
    ASSERT_EQ(put("flushed", 100), Code::kOk);
    const Hash128 hash = key_hash(secret_, ns_->id, "removed");
    ASSERT_EQ(store_->remove_upto(ns_, {"removed", hash}, version_), Code::kOk);
    store_->note_applied(41);
    next_life();
    EXPECT_EQ(store_->beginning().applied_seq, 41u);
    EXPECT_EQ(find("removed").hold, nullptr);
    EXPECT_TRUE(reads("flushed", 100));
    store_->flush(ns_);
    next_life();  // before any sweep
    EXPECT_EQ(store_->stats().objects, 0u);
    EXPECT_EQ(store_->beginning().dropped, 1u);
    ASSERT_EQ(store_->beginning().namespaces.size(), 1u);
    EXPECT_EQ(store_->beginning().namespaces[0]->epoch, 1u);
}

TEST_F(Attach, ExpiryGoesOn) {
    ASSERT_TRUE(open().ok());
    ASSERT_EQ(put("soon", 100, 50), Code::kOk);
    ASSERT_EQ(put("later", 100, 5000), Code::kOk);
    now_ms_ += 100;
    next_life();
    EXPECT_EQ(store_->stats().objects, 1u);
    EXPECT_TRUE(reads("later", 100));
    now_ms_ += 6000;
    EXPECT_EQ(find("later").hold, nullptr);
}

TEST_F(Attach, TheSegmentMayGrowAndNotShrink) {
    ASSERT_TRUE(open().ok());
    ASSERT_EQ(put("a", 1000), Code::kOk);
    end_life();
    size_bytes_ = 8 * kMiB;
    ASSERT_TRUE(open().ok());
    EXPECT_TRUE(store_->beginning().warm);
    EXPECT_TRUE(reads("a", 1000));
    EXPECT_EQ(put("large", 5 * kMiB), Code::kOk);
    end_life();
    size_bytes_ = 4 * kMiB;
    const Status refused = open();
    EXPECT_EQ(refused.code(), Code::kInvalidArgument);
    EXPECT_NE(refused.message().find("segment_size"), std::string::npos) << refused.message();
    EXPECT_NE(refused.message().find("discard_foreign_segment"), std::string::npos);
    ASSERT_TRUE(open(true).ok());
    EXPECT_FALSE(store_->beginning().warm);
    EXPECT_EQ(find("a").hold, nullptr);
}

TEST_F(Attach, OnlyTheOwnersOwnMemory) {
    ASSERT_TRUE(open().ok());
    ASSERT_EQ(put("a", 1000), Code::kOk);
    // A second owner alive: not even in this process.
    EXPECT_EQ(files().code(), Code::kUnavailable);
    end_life();
    node_id_ = "node-b";
    EXPECT_EQ(open().code(), Code::kInvalidArgument);
    node_id_ = "node-a";
    secret_[0] ^= 1;
    EXPECT_EQ(open().code(), Code::kInvalidArgument);
    secret_[0] ^= 1;
    // All those attempts have changed nothing.
    ASSERT_TRUE(open().ok());
    EXPECT_TRUE(reads("a", 1000));
}

TEST_F(Attach, AnotherFormatIsRefusedOrDiscarded) {
    ASSERT_TRUE(open().ok());
    ASSERT_EQ(put("a", 1000), Code::kOk);
    end_life();
    for (const char* name : {"index", "clients"}) {
        const auto at = static_cast<std::streamoff>(offsetof(IndexHeader, layout_version));
        std::fstream file(path(name), std::ios::in | std::ios::out | std::ios::binary);
        const uint32_t future = 2;
        file.seekp(at).write(reinterpret_cast<const char*>(&future), sizeof future);
        file.close();
        const Status refused = open();
        EXPECT_EQ(refused.code(), Code::kVersionMismatch) << name;
        EXPECT_NE(refused.message().find("discard_foreign_segment"), std::string::npos)
            << refused.message();
        ASSERT_TRUE(open(true).ok()) << name;
        EXPECT_FALSE(store_->beginning().warm);
        ASSERT_EQ(put("a", 1000), Code::kOk);
        end_life();
    }
}

// A flipped byte anywhere costs at most the cache: never wrong bytes, never a crash.
TEST_F(Attach, AFlippedByteInEveryRegion) {
    ASSERT_TRUE(open().ok());
    const IndexGeometry g = geometry();
    std::vector<std::string> keys;
    for (int i = 0; i < 200; ++i) {
        keys.push_back("key-" + std::to_string(i));
        ASSERT_EQ(put(keys.back(), 3000), Code::kOk);
    }
    struct Region {
        const char* file;
        uint64_t begin;
        uint64_t end;
    };
    const uint64_t ledger = g.total_bytes;
    const Region regions[] = {
        {"segment", 0, 600'000},
        {"index", 0, kIndexHeaderBytes},
        {"index", kIndexHeaderBytes, g.entries_offset},
        {"index", g.entries_offset, g.heap_offset},
        {"index", g.heap_offset, g.heap_offset + 20'000},
        {"index", ledger, ledger + 32},
        {"index", ledger + kLedgerHeaderBytes, ledger + g.ledger_blocks_offset()},
        {"index", ledger + g.ledger_blocks_offset(), ledger + g.ledger_blocks_offset() + 6000},
        {"index", ledger + g.ledger_names_offset(), ledger + g.ledger_names_offset() + 64},
        {"index", g.growth_offset, g.growth_offset + 8 * sizeof(TagLine)},
        {"index", g.growth_entries_offset, g.growth_entries_offset + 20'000},
        {"index", g.growth_recency_offset, g.growth_recency_offset + 2048},
        {"clients", 0, sizeof(ClientsHeader)},
    };
    std::mt19937_64 random(5);
    uint64_t kept = 0;
    uint64_t cold = 0;
    for (const Region& region : regions) {
        for (int i = 0; i < 12; ++i) {
            const uint64_t at = region.begin + random() % (region.end - region.begin);
            SCOPED_TRACE(std::string(region.file) + " byte " + std::to_string(at));
            end_life();
            flip(region.file, at);
            if (!open().ok()) {
                ASSERT_TRUE(open(true).ok());
            }
            ASSERT_TRUE(store_->audit().ok()) << store_->audit().to_string();
            cold += store_->beginning().warm ? 0 : 1;
            for (const std::string& key : keys) {
                const auto found = find(key);
                if (found.hold == nullptr) {
                    continue;
                }
                const Identity identity{ns_->tenant_id, ns_->id, key_hash(secret_, ns_->id, key),
                                        found.version, found.length};
                const bool sealed =
                    seal_checksum(crc32c(found.data, found.length), identity) == found.sealed_crc;
                ASSERT_TRUE(!sealed || reads(key, 3000)) << key;
                kept += sealed ? 1 : 0;
            }
            // Everything is there again for the next one.
            end_life();
            std::filesystem::remove_all(directory_);
            std::filesystem::create_directory(directory_);
            ASSERT_TRUE(open().ok());
            for (const std::string& key : keys) {
                ASSERT_EQ(put(key, 3000), Code::kOk);
            }
        }
    }
    EXPECT_GT(kept, 18'000u);  // of 120 × 200
    EXPECT_LT(cold, 50u);
}

// Where two blocks claim one generation, neither is believed.
TEST_F(Attach, AGenerationIsOneBlocksOnly) {
    const auto over_entry_of = [this](Generation from, Generation to) {
        const uint64_t at = entry_at(from);
        if (at != 0) {
            write_generation(at, to);
        }
        return at != 0;
    };
    ASSERT_TRUE(open().ok());
    for (const char* key : {"one", "two", "three"}) {
        ASSERT_EQ(put(key, 3000), Code::kOk);
    }
    const Generation one = find("one").generation;
    const Generation two = find("two").generation;
    end_life();
    ASSERT_TRUE(over_entry_of(one, two));
    next_life();
    EXPECT_GE(store_->beginning().dropped, 2u);
    EXPECT_FALSE(reads("one", 3000));
    EXPECT_FALSE(reads("two", 3000));
    EXPECT_TRUE(reads("three", 3000));
    for (int i = 0; i < 2000; ++i) {
        ASSERT_EQ(put("fill" + std::to_string(i), 4096), Code::kOk);
    }
    // An entry must not hide the block that a living client writes.
    alive_[1] = true;
    const auto written = reserve("written", 64 * 1024, {20, 1});
    ASSERT_EQ(written.code, Code::kOk);
    ASSERT_EQ(put("other", 3000), Code::kOk);
    const Generation other = find("other").generation;
    end_life();
    ASSERT_TRUE(over_entry_of(other, written.generation));
    ASSERT_TRUE(open().ok());
    EXPECT_FALSE(store_->beginning().warm);  // whose block it is cannot be told: nothing is kept
    EXPECT_TRUE(store_->audit().ok());
}

TEST_F(Attach, ATruncatedSegmentLosesItsTailOnly) {
    ASSERT_TRUE(open().ok());
    for (int i = 0; i < 60; ++i) {
        ASSERT_EQ(put("k" + std::to_string(i), 32 * 1024), Code::kOk);
    }
    std::vector<uint64_t> offsets;
    const uint8_t* base = nullptr;
    for (int i = 0; i < 60; ++i) {
        const auto found = find("k" + std::to_string(i));
        if (base == nullptr || found.data < base) {
            base = found.data;
        }
    }
    for (int i = 0; i < 60; ++i) {
        offsets.push_back(static_cast<uint64_t>(find("k" + std::to_string(i)).data - base));
    }
    end_life();
    ASSERT_EQ(truncate(path("segment").c_str(), kMiB), 0);
    ASSERT_TRUE(open().ok());
    ASSERT_TRUE(store_->audit().ok());
    size_t kept = 0;
    for (int i = 0; i < 60; ++i) {
        const bool whole = offsets[static_cast<size_t>(i)] + 32 * 1024 <= kMiB;
        EXPECT_EQ(reads("k" + std::to_string(i), 32 * 1024), whole) << i;
        kept += whole ? 1 : 0;
    }
    EXPECT_GT(kept, 20u);
    EXPECT_LT(kept, 60u);
    EXPECT_EQ(std::filesystem::file_size(path("segment")), size_bytes_);
}

// A life that ends between its steps: the next one finds everything that the last whole one had.
TEST_F(Attach, MissingFilesMeanAColdStart) {
    for (const char* name : {"segment", "index", "clients"}) {
        ASSERT_TRUE(open().ok());
        ASSERT_EQ(put("a", 1000), Code::kOk);
        end_life();
        std::filesystem::remove(path(name));
        ASSERT_TRUE(open().ok()) << name;
        EXPECT_FALSE(store_->beginning().warm) << name;
        EXPECT_EQ(find("a").hold, nullptr);
        EXPECT_EQ(put("a", 1000), Code::kOk);
        end_life();
        std::filesystem::remove_all(directory_);
        std::filesystem::create_directory(directory_);
    }
}

TEST_F(Attach, TheOldIndexIsRetiredAndTheNewOneIsAnotherFile) {
    ASSERT_TRUE(open().ok());
    ASSERT_EQ(put("a", 1000), Code::kOk);
    const int old_fd = ::open(path("index").c_str(), O_RDONLY | O_CLOEXEC);
    ASSERT_GE(old_fd, 0);
    auto reader = IndexReader::attach(old_fd, size_bytes_);
    ASSERT_TRUE(reader.ok());
    const Hash128 hash = key_hash(secret_, ns_->id, "a");
    EXPECT_TRUE((*reader)->probe(ns_->id, hash, "a", now_ms_).has_value());
    next_life();
    EXPECT_TRUE((*reader)->retired());
    EXPECT_FALSE((*reader)->probe(ns_->id, hash, "a", now_ms_).has_value());
    struct stat before{};
    struct stat after{};
    ASSERT_EQ(fstat(old_fd, &before), 0);
    ASSERT_EQ(stat(path("index").c_str(), &after), 0);
    EXPECT_NE(before.st_ino, after.st_ino);
    EXPECT_EQ(after.st_mode & 0777, 0600u);
    close(old_fd);
}

TEST_F(Attach, RemovedFilesAreGone) {
    ASSERT_TRUE(open().ok());
    ASSERT_EQ(put("a", 1000), Code::kOk);
    store_->remove_files();
    end_life();
    EXPECT_TRUE(std::filesystem::is_empty(directory_));
}

// The files as lines of 64 bytes that are not zero: "<size>", then "<offset> <hex>".
std::string dump(const std::string& path) {
    constexpr size_t kLine = 64;
    std::ifstream file(path, std::ios::binary);
    std::ostringstream out;
    out << std::filesystem::file_size(path) << "\n" << std::hex;
    std::vector<char> line(kLine);
    for (uint64_t at = 0; file.read(line.data(), kLine); at += kLine) {
        if (std::ranges::all_of(line, [](char c) { return c == 0; })) {
            continue;
        }
        out << at << " ";
        for (const char c : line) {
            const auto byte = static_cast<uint8_t>(c);
            out << "0123456789abcdef"[byte >> 4] << "0123456789abcdef"[byte & 15];
        }
        out << "\n";
    }
    return out.str();
}

void restore(const std::string& text_path, const std::string& path) {
    std::ifstream text(text_path);
    uint64_t size = 0;
    ASSERT_TRUE(text >> size) << text_path;
    std::ofstream(path, std::ios::binary).close();
    std::filesystem::permissions(path, std::filesystem::perms(0600));
    std::filesystem::resize_file(path, size);
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    uint64_t at = 0;
    std::string hex;
    while (text >> std::hex >> at >> hex) {
        file.seekp(static_cast<std::streamoff>(at));
        for (size_t i = 0; i < hex.size(); i += 2) {
            file.put(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
        }
    }
}

// Files that format 1 once wrote, committed. A build of any later format has to read them too, and
// these must never be written again.
TEST_F(Attach, GoldenFilesOfFormat1) {
    const std::string golden = std::string(KVSTORE_GOLDEN_DIR) + "/format1/";
    constexpr const char* kFiles[] = {"index", "segment", "clients"};
    size_bytes_ = 256 * 1024;
    if (std::getenv("KVSTORE_WRITE_GOLDEN") != nullptr) {
        ASSERT_TRUE(open().ok());
        ASSERT_EQ(put("llama/0", 100), Code::kOk);
        ASSERT_EQ(put("llama/1 with é", 5000), Code::kOk);
        ASSERT_EQ(put("mortal", 300, 1'000'000), Code::kOk);
        ASSERT_EQ(put("empty", 0), Code::kOk);
        const BlockStore::Key pinned{"llama/0", key_hash(secret_, ns_->id, "llama/0"), 0};
        ASSERT_EQ(store_->set_pin(ns_, pinned, Pin::kHard), Code::kOk);
        alive_[1] = true;
        ASSERT_EQ(reserve("never", 1000, {20, 1}).code, Code::kOk);
        store_->note_applied(77);
        end_life();
        for (const char* name : kFiles) {
            std::ofstream(golden + name + ".txt") << dump(path(name));
        }
    }
    for (const char* name : kFiles) {
        restore(golden + name + ".txt", path(name));
    }
    epoch_ = 1;
    alive_[1] = true;
    const Status status = open();
    ASSERT_TRUE(status.ok()) << status.to_string();
    ASSERT_TRUE(store_->beginning().warm) << store_->beginning().why_cold;
    EXPECT_EQ(store_->beginning().objects, 4u);
    EXPECT_EQ(store_->beginning().quarantined, 1u);
    EXPECT_EQ(store_->beginning().applied_seq, 77u);
    EXPECT_TRUE(reads("llama/0", 100));
    EXPECT_TRUE(reads("llama/1 with é", 5000));
    EXPECT_TRUE(reads("mortal", 300));
    EXPECT_TRUE(reads("empty", 0));
    EXPECT_EQ(find("llama/0").pin, Pin::kHard);
    EXPECT_GT(find("mortal").ttl_ms, 0u);
    EXPECT_TRUE(store_->audit().ok());
}

// Random lives: puts of all sizes, removes, reservations that die with the life.
TEST_F(Attach, ManyLives) {
    ASSERT_TRUE(open().ok());
    std::mt19937_64 random(11);
    std::unordered_map<std::string, uint64_t> sizes;
    for (int life = 0; life < 40; ++life) {
        for (int i = 0; i < 150; ++i) {
            const std::string key = "k" + std::to_string(random() % 500);
            const uint64_t size = random() % 5 == 0 ? random() % 100'000 : 1 + random() % 4096;
            const uint64_t what = random() % 10;
            if (what == 0) {
                const Hash128 hash = key_hash(secret_, ns_->id, key);
                (void)store_->remove_upto(ns_, {key, hash}, ++version_);
                sizes.erase(key);
            } else if (what == 1) {
                (void)reserve(key + "-never", size, {40, -1});
            } else if (put(key, size) == Code::kOk) {
                sizes[key] = size;
            }
        }
        const uint64_t objects = store_->stats().objects;
        next_life();
        ASSERT_EQ(store_->beginning().objects, objects) << "life " << life;
        EXPECT_EQ(store_->beginning().dropped, 0u);
        for (const auto& [key, size] : sizes) {
            if (find(key).hold != nullptr) {
                ASSERT_TRUE(reads(key, size)) << key;
            }
        }
    }
}

}  // namespace
}  // namespace kvstore
