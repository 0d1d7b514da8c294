// Opening a context with its settings; registering memory.
#include "ucx/ucx_context.h"

#include <cstdlib>

#include "base/mutex.h"

namespace kvstore {
namespace {

// What a node or client may be reached by. Over anything else UCX answers reads and writes in
// software and checks no key: whoever reaches its port reaches the whole process.
constexpr const char* kDefaultTransports = "rc,dc,ud,self,cuda_copy,gdr_copy";

constexpr const char* kPrefix = "KVSTORE";

// Only variables reach every part of UCX. Devices and transports have a prefix of ours, so that
// other users of UCX in this process keep theirs; the parts below know no prefix.
void set(const std::string& name, const std::string& value) {
    const bool is_ours = name == "TLS" || name == "NET_DEVICES";
    (void)setenv(((is_ours ? "KVSTORE_UCX_" : "UCX_") + name).c_str(), value.c_str(), 1);
}

class Config {
  public:
    explicit Config(const UcxLibrary& library) : library_(library) {}
    ~Config() {
        if (config_ != nullptr) {
            library_.config_release(config_);
        }
    }
    ucp::UcsStatus read() { return library_.config_read(kPrefix, nullptr, &config_); }
    const ucp::Config* get() const { return config_; }

  private:
    const UcxLibrary& library_;
    ucp::Config* config_ = nullptr;
};

Mutex opening;  // its settings and its context belong together

Status refused(const UcxLibrary& library, const std::string& what, ucp::UcsStatus status) {
    return {Code::kUnavailable,
            "UCX " + library.version + ": " + what + ": " + library.status_text(status)};
}

}  // namespace

Result<std::shared_ptr<UcxContext>> UcxContext::open(const UcxOptions& options) {
    const MutexLock lock(opening);
    if (std::getenv("UCX_TLS") == nullptr) {
        set("TLS", kDefaultTransports);
    }
    for (const auto& [name, value] : options.settings) {
        set(name, value);
    }
    const Result<const UcxLibrary*> loaded = UcxLibrary::load(options.libraries);
    if (!loaded.ok()) {
        return loaded.status();
    }
    const UcxLibrary& library = **loaded;
    Config config(library);
    if (const ucp::UcsStatus status = config.read(); status != ucp::kOk) {
        return refused(library, "its settings cannot be read", status);
    }
    ucp::Params params{};
    params.field_mask = ucp::Params::kFeatures | ucp::Params::kMtWorkersShared | ucp::Params::kName;
    params.features = ucp::kFeatureRma | ucp::kFeatureWakeup;
    params.mt_workers_shared = 1;
    params.name = "kvstore";
    ucp::Context* context = nullptr;
    const ucp::UcsStatus status =
        library.init(ucp::kApiMajor, ucp::kApiMinor, &params, config.get(), &context);
    if (status != ucp::kOk) {
        return refused(library, "no device or transport can be used", status);
    }
    ucp::ContextAttributes attributes{};
    attributes.field_mask = ucp::ContextAttributes::kMemoryTypes;
    const bool told = library.context_query(context, &attributes) == ucp::kOk;
    return std::shared_ptr<UcxContext>(
        new UcxContext(library, context, told ? attributes.memory_types : 0));
}

UcxContext::~UcxContext() {
    if (!in_forked_child()) {
        library_.cleanup(context_);
    }
}

Status UcxContext::failure(Code code, const char* what, ucp::UcsStatus status) const {
    return {code, std::string(what) + ": " + library_.status_text(status)};
}

bool UcxContext::moves(ucp::MemoryType type) const {
    return type == ucp::MemoryType::kHost ||
           (memory_types_ >> static_cast<uint32_t>(type) & 1) != 0;
}

Result<std::unique_ptr<UcxMemory>> UcxContext::register_memory(void* data, size_t bytes,
                                                               ucp::MemoryType type) {
    if (!moves(type)) {
        return {Code::kUnsupported, "UCX " + library_.version + " has no support for CUDA"};
    }
    ucp::MapParams params{};
    params.field_mask = ucp::MapParams::kAddress | ucp::MapParams::kLength;
    if (type != ucp::MemoryType::kHost) {
        params.field_mask |= ucp::MapParams::kMemoryType;
        params.memory_type = type;
    }
    params.address = data;
    params.length = bytes;
    ucp::Memory* memory = nullptr;
    if (const ucp::UcsStatus status = library_.mem_map(context_, &params, &memory);
        status != ucp::kOk) {
        return failure(Code::kNoSpace, "memory cannot be registered (is `ulimit -l` large enough?)",
                       status);
    }
    void* packed = nullptr;
    size_t packed_bytes = 0;
    const ucp::UcsStatus status = library_.rkey_pack(context_, memory, &packed, &packed_bytes);
    if (status != ucp::kOk) {
        library_.mem_unmap(context_, memory);
        return failure(Code::kUnsupported, "registered memory has no key", status);
    }
    std::string key(static_cast<const char*>(packed), packed_bytes);
    library_.rkey_buffer_release(packed);
    return std::make_unique<UcxMemory>(shared_from_this(), memory, data, bytes, type,
                                       std::move(key));
}

UcxMemory::~UcxMemory() {
    if (!context_->in_forked_child()) {
        context_->library().mem_unmap(context_->get(), memory_);
    }
}

bool UcxMemory::holds(const void* data, size_t bytes) const {
    const auto begin = reinterpret_cast<uintptr_t>(data);
    const auto mine = reinterpret_cast<uintptr_t>(data_);
    return begin >= mine && begin - mine <= bytes_ && bytes <= bytes_ - (begin - mine);
}

}  // namespace kvstore
