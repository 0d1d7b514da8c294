// A store on the memory of an earlier one: what is kept, what is protected, what is refused.
#include "tests/store/attach_fixture.h"

namespace kvstore {
namespace {

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

TEST_F(Attach, TheSegmentMayGrowAndShrink) {
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
    ASSERT_TRUE(open().ok());
    EXPECT_TRUE(store_->beginning().warm);
    EXPECT_TRUE(reads("a", 1000));
    EXPECT_EQ(find("large").hold, nullptr) << "it lay in the part that is gone";
    EXPECT_EQ(store_->stats().segment_bytes, 4 * kMiB);
    EXPECT_EQ(store_->damage(), "");
    EXPECT_TRUE(store_->audit().ok());
    EXPECT_EQ(put("fits", 2 * kMiB), Code::kOk);
    // The end of the file has given its memory back.
    struct stat info{};
    ASSERT_EQ(stat(path("segment").c_str(), &info), 0);
    EXPECT_EQ(info.st_size, 8 * kMiB);
    EXPECT_LE(info.st_blocks * 512, 4 * kMiB + 65'536);
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
        const uint32_t future = 99;
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
