// Status codes, miss reasons and Result<T>: the one vocabulary of outcomes, native and Python.
//
// The numbers are part of the wire format and of the Python API (a negative code in a batch
// result), so a number is never reused. kvstore/errors.py holds the same table; a test compares the
// two.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace kvstore {

// Ok is 0 and every other code is negative: in batch results a value >= 0 is a size in bytes.
enum class Code : int32_t {
    kOk = 0,
    kAlreadyExists = -1,      // a normal answer to put: the key has a published version
    kNotFound = -2,           // no such object; a MissReason says why
    kNoSpace = -3,            // nothing evictable makes room for this size
    kUnavailable = -4,        // a process that is needed cannot be reached now; retry later
    kDeadlineExceeded = -5,   // the call's deadline has passed; its outcome is unknown
    kInvalidArgument = -6,    // the caller must fix the call
    kTooLarge = -7,           // object, key or batch above a limit
    kUnauthenticated = -8,    // no token, or a wrong one
    kPermissionDenied = -9,   // the principal may not do this
    kVersionMismatch = -10,   // no common protocol version or a required feature is missing
    kProtocolError = -11,     // malformed frame; the connection is closed
    kChecksumMismatch = -12,  // the bytes are not the ones that were put
    kExpired = -13,           // the reservation, lease or session has expired
    kRemoved = -14,           // a remove overtook this put
    kPartial = -15,           // applied, except at the holders that are named
    kBufferTooSmall = -16,    // the destination is shorter than the object
    kClosed = -17,            // the store was closed, or used after a fork
    kIoError = -18,           // the operating system refused; the message names the call
    kUnsupported = -19,       // known, but not offered by this peer
    kRebuilding = -20,        // the master is still hearing from its known nodes
    kOverloaded = -21,        // refused by admission control; retry later
    kInternal = -22,          // a broken invariant: a bug, please report it
};

// Why a read found nothing. The later reasons (nvme tier, rebuilding) are reserved from the first
// day.
enum class MissReason : uint8_t {
    kNone = 0,
    kAbsent = 1,
    kEvicted = 2,
    kExpired = 3,
    kRemoved = 4,
    kFlushed = 5,
    kNodeDown = 6,
    kVersion = 7,
    kChecksum = 8,
    kRebuilding = 9,
    kIoError = 10,
    kUnavailable = 11,
    kIndexFull = 12,  // evicted for an entry of the node's index, not for memory
    kBufferTooSmall = 13,
    kRestarting = 14,  // only on nodes that are being restarted; clients alone say this
};
inline constexpr int kMissReasonCount = 15;

std::string_view code_name(Code code);  // "Ok", "AlreadyExists", …; "Unknown" for other numbers
std::string_view miss_reason_name(MissReason r);  // "absent", "node_down", …

// The peer is gone or the stream broke, as opposed to an answer that says no.
inline bool is_connection_failure(Code code) {
    return code == Code::kClosed || code == Code::kUnavailable || code == Code::kIoError ||
           code == Code::kDeadlineExceeded || code == Code::kProtocolError;
}

// A code with a sentence for a person. Ok carries no text and allocates nothing.
class [[nodiscard]] Status {
  public:
    Status() = default;
    Status(Code code, std::string message = {}) : code_(code), message_(std::move(message)) {}
    bool ok() const { return code_ == Code::kOk; }
    Code code() const { return code_; }
    const std::string& message() const { return message_; }
    std::string to_string() const;

  private:
    Code code_ = Code::kOk;
    std::string message_;
};

// A value or the Status that explains its absence.
template <class T>
class [[nodiscard]] Result {
  public:
    Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
    Result(Status status) : state_(std::in_place_index<1>, std::move(status)) {}
    Result(Code code, std::string message = {})
        : state_(std::in_place_index<1>, Status(code, std::move(message))) {}
    bool ok() const { return state_.index() == 0; }
    Code code() const { return ok() ? Code::kOk : std::get<1>(state_).code(); }
    T& value() & { return std::get<0>(state_); }
    const T& value() const& { return std::get<0>(state_); }
    T&& value() && { return std::get<0>(std::move(state_)); }
    T& operator*() & { return value(); }
    const T& operator*() const& { return value(); }
    T&& operator*() && { return std::get<0>(std::move(state_)); }
    T* operator->() { return &value(); }
    const T* operator->() const { return &value(); }
    Status status() const { return ok() ? Status() : std::get<1>(state_); }

  private:
    std::variant<T, Status> state_;
};

// An invariant that is checked in release builds too: prints and aborts.
[[noreturn]] void invariant_failed(const char* expression, const char* file, int line);
#define KV_ASSERT(expression) \
    ((expression) ? void(0) : ::kvstore::invariant_failed(#expression, __FILE__, __LINE__))

}  // namespace kvstore
