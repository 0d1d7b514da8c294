// SipHash against its authors' vectors, and what counts as a key or a name.
#include "base/hash.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "base/limits.h"

namespace kvstore {
namespace {

HashSecret rising_secret() {
    HashSecret secret;
    std::iota(secret.begin(), secret.end(), uint8_t{0});
    return secret;
}

std::vector<uint8_t> rising(size_t size) {
    std::vector<uint8_t> data(size);
    std::iota(data.begin(), data.end(), uint8_t{0});
    return data;
}

// From vectors.h of the reference implementation (github.com/veorq/SipHash): key 00..0f, input
// 00..n-1.
TEST(SipHash, ReferenceVectors64) {
    const HashSecret secret = rising_secret();
    EXPECT_EQ(siphash64(secret, rising(0)), 0x726fdb47dd0e0e31u);
    EXPECT_EQ(siphash64(secret, rising(1)), 0x74f839c593dc67fdu);
    EXPECT_EQ(siphash64(secret, rising(2)), 0x0d6c8009d9a94f5au);
    EXPECT_EQ(siphash64(secret, rising(7)), 0xab0200f58b01d137u);
    EXPECT_EQ(siphash64(secret, rising(8)), 0x93f5f5799a932462u);
    EXPECT_EQ(siphash64(secret, rising(15)), 0xa129ca6149be45e5u);  // the paper's appendix A
    EXPECT_EQ(siphash64(secret, rising(63)), 0x958a324ceb064572u);
}

TEST(SipHash, ReferenceVectors128) {
    const HashSecret secret = rising_secret();
    const auto bytes = [&](size_t size) {
        const Hash128 hash = siphash128(secret, rising(size));
        std::array<uint8_t, 16> out;
        std::memcpy(out.data(), &hash.lo, 8);
        std::memcpy(out.data() + 8, &hash.hi, 8);
        return out;
    };
    using Bytes = std::array<uint8_t, 16>;
    EXPECT_EQ(bytes(0), (Bytes{0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72,
                               0x14, 0xc7, 0x55, 0x02, 0x93}));
    EXPECT_EQ(bytes(1), (Bytes{0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44, 0x34, 0x76, 0x59,
                               0x11, 0x9b, 0x22, 0xfc, 0x45}));
    EXPECT_EQ(bytes(2), (Bytes{0x81, 0x77, 0x22, 0x8d, 0xa4, 0xa4, 0x5d, 0xc7, 0xfc, 0xa3, 0x8b,
                               0xde, 0xf6, 0x0a, 0xff, 0xe4}));
}

TEST(KeyHash, IsTheHashOfNamespaceAndKey) {
    const HashSecret secret = rising_secret();
    for (size_t size = 0; size <= 40; ++size) {
        const std::string key(size, 'k');
        const NamespaceId ns = 0x1122334455667788;
        std::vector<uint8_t> joined(8 + size, 'k');
        std::memcpy(joined.data(), &ns, 8);
        EXPECT_EQ(key_hash(secret, ns, key), siphash128(secret, joined)) << size;
    }
}

TEST(Names, EveryPartOfANamespaceCounts) {
    const HashSecret secret = rising_secret();
    const std::set<uint64_t> ids = {
        tenant_id(secret, ""),
        tenant_id(secret, "ab"),
        namespace_id(secret, "ab", "c", 0),
        namespace_id(secret, "a", "bc", 0),
        namespace_id(secret, "abc", "", 0),
        namespace_id(secret, "", "abc", 0),
        namespace_id(secret, "ab", "c", 1),
        namespace_id(secret, "ab", "c", 256),
        namespace_id(HashSecret{}, "ab", "c", 0),
    };
    EXPECT_EQ(ids.size(), 9u);
}

TEST(Keys, AcceptsWellFormedText) {
    EXPECT_TRUE(is_valid_key("a"));
    EXPECT_TRUE(is_valid_key(std::string_view("\0", 1)));
    EXPECT_TRUE(is_valid_key("plain ascii, longer than a word of eight"));
    EXPECT_TRUE(is_valid_key("gr\u00fc\u00dfe \u4f60\u597d \U0001f511"));
    EXPECT_TRUE(is_valid_key("\x7f\xc2\x80\xdf\xbf"));      // last and first of one and two bytes
    EXPECT_TRUE(is_valid_key("\xe0\xa0\x80\xed\x9f\xbf"));  // U+0800, U+D7FF
    EXPECT_TRUE(is_valid_key("\xee\x80\x80\xef\xbf\xbf"));  // U+E000, U+FFFF
    EXPECT_TRUE(is_valid_key("\xf0\x90\x80\x80\xf4\x8f\xbf\xbf"));  // U+10000, U+10FFFF
    EXPECT_TRUE(is_valid_key(std::string(limits::kMaxKeyBytes, 'x')));
}

TEST(Keys, RefusesMalformedText) {
    EXPECT_FALSE(is_valid_key(""));
    EXPECT_FALSE(is_valid_key(std::string(limits::kMaxKeyBytes + 1, 'x')));
    const std::vector<std::string> malformed = {
        "\x80",              // a continuation alone
        "\xbf",              //
        "\xc0\x80",          // overlong NUL
        "\xc1\xbf",          // overlong
        "\xc3",              // cut short
        "\xc3(",             // no continuation
        "\xe0\x80\x80",      // overlong
        "\xe0\x9f\xbf",      // overlong
        "\xe2\x82",          // cut short
        "\xe2(\xa1",         // no continuation
        "\xe2\x82(",         //
        "\xed\xa0\x80",      // surrogate
        "\xed\xbf\xbf",      // surrogate
        "\xf0\x80\x80\x80",  // overlong
        "\xf0\x8f\xbf\xbf",  // overlong
        "\xf0\x9f\x94",      // cut short
        "\xf0\x9f(\x91",     // no continuation
        "\xf0\x9f\x94(",     //
        "\xf4\x90\x80\x80",  // beyond U+10FFFF
        "\xf5\x80\x80\x80",  //
        "\xf8\x88\x80\x80\x80",
        "\xfe",
        "\xff",
    };
    for (const std::string& text : malformed) {
        EXPECT_FALSE(is_valid_key(text)) << testing::PrintToString(text);
        EXPECT_FALSE(is_valid_key("12345678" + text)) << testing::PrintToString(text);
        EXPECT_FALSE(is_valid_key(text + "abcdefgh")) << testing::PrintToString(text);
        EXPECT_FALSE(is_valid_name(text)) << testing::PrintToString(text);
    }
}

TEST(Names, AreShortAndPrintable) {
    EXPECT_TRUE(is_valid_name(""));
    EXPECT_TRUE(is_valid_name("llama-3-70b/bf16"));
    EXPECT_TRUE(is_valid_name("\u4f60\u00a0"));
    EXPECT_TRUE(is_valid_name(std::string(limits::kMaxNameBytes, 'x')));
    EXPECT_FALSE(is_valid_name(std::string(limits::kMaxNameBytes + 1, 'x')));
    for (const std::string_view text : {"a\nb", "\t", "\x7f", "\xc2\x80", "\xc2\x9f", "\x1b[0m"}) {
        EXPECT_FALSE(is_valid_name(text)) << testing::PrintToString(text);
    }
    EXPECT_FALSE(is_valid_name(std::string_view("\0", 1)));
}

}  // namespace
}  // namespace kvstore
