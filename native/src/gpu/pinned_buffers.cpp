// Finding a buffer: a free one that is long enough, a new one, or the wait for one.
#include "gpu/pinned_buffers.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <chrono>

#include "base/interrupt.h"

namespace kvstore {
namespace {

constexpr std::chrono::milliseconds kWaitSlice{20};

}  // namespace

PinnedBuffers::~PinnedBuffers() {
    const MutexLock lock(mutex_);
    for (const Free& memory : free_) {
        release(memory);
    }
}

cuda::DevicePtr PinnedBuffers::Buffer::on_device() const {
    return pool_->context_->address_of(data_).value_or(0);
}

Result<std::unique_ptr<PinnedBuffers::Buffer>> PinnedBuffers::take(uint64_t size,
                                                                   Deadline deadline) {
    const MutexLock lock(mutex_);
    for (;;) {
        Result<Free> found = find(std::max(size, limits_.least_bytes));
        if (found.ok()) {
            return std::make_unique<Buffer>(shared_from_this(), found->data, found->capacity);
        }
        if (found.code() != Code::kOverloaded) {
            return found.status();
        }
        if (deadline.expired() || is_interrupted()) {
            return {Code::kDeadlineExceeded, "waiting for pinned memory"};
        }
        const WaitsLocked waits;
        (void)given_back_.wait_for(mutex_, kWaitSlice);
        (void)check_interrupt();
    }
}

// kOverloaded: not before others give theirs back.
Result<PinnedBuffers::Free> PinnedBuffers::find(uint64_t size) {
    const auto fitting =
        std::find_if(free_.begin(), free_.end(), [&](auto& one) { return one.capacity >= size; });
    if (fitting != free_.end()) {
        const Free memory = *fitting;
        free_.erase(fitting);
        return memory;
    }
    const uint64_t capacity = size <= limits_.total_bytes ? std::bit_ceil(size) : size;
    while (!free_.empty() && total_bytes_ + capacity > limits_.total_bytes) {
        release(free_.back());
        free_.pop_back();
    }
    if (total_bytes_ != 0 && total_bytes_ + capacity > limits_.total_bytes) {
        return {Code::kOverloaded};
    }
    const CudaContext::Scope scope(*context_);
    if (!scope.status().ok()) {
        return scope.status();
    }
    // Not the driver's own memory, which would go with its context while somebody reads into it.
    void* const data =
        mmap(nullptr, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        return {Code::kNoSpace, "no memory for a pinned buffer"};
    }
    const cuda::Result result = context_->api().host_register(
        data, capacity, cuda::kRegisterPortable | cuda::kRegisterMapped);
    if (result != cuda::kSuccess) {
        munmap(data, capacity);
        return context_->driver().status("cuMemHostRegister", result);
    }
    total_bytes_ += capacity;
    return Free{static_cast<uint8_t*>(data), capacity};
}

void PinnedBuffers::give_back(uint8_t* data, uint64_t capacity) {
    const MutexLock lock(mutex_);
    if (capacity > limits_.total_bytes) {
        release({data, capacity});
    } else {
        free_.push_back({data, capacity});
    }
    given_back_.notify_all();
}

void PinnedBuffers::release(const Free& memory) {
    total_bytes_ -= memory.capacity;
    const CudaContext::Scope scope(*context_);
    if (scope.status().ok()) {
        (void)context_->api().host_unregister(memory.data);
    }
    munmap(memory.data, memory.capacity);
}

}  // namespace kvstore
