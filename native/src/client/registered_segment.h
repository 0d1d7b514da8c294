// A mapped segment as the GPUs of this host reach it, registered on first use.
#pragma once

#include <memory>
#include <span>

#include "base/mutex.h"
#include "gpu/host_registration.h"

namespace kvstore {

// Thread-safe. Goes before the mappings, and after the last copy from or to them.
class RegisteredSegment {
  public:
    // Two mappings of one segment; the second is empty for a process that only reads.
    RegisteredSegment(std::span<uint8_t> read_only, std::span<uint8_t> writable)
        : read_only_(read_only), writable_(writable) {}

    // Where a GPU may copy these bytes from, or to; null when the driver does not register them.
    const uint8_t* source(const std::shared_ptr<CudaContext>& context, uint64_t offset,
                          uint64_t size) KV_EXCLUDES(mutex_);
    uint8_t* destination(const std::shared_ptr<CudaContext>& context, uint64_t offset,
                         uint64_t size) KV_EXCLUDES(mutex_);

    // Whether kernels reach there what copies do.
    bool for_kernels() const KV_EXCLUDES(mutex_);

  private:
    HostRegistration& reading(const std::shared_ptr<CudaContext>& context) KV_EXCLUDES(mutex_);
    HostRegistration* writing(const std::shared_ptr<CudaContext>& context) KV_EXCLUDES(mutex_);

    const std::span<uint8_t> read_only_;
    const std::span<uint8_t> writable_;
    mutable Mutex mutex_;
    // Set once. Good for every context: the registrations are portable.
    std::unique_ptr<HostRegistration> reading_ KV_GUARDED_BY(mutex_);
    std::unique_ptr<HostRegistration> writing_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
