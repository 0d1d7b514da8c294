// Names of the causes.
#include "wire/attach_cause.h"

namespace kvstore {

std::string_view attach_cause_name(AttachCause cause) {
    switch (cause) {
        case AttachCause::kNone:
            return "none";
        case AttachCause::kPermission:
            return "permission";
        case AttachCause::kNotFound:
            return "not_found";
        case AttachCause::kNoListener:
            return "no_listener";
        case AttachCause::kUser:
            return "user";
        case AttachCause::kTenant:
            return "tenant";
        case AttachCause::kNoSlot:
            return "no_slot";
        case AttachCause::kScope:
            return "scope";
        case AttachCause::kOther:
            break;
    }
    return "other";
}

AttachCause known_cause(uint8_t number) {
    return number < kAttachCauseCount ? static_cast<AttachCause>(number) : AttachCause::kOther;
}

}  // namespace kvstore
