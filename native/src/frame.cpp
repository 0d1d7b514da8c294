// Frame headers: encoding, the checks that come before anything else, names for logs.
#include "kvstore/frame.h"

#include <cstring>

namespace kvstore {
namespace {

template <class T>
void store(uint8_t*& out, T value) {
    for (size_t i = 0; i < sizeof(T); ++i) {
        *out++ = static_cast<uint8_t>(value >> (8 * i));
    }
}

template <class T>
T load(const uint8_t*& in) {
    T value = 0;
    for (size_t i = 0; i < sizeof(T); ++i) {
        value = static_cast<T>(value | static_cast<T>(T{*in++} << (8 * i)));
    }
    return value;
}

FrameHeader parse_header(const uint8_t* in) {
    FrameHeader header;
    header.body_bytes = load<uint32_t>(in);
    header.type = load<uint16_t>(in);
    header.flags = load<uint16_t>(in);
    header.request_id = load<uint64_t>(in);
    header.payload_bytes = load<uint64_t>(in);
    return header;
}

std::string type_text(uint16_t type) {
    const std::string_view name = message_type_name(type);
    return name.empty() ? "type " + std::to_string(type) : std::string(name);
}

}  // namespace

std::string_view message_type_name(uint16_t type) {
    switch (static_cast<MessageType>(type)) {
        case MessageType::kHello:
            return "Hello";
        case MessageType::kChallenge:
            return "Challenge";
        case MessageType::kAuth:
            return "Auth";
        case MessageType::kWelcome:
            return "Welcome";
        case MessageType::kRefused:
            return "Refused";
        case MessageType::kError:
            return "Error";
        case MessageType::kStatusReply:
            return "StatusReply";
        case MessageType::kPing:
            return "Ping";
        case MessageType::kPong:
            return "Pong";
        case MessageType::kLookup:
            return "Lookup";
        case MessageType::kLookupReply:
            return "LookupReply";
        case MessageType::kNodes:
            return "Nodes";
        case MessageType::kNodesReply:
            return "NodesReply";
        case MessageType::kRemove:
            return "Remove";
        case MessageType::kRemoveReply:
            return "RemoveReply";
        case MessageType::kList:
            return "List";
        case MessageType::kListReply:
            return "ListReply";
        case MessageType::kInspect:
            return "Inspect";
        case MessageType::kInspectReply:
            return "InspectReply";
        case MessageType::kSetPin:
            return "SetPin";
        case MessageType::kFlush:
            return "Flush";
        case MessageType::kFlushReply:
            return "FlushReply";
        case MessageType::kSlotReady:
            return "SlotReady";
        case MessageType::kReserve:
            return "Reserve";
        case MessageType::kReserveReply:
            return "ReserveReply";
        case MessageType::kCommit:
            return "Commit";
        case MessageType::kAbort:
            return "Abort";
        case MessageType::kGet:
            return "Get";
        case MessageType::kGetReply:
            return "GetReply";
        case MessageType::kPut:
            return "Put";
        case MessageType::kLease:
            return "Lease";
        case MessageType::kLeaseReply:
            return "LeaseReply";
        case MessageType::kLeaseRenew:
            return "LeaseRenew";
        case MessageType::kLeaseRelease:
            return "LeaseRelease";
        case MessageType::kHold:
            return "Hold";
        case MessageType::kUnhold:
            return "Unhold";
        case MessageType::kResolve:
            return "Resolve";
        case MessageType::kResolveReply:
            return "ResolveReply";
        case MessageType::kCopyPut:
            return "CopyPut";
        case MessageType::kStats:
            return "Stats";
        case MessageType::kStatsReply:
            return "StatsReply";
        case MessageType::kClaim:
            return "Claim";
        case MessageType::kClaimReply:
            return "ClaimReply";
        case MessageType::kAbandon:
            return "Abandon";
        case MessageType::kAnnounce:
            return "Announce";
        case MessageType::kAnnounceReply:
            return "AnnounceReply";
        case MessageType::kWithdraw:
            return "Withdraw";
        case MessageType::kOps:
            return "Ops";
        case MessageType::kOpsAck:
            return "OpsAck";
        case MessageType::kCopy:
            return "Copy";
        case MessageType::kCopyDone:
            return "CopyDone";
    }
    return {};
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
