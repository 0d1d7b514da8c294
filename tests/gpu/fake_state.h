// What the fake driver knows: memory, streams with what is queued on them, events, failures.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <vector>

namespace fake_cuda {

using CUresult = int;
constexpr CUresult kOk = 0, kInvalidValue = 1, kOutOfMemory = 2, kInvalidContext = 201,
                   kInvalidHandle = 400, kNotReady = 600, kIllegalAddress = 700,
                   kContextDestroyed = 709, kAlreadyRegistered = 712, kNotRegistered = 713,
                   kInvalidImage = 200, kNotFound = 500;
constexpr int kDevices = 2;

struct Range {
    uint64_t size = 0;
    int device = 0;
    uint8_t* bytes = nullptr;  // of device memory: where the processor finds it
    unsigned flags = 0;
};
using Ranges = std::map<uint64_t, Range>;

struct Op {
    uint64_t to = 0, from = 0, size = 0;
    uint64_t event = 0;  // else a copy, or
    std::function<void()> kernel{};
    unsigned blocks = 0;
};
struct Stream {
    int device = 0;
    bool is_capturing = false;
    std::deque<Op> ops;
};
struct Context {
    int retained = 0;
    bool is_destroyed = false;
    CUresult sticky = kOk;
};
struct Event {
    int device = 0;
    int pending = 0;
};
struct Failure {
    int after = 0;
    CUresult code = kOk;
};

struct Driver {
    std::mutex mutex;
    std::condition_variable changed;
    Context contexts[kDevices];
    Ranges memory, registered, pinned;
    std::map<uint64_t, Stream> streams;
    std::map<uint64_t, Event> events;
    std::map<std::string, Failure> failures;
    std::map<std::string, long> counts;
    struct Module {
        std::string names;
        int device = 0;
    };
    std::map<uint64_t, Module> modules;
    uint64_t next_handle = 0x1000;
    bool is_paused = false, has_read_only = true, has_mapping = true;
    long flip_copy = -1;  // the copy that arrives damaged, counted from now
    std::mt19937 random{1};
    bool has_thread = false;
    std::string last_violation;
};
// Never destroyed: its thread goes on until the process ends.
inline Driver& driver = *new Driver();
inline thread_local int capture_mode = 0;      // 2: calls are allowed while another thread captures
inline thread_local std::vector<int> current;  // devices of the contexts that were pushed

using Lock = std::unique_lock<std::mutex>;

inline void violation(const std::string& what) {
    ++driver.counts["violations"];
    driver.last_violation = what;
}

// The range with all of these bytes.
inline const Ranges::value_type* find(const Ranges& ranges, uint64_t at, uint64_t size) {
    auto it = ranges.upper_bound(at);
    if (it == ranges.begin()) {
        return nullptr;
    }
    --it;
    return at - it->first <= it->second.size && size <= it->second.size - (at - it->first)
               ? &*it
               : nullptr;
}

// Counts the call; an injected failure, if it is this call's turn.
inline CUresult enter(const char* name) {
    ++driver.counts[std::string("calls:") + name];
    for (const auto& [handle, stream] : driver.streams) {
        if (stream.is_capturing && capture_mode != 2) {
            violation(std::string(name) + " spoils the capture of another thread");
        }
    }
    const auto it = driver.failures.find(name);
    if (it == driver.failures.end() || it->second.after-- > 0) {
        return kOk;
    }
    const CUresult code = it->second.code;
    driver.failures.erase(it);
    return code;
}

inline CUresult context_state(int device) {
    const Context& context = driver.contexts[device];
    return context.is_destroyed ? kContextDestroyed : context.sticky;
}

inline CUresult current_state() {
    return current.empty() ? kInvalidContext : context_state(current.back());
}

// The queue behind a handle; 0 to 2 are the current context's default stream.
inline Stream* stream_of(uint64_t handle) {
    if (handle <= 2) {
        return current.empty() ? nullptr
                               : &driver.streams[1 + static_cast<uint64_t>(current.back())];
    }
    const auto it = driver.streams.find(handle);
    return it == driver.streams.end() ? nullptr : &it->second;
}

inline uint8_t* bytes_at(const Ranges::value_type& range, uint64_t at) {
    return range.second.bytes + (at - range.first);
}

}  // namespace fake_cuda
