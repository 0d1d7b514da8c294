// A mapping of shared memory, registered with CUDA slice by slice, so that a GPU copies from and to
// it by DMA.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "gpu/cuda_driver.h"

namespace kvstore {

// Thread-safe. Goes before its mapping, and after the last copy.
class HostRegistration {
  public:
    // A slice is what a node pre-faults in one piece (memory/segment.h): registering pins pages,
    // and the pages of a block that was handed out are there already.
    static constexpr uint64_t kSliceBytes = 16u << 20;

    // Registers nothing yet. `read_only`: the mapping cannot be written.
    HostRegistration(std::shared_ptr<CudaContext> context, std::span<uint8_t> mapping,
                     bool read_only);
    ~HostRegistration();
    HostRegistration(const HostRegistration&) = delete;
    HostRegistration& operator=(const HostRegistration&) = delete;

    // Whether a copy may use these bytes. False when the driver refuses a slice: it is not asked
    // for that one again.
    bool ensure(uint64_t offset, uint64_t size) KV_EXCLUDES(mutex_);
    // Whether kernels find what ensure() has registered at the addresses of the mapping.
    bool for_kernels() const { return for_kernels_.load(std::memory_order_relaxed); }
    // How far a single copy from `offset` may go: slices are registered one by one.
    static uint64_t left_in_slice(uint64_t offset) { return kSliceBytes - offset % kSliceBytes; }

  private:
    // kForeign: somebody else has registered it, and will unregister it.
    enum class Slice : uint8_t { kUnknown, kRegistered, kForeign, kRefused };
    std::span<uint8_t> bytes(size_t slice) const;
    Slice register_slice(size_t slice);

    const std::shared_ptr<CudaContext> context_;
    const std::span<uint8_t> mapping_;
    unsigned flags_ = cuda::kRegisterPortable | cuda::kRegisterMapped;
    bool is_supported_ = false;
    std::atomic<bool> for_kernels_{true};
    Mutex mutex_;  // held while the driver registers
    std::vector<Slice> slices_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
