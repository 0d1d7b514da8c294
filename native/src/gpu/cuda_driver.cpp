// dlopen, the table of functions, and what the driver's errors mean.
#include "gpu/cuda_driver.h"

#include <dlfcn.h>

#include <cstdlib>

#include "base/mutex.h"

namespace kvstore {
namespace {

constexpr const char* kLibrarySetting = "KVSTORE_CUDA_LIB";
constexpr const char* kLibrary = "libcuda.so.1";
// Handles that stand for the default streams of a thread's current context.
constexpr uintptr_t kLastSpecialStream = 2;

struct Symbol {
    const char* name;
    void** function;
    bool is_required = true;
};

template <class Function>
void** slot_of(Function** function) {
    return reinterpret_cast<void**>(function);
}

Code code_of(cuda::Result result) {
    switch (result) {
        case cuda::kInvalidValue:
        case cuda::kInvalidDevice:
        case cuda::kInvalidContext:
        case cuda::kInvalidHandle:
        case cuda::kContextIsDestroyed:
            return Code::kInvalidArgument;
        case cuda::kOutOfMemory:
            return Code::kNoSpace;
        case cuda::kNotInitialized:
        case cuda::kStubLibrary:
        case cuda::kNoDevice:
        case cuda::kNotSupported:
            return Code::kUnsupported;
        default:
            return Code::kIoError;
    }
}

}  // namespace

Result<const CudaDriver*> CudaDriver::load() {
    static Mutex* const mutex = new Mutex();  // threads may outlive static objects
    static const CudaDriver* loaded = nullptr;
    const MutexLock lock(*mutex);
    if (loaded == nullptr) {
        Result<std::unique_ptr<CudaDriver>> opened = open();
        if (!opened.ok()) {
            return opened.status();
        }
        loaded = opened->release();
    }
    if (loaded->in_forked_child()) {
        return {Code::kUnsupported, "CUDA does not work in a forked child: start a new process"};
    }
    return loaded;
}

Result<std::unique_ptr<CudaDriver>> CudaDriver::open() {
    const char* const given = std::getenv(kLibrarySetting);
    const std::string name = given != nullptr && *given != 0 ? given : kLibrary;
    void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        const char* const why = dlerror();
        return {Code::kUnsupported, "no CUDA driver (" + std::string(kLibrarySetting) +
                                        " names its library): " + (why != nullptr ? why : name)};
    }
    std::unique_ptr<CudaDriver> driver(new CudaDriver());
    Status status = driver->find_functions(library, name);
    if (status.ok()) {
        status = driver->status("cuInit", driver->api_.init(0));
    }
    if (!status.ok()) {
        dlclose(library);
        return status;
    }
    return driver;
}

Status CudaDriver::find_functions(void* library, const std::string& name) {
    const Symbol symbols[] = {
        {"cuInit", slot_of(&api_.init)},
        {"cuGetErrorName", slot_of(&api_.get_error_name)},
        {"cuDeviceGet", slot_of(&api_.device_get)},
        {"cuDeviceGetAttribute", slot_of(&api_.device_get_attribute)},
        {"cuDevicePrimaryCtxRetain", slot_of(&api_.primary_ctx_retain)},
        {"cuDevicePrimaryCtxRelease_v2", slot_of(&api_.primary_ctx_release)},
        {"cuCtxPushCurrent_v2", slot_of(&api_.ctx_push_current)},
        {"cuCtxPopCurrent_v2", slot_of(&api_.ctx_pop_current)},
        {"cuPointerGetAttributes", slot_of(&api_.pointer_get_attributes)},
        {"cuMemHostRegister_v2", slot_of(&api_.host_register)},
        {"cuMemHostUnregister", slot_of(&api_.host_unregister)},
        {"cuMemcpyHtoDAsync_v2", slot_of(&api_.copy_to_device)},
        {"cuMemcpyDtoHAsync_v2", slot_of(&api_.copy_to_host)},
        {"cuStreamGetCtx", slot_of(&api_.stream_get_ctx)},
        {"cuStreamIsCapturing", slot_of(&api_.stream_is_capturing)},
        {"cuStreamSynchronize", slot_of(&api_.stream_synchronize)},
        {"cuThreadExchangeStreamCaptureMode", slot_of(&api_.exchange_capture_mode)},
        {"cuEventCreate", slot_of(&api_.event_create)},
        {"cuEventRecord", slot_of(&api_.event_record)},
        {"cuEventQuery", slot_of(&api_.event_query)},
        {"cuEventDestroy_v2", slot_of(&api_.event_destroy)},
        {"cuMemcpyBatchAsync_v2", slot_of(&api_.copy_batch), false},
        {"cuMemcpyBatchAsync", slot_of(&api_.copy_batch_12), false},
        {"cuDriverGetVersion", slot_of(&api_.driver_get_version), false},
        {"cuModuleLoadData", slot_of(&api_.module_load), false},
        {"cuModuleUnload", slot_of(&api_.module_unload), false},
        {"cuModuleGetFunction", slot_of(&api_.module_get_function), false},
        {"cuLaunchKernel", slot_of(&api_.launch_kernel), false},
        {"cuMemHostGetDevicePointer_v2", slot_of(&api_.host_device_pointer), false},
        {"cuMemGetAddressRange_v2", slot_of(&api_.mem_get_address_range), false},
        {"cuFlushGPUDirectRDMAWrites", slot_of(&api_.flush_gpu_direct_rdma_writes), false},
    };
    for (const Symbol& symbol : symbols) {
        *symbol.function = dlsym(library, symbol.name);
        if (*symbol.function == nullptr && symbol.is_required) {
            return {Code::kUnsupported,
                    name + " has no " + symbol.name + ": a driver of CUDA 11.1 or later is needed"};
        }
    }
    return {};
}

Status CudaDriver::status(const char* what, cuda::Result result) const {
    if (result == cuda::kSuccess) {
        return {};
    }
    const char* name = nullptr;
    if (api_.get_error_name(result, &name) != cuda::kSuccess || name == nullptr) {
        name = "unknown error";
    }
    return {code_of(result), std::string(what) + ": " + name + " (" + std::to_string(result) + ")"};
}

std::optional<int> CudaDriver::device_of(cuda::DevicePtr where) const {
    unsigned type = 0;
    unsigned is_managed = 0;
    int device = -1;
    int attributes[] = {cuda::kPointerMemoryType, cuda::kPointerIsManaged, cuda::kPointerDevice};
    void* data[] = {&type, &is_managed, &device};
    if (api_.pointer_get_attributes(3, attributes, data, where) != cuda::kSuccess || device < 0 ||
        (type != cuda::kMemoryTypeDevice && is_managed == 0)) {
        return {};
    }
    return device;
}

Result<std::shared_ptr<CudaContext>> CudaContext::retain(int device) {
    const Result<const CudaDriver*> driver = CudaDriver::load();
    if (!driver.ok()) {
        return driver.status();
    }
    const CudaDriver& loaded = **driver;
    const BesideCapture beside(loaded.api());
    std::shared_ptr<CudaContext> context(new CudaContext(loaded, device));
    Status status =
        loaded.status("cuDeviceGet", loaded.api().device_get(&context->handle_, device));
    if (status.ok()) {
        status =
            loaded.status("cuDevicePrimaryCtxRetain",
                          loaded.api().primary_ctx_retain(&context->context_, context->handle_));
    }
    if (!status.ok()) {
        context->context_ = nullptr;
        return status;
    }
    return context;
}

CudaContext::~CudaContext() {
    if (context_ != nullptr && !driver_.in_forked_child()) {
        const BesideCapture beside(api());
        (void)api().primary_ctx_release(handle_);
    }
}

int CudaContext::attribute(int which) const {
    int value = 0;
    return api().device_get_attribute(&value, which, handle_) == cuda::kSuccess ? value : 0;
}

std::optional<cuda::DevicePtr> CudaContext::address_of(const void* host) const {
    cuda::DevicePtr address = 0;
    if (api().host_device_pointer == nullptr ||
        api().host_device_pointer(&address, const_cast<void*>(host), 0) != cuda::kSuccess) {
        return {};
    }
    return address;
}

Status CudaContext::check_stream(cuda::Stream stream) const {
    if (reinterpret_cast<uintptr_t>(stream) > kLastSpecialStream) {
        cuda::Context owner = nullptr;
        if (Status status = driver_.status("cuStreamGetCtx", api().stream_get_ctx(stream, &owner));
            !status.ok()) {
            return status;
        }
        if (owner != context_) {
            return {Code::kInvalidArgument, "the stream is not one of device " +
                                                std::to_string(device_) +
                                                "'s primary context, where the memory is"};
        }
    }
    int capturing = 0;
    if (Status status =
            driver_.status("cuStreamIsCapturing", api().stream_is_capturing(stream, &capturing));
        !status.ok()) {
        return status;
    }
    return capturing == 0 ? Status()
                          : Status(Code::kInvalidArgument,
                                   "the stream is being captured into a graph: what a store does "
                                   "cannot be replayed");
}

CudaContext::Scope::Scope(const CudaContext& context) : context_(context) {
    if (context.driver_.in_forked_child()) {
        status_ = Status(Code::kClosed, "CUDA does not work in a forked child");
        return;
    }
    beside_.emplace(context.api());
    status_ = context.driver_.status("cuCtxPushCurrent",
                                     context.api().ctx_push_current(context.context_));
}

CudaContext::Scope::~Scope() {
    if (status_.ok()) {
        cuda::Context popped = nullptr;
        (void)context_.api().ctx_pop_current(&popped);
    }
}

}  // namespace kvstore
