// One shard's table: what tells keys apart that share a place, and its memory.
#include "directory/object_table.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <string>

namespace kvstore {
namespace {

constexpr uint32_t kNs = 3;

class ObjectTableTest : public testing::Test {
  protected:
    ObjectTableTest() { table.set_memory(&memory); }
    uint32_t look_up(const KeyHash& hash, std::string_view key) const {
        return table.find_hinted(table.prefetch_entry(hash.index), hash, kNs, key);
    }

    TableMemory memory;
    ObjectTable table;
};

TEST_F(ObjectTableTest, KeysOfOneIndexHashAreToldApart) {
    const KeyHash first{.index = 7, .check = uint64_t{1} << 41};
    const KeyHash second{.index = 7, .check = 1};
    const uint32_t a = table.insert(first, kNs, "a");
    const uint32_t b = table.insert(second, kNs, "b");
    EXPECT_EQ(look_up(first, "a"), a);
    EXPECT_EQ(look_up(second, "b"), b);
    EXPECT_EQ(look_up({.index = 7, .check = 2}, "c"), ObjectTable::kNone);
    EXPECT_EQ(look_up({.index = 8, .check = 1}, "b"), ObjectTable::kNone);
    EXPECT_EQ(table.find_hinted(a, first, kNs + 1, "a"), ObjectTable::kNone);
    table.erase(a);
    EXPECT_EQ(look_up(first, "a"), ObjectTable::kNone);
    EXPECT_EQ(look_up(second, "b"), b);
    EXPECT_EQ(table.insert(first, kNs, "a"), a) << "its entry is used again";
}

TEST_F(ObjectTableTest, SizeAndExpiryShareTheirWordsWithTheCheck) {
    const KeyHash hash{.index = 1, .check = ~uint64_t{0}};
    ObjectEntry& entry = table.at(table.insert(hash, kNs, "key"));
    entry.set_size(limits::kMaxObjectBytes);
    entry.set_expiry((uint64_t{1} << 48) - 1);
    EXPECT_EQ(entry.size, limits::kMaxObjectBytes);
    EXPECT_EQ(entry.expires_at_ms, (uint64_t{1} << 48) - 1);
    EXPECT_TRUE(entry.has_check(hash));
    for (const int bit : {0, 15, 41, 63}) {
        const KeyHash other{.index = 1, .check = hash.check ^ uint64_t{1} << bit};
        EXPECT_FALSE(entry.has_check(other)) << bit;
    }
}

TEST(TableMemoryTest, PiecesAreApartAndAligned) {
    TableMemory memory;
    std::set<char*> pieces;
    constexpr size_t kPiece = 16 << 10;
    constexpr size_t kPieces = 600;  // 9.4 MiB
    for (size_t i = 0; i < kPieces; ++i) {
        char* piece = memory.take(kPiece);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(piece) % TableMemory::kAlign, 0u);
        std::memset(piece, static_cast<int>(i), kPiece);
        pieces.insert(piece);
    }
    for (auto at = pieces.begin(); std::next(at) != pieces.end(); ++at) {
        ASSERT_GE(*std::next(at) - *at, static_cast<ptrdiff_t>(kPiece));
    }
    EXPECT_GE(memory.bytes(), kPiece * kPieces);
    EXPECT_LE(memory.bytes(), kPiece * kPieces + kHugePageBytes);
    char* large = memory.take(3 * kHugePageBytes);
    std::memset(large, 1, 3 * kHugePageBytes);
}

}  // namespace
}  // namespace kvstore
