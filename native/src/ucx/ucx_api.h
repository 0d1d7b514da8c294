// The part of UCX's C interface (UCP, API 1.13 and later 1.x) that is used here, declared again so
// that nothing of UCX is needed to build. Field masks say which members are set, so later members
// may be missing. tests/ucx/ucx_api_test.cpp compares all of it with Debian's headers.
#pragma once

#include <sys/socket.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>

namespace kvstore::ucp {

struct Config;
struct Context;
struct Worker;
struct Endpoint;
struct Memory;
struct Key;
struct Address;

using UcsStatus = int8_t;     // ucs_status_t, which its header packs
using StatusPointer = void*;  // null: done; an error code; else a request

inline constexpr UcsStatus kOk = 0;
inline constexpr UcsStatus kInProgress = 1;
inline constexpr UcsStatus kConnectionReset = -25;
inline constexpr intptr_t kLastError = -100;

inline bool is_error(StatusPointer pointer) {
    return reinterpret_cast<uintptr_t>(pointer) >= static_cast<uintptr_t>(kLastError);
}

inline constexpr unsigned kApiMajor = 1;
inline constexpr unsigned kApiMinor = 13;

inline constexpr uint64_t kFeatureRma = 1u << 1;
inline constexpr uint64_t kFeatureWakeup = 1u << 4;

enum class MemoryType : uint32_t { kHost, kCuda };

struct Params {
    static constexpr uint64_t kFeatures = 1u << 0;
    static constexpr uint64_t kMtWorkersShared = 1u << 5;
    static constexpr uint64_t kName = 1u << 8;
    uint64_t field_mask;
    uint64_t features;
    size_t request_size;
    void (*request_init)(void*);
    void (*request_cleanup)(void*);
    uint64_t tag_sender_mask;
    int mt_workers_shared;
    size_t estimated_num_eps;
    size_t estimated_num_ppn;
    const char* name;
};

struct ContextAttributes {
    static constexpr uint64_t kMemoryTypes = 1u << 2;
    uint64_t field_mask;
    size_t request_size;
    uint32_t thread_mode;
    uint64_t memory_types;  // a bit for each MemoryType
    char name[32];
};

enum class ThreadMode : uint32_t { kSingle, kSerialized, kMulti };

struct WorkerParams {
    static constexpr uint64_t kThreadMode = 1u << 0;
    uint64_t field_mask;
    ThreadMode thread_mode;
    uint64_t cpu_mask[16];
    unsigned events;
    void* user_data;
    int event_fd;
    uint64_t flags;
    const char* name;
    size_t am_alignment;
    uint64_t client_id;
};

using ErrorCallback = void (*)(void* argument, Endpoint* endpoint, UcsStatus status);

struct SocketAddress {
    const sockaddr* address;
    socklen_t length;
};

struct EndpointParams {
    static constexpr uint64_t kRemoteAddress = 1u << 0;
    static constexpr uint64_t kErrorMode = 1u << 1;
    static constexpr uint64_t kErrorHandler = 1u << 2;
    uint64_t field_mask;
    const Address* address;
    uint32_t error_mode;  // 1: of the peer
    ErrorCallback on_error;
    void* on_error_argument;
    void* user_data;
    unsigned flags;
    SocketAddress socket;
    void* connection_request;
    const char* name;
    SocketAddress local_socket;
};
inline constexpr uint32_t kPeerErrors = 1;

struct MapParams {
    static constexpr uint64_t kAddress = 1u << 0;
    static constexpr uint64_t kLength = 1u << 1;
    static constexpr uint64_t kMemoryType = 1u << 4;
    uint64_t field_mask;
    void* address;
    size_t length;
    unsigned flags;
    unsigned protection;
    MemoryType memory_type;
};

using SendCallback = void (*)(void* request, UcsStatus status, void* user_data);

struct RequestParam {
    static constexpr uint32_t kCallback = 1u << 1;
    static constexpr uint32_t kUserData = 1u << 2;
    static constexpr uint32_t kFlags = 1u << 4;
    static constexpr uint32_t kMemoryType = 1u << 6;
    static constexpr uint32_t kMemory = 1u << 8;
    uint32_t mask;
    uint32_t flags;
    void* request;
    SendCallback callback;
    uint64_t datatype;
    void* user_data;
    void* reply_buffer;
    MemoryType memory_type;
    void* receive_info;
    Memory* memory;
};
inline constexpr uint32_t kCloseForce = 1u << 0;  // flags of ucp_ep_close_nbx

}  // namespace kvstore::ucp
