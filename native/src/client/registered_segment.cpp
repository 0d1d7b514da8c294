// Which of the two mappings a copy uses.
#include "client/registered_segment.h"

namespace kvstore {

const uint8_t* RegisteredSegment::source(const std::shared_ptr<CudaContext>& context,
                                         uint64_t offset, uint64_t size) {
    if (reading(context).ensure(offset, size)) {
        return read_only_.data() + offset;
    }
    // An older driver registers only what can be written.
    return destination(context, offset, size);
}

uint8_t* RegisteredSegment::destination(const std::shared_ptr<CudaContext>& context,
                                        uint64_t offset, uint64_t size) {
    HostRegistration* const registration = writing(context);
    return registration != nullptr && registration->ensure(offset, size) ? writable_.data() + offset
                                                                         : nullptr;
}

bool RegisteredSegment::for_kernels() const {
    const MutexLock lock(mutex_);
    return (reading_ == nullptr || reading_->for_kernels()) &&
           (writing_ == nullptr || writing_->for_kernels());
}

HostRegistration& RegisteredSegment::reading(const std::shared_ptr<CudaContext>& context) {
    const MutexLock lock(mutex_);
    if (reading_ == nullptr) {
        reading_ = std::make_unique<HostRegistration>(context, read_only_, true);
    }
    return *reading_;
}

HostRegistration* RegisteredSegment::writing(const std::shared_ptr<CudaContext>& context) {
    const MutexLock lock(mutex_);
    if (writing_ == nullptr && !writable_.empty()) {
        writing_ = std::make_unique<HostRegistration>(context, writable_, false);
    }
    return writing_.get();
}

}  // namespace kvstore
