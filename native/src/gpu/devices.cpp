// Contexts and pools, one of each a device.
#include "gpu/devices.h"

namespace kvstore {

Result<GpuDevice> Devices::find(int ordinal) {
    const MutexLock lock(mutex_);
    const auto known = devices_.find(ordinal);
    if (known != devices_.end()) {
        return known->second;
    }
    Result<std::shared_ptr<CudaContext>> context = CudaContext::retain(ordinal);
    if (!context.ok()) {
        return context.status();
    }
    const GpuDevice device{*context, std::make_shared<PinnedBuffers>(*context),
                           std::make_shared<PinnedBuffers>(*context, PinnedBuffers::kTables),
                           std::make_shared<Kernels>(*context)};
    devices_.emplace(ordinal, device);
    return device;
}

std::shared_ptr<EventPoller> Devices::poller() {
    const MutexLock lock(mutex_);
    if (poller_ == nullptr) {
        poller_ = EventPoller::shared();
    }
    return poller_;
}

std::map<int, GpuDevice> Devices::used() const {
    const MutexLock lock(mutex_);
    return devices_;
}

void Devices::release() {
    std::map<int, GpuDevice> devices;
    std::shared_ptr<EventPoller> poller;
    {
        const MutexLock lock(mutex_);
        devices.swap(devices_);
        poller.swap(poller_);
    }
    // Both end here, the poller after the copies in progress.
}

}  // namespace kvstore
