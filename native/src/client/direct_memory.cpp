// The wait before the bytes move, and the sums behind.
#include "client/direct_memory.h"

#include "base/mutation.h"

namespace kvstore {

bool DirectMemory::reaches(const Pieces& memory) const {
    const std::span<const iovec> list = memory.list();
    for (size_t piece = 0; piece < list.size(); ++piece) {
        const bool counts = !on_host(piece) && list[piece].iov_len != 0;
        if (counts && !context_.ucx().may_reach(list[piece])) {
            return false;
        }
    }
    return context_.ucx().wanted() && call_.device.kernels->loaded();
}

Status DirectMemory::wait_for_stream(Deadline deadline) {
    if (!waited_) {
        std::unique_ptr<CudaEvent> event;
        waited_ = call_.queue({}, &event);
        if (waited_->ok()) {
            waited_ = KV_GUARD("gpu-stream", true) ? event->wait(deadline) : Status();
        }
    }
    return *waited_;
}

Status DirectMemory::sum(std::span<Object> objects, Deadline deadline) {
    const CudaContext::Scope scope(*call_.device.context);
    if (!scope.status().ok()) {
        return scope.status();
    }
    // What a NIC has written may still be on its way to the GPU's memory.
    if (const auto flush = call_.device.context->api().flush_gpu_direct_rdma_writes;
        flush != nullptr) {
        (void)flush(cuda::kFlushCurrentContext, cuda::kFlushToOwner);
    }
    auto sums = std::make_unique<DeviceChecksums>(call_.device.kernels, call_.device.tables);
    for (const Object& object : objects) {
        call_.add_sum(*object.memory, object.bytes, sums.get());
    }
    if (sums->empty()) {
        return {};  // headers alone
    }
    std::unique_ptr<CudaEvent> event;
    if (Status status = call_.queue({.sums = &sums}, &event); !status.ok()) {
        return status;
    }
    if (sums == nullptr) {
        return {Code::kUnsupported, "no kernel computes checksums"};
    }
    Status status = event->wait(deadline);
    if (status.ok()) {
        for (size_t row = 0; row < objects.size(); ++row) {
            objects[row].crc = sums->crc(row, objects[row].crc);
        }
    } else if (status.code() == Code::kDeadlineExceeded) {
        context_.devices().poller()->add(
            std::move(event),
            [kept = std::shared_ptr<DeviceChecksums>(std::move(sums))](const Status&) {});
    }
    return status;
}

Status register_device_memory(ClientContext& context, uintptr_t address, size_t bytes) {
    const Pieces memory(reinterpret_cast<void*>(address), bytes);
    const Result<std::optional<DeviceCall>> call =
        DeviceCall::of(context, std::span(&memory, 1), 0, false);
    if (!call.ok()) {
        return call.status();
    }
    if (!*call) {
        return {Code::kInvalidArgument, "no memory to register"};
    }
    const CudaContext::Scope scope(*(*call)->device.context);
    return scope.status().ok() ? context.ucx().register_memory(reinterpret_cast<void*>(address),
                                                               bytes, ucp::MemoryType::kCuda)
                               : scope.status();
}

}  // namespace kvstore
