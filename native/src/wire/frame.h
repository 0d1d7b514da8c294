// The block protocol's frame: a fixed header, a body of tagged fields (fields.h), a payload.
// README.md describes the whole protocol.
//
//   offset  size
//        0     4  body_bytes     ≤ limits::kMaxBodyBytes
//        4     2  type           MessageType
//        6     2  flags          unknown ones are ignored
//        8     8  request_id
//       16     8  payload_bytes  ≤ limits::kMaxPayloadBytes; 0 for most types
//       24        body, then payload
//
// The header is fixed and tells both lengths, so that a receiver knows how much to wait for, and
// can refuse it, before it has allocated anything. Objects' bytes are payload, not a field: once
// the body is there the receiver knows where they belong (a block, the caller's buffer) and reads
// them from the socket to that place. As a field they would be copied once more, and an object
// would be bounded by the receiver's buffer.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/limits.h"
#include "base/status.h"

namespace kvstore {

// The numbers are the wire format: never reuse one. A reply's number is its request's plus one;
// where a request's answer is only a status per row, it is a kStatusReply. Any request may be
// answered by kError instead.
enum class MessageType : uint16_t {
    // Every connection (messages_session.h)
    kHello = 0x01,
    kChallenge = 0x02,
    kAuth = 0x03,
    kWelcome = 0x04,
    kRefused = 0x05,
    kError = 0x06,
    kStatusReply = 0x07,
    kPing = 0x08,
    kPong = 0x09,
    // Client to master (messages_master.h)
    kLookup = 0x20,
    kLookupReply = 0x21,
    kNodes = 0x22,
    kNodesReply = 0x23,
    kRemove = 0x24,
    kRemoveReply = 0x25,
    kList = 0x26,
    kListReply = 0x27,
    kInspect = 0x28,
    kInspectReply = 0x29,
    kSetPin = 0x2A,  // → kStatusReply
    kFlush = 0x2C,
    kFlushReply = 0x2D,
    // Client to node, node to node (messages_node.h)
    kSlotReady = 0x40,  // → kStatusReply
    kReserve = 0x42,
    kReserveReply = 0x43,
    kCommit = 0x44,  // → kStatusReply
    kAbort = 0x46,   // → kStatusReply
    kGet = 0x48,
    kGetReply = 0x49,
    kPut = 0x4A,  // → kStatusReply
    kLease = 0x4C,
    kLeaseReply = 0x4D,
    kLeaseRenew = 0x4E,    // → kStatusReply
    kLeaseRelease = 0x50,  // → kStatusReply
    kHold = 0x52,          // → kStatusReply
    kUnhold = 0x54,        // → kStatusReply
    kResolve = 0x56,
    kResolveReply = 0x57,
    kCopyPut = 0x58,  // → kStatusReply
    kStats = 0x5A,
    kStatsReply = 0x5B,
    kPrefetch = 0x5C,  // → kStatusReply
    kExplain = 0x5E,
    kExplainReply = 0x5F,
    // By UCX (messages_ucx.h)
    kUcxOpen = 0x60,
    kUcxOpenReply = 0x61,
    kUcxGet = 0x62,
    kUcxGetReply = 0x63,
    kUcxDone = 0x64,  // no reply
    kUcxPut = 0x66,   // → kStatusReply
    // Node link, both directions (messages_link.h)
    kClaim = 0x80,
    kClaimReply = 0x81,
    kAbandon = 0x82,  // no reply
    kAnnounce = 0x84,
    kAnnounceReply = 0x85,
    kWithdraw = 0x86,  // no reply
    kOps = 0x88,       // master → node
    kOpsAck = 0x89,
    kCopy = 0x8A,  // master → node
    kCopyDone = 0x8B,
    kHeartbeat = 0x8C,
    kHeartbeatReply = 0x8D,
    // Between a node and its UCX processes (messages_ucx.h)
    kUcxReady = 0xA0,
    kUcxGrow = 0xA2,
    kUcxSlice = 0xA4,
    kUcxPull = 0xA6,
    kUcxPulled = 0xA7,
};
// "Hello", "LookupReply", …; empty for a number that this build does not know.
std::string_view message_type_name(uint16_t type);

inline constexpr uint16_t kFlagMore = 1;  // further replies with this request id follow
inline constexpr uint16_t kFlagFatal =
    2;  // on kError and kRefused: the sender closes the connection
inline constexpr uint16_t kKnownFlags = kFlagMore | kFlagFatal;  // others are ignored

struct FrameHeader {
    uint32_t body_bytes = 0;
    uint16_t type = 0;
    uint16_t flags = 0;
    uint64_t request_id = 0;  // chosen by the side that asks, repeated in the answer; 0 in pushes
    uint64_t payload_bytes = 0;

    MessageType message() const { return static_cast<MessageType>(type); }
    friend bool operator==(const FrameHeader&, const FrameHeader&) = default;
};
inline constexpr size_t kFrameHeaderBytes = 24;
using FrameHeaderBytes = std::array<uint8_t, kFrameHeaderBytes>;

// The request id of a Hello. A peer that speaks another protocol (HTTP, gRPC) is recognised by its
// first 24 bytes.
inline constexpr uint64_t kHelloMagic = 0x31'45'52'4F'54'53'56'4B;  // "KVSTORE1"
inline constexpr size_t kMaxHelloBodyBytes = 4096;                  // of every frame before Welcome
inline constexpr size_t kMaxWelcomeBodyBytes = 32768;
inline constexpr size_t kMaxErrorTextBytes = 1024;

// major << 16 | minor. Minor versions add fields and messages only; two peers use the lower one.
inline constexpr uint32_t kProtocolVersionMin = 1u << 16;
inline constexpr uint32_t kProtocolVersionMax = 1u << 16;
std::string version_text(uint32_t version);  // "1.0"
// The highest version that both ranges hold; kVersionMismatch with a sentence naming both
// otherwise.
Result<uint32_t> negotiate_version(uint32_t our_min, uint32_t our_max, uint32_t their_min,
                                   uint32_t their_max);

// Feature bits of the hello. A required bit that the other side does not offer refuses the session.
inline constexpr uint64_t kFeatureSharedMemory = 1u << 0;  // descriptors come with the Welcome
inline constexpr uint64_t kFeatureLeases = 1u << 1;
inline constexpr uint64_t kFeatureReplication = 1u << 2;
inline constexpr uint64_t kFeatureUcx = 1u << 3;         // one-sided reads and writes
inline constexpr uint64_t kFeatureHeartbeats = 1u << 4;  // over the link
inline constexpr uint64_t kAllFeatures =
    kFeatureSharedMemory | kFeatureLeases | kFeatureReplication | kFeatureHeartbeats;
std::string feature_names(uint64_t bits);  // "leases, bit 17"

FrameHeaderBytes encode_header(const FrameHeader& header);
// Whether frames of this type may have payload bytes behind their body.
bool carries_payload(MessageType type);
// Checks type, body_bytes and payload_bytes: kProtocolError or kTooLarge naming what is wrong. An
// unknown type is an error, unlike an unknown field: nobody would answer it, and the peer would
// wait. Up to the Welcome decode_handshake_header is used, which accepts only handshake types, the
// magic and small bodies: a stranger who has not proved anything can make the receiver allocate 4
// KiB.
Status decode_header(std::span<const uint8_t, kFrameHeaderBytes> bytes, FrameHeader* header);
Status decode_handshake_header(std::span<const uint8_t, kFrameHeaderBytes> bytes,
                               FrameHeader* header);

}  // namespace kvstore
