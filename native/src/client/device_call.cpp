// Checking the memory and the stream of a call, and queueing its copies.
#include "client/device_call.h"

#include <algorithm>
#include <cstring>

namespace kvstore {
namespace {

std::string hex(uint64_t number) {
    char text[20];
    std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(number));
    return text;
}

}  // namespace

Result<std::optional<DeviceCall>> DeviceCall::of(ClientContext& context,
                                                 std::span<const Pieces> memory, uintptr_t stream,
                                                 bool is_header_on_host) {
    DeviceCall call;
    call.stream = reinterpret_cast<cuda::Stream>(stream);
    call.is_header_on_host = is_header_on_host;
    const Result<const CudaDriver*> driver = CudaDriver::load();
    if (!driver.ok()) {
        return driver.status();
    }
    std::optional<int> device;
    for (const Pieces& pieces : memory) {
        const std::span<const iovec> list = pieces.list();
        for (size_t piece = 0; piece < list.size(); ++piece) {
            if (call.on_host(piece) || list[piece].iov_len == 0) {
                continue;
            }
            const auto first = reinterpret_cast<uintptr_t>(list[piece].iov_base);
            const uint64_t last = first + list[piece].iov_len - 1;
            const std::optional<int> there = (*driver)->device_of(first);
            if (!there || last < first || (*driver)->device_of(last) != there) {
                return {Code::kInvalidArgument, hex(first) + " with " +
                                                    std::to_string(list[piece].iov_len) +
                                                    " bytes is not memory of a CUDA device"};
            }
            if (device && device != there) {
                return {Code::kInvalidArgument, "memory of device " + std::to_string(*device) +
                                                    " and of device " + std::to_string(*there) +
                                                    " in one call"};
            }
            device = there;
        }
    }
    if (!device) {
        return std::optional<DeviceCall>();
    }
    Result<GpuDevice> found = context.devices().find(*device);
    if (!found.ok()) {
        return found.status();
    }
    call.device = std::move(*found);
    const CudaContext::Scope scope(*call.device.context);
    Status status = scope.status();
    if (status.ok()) {
        status = call.device.context->check_stream(call.stream);
    }
    return status.ok() ? Result<std::optional<DeviceCall>>(std::optional(call)) : status;
}

void DeviceCall::add_copies(const Pieces& memory, const uint8_t* host, uint64_t size,
                            std::optional<uint64_t> slice_offset, DeviceCopies* copies) const {
    const std::span<const iovec> list = memory.list();
    uint64_t done = 0;
    for (size_t piece = 0; piece < list.size() && done < size; ++piece) {
        const uint64_t length = std::min<uint64_t>(list[piece].iov_len, size - done);
        const auto begin = reinterpret_cast<uintptr_t>(list[piece].iov_base);
        for (uint64_t copied = on_host(piece) ? length : 0; copied < length;) {
            uint64_t count = length - copied;
            if (slice_offset) {
                count =
                    std::min(count, HostRegistration::left_in_slice(*slice_offset + done + copied));
            }
            copies->add(begin + copied, host + done + copied, count);
            copied += count;
        }
        done += length;
    }
}

void DeviceCall::header_from(const Pieces& memory, const uint8_t* host, uint64_t size) const {
    if (is_header_on_host) {
        const iovec& header = memory.list().front();
        std::memcpy(header.iov_base, host, std::min<uint64_t>(header.iov_len, size));
    }
}

void DeviceCall::header_to(const Pieces& memory, uint8_t* host) const {
    if (is_header_on_host) {
        const iovec& header = memory.list().front();
        std::memcpy(host, header.iov_base, header.iov_len);
    }
}

Status DeviceCall::queue(DeviceCopies* copies, std::unique_ptr<CudaEvent>* event) const {
    const CudaContext::Scope scope(*device.context);
    if (!scope.status().ok()) {
        return scope.status();
    }
    Status status = copies->queue(stream);
    if (status.ok()) {
        Result<std::unique_ptr<CudaEvent>> recorded = CudaEvent::record(device.context, stream);
        if (recorded.ok()) {
            *event = std::move(*recorded);
            return {};
        }
        status = recorded.status();
    }
    // Some may be in progress, on memory that their caller now gives back. A stream that cannot be
    // waited for is none any more, or its context is gone: then nothing is.
    (void)device.context->api().stream_synchronize(stream);
    return status;
}

}  // namespace kvstore
