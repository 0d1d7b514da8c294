// Connecting, reading, waiting.
#include "ucx/ucx_worker.h"

#include <algorithm>

namespace kvstore {
namespace {

constexpr int kStepsAtOnce = 1000;
constexpr size_t kKeptKeys = 4096;  // unpacked, of one endpoint
// UCX is not told how long an address or key is, and trusts the lengths that stand in it. What
// follows ours are zeros, which end it. (What is damaged in other ways may still abort the process:
// a node's UCX process is one of its own for that reason.)
constexpr size_t kMaxBlobBytes = 4096;
constexpr size_t kZeros = 65536;

Result<std::string> padded(std::string_view blob, const char* what) {
    if (blob.empty() || blob.size() > kMaxBlobBytes) {
        return {Code::kInvalidArgument, std::string(what) + " has a wrong length"};
    }
    std::string out(blob);
    out.resize(blob.size() + kZeros);
    return out;
}

}  // namespace

Result<std::unique_ptr<UcxWorker>> UcxWorker::create(std::shared_ptr<UcxContext> context) {
    const UcxLibrary& library = context->library();
    std::unique_ptr<UcxWorker> worker(new UcxWorker(std::move(context)));
    ucp::WorkerParams params{};
    params.field_mask = ucp::WorkerParams::kThreadMode;
    params.thread_mode = ucp::ThreadMode::kSerialized;
    const UcxContext& opened = *worker->context_;
    if (const ucp::UcsStatus status =
            library.worker_create(opened.get(), &params, &worker->worker_);
        status != ucp::kOk) {
        return opened.failure(Code::kUnavailable, "UCX gives no worker", status);
    }
    if (const ucp::UcsStatus status = library.worker_get_efd(worker->worker_, &worker->event_fd_);
        status != ucp::kOk) {
        return opened.failure(Code::kUnavailable, "UCX gives no event descriptor", status);
    }
    ucp::Address* address = nullptr;
    size_t bytes = 0;
    if (const ucp::UcsStatus status = library.worker_get_address(worker->worker_, &address, &bytes);
        status != ucp::kOk) {
        return opened.failure(Code::kUnavailable, "UCX gives no address", status);
    }
    worker->address_.assign(reinterpret_cast<const char*>(address), bytes);
    library.worker_release_address(worker->worker_, address);
    return worker;
}

UcxWorker::~UcxWorker() {
    if (worker_ != nullptr && !context_->in_forked_child()) {
        context_->library().worker_destroy(worker_);
    }
}

void UcxEndpoint::on_error(void* self, ucp::Endpoint*, ucp::UcsStatus) {
    static_cast<UcxEndpoint*>(self)->failed_ = true;
}

Result<std::unique_ptr<UcxEndpoint>> UcxWorker::connect(std::string_view address) {
    const Result<std::string> blob = padded(address, "a UCX worker's address");
    if (!blob.ok()) {
        return blob.status();
    }
    auto endpoint = std::make_unique<UcxEndpoint>();
    endpoint->library_ = &context_->library();
    ucp::EndpointParams params{};
    params.field_mask = ucp::EndpointParams::kRemoteAddress | ucp::EndpointParams::kErrorMode |
                        ucp::EndpointParams::kErrorHandler;
    params.address = reinterpret_cast<const ucp::Address*>(blob->data());
    params.error_mode = ucp::kPeerErrors;
    params.on_error = &UcxEndpoint::on_error;
    params.on_error_argument = endpoint.get();
    const ucp::UcsStatus status =
        context_->library().ep_create(worker_, &params, &endpoint->endpoint_);
    if (status != ucp::kOk) {
        return context_->failure(Code::kUnavailable, "no connection by UCX", status);
    }
    return endpoint;
}

void UcxWorker::close(std::unique_ptr<UcxEndpoint> endpoint) {
    if (context_->in_forked_child()) {
        return;
    }
    const UcxLibrary& library = context_->library();
    ucp::RequestParam param{};
    param.mask = ucp::RequestParam::kFlags;
    param.flags = ucp::kCloseForce;
    for (const auto& [blob, key] : endpoint->keys_) {
        library.rkey_destroy(key);
    }
    const ucp::StatusPointer closing = library.ep_close(endpoint->endpoint_, &param);
    const bool waits = closing != nullptr && !ucp::is_error(closing);
    while ((waits && library.request_status(closing) == ucp::kInProgress) ||
           endpoint->reads_ != 0) {
        library.worker_progress(worker_);
    }
    if (waits) {
        library.request_free(closing);
    }
}

Result<ucp::Key*> UcxWorker::unpack(UcxEndpoint& endpoint, std::string_view key) {
    auto& known = endpoint.keys_;
    const auto at = std::find_if(known.begin(), known.end(),
                                 [&](const auto& entry) { return entry.first == key; });
    if (at != known.end()) {
        known.splice(known.begin(), known, at);
        return at->second;
    }
    const Result<std::string> blob = padded(key, "a UCX memory key");
    if (!blob.ok()) {
        return blob.status();
    }
    const UcxLibrary& library = context_->library();
    ucp::Key* unpacked = nullptr;
    const ucp::UcsStatus status = library.rkey_unpack(endpoint.endpoint_, blob->data(), &unpacked);
    if (status != ucp::kOk) {
        return context_->failure(Code::kUnavailable, "a memory key is refused", status);
    }
    known.emplace_front(key, unpacked);
    if (known.size() > kKeptKeys && endpoint.reads_ == 0) {
        library.rkey_destroy(known.back().second);
        known.pop_back();
    }
    return unpacked;
}

void UcxWorker::on_read(void* request, ucp::UcsStatus status, void* user_data) {
    auto* const read = static_cast<UcxRead*>(user_data);
    read->status = status;
    read->done = true;
    UcxEndpoint* const endpoint = std::exchange(read->endpoint, nullptr);
    --endpoint->reads_;
    endpoint->library_->request_free(request);
}

void UcxWorker::read(UcxEndpoint& endpoint, std::string_view key, uint64_t address, void* into,
                     size_t bytes, const UcxMemory& memory, UcxRead* read) {
    *read = {};
    const Result<ucp::Key*> unpacked = unpack(endpoint, key);
    if (!unpacked.ok() || endpoint.failed_) {
        read->done = true;
        read->status = ucp::kConnectionReset;
        return;
    }
    read->endpoint = &endpoint;
    ++endpoint.reads_;
    ucp::RequestParam param{};
    param.mask =
        ucp::RequestParam::kCallback | ucp::RequestParam::kUserData | ucp::RequestParam::kMemory;
    if (memory.type() != ucp::MemoryType::kHost) {
        param.mask |= ucp::RequestParam::kMemoryType;
        param.memory_type = memory.type();
    }
    param.callback = &UcxWorker::on_read;
    param.user_data = read;
    param.memory = memory.get();
    const ucp::StatusPointer posted =
        context_->library().get(endpoint.endpoint_, into, bytes, address, *unpacked, &param);
    if (posted != nullptr && !ucp::is_error(posted)) {
        return;
    }
    read->done = true;
    read->status = static_cast<ucp::UcsStatus>(reinterpret_cast<intptr_t>(posted));
    read->endpoint = nullptr;
    --endpoint.reads_;
}

bool UcxWorker::progress() { return context_->library().worker_progress(worker_) != 0; }

void UcxWorker::progress_all() {
    for (int step = 0; step < kStepsAtOnce && progress(); ++step) {
    }
}

bool UcxWorker::arm() { return context_->library().worker_arm(worker_) == ucp::kOk; }

void UcxWorker::wake() const { context_->library().worker_signal(worker_); }

}  // namespace kvstore
