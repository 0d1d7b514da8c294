// UCX as found at run time: the library and the entry points that are used of it.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "base/status.h"
#include "ucx/ucx_api.h"

namespace kvstore {

// Loaded once for a process and never unloaded: UCX starts threads and installs handlers.
struct UcxLibrary {
    // The first of `candidates` (paths, or names for the dynamic linker) that can be loaded and has
    // every entry point; kUnavailable with a sentence for each otherwise. Later calls return the
    // library that was loaded first.
    static Result<const UcxLibrary*> load(std::span<const std::string> candidates);

    std::string path;     // as the dynamic linker says
    std::string version;  // "1.13.1"

    void (*get_version)(unsigned*, unsigned*, unsigned*) = nullptr;
    const char* (*status_text)(ucp::UcsStatus) = nullptr;
    ucp::UcsStatus (*config_read)(const char*, const char*, ucp::Config**) = nullptr;
    void (*config_release)(ucp::Config*) = nullptr;
    ucp::UcsStatus (*init)(unsigned, unsigned, const ucp::Params*, const ucp::Config*,
                           ucp::Context**) = nullptr;
    void (*cleanup)(ucp::Context*) = nullptr;
    ucp::UcsStatus (*context_query)(ucp::Context*, ucp::ContextAttributes*) = nullptr;
    ucp::UcsStatus (*mem_map)(ucp::Context*, const ucp::MapParams*, ucp::Memory**) = nullptr;
    ucp::UcsStatus (*mem_unmap)(ucp::Context*, ucp::Memory*) = nullptr;
    ucp::UcsStatus (*rkey_pack)(ucp::Context*, ucp::Memory*, void**, size_t*) = nullptr;
    void (*rkey_buffer_release)(void*) = nullptr;
    ucp::UcsStatus (*worker_create)(ucp::Context*, const ucp::WorkerParams*,
                                    ucp::Worker**) = nullptr;
    void (*worker_destroy)(ucp::Worker*) = nullptr;
    ucp::UcsStatus (*worker_get_address)(ucp::Worker*, ucp::Address**, size_t*) = nullptr;
    void (*worker_release_address)(ucp::Worker*, ucp::Address*) = nullptr;
    unsigned (*worker_progress)(ucp::Worker*) = nullptr;
    ucp::UcsStatus (*worker_get_efd)(ucp::Worker*, int*) = nullptr;
    ucp::UcsStatus (*worker_arm)(ucp::Worker*) = nullptr;
    ucp::UcsStatus (*worker_signal)(ucp::Worker*) = nullptr;
    ucp::UcsStatus (*ep_create)(ucp::Worker*, const ucp::EndpointParams*,
                                ucp::Endpoint**) = nullptr;
    ucp::StatusPointer (*ep_close)(ucp::Endpoint*, const ucp::RequestParam*) = nullptr;
    ucp::UcsStatus (*rkey_unpack)(ucp::Endpoint*, const void*, ucp::Key**) = nullptr;
    void (*rkey_destroy)(ucp::Key*) = nullptr;
    ucp::StatusPointer (*get)(ucp::Endpoint*, void*, size_t, uint64_t, ucp::Key*,
                              const ucp::RequestParam*) = nullptr;
    ucp::UcsStatus (*request_status)(void*) = nullptr;
    void (*request_free)(void*) = nullptr;
};

}  // namespace kvstore
