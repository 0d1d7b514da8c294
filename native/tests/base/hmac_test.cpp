// SHA-256 and HMAC against the vectors of FIPS 180-4 and RFC 4231.
#include "base/hmac.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace kvstore {
namespace {

std::vector<uint8_t> bytes(std::string_view text) { return {text.begin(), text.end()}; }
std::string sha(std::string_view text) { return hex(sha256(bytes(text))); }
std::string mac(const std::vector<uint8_t>& key, const std::vector<uint8_t>& message) {
    return hex(hmac_sha256(key, message));
}

TEST(Sha256, PublishedVectors) {
    EXPECT_EQ(sha(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    EXPECT_EQ(sha("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    EXPECT_EQ(sha("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    EXPECT_EQ(sha("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmno"
                  "ijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu"),
              "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
    EXPECT_EQ(sha(std::string(1'000'000, 'a')),
              "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

// RFC 4231, test cases 1 to 4, 6 and 7 (case 5 truncates the result).
TEST(Hmac, PublishedVectors) {
    EXPECT_EQ(mac(std::vector<uint8_t>(20, 0x0b), bytes("Hi There")),
              "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    EXPECT_EQ(mac(bytes("Jefe"), bytes("what do ya want for nothing?")),
              "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    EXPECT_EQ(mac(std::vector<uint8_t>(20, 0xaa), std::vector<uint8_t>(50, 0xdd)),
              "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe");
    std::vector<uint8_t> rising;
    for (uint8_t i = 1; i <= 25; ++i) {
        rising.push_back(i);
    }
    EXPECT_EQ(mac(rising, std::vector<uint8_t>(50, 0xcd)),
              "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b");
    const std::vector<uint8_t> long_key(131, 0xaa);
    EXPECT_EQ(mac(long_key, bytes("Test Using Larger Than Block-Size Key - Hash Key First")),
              "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    EXPECT_EQ(mac(long_key,
                  bytes("This is a test using a larger than block-size key and a larger than "
                        "block-size data. The key needs to be hashed before being used by the HMAC "
                        "algorithm.")),
              "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2");
}

// Padding changes at 55, 56, 63 and 64 bytes; these are the digests of n times 'a' (coreutils).
TEST(Sha256, PaddingBoundaries) {
    EXPECT_EQ(sha(std::string(55, 'a')),
              "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318");
    EXPECT_EQ(sha(std::string(56, 'a')),
              "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a");
    EXPECT_EQ(sha(std::string(64, 'a')),
              "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb");
}

TEST(Hmac, ComparesWholeDigests) {
    const Digest a = sha256({});
    for (size_t i = 0; i < a.size(); ++i) {
        Digest b = a;
        EXPECT_TRUE(equal_constant_time(a, b));
        b[i] ^= 1;
        EXPECT_FALSE(equal_constant_time(a, b));
    }
}

TEST(Random, FillsTheWholeRange) {
    std::vector<uint8_t> a(4099);
    std::vector<uint8_t> b(4099);
    random_bytes(a);
    random_bytes(b);
    EXPECT_NE(a, b);
    EXPECT_NE(std::vector<uint8_t>(a.end() - 16, a.end()), std::vector<uint8_t>(16));
    random_bytes({});
}

TEST(Hex, IsLowerCase) {
    EXPECT_EQ(hex({}), "");
    EXPECT_EQ(hex(std::vector<uint8_t>{0x00, 0x9a, 0xff}), "009aff");
}

}  // namespace
}  // namespace kvstore
