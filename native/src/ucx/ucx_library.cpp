// Loading UCX.
#include "ucx/ucx_library.h"

#include <dlfcn.h>

#include "base/mutex.h"

namespace kvstore {
namespace {

template <class Function>
bool find(void* handle, const char* name, Function* function, std::string* missing) {
    *function = reinterpret_cast<Function>(dlsym(handle, name));
    if (*function == nullptr && missing->empty()) {
        *missing = name;
    }
    return *function != nullptr;
}

std::string find_all(void* handle, UcxLibrary* library) {
    std::string missing;
    const auto take = [&](const char* name, auto* function) {
        find(handle, name, function, &missing);
    };
    take("ucp_get_version", &library->get_version);
    take("ucs_status_string", &library->status_text);
    take("ucp_config_read", &library->config_read);
    take("ucp_config_release", &library->config_release);
    take("ucp_init_version", &library->init);
    take("ucp_cleanup", &library->cleanup);
    take("ucp_context_query", &library->context_query);
    take("ucp_mem_map", &library->mem_map);
    take("ucp_mem_unmap", &library->mem_unmap);
    take("ucp_rkey_pack", &library->rkey_pack);
    take("ucp_rkey_buffer_release", &library->rkey_buffer_release);
    take("ucp_worker_create", &library->worker_create);
    take("ucp_worker_destroy", &library->worker_destroy);
    take("ucp_worker_get_address", &library->worker_get_address);
    take("ucp_worker_release_address", &library->worker_release_address);
    take("ucp_worker_progress", &library->worker_progress);
    take("ucp_worker_get_efd", &library->worker_get_efd);
    take("ucp_worker_arm", &library->worker_arm);
    take("ucp_worker_signal", &library->worker_signal);
    take("ucp_ep_create", &library->ep_create);
    take("ucp_ep_close_nbx", &library->ep_close);
    take("ucp_ep_rkey_unpack", &library->rkey_unpack);
    take("ucp_rkey_destroy", &library->rkey_destroy);
    take("ucp_get_nbx", &library->get);
    take("ucp_request_check_status", &library->request_status);
    take("ucp_request_free", &library->request_free);
    return missing;
}

// The UCX of a nixl wheel brings a libibverbs and a libnl-route of its own, and some of its modules
// ask for the system's beside them. Both libnl-route have the same versioned symbols: at the exit
// of the process the destructors of the system's, bound late, would call the wheel's and crash.
// Bound before, they call their own.
void bind_system_verbs() { (void)dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL); }

Result<std::unique_ptr<UcxLibrary>> open(const std::string& candidate) {
    bind_system_verbs();
    void* const handle = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char* const why = dlerror();
        return {Code::kUnavailable, why == nullptr ? candidate : why};
    }
    auto library = std::make_unique<UcxLibrary>();
    if (const std::string missing = find_all(handle, library.get()); !missing.empty()) {
        return {Code::kUnavailable, candidate + " has no " + missing};
    }
    unsigned major = 0;
    unsigned minor = 0;
    unsigned patch = 0;
    library->get_version(&major, &minor, &patch);
    library->version =
        std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
    if (major != ucp::kApiMajor || minor < ucp::kApiMinor) {
        return {Code::kUnavailable,
                candidate + " is UCX " + library->version + ": 1.13 or a later 1.x is needed"};
    }
    Dl_info info{};
    const bool named = dladdr(reinterpret_cast<void*>(library->init), &info) != 0;
    library->path = named && info.dli_fname != nullptr ? info.dli_fname : candidate;
    return library;
}

Mutex mutex;
std::unique_ptr<UcxLibrary> the_library KV_GUARDED_BY(mutex);

}  // namespace

Result<const UcxLibrary*> UcxLibrary::load(std::span<const std::string> candidates) {
    const MutexLock lock(mutex);
    std::string reasons;
    for (const std::string& candidate : candidates) {
        if (the_library != nullptr) {
            break;
        }
        Result<std::unique_ptr<UcxLibrary>> opened = open(candidate);
        if (opened.ok()) {
            the_library = std::move(*opened);
            break;
        }
        reasons += (reasons.empty() ? "" : "; ") + opened.status().message();
    }
    if (the_library == nullptr) {
        return {Code::kUnavailable, "UCX cannot be loaded: " + reasons};
    }
    return the_library.get();
}

}  // namespace kvstore
