// What a client needs of each CUDA device that it was given memory of: made on first use.
#pragma once

#include <map>
#include <memory>

#include "base/mutex.h"
#include "gpu/event_poller.h"
#include "gpu/kernels.h"
#include "gpu/pinned_buffers.h"

namespace kvstore {

struct GpuDevice {
    std::shared_ptr<CudaContext> context;
    std::shared_ptr<PinnedBuffers> bounce;  // for what cannot be copied directly
    std::shared_ptr<PinnedBuffers> tables;  // for kernels
    std::shared_ptr<Kernels> kernels;
};

// Thread-safe. Before the first call nothing of CUDA is loaded, and no thread runs.
class Devices {
  public:
    Result<GpuDevice> find(int ordinal) KV_EXCLUDES(mutex_);
    std::shared_ptr<EventPoller> poller() KV_EXCLUDES(mutex_);
    // Those that calls have used, by ordinal.
    std::map<int, GpuDevice> used() const KV_EXCLUDES(mutex_);
    // Gives up what no copy in progress needs; the next call makes it again.
    void release() KV_EXCLUDES(mutex_);

  private:
    mutable Mutex mutex_;
    std::map<int, GpuDevice> devices_ KV_GUARDED_BY(mutex_);
    std::shared_ptr<EventPoller> poller_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
