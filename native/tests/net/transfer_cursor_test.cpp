// The cursor of a transfer: every byte once, in order, with the checksum of each part.
#include "net/transfer_cursor.h"

#include <gtest/gtest.h>

#include <array>
#include <numeric>
#include <random>
#include <vector>

#include "base/checksum.h"

namespace kvstore {
namespace {

class TransferCursorTest : public ::testing::Test {
  protected:
    // Parts of random sizes, empty ones among them, over one run of bytes.
    void make(uint32_t seed, size_t count, size_t max_bytes) {
        std::mt19937 random(seed);
        std::vector<size_t> sizes(count);
        for (size_t& size : sizes) {
            size = random() % 4 == 0 ? 0 : random() % (max_bytes + 1);
        }
        memory.resize(std::accumulate(sizes.begin(), sizes.end(), size_t{0}));
        for (uint8_t& byte : memory) {
            byte = static_cast<uint8_t>(random());
        }
        parts.clear();
        size_t at = 0;
        for (const size_t size : sizes) {
            parts.push_back({memory.data() + at, size});
            at += size;
        }
    }
    // Moves steps of random lengths, as a socket would; what the extents held.
    std::vector<uint8_t> walk(TransferCursor& cursor, std::mt19937& random, size_t max_extents) {
        std::vector<uint8_t> moved;
        std::array<iovec, 8> extents;
        while (!cursor.done()) {
            const size_t filled = cursor.gather(std::span(extents).first(max_extents));
            EXPECT_GT(filled, 0u);
            size_t offered = 0;
            for (size_t i = 0; i < filled; ++i) {
                EXPECT_GT(extents[i].iov_len, 0u);
                offered += extents[i].iov_len;
            }
            size_t left = 1 + random() % offered;
            cursor.passed(left);
            for (size_t i = 0; left != 0; ++i) {
                const size_t step = std::min(left, extents[i].iov_len);
                const auto* bytes = static_cast<const uint8_t*>(extents[i].iov_base);
                moved.insert(moved.end(), bytes, bytes + step);
                left -= step;
            }
        }
        return moved;
    }
    std::vector<uint8_t> memory;
    std::vector<iovec> parts;
};

TEST_F(TransferCursorTest, EveryByteOnceAndEachPartsChecksum) {
    for (uint32_t seed = 1; seed <= 300; ++seed) {
        SCOPED_TRACE(seed);
        make(seed, seed % 20, seed % 3 == 0 ? 100'000 : 50);
        std::mt19937 random(seed);
        std::vector<uint32_t> crcs(parts.size(), 99);
        TransferCursor cursor(parts, crcs);
        EXPECT_EQ(walk(cursor, random, 1 + seed % 8), memory);
        for (size_t i = 0; i < parts.size(); ++i) {
            EXPECT_EQ(crcs[i], crc32c(parts[i].iov_base, parts[i].iov_len)) << "part " << i;
        }
    }
}

TEST_F(TransferCursorTest, PartsOfOneObjectShareAChecksum) {
    for (uint32_t seed = 1; seed <= 100; ++seed) {
        SCOPED_TRACE(seed);
        make(seed, 20, seed % 3 == 0 ? 100'000 : 50);
        std::mt19937 random(seed);
        std::vector<uint32_t> crc_of;
        for (uint32_t object = 0; crc_of.size() < parts.size(); ++object) {
            crc_of.resize(std::min(parts.size(), crc_of.size() + 1 + random() % 5), object);
        }
        std::vector<uint32_t> crcs(crc_of.back() + 1);
        TransferCursor cursor(parts, crcs, crc_of);
        EXPECT_EQ(walk(cursor, random, 1 + seed % 8), memory);
        std::vector<uint32_t> expected(crcs.size(), 0);
        for (size_t i = 0; i < parts.size(); ++i) {
            uint32_t& crc = expected[crc_of[i]];
            crc = crc32c(parts[i].iov_base, parts[i].iov_len, crc);
        }
        EXPECT_EQ(crcs, expected);
    }
}

TEST_F(TransferCursorTest, StepsAreShortOnlyWhereChecksumsWantIt) {
    std::vector<uint8_t> bytes(3 * TransferCursor::kStepBytes);
    const iovec part{bytes.data(), bytes.size()};
    std::array<iovec, 2> extents;
    ASSERT_EQ(TransferCursor({&part, 1}).gather(extents), 1u);
    EXPECT_EQ(extents[0].iov_len, bytes.size());
    uint32_t crc = 0;
    ASSERT_EQ(TransferCursor({&part, 1}, {&crc, 1}).gather(extents), 1u);
    EXPECT_EQ(extents[0].iov_len, TransferCursor::kStepBytes);
}

TEST_F(TransferCursorTest, NothingIsDoneAtOnce) {
    std::array<iovec, 2> extents;
    EXPECT_TRUE(TransferCursor().done());
    const std::vector<iovec> empty(3, iovec{nullptr, 0});
    std::vector<uint32_t> crcs(3, 7);
    const TransferCursor cursor(empty, crcs);
    EXPECT_TRUE(cursor.done());
    EXPECT_EQ(cursor.gather(extents), 0u);
    EXPECT_EQ(crcs, std::vector<uint32_t>(3, 0));
}

}  // namespace
}  // namespace kvstore
