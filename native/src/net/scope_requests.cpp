// Which verb each message needs, and on which keys.
#include "net/scope.h"
#include "wire/messages.h"

namespace kvstore {
namespace {

template <class M>
Status check_keys(const Grant& grant, Verb verb, std::span<const uint8_t> body) {
    M request;
    // Whoever answers it says what is wrong with it.
    return decode_message(body, &request).ok() ? grant.check(verb, request.keys) : Status();
}

Status check_inspect(const Grant& grant, std::span<const uint8_t> body) {
    Inspect request;
    if (!decode_message(body, &request).ok()) {
        return {};
    }
    return request.key.empty() ? grant.check(Verb::kRead, {})
                               : grant.check(Verb::kRead, request.key);
}

Status check_list(const Grant& grant, std::span<const uint8_t> body) {
    List request;
    return decode_message(body, &request).ok() ? grant.check_prefix(Verb::kList, request.prefix)
                                               : Status();
}

}  // namespace

Status check_request(const Grant& grant, MessageType type, std::span<const uint8_t> body) {
    switch (type) {
        // They name no keys, and tell nothing of any.
        case MessageType::kPing:
        case MessageType::kPong:
        case MessageType::kNodes:
        case MessageType::kSlotReady:
        case MessageType::kStats:
        case MessageType::kUcxDone:
            return {};
        case MessageType::kLookup:
            return check_keys<Lookup>(grant, Verb::kRead, body);
        case MessageType::kGet:
            return check_keys<Get>(grant, Verb::kRead, body);
        case MessageType::kLease:
            return check_keys<Lease>(grant, Verb::kRead, body);
        case MessageType::kPrefetch:
            return check_keys<Prefetch>(grant, Verb::kRead, body);
        case MessageType::kExplain:
            return check_keys<Explain>(grant, Verb::kRead, body);
        case MessageType::kUcxGet:
            return check_keys<UcxGet>(grant, Verb::kRead, body);
        case MessageType::kInspect:
            return check_inspect(grant, body);
        // What they name was granted for keys.
        case MessageType::kLeaseRenew:
        case MessageType::kLeaseRelease:
        case MessageType::kHold:
        case MessageType::kUnhold:
        case MessageType::kResolve:
        case MessageType::kUcxOpen:
            return grant.check(Verb::kRead, {});
        case MessageType::kCommit:
        case MessageType::kAbort:
            return grant.check(Verb::kWrite, {});
        case MessageType::kReserve:
            return check_keys<Reserve>(grant, Verb::kWrite, body);
        case MessageType::kPut:
            return check_keys<Put>(grant, Verb::kWrite, body);
        case MessageType::kUcxPut:
            return check_keys<UcxPut>(grant, Verb::kWrite, body);
        case MessageType::kSetPin:
            return check_keys<SetPin>(grant, Verb::kWrite, body);
        case MessageType::kRemove:
            return check_keys<Remove>(grant, Verb::kRemove, body);
        case MessageType::kFlush:
            return grant.check_prefix(Verb::kRemove, {});
        case MessageType::kList:
            return check_list(grant, body);
        default:
            return {Code::kPermissionDenied,
                    std::string(message_type_name(static_cast<uint16_t>(type))) +
                        " is not for a principal with scopes"};
    }
}

}  // namespace kvstore
