// CRC32C against published values, the portable code and itself, over lengths and alignments.
#include "base/checksum.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string_view>
#include <vector>

namespace kvstore {
namespace {

std::vector<uint8_t> random_data(std::mt19937_64& random, size_t size) {
    std::vector<uint8_t> data(size);
    for (uint8_t& byte : data) {
        byte = static_cast<uint8_t>(random());
    }
    return data;
}

uint32_t crc32c_portable(const void* data, size_t size, uint32_t crc = 0) {
    return crc32c_by(CrcWay::kPortable, data, size, crc);
}

// Every way that this processor has.
std::vector<CrcWay> ways() {
    std::vector<CrcWay> all;
    for (const CrcWay way : {CrcWay::kPortable, CrcWay::kInstruction, CrcWay::kWide}) {
        if (way <= best_crc_way()) {
            all.push_back(way);
        }
    }
    return all;
}

// RFC 3720, B.4, and the check value of the catalogue of CRCs.
TEST(Checksum, PublishedValues) {
    const std::vector<uint8_t> zeros(32, 0);
    const std::vector<uint8_t> ones(32, 0xff);
    std::vector<uint8_t> rising(32);
    std::iota(rising.begin(), rising.end(), uint8_t{0});
    const std::vector<uint8_t> falling(rising.rbegin(), rising.rend());
    const std::vector<uint8_t> read_command = {
        0x01, 0xc0, 0, 0, 0, 0, 0,    0, 0,    0, 0, 0,    0, 0, 0, 0,
        0x14, 0,    0, 0, 0, 0, 0x04, 0, 0,    0, 0, 0x14, 0, 0, 0, 0x18,
        0x28, 0,    0, 0, 0, 0, 0,    0, 0x02, 0, 0, 0,    0, 0, 0, 0};
    for (const CrcWay way : ways()) {
        const auto sum = [way](const void* data, size_t size, uint32_t crc) {
            return crc32c_by(way, data, size, crc);
        };
        EXPECT_EQ(sum(zeros.data(), 32, 0), 0x8a9136aau);
        EXPECT_EQ(sum(ones.data(), 32, 0), 0x62a8ab43u);
        EXPECT_EQ(sum(rising.data(), 32, 0), 0x46dd794eu);
        EXPECT_EQ(sum(falling.data(), 32, 0), 0x113fdb5cu);
        EXPECT_EQ(sum(read_command.data(), read_command.size(), 0), 0xd9963a56u);
        EXPECT_EQ(sum("123456789", 9, 0), 0xe3069283u);
        EXPECT_EQ(sum(nullptr, 0, 0), 0u);
        EXPECT_EQ(sum(nullptr, 0, 0x12345678u), 0x12345678u);
    }
}

TEST(Checksum, EveryShortLengthAndAlignmentAgrees) {
    std::mt19937_64 random(1);
    const std::vector<uint8_t> data = random_data(random, 5000);
    for (size_t start = 0; start < 16; ++start) {
        for (size_t size = 0; size < 1300; ++size) {
            const uint32_t expected = crc32c_portable(&data[start], size);
            for (const CrcWay way : ways()) {
                ASSERT_EQ(crc32c_by(way, &data[start], size), expected) << start << " " << size;
            }
        }
    }
}

TEST(Checksum, ContinuesAcrossAnySplit) {
    std::mt19937_64 random(2);
    const std::vector<uint8_t> data = random_data(random, 20'000);
    const uint32_t whole = crc32c_portable(data.data(), data.size());
    for (int i = 0; i < 2000; ++i) {
        const size_t split = random() % (data.size() + 1);
        for (const CrcWay way : ways()) {
            const uint32_t head = crc32c_by(way, data.data(), split);
            ASSERT_EQ(crc32c_by(way, data.data() + split, data.size() - split, head), whole)
                << split;
        }
    }
}

// Copies between random alignments; the bytes around the destination must stay.
void check_copy(CrcWay way, std::mt19937_64& random, const std::vector<uint8_t>& source,
                size_t size) {
    constexpr size_t kMargin = 64;
    const size_t from = random() % 64;
    const size_t to = kMargin + random() % 128;
    const auto start = static_cast<uint32_t>(random());
    std::vector<uint8_t> target(size + 4 * kMargin, 0xa5);
    const uint32_t crc = copy_crc32c_by(way, target.data() + to, source.data() + from, size, start);
    ASSERT_EQ(crc, crc32c_portable(source.data() + from, size, start)) << from << " " << size;
    ASSERT_EQ(std::memcmp(target.data() + to, source.data() + from, size), 0) << to << " " << size;
    for (size_t i = 0; i < target.size(); ++i) {
        if (i < to || i >= to + size) {
            ASSERT_EQ(target[i], 0xa5) << i << " " << to << " " << size;
        }
    }
}

TEST(Checksum, CopiesAnyLengthBetweenAnyAlignments) {
    const uint64_t seed = std::random_device()();
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    const std::vector<uint8_t> source = random_data(random, 400'000);
    for (const CrcWay way : ways()) {
        for (size_t size = 0; size < 700; ++size) {
            check_copy(way, random, source, size);
        }
        for (int i = 0; i < 1000; ++i) {
            check_copy(way, random, source, random() % 9000);
        }
        for (int i = 0; i < 200; ++i) {
            check_copy(way, random, source, random() % 390'000);
        }
        // Around the size from which stores are non-temporal.
        for (size_t size = 65'536 - 70; size < 65'536 + 70; ++size) {
            check_copy(way, random, source, size);
        }
    }
}

TEST(Checksum, CopyOfNothingTouchesNothing) { EXPECT_EQ(copy_crc32c(nullptr, nullptr, 0, 7), 7u); }

TEST(Checksum, SealCoversEveryFieldOfTheIdentity) {
    const Identity identity{.tenant = 1, .ns = 2, .hash = {3, 4}, .version = 5, .length = 6};
    const uint32_t data_crc = crc32c("payload", 7);
    const uint64_t words[6] = {1, 2, 3, 4, 5, 6};
    const uint32_t sealed = seal_checksum(data_crc, identity);
    EXPECT_EQ(sealed, crc32c_portable(words, sizeof(words), data_crc));
    for (int field = 0; field < 6; ++field) {
        Identity other = identity;
        uint64_t* const fields[6] = {&other.tenant,  &other.ns,      &other.hash.lo,
                                     &other.hash.hi, &other.version, &other.length};
        ++*fields[field];
        EXPECT_NE(seal_checksum(data_crc, other), sealed) << field;
    }
    EXPECT_NE(seal_checksum(data_crc + 1, identity), sealed);
}

}  // namespace
}  // namespace kvstore
