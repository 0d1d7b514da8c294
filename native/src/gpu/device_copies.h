// Copies between a device and host memory that it reaches, queued on a stream, and the event behind
// them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "gpu/cuda_driver.h"

namespace kvstore {

// Fires when everything queued on its stream before it has been done.
class CudaEvent {
  public:
    static Result<std::unique_ptr<CudaEvent>> record(std::shared_ptr<CudaContext> context,
                                                     cuda::Stream stream);
    ~CudaEvent();
    CudaEvent(const CudaEvent&) = delete;
    CudaEvent& operator=(const CudaEvent&) = delete;

    // True: it has fired. An error means that its context has failed or is gone; no copy of it goes
    // on then.
    Result<bool> fired() const;
    // Asks until it fires or fails; kDeadlineExceeded when neither happens in time, or the caller's
    // call was interrupted.
    Status wait(Deadline deadline) const;

  private:
    explicit CudaEvent(std::shared_ptr<CudaContext> context) : context_(std::move(context)) {}

    const std::shared_ptr<CudaContext> context_;
    cuda::Event event_ = nullptr;
};

// All go in one direction, in any order among themselves.
class DeviceCopies {
  public:
    enum class Direction : uint8_t { kToDevice, kToHost };
    DeviceCopies(std::shared_ptr<CudaContext> context, Direction direction)
        : context_(std::move(context)), direction_(direction) {}

    // Host memory that is pinned or registered, and stays so until the copies are done.
    void add(cuda::DevicePtr device, const uint8_t* host, uint64_t size);
    bool empty() const { return sizes_.empty(); }
    // Queues all of them, and forgets them. After an error some may have been queued.
    Status queue(cuda::Stream stream);

  private:
    Status queue_batch(cuda::Stream stream);
    Status queue_singly(cuda::Stream stream);

    const std::shared_ptr<CudaContext> context_;
    const Direction direction_;
    std::vector<cuda::DevicePtr> to_;
    std::vector<cuda::DevicePtr> from_;
    std::vector<size_t> sizes_;
};

}  // namespace kvstore
