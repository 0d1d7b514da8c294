// Registering slices on first use, and unregistering them at the end.
#include "gpu/host_registration.h"

#include <algorithm>

namespace kvstore {

HostRegistration::HostRegistration(std::shared_ptr<CudaContext> context, std::span<uint8_t> mapping,
                                   bool read_only)
    : context_(std::move(context)),
      mapping_(mapping),
      slices_((mapping.size() + kSliceBytes - 1) / kSliceBytes, Slice::kUnknown) {
    is_supported_ = context_->attribute(cuda::kCanRegister) != 0;
    if (read_only) {
        flags_ |= cuda::kRegisterReadOnly;
        is_supported_ = is_supported_ && context_->attribute(cuda::kCanRegisterReadOnly) != 0;
    }
}

HostRegistration::~HostRegistration() {
    const MutexLock lock(mutex_);
    const CudaContext::Scope scope(*context_);
    if (!scope.status().ok()) {
        return;  // the context is gone, and its registrations with it
    }
    for (size_t slice = 0; slice < slices_.size(); ++slice) {
        if (slices_[slice] == Slice::kRegistered) {
            (void)context_->api().host_unregister(bytes(slice).data());
        }
    }
}

std::span<uint8_t> HostRegistration::bytes(size_t slice) const {
    const uint64_t begin = slice * kSliceBytes;
    return mapping_.subspan(begin, std::min(kSliceBytes, mapping_.size() - begin));
}

bool HostRegistration::ensure(uint64_t offset, uint64_t size) {
    if (!is_supported_ || offset > mapping_.size() || size > mapping_.size() - offset) {
        return false;
    }
    if (size == 0) {
        return true;
    }
    const MutexLock lock(mutex_);
    for (uint64_t slice = offset / kSliceBytes; slice <= (offset + size - 1) / kSliceBytes;
         ++slice) {
        Slice& state = slices_[slice];
        if (state == Slice::kUnknown) {
            state = register_slice(slice);
        }
        if (state == Slice::kRefused) {
            return false;
        }
    }
    return true;
}

HostRegistration::Slice HostRegistration::register_slice(size_t slice) {
    const CudaContext::Scope scope(*context_);
    if (!scope.status().ok()) {
        return Slice::kUnknown;  // the copy will say why
    }
    const std::span<uint8_t> memory = bytes(slice);
    const cuda::Result result = context_->api().host_register(memory.data(), memory.size(), flags_);
    if (result != cuda::kSuccess && result != cuda::kAlreadyRegistered) {
        return Slice::kRefused;
    }
    if (context_->address_of(memory.data()) != reinterpret_cast<uintptr_t>(memory.data())) {
        for_kernels_.store(false, std::memory_order_relaxed);
    }
    return result == cuda::kSuccess ? Slice::kRegistered : Slice::kForeign;
}

}  // namespace kvstore
