// Codes of misses.
#include "client/get_item.h"

namespace kvstore {

Code code_of_miss(MissReason reason) {
    switch (reason) {
        case MissReason::kChecksum:
            return Code::kChecksumMismatch;
        case MissReason::kRebuilding:
            return Code::kRebuilding;
        case MissReason::kIoError:
            return Code::kIoError;
        case MissReason::kUnavailable:
            return Code::kUnavailable;
        default:
            return Code::kNotFound;
    }
}

}  // namespace kvstore
