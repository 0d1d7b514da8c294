// UCX that moves GPU memory, without a GPU: the system's, for which the fake driver's memory is the
// host's. The processor reaches that memory only while UCX runs, as only a NIC would.
#include <dlfcn.h>

#include <cstdlib>

#include "ucx/ucx_api.h"

namespace ucp = kvstore::ucp;

namespace {

template <class Function>
Function* next(const char* name, Function*) {
    return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

class Reach {
  public:
    Reach() { reach(1); }
    ~Reach() { reach(0); }

  private:
    static void reach(int on) {
        using Call = void(int);
        static Call* const call = [] {
            void* const driver = dlopen(std::getenv("KVSTORE_CUDA_LIB"), RTLD_NOW);
            return reinterpret_cast<Call*>(dlsym(driver, "fake_reach"));
        }();
        call(on);
    }
};

}  // namespace

extern "C" {

ucp::UcsStatus ucp_context_query(ucp::Context* context, ucp::ContextAttributes* out) {
    const ucp::UcsStatus status = next("ucp_context_query", &ucp_context_query)(context, out);
    out->memory_types |= 1u << static_cast<uint32_t>(ucp::MemoryType::kCuda);
    return status;
}

ucp::UcsStatus ucp_mem_map(ucp::Context* context, const ucp::MapParams* params,
                           ucp::Memory** memory) {
    const Reach reach;
    ucp::MapParams on_host = *params;
    on_host.field_mask &= ~ucp::MapParams::kMemoryType;
    return next("ucp_mem_map", &ucp_mem_map)(context, &on_host, memory);
}

ucp::StatusPointer ucp_get_nbx(ucp::Endpoint* endpoint, void* to, size_t bytes, uint64_t from,
                               ucp::Key* key, const ucp::RequestParam* param) {
    const Reach reach;
    ucp::RequestParam on_host = *param;
    on_host.mask &= ~ucp::RequestParam::kMemoryType;
    return next("ucp_get_nbx", &ucp_get_nbx)(endpoint, to, bytes, from, key, &on_host);
}

unsigned ucp_worker_progress(ucp::Worker* worker) {
    const Reach reach;
    return next("ucp_worker_progress", &ucp_worker_progress)(worker);
}
}
