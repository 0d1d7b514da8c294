// One batched copy where the driver has it, else one call a copy.
#include "gpu/device_copies.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "base/interrupt.h"
#include "base/mutation.h"

namespace kvstore {
namespace {

constexpr size_t kLeastBatch = 4;  // below, single calls take no longer
// Copies of one call of the driver, which keeps a command for each.
constexpr size_t kMostBatch = 4096;
constexpr int kSpins = 200;  // a copy of some megabytes takes less
constexpr std::chrono::microseconds kPause{50};

cuda::DevicePtr address(const uint8_t* host) { return reinterpret_cast<uintptr_t>(host); }

}  // namespace

Result<std::unique_ptr<CudaEvent>> CudaEvent::record(std::shared_ptr<CudaContext> context,
                                                     cuda::Stream stream) {
    const CudaDriver& driver = context->driver();
    std::unique_ptr<CudaEvent> event(new CudaEvent(std::move(context)));
    if (Status status = driver.status(
            "cuEventCreate", driver.api().event_create(&event->event_, cuda::kEventDisableTiming));
        !status.ok()) {
        event->event_ = nullptr;
        return status;
    }
    if (Status status =
            driver.status("cuEventRecord", driver.api().event_record(event->event_, stream));
        !status.ok()) {
        return status;
    }
    return event;
}

CudaEvent::~CudaEvent() {
    if (event_ != nullptr && !context_->driver().in_forked_child()) {
        const BesideCapture beside(context_->api());
        (void)context_->api().event_destroy(event_);
    }
}

Result<bool> CudaEvent::fired() const {
    const BesideCapture beside(context_->api());
    const cuda::Result result = context_->api().event_query(event_);
    if (result == cuda::kSuccess) {
        return true;
    }
    if (result == cuda::kNotReady) {
        return !KV_GUARD("gpu-event", true);
    }
    Status status = context_->driver().status("cuEventQuery", result);
    // Nothing that the call's arguments could change: the device has failed under it.
    return {Code::kIoError, status.message()};
}

Status CudaEvent::wait(Deadline deadline) const {
    for (int turn = 0;; ++turn) {
        const Result<bool> is_fired = fired();
        if (!is_fired.ok()) {
            return is_fired.status();
        }
        if (*is_fired) {
            return {};
        }
        if (deadline.expired() || is_interrupted()) {
            return {Code::kDeadlineExceeded, "waiting for copies on the stream"};
        }
        if (turn < kSpins) {
            std::this_thread::yield();
        } else {
            std::this_thread::sleep_for(kPause);
            if (turn % kSpins == 0) {
                (void)check_interrupt();
            }
        }
    }
}

void DeviceCopies::add(cuda::DevicePtr device, const uint8_t* host, uint64_t size) {
    const bool to_device = direction_ == Direction::kToDevice;
    to_.push_back(to_device ? device : address(host));
    from_.push_back(to_device ? address(host) : device);
    sizes_.push_back(size);
}

Status DeviceCopies::queue(cuda::Stream stream) {
    const cuda::Api& api = context_->api();
    // The batched copy does not take the legacy default stream.
    const bool has_batch = api.copy_batch != nullptr || api.copy_batch_12 != nullptr;
    const bool is_batch =
        has_batch && sizes_.size() >= kLeastBatch && reinterpret_cast<uintptr_t>(stream) > 1;
    Status status = is_batch ? queue_batch(stream) : queue_singly(stream);
    to_.clear();
    from_.clear();
    sizes_.clear();
    return status;
}

Status DeviceCopies::queue_batch(cuda::Stream stream) {
    const cuda::Api& api = context_->api();
    cuda::CopyAttributes attributes;
    size_t first_of = 0;
    size_t failed = 0;
    for (size_t first = 0; first < sizes_.size(); first += kMostBatch) {
        const size_t count = std::min(kMostBatch, sizes_.size() - first);
        const cuda::Result result =
            api.copy_batch != nullptr
                ? api.copy_batch(&to_[first], &from_[first], &sizes_[first], count, &attributes,
                                 &first_of, 1, stream)
                : api.copy_batch_12(&to_[first], &from_[first], &sizes_[first], count, &attributes,
                                    &first_of, 1, &failed, stream);
        if (result != cuda::kSuccess) {
            return context_->driver().status("cuMemcpyBatchAsync", result);
        }
    }
    return {};
}

Status DeviceCopies::queue_singly(cuda::Stream stream) {
    const cuda::Api& api = context_->api();
    for (size_t row = 0; row < sizes_.size(); ++row) {
        const bool to_device = direction_ == Direction::kToDevice;
        const cuda::Result result =
            to_device ? api.copy_to_device(to_[row], reinterpret_cast<const void*>(from_[row]),
                                           sizes_[row], stream)
                      : api.copy_to_host(reinterpret_cast<void*>(to_[row]), from_[row], sizes_[row],
                                         stream);
        if (result != cuda::kSuccess) {
            return context_->driver().status(to_device ? "cuMemcpyHtoDAsync" : "cuMemcpyDtoHAsync",
                                             result);
        }
    }
    return {};
}

}  // namespace kvstore
