// A CUDA driver without a GPU, for tests: the entry points that kvstore calls, on host memory.
//
// Device memory is a reserved range of addresses that the processor cannot touch; its bytes lie in
// a second mapping. Streams are queues that a thread works off, in a random order among each other,
// unless the driver is paused. Every copy is checked when it is queued and again when it is made:
// whether both ends are (still) there, and whether host memory is pinned. What a program must not
// do is counted as a violation. FAKE_CUDA (11, 12, 13) chooses which batched copy is exported.
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#ifndef FAKE_CUDA
#define FAKE_CUDA 13
#endif

namespace {

using CUresult = int;
constexpr CUresult kOk = 0, kInvalidValue = 1, kOutOfMemory = 2, kInvalidContext = 201,
                   kInvalidHandle = 400, kNotReady = 600, kIllegalAddress = 700,
                   kContextDestroyed = 709, kAlreadyRegistered = 712, kNotRegistered = 713;
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
    uint64_t event = 0;  // else a copy
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
    uint64_t next_handle = 0x1000;
    bool is_paused = false, has_read_only = true;
    std::mt19937 random{1};
    bool has_thread = false;
    std::string last_violation;
};
// Never destroyed: its thread goes on until the process ends.
Driver& driver = *new Driver();
thread_local int capture_mode = 0;      // 2: calls are allowed while another thread captures
thread_local std::vector<int> current;  // devices of the contexts that were pushed

using Lock = std::unique_lock<std::mutex>;

void violation(const std::string& what) {
    ++driver.counts["violations"];
    driver.last_violation = what;
}

// The range with all of these bytes.
const Ranges::value_type* find(const Ranges& ranges, uint64_t at, uint64_t size) {
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
CUresult enter(const char* name) {
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

CUresult context_state(int device) {
    const Context& context = driver.contexts[device];
    return context.is_destroyed ? kContextDestroyed : context.sticky;
}

CUresult current_state() {
    return current.empty() ? kInvalidContext : context_state(current.back());
}

// The queue behind a handle; 0 to 2 are the current context's default stream.
Stream* stream_of(uint64_t handle) {
    if (handle <= 2) {
        return current.empty() ? nullptr
                               : &driver.streams[1 + static_cast<uint64_t>(current.back())];
    }
    const auto it = driver.streams.find(handle);
    return it == driver.streams.end() ? nullptr : &it->second;
}

uint8_t* bytes_at(const Ranges::value_type& range, uint64_t at) {
    return range.second.bytes + (at - range.first);
}

void run(Stream& stream) {
    const Op op = stream.ops.front();
    stream.ops.pop_front();
    --driver.counts["pending"];
    if (op.event != 0) {
        const auto it = driver.events.find(op.event);
        if (it != driver.events.end()) {
            --it->second.pending;
        }
        return;
    }
    if (context_state(stream.device) != kOk) {
        return;
    }
    const auto* to_device = find(driver.memory, op.to, op.size);
    const auto* from_device = find(driver.memory, op.from, op.size);
    const uint64_t host = to_device != nullptr ? op.from : op.to;
    if ((to_device == nullptr) == (from_device == nullptr)) {
        violation("a copy met freed device memory");
        driver.contexts[stream.device].sticky = kIllegalAddress;
        return;
    }
    if (find(driver.registered, host, op.size) == nullptr &&
        find(driver.pinned, host, op.size) == nullptr) {
        violation("a copy met host memory that is not pinned any more");
        driver.contexts[stream.device].sticky = kIllegalAddress;
        return;
    }
    uint8_t* const to =
        to_device != nullptr ? bytes_at(*to_device, op.to) : reinterpret_cast<uint8_t*>(op.to);
    const uint8_t* const from = from_device != nullptr ? bytes_at(*from_device, op.from)
                                                       : reinterpret_cast<uint8_t*>(op.from);
    std::memcpy(to, from, op.size);
    driver.counts["bytes"] += static_cast<long>(op.size);
}

// Runs one operation of a stream drawn at random; false when there is none.
bool step() {
    std::vector<Stream*> ready;
    for (auto& [handle, stream] : driver.streams) {
        if (!stream.ops.empty()) {
            ready.push_back(&stream);
        }
    }
    if (ready.empty()) {
        return false;
    }
    run(*ready[driver.random() % ready.size()]);
    return true;
}

void work() {
    pthread_setname_np(pthread_self(), "fake-cuda");
    Lock lock(driver.mutex);
    for (;;) {
        if (driver.is_paused || !step()) {
            driver.changed.wait(lock);
        } else {
            lock.unlock();  // whoever waits for the driver gets in between two operations
            std::this_thread::yield();
            lock.lock();
        }
    }
}

void push(Stream& stream, const Op& op) {
    stream.ops.push_back(op);
    ++driver.counts["pending"];
    if (!driver.has_thread) {
        driver.has_thread = true;
        std::thread(work).detach();
    }
    driver.changed.notify_all();
}

// What the driver refuses when a copy is queued.
CUresult check_copy(Stream* stream, uint64_t device, uint64_t host, uint64_t size, bool to_host) {
    if (stream == nullptr) {
        return kInvalidHandle;
    }
    if (stream->is_capturing) {
        violation("a copy on a stream that is being captured");
    }
    if (const CUresult state = context_state(stream->device); state != kOk) {
        return state;
    }
    const auto* range = find(driver.memory, device, size);
    if (range == nullptr) {
        return kInvalidValue;
    }
    if (range->second.device != stream->device) {
        violation("a copy on a stream of another device");
    }
    const auto* registered = find(driver.registered, host, size);
    if (registered == nullptr && find(driver.pinned, host, size) == nullptr) {
        violation("an asynchronous copy of memory that is not pinned as a whole");
        return kInvalidValue;
    }
    if (registered != nullptr && to_host && (registered->second.flags & 8) != 0) {
        violation("a copy into memory that was registered for reading");
        return kInvalidValue;
    }
    return kOk;
}

CUresult queue_copy(const char* name, uint64_t to, uint64_t from, size_t size, uint64_t handle,
                    bool to_host) {
    if (const CUresult failure = enter(name); failure != kOk) {
        return failure;
    }
    if (current.empty()) {
        return kInvalidContext;
    }
    Stream* const stream = stream_of(handle);
    const CUresult checked =
        check_copy(stream, to_host ? from : to, to_host ? to : from, size, to_host);
    if (checked == kOk) {
        ++driver.counts["copies"];
        push(*stream, {to, from, size, 0});
    }
    return checked;
}

// What /proc says of a mapping, like "rw-s"; empty when it does not cover all of these bytes.
std::string rights_of(const void* data, size_t size) {
    std::FILE* const maps = std::fopen("/proc/self/maps", "r");
    const auto begin = reinterpret_cast<uint64_t>(data);
    uint64_t covered = begin;
    std::string rights;
    char line[512];
    while (maps != nullptr && std::fgets(line, sizeof line, maps) != nullptr) {
        unsigned long long first = 0, last = 0;
        char here[8] = {};
        if (std::sscanf(line, "%llx-%llx %7s", &first, &last, here) == 3 && first <= covered &&
            covered < last && (rights.empty() || rights == here)) {
            rights = here;
            covered = last;
        }
    }
    if (maps != nullptr) {
        std::fclose(maps);
    }
    return covered >= begin + size ? rights : "";
}

#if FAKE_CUDA >= 12
CUresult queue_batch(uint64_t* to, uint64_t* from, size_t* sizes, size_t count, uint64_t handle) {
    const Lock lock(driver.mutex);
    if (const CUresult failure = enter("cuMemcpyBatchAsync"); failure != kOk) {
        return failure;
    }
    if (handle <= 1) {
        violation("a batched copy on the legacy stream");
        return kInvalidValue;
    }
    ++driver.counts["batches"];
    // In any order.
    std::vector<size_t> order(count);
    for (size_t row = 0; row < count; ++row) {
        order[row] = row;
    }
    std::shuffle(order.begin(), order.end(), driver.random);
    for (const size_t row : order) {
        const bool to_host = find(driver.memory, to[row], sizes[row]) == nullptr;
        const CUresult result =
            queue_copy("batched", to[row], from[row], sizes[row], handle, to_host);
        if (result != kOk) {
            return result;
        }
    }
    return kOk;
}
#endif

}  // namespace

extern "C" {

CUresult cuInit(unsigned) { return kOk; }

CUresult cuGetErrorName(CUresult error, const char** name) {
    *name = error == kInvalidValue       ? "CUDA_ERROR_INVALID_VALUE"
            : error == kOutOfMemory      ? "CUDA_ERROR_OUT_OF_MEMORY"
            : error == kIllegalAddress   ? "CUDA_ERROR_ILLEGAL_ADDRESS"
            : error == kInvalidHandle    ? "CUDA_ERROR_INVALID_HANDLE"
            : error == kContextDestroyed ? "CUDA_ERROR_CONTEXT_IS_DESTROYED"
                                         : "CUDA_ERROR_OTHER";
    return kOk;
}

CUresult cuDeviceGet(int* device, int ordinal) {
    if (ordinal < 0 || ordinal >= kDevices) {
        return 101;
    }
    *device = ordinal;
    return kOk;
}

CUresult cuDeviceGetAttribute(int* value, int attribute, int) {
    const Lock lock(driver.mutex);
    *value = attribute == 99 || (attribute == 113 && driver.has_read_only) ? 1 : 0;
    return kOk;
}

CUresult cuDevicePrimaryCtxRetain(void** context, int device) {
    const Lock lock(driver.mutex);
    if (const CUresult failure = enter("cuDevicePrimaryCtxRetain"); failure != kOk) {
        return failure;
    }
    ++driver.contexts[device].retained;
    driver.streams[1 + static_cast<uint64_t>(device)].device = device;
    *context = &driver.contexts[device];
    return kOk;
}

CUresult cuDevicePrimaryCtxRelease_v2(int device) {
    const Lock lock(driver.mutex);
    --driver.contexts[device].retained;
    return kOk;
}

CUresult cuCtxPushCurrent_v2(void* context) {
    const Lock lock(driver.mutex);
    const auto device = static_cast<int>(static_cast<Context*>(context) - driver.contexts);
    if (driver.contexts[device].is_destroyed) {
        return kContextDestroyed;
    }
    current.push_back(device);
    return kOk;
}

CUresult cuCtxPopCurrent_v2(void** context) {
    const Lock lock(driver.mutex);
    if (current.empty()) {
        violation("a context was popped that was not pushed");
        return kInvalidContext;
    }
    *context = &driver.contexts[current.back()];
    current.pop_back();
    return kOk;
}

CUresult cuPointerGetAttributes(unsigned count, int* attributes, void** data, uint64_t where) {
    const Lock lock(driver.mutex);
    const auto* range = find(driver.memory, where, 1);
    for (unsigned i = 0; i < count; ++i) {
        const int value = attributes[i] == 2   ? (range != nullptr ? 2 : 0)
                          : attributes[i] == 9 ? (range != nullptr ? range->second.device : -2)
                                               : 0;
        std::memcpy(data[i], &value, sizeof value);
    }
    return kOk;
}

CUresult cuMemHostRegister_v2(void* data, size_t size, unsigned flags) {
    const Lock lock(driver.mutex);
    if (const CUresult failure = enter("cuMemHostRegister"); failure != kOk) {
        return failure;
    }
    if (const CUresult state = current_state(); state != kOk) {
        return state;
    }
    const auto begin = reinterpret_cast<uint64_t>(data);
    const std::string rights = rights_of(data, size);
    if (rights.empty() || ((flags & 8) == 0 && rights[1] != 'w')) {
        return kInvalidValue;
    }
    // Shared memory is what a store maps; private memory is a buffer of its own.
    const bool is_private = rights[3] == 'p';
    Ranges& ranges = is_private ? driver.pinned : driver.registered;
    for (const auto& [at, range] : ranges) {
        if (at < begin + size && begin < at + range.size) {
            return kAlreadyRegistered;
        }
    }
    ranges[begin] = {size, current.back(), nullptr, flags};
    if (is_private) {
        long& bytes = driver.counts["pinned_bytes"];
        bytes += static_cast<long>(size);
        driver.counts["most_pinned_bytes"] = std::max(driver.counts["most_pinned_bytes"], bytes);
    }
    return kOk;
}

CUresult cuMemHostUnregister(void* data) {
    const Lock lock(driver.mutex);
    const auto begin = reinterpret_cast<uint64_t>(data);
    const auto pinned = driver.pinned.find(begin);
    if (pinned != driver.pinned.end()) {
        driver.counts["pinned_bytes"] -= static_cast<long>(pinned->second.size);
        driver.pinned.erase(pinned);
    } else if (driver.registered.erase(begin) == 0) {
        violation("memory was unregistered that is not registered");
        return kNotRegistered;
    }
    return kOk;
}

CUresult cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t size, void* stream) {
    const Lock lock(driver.mutex);
    return queue_copy("cuMemcpyHtoDAsync", to, reinterpret_cast<uint64_t>(from), size,
                      reinterpret_cast<uint64_t>(stream), false);
}

CUresult cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t size, void* stream) {
    const Lock lock(driver.mutex);
    return queue_copy("cuMemcpyDtoHAsync", reinterpret_cast<uint64_t>(to), from, size,
                      reinterpret_cast<uint64_t>(stream), true);
}

#if FAKE_CUDA >= 13
CUresult cuMemcpyBatchAsync_v2(uint64_t* to, uint64_t* from, size_t* sizes, size_t count, void*,
                               size_t*, size_t, void* stream) {
    return queue_batch(to, from, sizes, count, reinterpret_cast<uint64_t>(stream));
}
#endif
#if FAKE_CUDA >= 12
CUresult cuMemcpyBatchAsync(uint64_t* to, uint64_t* from, size_t* sizes, size_t count, void*,
                            size_t*, size_t, size_t* failed, void* stream) {
    *failed = SIZE_MAX;
    return queue_batch(to, from, sizes, count, reinterpret_cast<uint64_t>(stream));
}
#endif

CUresult cuStreamGetCtx(void* stream, void** context) {
    const Lock lock(driver.mutex);
    const auto it = driver.streams.find(reinterpret_cast<uint64_t>(stream));
    if (it == driver.streams.end()) {
        return kInvalidHandle;
    }
    *context = &driver.contexts[it->second.device];
    return kOk;
}

CUresult cuStreamIsCapturing(void* stream, int* status) {
    const Lock lock(driver.mutex);
    const Stream* const found = stream_of(reinterpret_cast<uint64_t>(stream));
    if (found == nullptr) {
        return kInvalidHandle;
    }
    *status = found->is_capturing ? 1 : 0;
    return kOk;
}

CUresult cuStreamSynchronize(void* stream) {
    const Lock lock(driver.mutex);
    ++driver.counts["calls:cuStreamSynchronize"];
    Stream* const found = stream_of(reinterpret_cast<uint64_t>(stream));
    if (found == nullptr) {
        return kInvalidHandle;
    }
    while (!found->ops.empty()) {
        run(*found);
    }
    return context_state(found->device);
}

CUresult cuThreadExchangeStreamCaptureMode(int* mode) {
    std::swap(*mode, capture_mode);
    return kOk;
}

CUresult cuEventCreate(void** event, unsigned) {
    const Lock lock(driver.mutex);
    if (const CUresult failure = enter("cuEventCreate"); failure != kOk) {
        return failure;
    }
    if (const CUresult state = current_state(); state != kOk) {
        return state;
    }
    const uint64_t handle = driver.next_handle++;
    driver.events[handle].device = current.back();
    *event = reinterpret_cast<void*>(handle);
    return kOk;
}

CUresult cuEventRecord(void* event, void* stream) {
    const Lock lock(driver.mutex);
    if (const CUresult failure = enter("cuEventRecord"); failure != kOk) {
        return failure;
    }
    Stream* const queue = stream_of(reinterpret_cast<uint64_t>(stream));
    const auto it = driver.events.find(reinterpret_cast<uint64_t>(event));
    if (queue == nullptr || it == driver.events.end()) {
        return kInvalidHandle;
    }
    if (const CUresult state = context_state(queue->device); state != kOk) {
        return state;
    }
    ++it->second.pending;
    push(*queue, {0, 0, 0, it->first});
    return kOk;
}

CUresult cuEventQuery(void* event) {
    const Lock lock(driver.mutex);
    const CUresult failure = enter("cuEventQuery");
    const auto it = driver.events.find(reinterpret_cast<uint64_t>(event));
    if (failure != kOk) {
        // A query fails because something before it has, and then all that is queued ends.
        driver.contexts[it->second.device].sticky = failure;
        return failure;
    }
    if (it == driver.events.end()) {
        violation("an event was asked after its end");
        return kInvalidHandle;
    }
    if (const CUresult state = context_state(it->second.device); state != kOk) {
        return state;
    }
    return it->second.pending == 0 ? kOk : kNotReady;
}

CUresult cuEventDestroy_v2(void* event) {
    const Lock lock(driver.mutex);
    if (driver.events.erase(reinterpret_cast<uint64_t>(event)) == 0) {
        violation("an event was destroyed twice");
    }
    return kOk;
}

// ---- control, for tests ----

// Zeroed device memory; 0 when there is none.
uint64_t fake_alloc(size_t size, int device) {
    const int file = memfd_create("fake-cuda", 0);
    if (file < 0 || ftruncate(file, static_cast<off_t>(size)) != 0) {
        return 0;
    }
    void* const bytes = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    void* const address = mmap(nullptr, size, PROT_NONE, MAP_SHARED, file, 0);
    close(file);
    const Lock lock(driver.mutex);
    driver.memory[reinterpret_cast<uint64_t>(address)] = {size, device,
                                                          static_cast<uint8_t*>(bytes), 0};
    return reinterpret_cast<uint64_t>(address);
}

void fake_free(uint64_t address) {
    const Lock lock(driver.mutex);
    const auto it = driver.memory.find(address);
    munmap(it->second.bytes, it->second.size);
    munmap(reinterpret_cast<void*>(address), it->second.size);
    driver.memory.erase(it);
}

// Reads or writes device memory at once, beside every stream.
void fake_read(uint64_t address, void* to, size_t size) {
    const Lock lock(driver.mutex);
    std::memcpy(to, bytes_at(*find(driver.memory, address, size), address), size);
}
void fake_write(uint64_t address, const void* from, size_t size) {
    const Lock lock(driver.mutex);
    std::memcpy(bytes_at(*find(driver.memory, address, size), address), from, size);
}

uint64_t fake_stream(int device) {
    const Lock lock(driver.mutex);
    const uint64_t handle = driver.next_handle++;
    driver.streams[handle].device = device;
    return handle;
}

// As the driver does it: what is queued still runs.
void fake_destroy_stream(uint64_t handle) {
    const Lock lock(driver.mutex);
    Stream rest = driver.streams[handle];
    driver.streams.erase(handle);
    for (const Op& op : rest.ops) {
        driver.streams[1 + static_cast<uint64_t>(rest.device)].ops.push_back(op);
    }
}

void fake_capture(uint64_t handle, int on) {
    const Lock lock(driver.mutex);
    driver.streams[handle].is_capturing = on != 0;
}

// Nothing that is queued runs while the driver is paused.
void fake_pause(int on) {
    const Lock lock(driver.mutex);
    driver.is_paused = on != 0;
    driver.changed.notify_all();
}

void fake_destroy_context(int device) {
    const Lock lock(driver.mutex);
    driver.contexts[device].is_destroyed = true;
    const auto is_its = [device](const auto& range) { return range.second.device == device; };
    std::erase_if(driver.registered, is_its);
    std::erase_if(driver.pinned, is_its);
    for (auto& [handle, stream] : driver.streams) {
        if (stream.device == device) {
            driver.counts["pending"] -= static_cast<long>(stream.ops.size());
            stream.ops.clear();
        }
    }
}

void fake_set_read_only(int on) {
    const Lock lock(driver.mutex);
    driver.has_read_only = on != 0;
}

void fake_seed(unsigned seed) {
    const Lock lock(driver.mutex);
    driver.random.seed(seed);
}

// The call of this name after `after` further ones answers `code`, once.
void fake_fail(const char* name, int after, int code) {
    const Lock lock(driver.mutex);
    driver.failures[name] = {after, code};
}

long fake_count(const char* name) {
    const Lock lock(driver.mutex);
    const std::string what = name;
    if (what == "registered") {
        return static_cast<long>(driver.registered.size());
    }
    if (what == "pinned") {
        return static_cast<long>(driver.pinned.size());
    }
    if (what == "events") {
        return static_cast<long>(driver.events.size());
    }
    if (what == "contexts") {
        long retained = 0;
        for (const Context& context : driver.contexts) {
            retained += context.retained;
        }
        return retained;
    }
    return driver.counts[what];
}

const char* fake_last_violation() {
    const Lock lock(driver.mutex);
    static char text[200];
    std::snprintf(text, sizeof text, "%s", driver.last_violation.c_str());
    return text;
}

// Ends failures and sticky errors, and counts from zero.
void fake_reset() {
    const Lock lock(driver.mutex);
    driver.failures.clear();
    driver.is_paused = false;
    driver.has_read_only = true;
    for (auto& [handle, stream] : driver.streams) {
        stream.is_capturing = false;
    }
    const long pending = driver.counts["pending"];
    const long pinned = driver.counts["pinned_bytes"];
    driver.counts.clear();
    driver.counts["pending"] = pending;
    driver.counts["pinned_bytes"] = pinned;
    driver.last_violation.clear();
    for (Context& context : driver.contexts) {
        context.is_destroyed = false;
        context.sticky = kOk;
    }
    driver.changed.notify_all();
}

}  // extern "C"
