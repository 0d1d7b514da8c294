// Frame headers: exact bytes, every check before the body is read, versions and features.
#include "wire/frame.h"

#include <gtest/gtest.h>

#include <set>

namespace kvstore {
namespace {

Status decode(const FrameHeader& header, FrameHeader* out) {
    const FrameHeaderBytes bytes = encode_header(header);
    return decode_header(bytes, out);
}

TEST(Frame, HeaderIsLittleEndianAndRoundTrips) {
    const FrameHeader header{.body_bytes = 0x01020304,
                             .type = static_cast<uint16_t>(MessageType::kPut),
                             .flags = 0x0506,
                             .request_id = 0x0708090A0B0C0D0E,
                             .payload_bytes = 0x0000000012345678};
    const FrameHeaderBytes expected = {0x04, 0x03, 0x02, 0x01, 0x4A, 0x00, 0x06, 0x05,
                                       0x0E, 0x0D, 0x0C, 0x0B, 0x0A, 0x09, 0x08, 0x07,
                                       0x78, 0x56, 0x34, 0x12, 0x00, 0x00, 0x00, 0x00};
    EXPECT_EQ(encode_header(header), expected);
    FrameHeader sized = header;
    sized.body_bytes = 100;
    FrameHeader decoded;
    ASSERT_TRUE(decode(sized, &decoded).ok());
    EXPECT_EQ(decoded, sized);
}

TEST(Frame, MagicReadsAsText) {
    FrameHeader hello{.type = static_cast<uint16_t>(MessageType::kHello),
                      .request_id = kHelloMagic};
    const FrameHeaderBytes bytes = encode_header(hello);
    EXPECT_EQ(std::string(bytes.begin() + 8, bytes.begin() + 16), "KVSTORE1");
}

TEST(Frame, RefusesWhatIsUnknownOrTooLarge) {
    FrameHeader out;
    EXPECT_EQ(decode({.type = 0x7777}, &out).code(), Code::kProtocolError);
    EXPECT_EQ(decode({.type = 0}, &out).code(), Code::kProtocolError);
    const auto put = static_cast<uint16_t>(MessageType::kPut);
    EXPECT_EQ(decode({.body_bytes = limits::kMaxBodyBytes + 1, .type = put}, &out).code(),
              Code::kTooLarge);
    EXPECT_EQ(decode({.type = put, .payload_bytes = limits::kMaxPayloadBytes + 1}, &out).code(),
              Code::kTooLarge);
    EXPECT_TRUE(decode({.type = put, .payload_bytes = limits::kMaxPayloadBytes}, &out).ok());
    const auto ping = static_cast<uint16_t>(MessageType::kPing);
    EXPECT_EQ(decode({.type = ping, .payload_bytes = 1}, &out).code(), Code::kProtocolError);
    EXPECT_TRUE(decode({.type = ping, .flags = 0xFF00}, &out).ok()) << "unknown flags are ignored";
}

TEST(Frame, HandshakeIsTighter) {
    FrameHeader out;
    const auto decode_early = [&out](const FrameHeader& header) {
        return decode_handshake_header(encode_header(header), &out);
    };
    FrameHeader hello{.type = static_cast<uint16_t>(MessageType::kHello),
                      .request_id = kHelloMagic};
    EXPECT_TRUE(decode_early(hello).ok());
    hello.body_bytes = kMaxHelloBodyBytes + 1;
    EXPECT_EQ(decode_early(hello).code(), Code::kTooLarge);
    hello.body_bytes = 0;
    hello.request_id = 1;
    EXPECT_NE(decode_early(hello).message().find("magic"), std::string::npos);
    EXPECT_EQ(decode_early({.type = static_cast<uint16_t>(MessageType::kLookup)}).code(),
              Code::kProtocolError);
    const std::string http = "GET / HTTP/1.1\r\nHost: x\r\n";
    FrameHeaderBytes bytes;
    std::copy_n(http.begin(), bytes.size(), bytes.begin());
    EXPECT_FALSE(decode_handshake_header(bytes, &out).ok());
}

TEST(Frame, EveryTypeHasItsOwnName) {
    std::set<std::string_view> names;
    int known = 0;
    for (uint32_t type = 0; type <= 0xFFFF; ++type) {
        const std::string_view name = message_type_name(static_cast<uint16_t>(type));
        known += name.empty() ? 0 : 1;
        names.insert(name);
    }
    EXPECT_EQ(names.size(), static_cast<size_t>(known) + 1);
}

TEST(Frame, NeighbouringMinorVersionsInteroperate) {
    constexpr uint32_t kOne = 0x10000;
    EXPECT_EQ(*negotiate_version(kOne, kOne, kOne, kOne), kOne);
    EXPECT_EQ(*negotiate_version(kOne, kOne, kOne, kOne + 1), kOne);  // the peer is newer
    EXPECT_EQ(*negotiate_version(kOne, kOne + 1, kOne, kOne), kOne);  // the peer is older
    EXPECT_EQ(*negotiate_version(kOne, kOne + 1, kOne, kOne + 2), kOne + 1);
    const Result<uint32_t> refused = negotiate_version(kOne, kOne + 1, 0x20000, 0x20003);
    EXPECT_EQ(refused.code(), Code::kVersionMismatch);
    EXPECT_NE(refused.status().message().find("1.0 to 1.1, the other 2.0 to 2.3"),
              std::string::npos);
}

TEST(Frame, FeaturesAreNamed) {
    EXPECT_EQ(feature_names(kFeatureLeases | uint64_t{1} << 17), "leases, bit 17");
    EXPECT_EQ(feature_names(0), "");
}

}  // namespace
}  // namespace kvstore
