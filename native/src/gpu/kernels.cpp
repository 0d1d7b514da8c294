// Loading a module, and launching its kernels with a warp for each span.
#include "gpu/kernels.h"

namespace kvstore {
namespace {

constexpr unsigned kThreads = 128;  // of a block, as kernels.cu wants it
constexpr unsigned kWarps = kThreads / 32;

}  // namespace

Kernels::~Kernels() {
    if (module_ == nullptr) {
        return;
    }
    const CudaContext::Scope scope(*context_);
    if (scope.status().ok()) {
        (void)context_->api().module_unload(module_);
    }
}

Status Kernels::load(const std::string& image) {
    const MutexLock lock(mutex_);
    if (decided()) {
        return {};
    }
    const cuda::Api& api = context_->api();
    if (api.module_load == nullptr || api.module_get_function == nullptr ||
        api.module_unload == nullptr || api.launch_kernel == nullptr ||
        api.host_device_pointer == nullptr) {
        return {Code::kUnsupported, "the CUDA driver launches no kernels"};
    }
    const CudaContext::Scope scope(*context_);
    Status status = scope.status();
    if (!status.ok()) {
        return status;
    }
    const CudaDriver& driver = context_->driver();
    cuda::Module module = nullptr;
    status = driver.status("cuModuleLoadData", api.module_load(&module, image.c_str()));
    if (!status.ok()) {
        return status;
    }
    status = driver.status("cuModuleGetFunction",
                           api.module_get_function(&checksum_, module, "kvstore_checksum"));
    if (status.ok()) {
        status = driver.status("cuModuleGetFunction",
                               api.module_get_function(&pages_, module, "kvstore_pages"));
    }
    if (!status.ok()) {
        (void)api.module_unload(module);
        return status;
    }
    module_ = module;
    why_not_.clear();
    state_.store(State::kLoaded, std::memory_order_release);
    return {};
}

void Kernels::refuse(const std::string& why) {
    const MutexLock lock(mutex_);
    if (!decided()) {
        why_not_ = why;
        state_.store(State::kRefused, std::memory_order_release);
    }
}

std::string Kernels::why_not() const {
    const MutexLock lock(mutex_);
    return why_not_;
}

Status Kernels::sum_spans(cuda::DevicePtr spans, cuda::DevicePtr sums, uint32_t count,
                          cuda::Stream stream) const {
    void* parameters[] = {&spans, &sums, &count};
    return launch(checksum_, count, parameters, stream);
}

Status Kernels::move_pages(const KernelPages& job, cuda::Stream stream) const {
    void* parameters[] = {const_cast<KernelPages*>(&job)};
    return launch(pages_, uint64_t{job.pages} * job.spans, parameters, stream);
}

Status Kernels::launch(cuda::Function function, uint64_t warps, void** parameters,
                       cuda::Stream stream) const {
    const auto blocks = static_cast<unsigned>((warps + kWarps - 1) / kWarps);
    return context_->driver().status(
        "cuLaunchKernel", context_->api().launch_kernel(function, blocks, 1, 1, kThreads, 1, 1, 0,
                                                        stream, parameters, nullptr));
}

}  // namespace kvstore
