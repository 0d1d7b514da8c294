// The kernels of kvstore/gpu/kernels.cu on one device, once Python has had them compiled.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "base/mutex.h"
#include "gpu/cuda_driver.h"

namespace kvstore {

// The records of kernels.cu.
struct KernelSpan {
    uint64_t data = 0;
    uint32_t bytes = 0;
    uint32_t behind = 0;
};
static_assert(sizeof(KernelSpan) == 16);

inline constexpr size_t kMostKernelBuffers = 448;

struct KernelPages {
    cuda::DevicePtr blocks = 0;
    cuda::DevicePtr page_ids = 0;
    cuda::DevicePtr sums = 0;
    uint64_t page_stride = 0;
    uint32_t page_bytes = 0;
    uint32_t piece_bytes = 0;
    uint32_t layers = 0;
    uint32_t tokens = 0;
    uint32_t pages = 0;
    uint32_t spans = 0;
    uint32_t span_bytes = 0;
    uint32_t to_pool = 0;
    cuda::DevicePtr buffers[kMostKernelBuffers] = {};
};
static_assert(sizeof(KernelPages) == 64 + 8 * kMostKernelBuffers);

// What a warp works on. A long span costs little beside its bytes, many spans keep a GPU busy.
inline constexpr uint32_t kSpanBytes = 16u << 10;

// Thread-safe. Without them checksums are verified on the host, and pages go by copies.
class Kernels {
  public:
    explicit Kernels(std::shared_ptr<CudaContext> context) : context_(std::move(context)) {}
    ~Kernels();
    Kernels(const Kernels&) = delete;
    Kernels& operator=(const Kernels&) = delete;

    // Whether load() or refuse() has been called; until then somebody should do it.
    bool decided() const { return state_.load(std::memory_order_acquire) != State::kOpen; }
    bool loaded() const { return state_.load(std::memory_order_acquire) == State::kLoaded; }
    // A cubin for this device. A failure leaves it undecided.
    Status load(const std::string& image) KV_EXCLUDES(mutex_);
    void refuse(const std::string& why) KV_EXCLUDES(mutex_);
    // Empty once they are loaded.
    std::string why_not() const KV_EXCLUDES(mutex_);
    const CudaContext& context() const { return *context_; }

    // Both are queued on the stream, in the current context. Their records and sums lie in host
    // memory that the device reaches, until the kernel has run.
    Status sum_spans(cuda::DevicePtr spans, cuda::DevicePtr sums, uint32_t count,
                     cuda::Stream stream) const;
    Status move_pages(const KernelPages& job, cuda::Stream stream) const;

  private:
    enum class State : uint8_t { kOpen, kLoaded, kRefused };
    Status launch(cuda::Function function, uint64_t warps, void** parameters,
                  cuda::Stream stream) const;

    const std::shared_ptr<CudaContext> context_;
    std::atomic<State> state_{State::kOpen};
    mutable Mutex mutex_;
    std::string why_not_ KV_GUARDED_BY(mutex_) = "not compiled yet";
    // Written before kLoaded is, and not again.
    cuda::Module module_ = nullptr;
    cuda::Function checksum_ = nullptr;
    cuda::Function pages_ = nullptr;
};

}  // namespace kvstore
