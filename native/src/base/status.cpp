// Names of codes and miss reasons, and what happens when an invariant is broken.
#include "base/status.h"

#include <array>
#include <cstdio>
#include <cstdlib>

namespace kvstore {
namespace {

// Indexed by the negated code.
constexpr std::array<std::string_view, 23> kCodeNames = {
    "Ok",
    "AlreadyExists",
    "NotFound",
    "NoSpace",
    "Unavailable",
    "DeadlineExceeded",
    "InvalidArgument",
    "TooLarge",
    "Unauthenticated",
    "PermissionDenied",
    "VersionMismatch",
    "ProtocolError",
    "ChecksumMismatch",
    "Expired",
    "Removed",
    "Partial",
    "BufferTooSmall",
    "Closed",
    "IoError",
    "Unsupported",
    "Rebuilding",
    "Overloaded",
    "Internal",
};

constexpr std::array<std::string_view, kMissReasonCount> kReasonNames = {
    "none",     "absent",      "evicted",    "expired",          "removed",
    "flushed",  "node_down",   "version",    "checksum",         "rebuilding",
    "io_error", "unavailable", "index_full", "buffer_too_small", "restarting",
};

}  // namespace

std::string_view code_name(Code code) {
    const int64_t index = -int64_t{static_cast<int32_t>(code)};
    if (index < 0 || index >= static_cast<int64_t>(kCodeNames.size())) {
        return "Unknown";
    }
    return kCodeNames[static_cast<size_t>(index)];
}

std::string_view miss_reason_name(MissReason r) {
    const auto index = static_cast<size_t>(r);
    return index < kReasonNames.size() ? kReasonNames[index] : "unknown";
}

std::string Status::to_string() const {
    std::string text(code_name(code_));
    if (!message_.empty()) {
        text.append(": ").append(message_);
    }
    return text;
}

void invariant_failed(const char* expression, const char* file, int line) {
    std::fprintf(stderr, "kvstore: invariant failed: %s (%s:%d)\n", expression, file, line);
    std::fflush(stderr);
    std::abort();
}

}  // namespace kvstore
