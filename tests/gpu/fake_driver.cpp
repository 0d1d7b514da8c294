// A CUDA driver without a GPU, for tests: the entry points that kvstore calls, on host memory.
//
// Device memory is a reserved range of addresses that the processor cannot touch; its bytes lie in
// a second mapping. Streams are queues that a thread works off, in a random order among each other,
// unless the driver is paused. Every copy is checked when it is queued and again when it is made:
// whether both ends are (still) there, and whether host memory is pinned. What a program must not
// do is counted as a violation. Kernels are those of kvstore/gpu/kernels.cu, compiled for the
// processor (cuda_shim.h); each address that they touch is checked as for a copy. FAKE_CUDA (11,
// 12, 13) chooses which batched copy is exported.
#include <pthread.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "fake_state.h"

#ifndef FAKE_CUDA
#define FAKE_CUDA 13
#endif

using namespace fake_cuda;

namespace {

int kernel_device = 0;  // of the kernel that runs

// What a kernel finds at an address.
uint64_t touched(uint64_t at, uint64_t size) {
    if (const auto* range = find(driver.memory, at, size)) {
        return reinterpret_cast<uint64_t>(bytes_at(*range, at));
    }
    // A span may cross slices that were registered one by one.
    for (uint64_t byte : {at, at + size - 1}) {
        const auto* range = find(driver.registered, byte, 1);
        range = range == nullptr ? find(driver.pinned, byte, 1) : range;
        if (range == nullptr || (range->second.flags & 2) == 0) {
            static uint64_t nowhere[2];
            violation("a kernel met memory that is freed, or not mapped");
            driver.contexts[kernel_device].sticky = kIllegalAddress;
            return reinterpret_cast<uint64_t>(nowhere);
        }
    }
    return at;
}

}  // namespace

#define KVSTORE_AT(address, bytes) touched(address, bytes)
#include "cuda_shim.h"

namespace {

void run_kernel(const Op& op, int device) {
    static cuda_shim::Grid& grid = *new cuda_shim::Grid(KVSTORE_THREADS);
    kernel_device = device;
    grid.run(op.blocks, op.kernel);
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
    if (op.kernel) {
        run_kernel(op, stream.device);
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
    if (driver.flip_copy-- == 0) {
        to[op.size / 2] ^= 0x10;
    }
    if (find(driver.pinned, host, op.size) != nullptr) {
        driver.counts["bounced_bytes"] += static_cast<long>(op.size);
    }
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
        push(*stream, {to, from, size, 0, {}, 0});
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
            : error == kInvalidImage     ? "CUDA_ERROR_INVALID_IMAGE"
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
    const bool is_compute = attribute == 75 || attribute == 76;
    *value = is_compute ? 9 : attribute == 99 || (attribute == 113 && driver.has_read_only) ? 1 : 0;
    return kOk;
}

CUresult cuDriverGetVersion(int* version) {
    *version = FAKE_CUDA * 1000;
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

CUresult cuMemHostGetDevicePointer_v2(uint64_t* device, void* host, unsigned) {
    const Lock lock(driver.mutex);
    *device = reinterpret_cast<uint64_t>(host);
    const bool is_there = find(driver.registered, *device, 1) != nullptr ||
                          find(driver.pinned, *device, 1) != nullptr;
    return is_there && driver.has_mapping ? current_state() : kInvalidValue;
}

CUresult cuFlushGPUDirectRDMAWrites(int target, int scope) {
    const Lock lock(driver.mutex);
    if (const CUresult failure = enter("cuFlushGPUDirectRDMAWrites"); failure != kOk) {
        return failure;
    }
    return target == 0 && scope == 100 && !current.empty() ? kOk : kInvalidValue;
}

CUresult cuMemGetAddressRange_v2(uint64_t* begin, size_t* size, uint64_t where) {
    const Lock lock(driver.mutex);
    ++driver.counts["calls:cuMemGetAddressRange"];
    const auto* range = find(driver.memory, where, 1);
    if (range == nullptr || current.empty()) {
        return current.empty() ? kInvalidContext : kInvalidValue;
    }
    *begin = range->first;
    *size = range->second.size;
    return kOk;
}

// The image of a module is the names of its kernels.
CUresult cuModuleLoadData(void** module, const void* image) {
    const Lock lock(driver.mutex);
    if (const CUresult failure = enter("cuModuleLoadData"); failure != kOk) {
        return failure;
    }
    const std::string names = static_cast<const char*>(image);
    if (!names.starts_with("fake-cubin ")) {
        return kInvalidImage;
    }
    const uint64_t handle = driver.next_handle++;
    driver.modules[handle] = {names + " ", current.empty() ? 0 : current.back()};
    *module = reinterpret_cast<void*>(handle);
    return current_state();
}

CUresult cuModuleUnload(void* module) {
    const Lock lock(driver.mutex);
    for (const auto& [handle, stream] : driver.streams) {
        for (const Op& op : stream.ops) {
            if (op.kernel) {
                violation("a module was unloaded before its kernels had run");
            }
        }
    }
    if (driver.modules.erase(reinterpret_cast<uint64_t>(module)) == 0) {
        violation("a module was unloaded twice");
    }
    return kOk;
}

CUresult cuModuleGetFunction(void** function, void* module, const char* name) {
    const Lock lock(driver.mutex);
    const std::string& names = driver.modules[reinterpret_cast<uint64_t>(module)].names;
    if (names.find(" " + std::string(name) + " ") == std::string::npos) {
        return kNotFound;
    }
    *function = std::string(name) == "kvstore_checksum" ? reinterpret_cast<void*>(kvstore_checksum)
                                                        : reinterpret_cast<void*>(kvstore_pages);
    return kOk;
}

CUresult cuLaunchKernel(void* function, unsigned blocks, unsigned, unsigned, unsigned threads,
                        unsigned, unsigned, unsigned, void* stream, void** parameters, void**) {
    const Lock lock(driver.mutex);
    if (const CUresult failure = enter("cuLaunchKernel"); failure != kOk) {
        return failure;
    }
    if (const CUresult state = current_state(); state != kOk) {
        return state;
    }
    Stream* const queue = stream_of(reinterpret_cast<uint64_t>(stream));
    if (queue == nullptr || blocks == 0 || threads != KVSTORE_THREADS) {
        return kInvalidValue;
    }
    if (queue->is_capturing) {
        violation("a kernel on a stream that is being captured");
    }
    Op op;
    op.blocks = blocks;
    if (function == reinterpret_cast<void*>(kvstore_checksum)) {
        const auto spans = *static_cast<const u64*>(parameters[0]);
        const auto sums = *static_cast<const u64*>(parameters[1]);
        const auto count = *static_cast<const u32*>(parameters[2]);
        op.kernel = [=] { kvstore_checksum(spans, sums, count); };
        ++driver.counts["checksum_kernels"];
    } else {
        const auto job = *static_cast<const KvstorePages*>(parameters[0]);
        op.kernel = [job] { kvstore_pages(job); };
        ++driver.counts["page_kernels"];
    }
    push(*queue, op);
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
    push(*queue, {0, 0, 0, it->first, {}, 0});
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

}  // extern "C"
