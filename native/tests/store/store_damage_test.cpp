// A store on damaged memory of an earlier one: what it costs, and that it is never wrong bytes.
#include "tests/store/attach_fixture.h"

namespace kvstore {
namespace {

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

}  // namespace
}  // namespace kvstore
