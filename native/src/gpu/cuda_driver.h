// libcuda, loaded when CUDA memory is seen for the first time, and the contexts of its devices.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/fork_guard.h"
#include "base/status.h"
#include "gpu/cuda_api.h"

namespace kvstore {

// One per process, never unloaded. Thread-safe. Without a driver nothing is kept, so that a later
// call finds one that has come meanwhile.
class CudaDriver {
  public:
    // $KVSTORE_CUDA_LIB, else libcuda.so.1. kUnsupported when there is none, or no device.
    static Result<const CudaDriver*> load();

    const cuda::Api& api() const { return api_; }
    // Ok, or what the driver's answer to the call named `what` means for the caller: an argument of
    // its own (kInvalidArgument), no memory (kNoSpace), no such driver (kUnsupported), or kIoError.
    Status status(const char* what, cuda::Result result) const;
    // No call of the driver works in a forked child.
    bool in_forked_child() const { return fork_guard_.in_child(); }

    // Whose memory an address is; empty when it is no memory of a device.
    std::optional<int> device_of(cuda::DevicePtr where) const;

  private:
    CudaDriver() = default;
    static Result<std::unique_ptr<CudaDriver>> open();
    Status find_functions(void* library, const std::string& name);

    cuda::Api api_{};
    ForkGuard fork_guard_;
};

// While a thread of the engine captures a graph, the driver forbids calls to all other threads, and
// the capture fails with them. What a store does is no part of any graph: for a scope, this thread
// says so.
class BesideCapture {
  public:
    explicit BesideCapture(const cuda::Api& api) : api_(api) {
        (void)api_.exchange_capture_mode(&mode_);
    }
    ~BesideCapture() { (void)api_.exchange_capture_mode(&mode_); }
    BesideCapture(const BesideCapture&) = delete;
    BesideCapture& operator=(const BesideCapture&) = delete;

  private:
    const cuda::Api& api_;
    int mode_ = cuda::kCaptureModeRelaxed;
};

// The primary context of a device, which PyTorch, CuPy and the CUDA runtime use, too. Retained for
// as long as this lives.
class CudaContext {
  public:
    static Result<std::shared_ptr<CudaContext>> retain(int device);
    ~CudaContext();
    CudaContext(const CudaContext&) = delete;
    CudaContext& operator=(const CudaContext&) = delete;

    const CudaDriver& driver() const { return driver_; }
    const cuda::Api& api() const { return driver_.api(); }
    int device() const { return device_; }
    int attribute(int which) const;  // 0 when the driver does not know it
    // Where kernels find registered host memory; the context is current.
    std::optional<cuda::DevicePtr> address_of(const void* host) const;
    // Ok unless the stream belongs to another device, is being captured into a graph, or is none.
    Status check_stream(cuda::Stream stream) const;

    // Current in this thread for a scope.
    class Scope {
      public:
        explicit Scope(const CudaContext& context);
        ~Scope();
        Scope(const Scope&) = delete;
        Scope& operator=(const Scope&) = delete;
        const Status& status() const { return status_; }

      private:
        const CudaContext& context_;
        std::optional<BesideCapture> beside_;
        Status status_;
    };

  private:
    CudaContext(const CudaDriver& driver, int device) : driver_(driver), device_(device) {}

    const CudaDriver& driver_;
    const int device_;
    cuda::Device handle_ = 0;
    cuda::Context context_ = nullptr;
};

}  // namespace kvstore
