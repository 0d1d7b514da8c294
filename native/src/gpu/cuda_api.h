// The part of the CUDA driver's interface that is used here, declared anew: nothing of CUDA is
// needed to build. Types and numbers are those of the driver's binary interface.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvstore::cuda {

using Result = int;
using Device = int;
using DevicePtr = uint64_t;
using Context = struct ContextOfDriver*;
using Stream = struct StreamOfDriver*;
using Event = struct EventOfDriver*;
using Module = struct ModuleOfDriver*;
using Function = struct FunctionOfDriver*;

inline constexpr Result kSuccess = 0;
inline constexpr Result kInvalidValue = 1;
inline constexpr Result kOutOfMemory = 2;
inline constexpr Result kNotInitialized = 3;
inline constexpr Result kDeinitialized = 4;
inline constexpr Result kStubLibrary = 34;
inline constexpr Result kNoDevice = 100;
inline constexpr Result kInvalidDevice = 101;
inline constexpr Result kInvalidContext = 201;
inline constexpr Result kInvalidHandle = 400;
inline constexpr Result kNotReady = 600;
inline constexpr Result kContextIsDestroyed = 709;
inline constexpr Result kAlreadyRegistered = 712;
inline constexpr Result kNotSupported = 801;

inline constexpr int kPointerMemoryType = 2;  // pointer attributes
inline constexpr int kPointerIsManaged = 8;
inline constexpr int kPointerDevice = 9;
inline constexpr unsigned kMemoryTypeDevice = 2;

inline constexpr int kComputeMajor = 75;  // device attributes
inline constexpr int kComputeMinor = 76;
inline constexpr int kCanRegister = 99;
inline constexpr int kCanRegisterReadOnly = 113;

inline constexpr unsigned kRegisterPortable = 0x01;
inline constexpr unsigned kRegisterMapped = 0x02;
inline constexpr unsigned kRegisterReadOnly = 0x08;
inline constexpr unsigned kEventDisableTiming = 0x02;
inline constexpr int kCaptureModeRelaxed = 2;
inline constexpr int kFlushCurrentContext = 0;
inline constexpr int kFlushToOwner = 100;

struct MemLocation {
    int type = 0;
    int id = 0;
};
// Of the copies of a batch.
struct CopyAttributes {
    int source_access_order = 1;  // in the order of the stream
    MemLocation source_hint;
    MemLocation destination_hint;
    unsigned flags = 0;
};
static_assert(sizeof(CopyAttributes) == 24);

// The driver's functions, under their names without the prefix. Those at the end may be missing.
struct Api {
    Result (*init)(unsigned flags);
    Result (*get_error_name)(Result error, const char** name);
    Result (*device_get)(Device* device, int ordinal);
    Result (*device_get_attribute)(int* value, int attribute, Device device);
    Result (*primary_ctx_retain)(Context* context, Device device);
    Result (*primary_ctx_release)(Device device);
    Result (*ctx_push_current)(Context context);
    Result (*ctx_pop_current)(Context* context);
    Result (*pointer_get_attributes)(unsigned count, int* attributes, void** data, DevicePtr where);
    Result (*host_register)(void* data, size_t size, unsigned flags);
    Result (*host_unregister)(void* data);
    Result (*copy_to_device)(DevicePtr to, const void* from, size_t size, Stream stream);
    Result (*copy_to_host)(void* to, DevicePtr from, size_t size, Stream stream);
    Result (*stream_get_ctx)(Stream stream, Context* context);
    Result (*stream_is_capturing)(Stream stream, int* status);
    Result (*stream_synchronize)(Stream stream);
    Result (*exchange_capture_mode)(int* mode);
    Result (*event_create)(Event* event, unsigned flags);
    Result (*event_record)(Event event, Stream stream);
    Result (*event_query)(Event event);
    Result (*event_destroy)(Event event);
    // CUDA 13's form, and that of CUDA 12.8, which also says which copy failed.
    Result (*copy_batch)(DevicePtr* to, DevicePtr* from, size_t* sizes, size_t count,
                         CopyAttributes* attributes, size_t* first_of, size_t attribute_count,
                         Stream stream);
    Result (*copy_batch_12)(DevicePtr* to, DevicePtr* from, size_t* sizes, size_t count,
                            CopyAttributes* attributes, size_t* first_of, size_t attribute_count,
                            size_t* failed, Stream stream);
    // For kernels.
    Result (*driver_get_version)(int* version);
    Result (*module_load)(Module* module, const void* image);
    Result (*module_unload)(Module module);
    Result (*module_get_function)(Function* function, Module module, const char* name);
    Result (*launch_kernel)(Function function, unsigned blocks_x, unsigned blocks_y,
                            unsigned blocks_z, unsigned threads_x, unsigned threads_y,
                            unsigned threads_z, unsigned shared_bytes, Stream stream,
                            void** parameters, void** more);
    Result (*host_device_pointer)(DevicePtr* device, void* host, unsigned flags);
    Result (*mem_get_address_range)(DevicePtr* begin, size_t* size, DevicePtr where);
    Result (*flush_gpu_direct_rdma_writes)(int target, int scope);
};

}  // namespace kvstore::cuda
