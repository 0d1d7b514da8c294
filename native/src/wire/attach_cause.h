// Why a client on a node's host cannot map its memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace kvstore {

// On the wire and in metrics: numbers and names stay.
enum class AttachCause : uint8_t {
    kNone = 0,        // nothing keeps it from it, or nothing is known
    kPermission = 1,  // this user may not open the node's Unix socket (EACCES)
    kNotFound = 2,    // the socket's path does not exist in this client's view of the files
    kNoListener = 3,  // it does, but nobody accepts there
    kUser = 4,        // the node refuses this user
    kTenant = 5,      // the node shares no memory with this tenant
    kNoSlot = 6,      // every client slot of the node is taken
    kOther = 7,       // the failure's own words tell
    kScope = 8,       // the principal's scopes do not cover every key
};
inline constexpr size_t kAttachCauseCount = 9;

std::string_view attach_cause_name(AttachCause cause);
// A number that a peer sent; kOther for one of a later build.
AttachCause known_cause(uint8_t number);

}  // namespace kvstore
