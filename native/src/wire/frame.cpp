// Frame headers: encoding, the checks that come before anything else, names for logs.
//
// Bytes are stored one by one, little-endian, instead of copying the struct: the layout is the wire
// format's, whatever the compiler's padding.
#include "wire/frame.h"

#include <cstring>

namespace kvstore {
namespace {

struct NamedType {
    MessageType type;
    std::string_view name;
};
constexpr NamedType kNamedTypes[] = {
    {MessageType::kHello, "Hello"},
    {MessageType::kChallenge, "Challenge"},
    {MessageType::kAuth, "Auth"},
    {MessageType::kWelcome, "Welcome"},
    {MessageType::kRefused, "Refused"},
    {MessageType::kError, "Error"},
    {MessageType::kStatusReply, "StatusReply"},
    {MessageType::kPing, "Ping"},
    {MessageType::kPong, "Pong"},
    {MessageType::kLookup, "Lookup"},
    {MessageType::kLookupReply, "LookupReply"},
    {MessageType::kNodes, "Nodes"},
    {MessageType::kNodesReply, "NodesReply"},
    {MessageType::kRemove, "Remove"},
    {MessageType::kRemoveReply, "RemoveReply"},
    {MessageType::kList, "List"},
    {MessageType::kListReply, "ListReply"},
    {MessageType::kInspect, "Inspect"},
    {MessageType::kInspectReply, "InspectReply"},
    {MessageType::kSetPin, "SetPin"},
    {MessageType::kFlush, "Flush"},
    {MessageType::kFlushReply, "FlushReply"},
    {MessageType::kSlotReady, "SlotReady"},
    {MessageType::kReserve, "Reserve"},
    {MessageType::kReserveReply, "ReserveReply"},
    {MessageType::kCommit, "Commit"},
    {MessageType::kAbort, "Abort"},
    {MessageType::kGet, "Get"},
    {MessageType::kGetReply, "GetReply"},
    {MessageType::kPut, "Put"},
    {MessageType::kLease, "Lease"},
    {MessageType::kLeaseReply, "LeaseReply"},
    {MessageType::kLeaseRenew, "LeaseRenew"},
    {MessageType::kLeaseRelease, "LeaseRelease"},
    {MessageType::kHold, "Hold"},
    {MessageType::kUnhold, "Unhold"},
    {MessageType::kResolve, "Resolve"},
    {MessageType::kResolveReply, "ResolveReply"},
    {MessageType::kCopyPut, "CopyPut"},
    {MessageType::kStats, "Stats"},
    {MessageType::kStatsReply, "StatsReply"},
    {MessageType::kPrefetch, "Prefetch"},
    {MessageType::kExplain, "Explain"},
    {MessageType::kExplainReply, "ExplainReply"},
    {MessageType::kUcxOpen, "UcxOpen"},
    {MessageType::kUcxOpenReply, "UcxOpenReply"},
    {MessageType::kUcxGet, "UcxGet"},
    {MessageType::kUcxGetReply, "UcxGetReply"},
    {MessageType::kUcxDone, "UcxDone"},
    {MessageType::kUcxPut, "UcxPut"},
    {MessageType::kClaim, "Claim"},
    {MessageType::kClaimReply, "ClaimReply"},
    {MessageType::kAbandon, "Abandon"},
    {MessageType::kAnnounce, "Announce"},
    {MessageType::kAnnounceReply, "AnnounceReply"},
    {MessageType::kWithdraw, "Withdraw"},
    {MessageType::kOps, "Ops"},
    {MessageType::kOpsAck, "OpsAck"},
    {MessageType::kCopy, "Copy"},
    {MessageType::kCopyDone, "CopyDone"},
    {MessageType::kHeartbeat, "Heartbeat"},
    {MessageType::kHeartbeatReply, "HeartbeatReply"},
    {MessageType::kUcxReady, "UcxReady"},
    {MessageType::kUcxGrow, "UcxGrow"},
    {MessageType::kUcxSlice, "UcxSlice"},
    {MessageType::kUcxPull, "UcxPull"},
    {MessageType::kUcxPulled, "UcxPulled"},
};

// A table by number: a name is also how "known type" is decided, for every frame received.
constexpr size_t kTypeNumbers = 256;
constexpr std::array<std::string_view, kTypeNumbers> kTypeNames = [] {
    std::array<std::string_view, kTypeNumbers> names{};
    for (const NamedType& entry : kNamedTypes) {
        names.at(static_cast<size_t>(entry.type)) = entry.name;
    }
    return names;
}();

template <class T>
void store(uint8_t*& out, T value) {
    for (size_t i = 0; i < sizeof(T); ++i) {
        *out++ = static_cast<uint8_t>(value >> (8 * i));
    }
}

template <class T>
T take(const uint8_t*& in) {
    T value = 0;
    for (size_t i = 0; i < sizeof(T); ++i) {
        value = static_cast<T>(value | static_cast<T>(T{*in++} << (8 * i)));
    }
    return value;
}

FrameHeader parse_header(const uint8_t* in) {
    FrameHeader header;
    header.body_bytes = take<uint32_t>(in);
    header.type = take<uint16_t>(in);
    header.flags = take<uint16_t>(in);
    header.request_id = take<uint64_t>(in);
    header.payload_bytes = take<uint64_t>(in);
    return header;
}

std::string type_text(uint16_t type) {
    const std::string_view name = message_type_name(type);
    return name.empty() ? "type " + std::to_string(type) : std::string(name);
}

}  // namespace

std::string_view message_type_name(uint16_t type) {
    return type < kTypeNames.size() ? kTypeNames[type] : std::string_view();
}

std::string version_text(uint32_t version) {
    return std::to_string(version >> 16) + "." + std::to_string(version & 0xFFFF);
}

Result<uint32_t> negotiate_version(uint32_t our_min, uint32_t our_max, uint32_t their_min,
                                   uint32_t their_max) {
    const uint32_t highest = our_max < their_max ? our_max : their_max;
    if (our_min > highest || their_min > highest) {
        return Status(Code::kVersionMismatch,
                      "no common protocol version: this side speaks " + version_text(our_min) +
                          " to " + version_text(our_max) + ", the other " +
                          version_text(their_min) + " to " + version_text(their_max));
    }
    return highest;
}

std::string feature_names(uint64_t bits) {
    std::string text;
    for (int bit = 0; bit < 64; ++bit) {
        const uint64_t mask = uint64_t{1} << bit;
        if ((bits & mask) == 0) {
            continue;
        }
        text += text.empty() ? "" : ", ";
        switch (mask) {
            case kFeatureSharedMemory:
                text += "shared memory";
                break;
            case kFeatureLeases:
                text += "leases";
                break;
            case kFeatureReplication:
                text += "replication";
                break;
            case kFeatureUcx:
                text += "ucx";
                break;
            case kFeatureHeartbeats:
                text += "heartbeats";
                break;
            default:
                text += "bit " + std::to_string(bit);
        }
    }
    return text;
}

FrameHeaderBytes encode_header(const FrameHeader& header) {
    FrameHeaderBytes bytes;
    uint8_t* out = bytes.data();
    store(out, header.body_bytes);
    store(out, header.type);
    store(out, header.flags);
    store(out, header.request_id);
    store(out, header.payload_bytes);
    return bytes;
}

bool carries_payload(MessageType type) {
    return type == MessageType::kPut || type == MessageType::kCopyPut ||
           type == MessageType::kGetReply;
}

Status decode_header(std::span<const uint8_t, kFrameHeaderBytes> bytes, FrameHeader* header) {
    *header = parse_header(bytes.data());
    if (message_type_name(header->type).empty()) {
        return Status(Code::kProtocolError, "unknown frame " + type_text(header->type));
    }
    if (header->body_bytes > limits::kMaxBodyBytes) {
        return Status(Code::kTooLarge, type_text(header->type) + " with a body of " +
                                           std::to_string(header->body_bytes) + " bytes");
    }
    if (header->payload_bytes > limits::kMaxPayloadBytes) {
        return Status(Code::kTooLarge, type_text(header->type) + " with a payload of " +
                                           std::to_string(header->payload_bytes) + " bytes");
    }
    if (header->payload_bytes != 0 && !carries_payload(header->message())) {
        return Status(Code::kProtocolError, type_text(header->type) + " carries no payload");
    }
    return {};
}

Status decode_handshake_header(std::span<const uint8_t, kFrameHeaderBytes> bytes,
                               FrameHeader* header) {
    *header = parse_header(bytes.data());
    const MessageType type = header->message();
    if (type == MessageType::kHello && header->request_id != kHelloMagic) {
        return Status(Code::kProtocolError, "wrong magic: not the kvstore block protocol");
    }
    if (header->type < static_cast<uint16_t>(MessageType::kHello) ||
        header->type > static_cast<uint16_t>(MessageType::kError)) {
        return Status(Code::kProtocolError,
                      type_text(header->type) + " before the session is open");
    }
    const size_t max_body =
        type == MessageType::kWelcome ? kMaxWelcomeBodyBytes : kMaxHelloBodyBytes;
    if (header->body_bytes > max_body || header->payload_bytes != 0) {
        return Status(Code::kTooLarge, type_text(header->type) + " above the handshake's limit");
    }
    return {};
}

}  // namespace kvstore
