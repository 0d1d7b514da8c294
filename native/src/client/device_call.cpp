// Checking the memory and the stream of a call, and queueing its copies.
#include "client/device_call.h"

#include <algorithm>
#include <cstring>

#include "base/checksum.h"

namespace kvstore {
namespace {

std::string hex(uint64_t number) {
    char text[20];
    std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(number));
    return text;
}

Status not_of_a_device(const iovec& piece) {
    return {Code::kInvalidArgument, hex(reinterpret_cast<uintptr_t>(piece.iov_base)) + " with " +
                                        std::to_string(piece.iov_len) +
                                        " bytes is not memory of a CUDA device"};
}

// The driver is asked once for each allocation, not for each piece.
class KnownMemory {
  public:
    explicit KnownMemory(const CudaDriver& driver) : driver_(driver) {}
    // The device of all these bytes; empty when they are not memory of one. Not none of them.
    std::optional<int> device_of(const iovec& piece) {
        const auto first = reinterpret_cast<uintptr_t>(piece.iov_base);
        const uint64_t last = first + piece.iov_len - 1;
        if (first >= begin_ && last >= first && last < end_) {
            return device_;
        }
        device_ = driver_.device_of(first);
        if (!device_ || last < first || driver_.device_of(last) != device_) {
            return {};
        }
        cuda::DevicePtr begin = 0;
        size_t size = 0;
        const auto range_of = driver_.api().mem_get_address_range;
        const bool has_range =
            range_of != nullptr && range_of(&begin, &size, first) == cuda::kSuccess;
        begin_ = has_range ? begin : 0;
        end_ = has_range ? begin + size : 0;
        return device_;
    }

  private:
    const CudaDriver& driver_;
    std::optional<int> device_;
    uint64_t begin_ = 0;
    uint64_t end_ = 0;
};

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
    if (Status status = call.find_device(context, **driver, memory); !status.ok()) {
        return status;
    }
    if (call.device.context == nullptr) {
        return std::optional<DeviceCall>();
    }
    const CudaContext::Scope scope(*call.device.context);
    Status status = scope.status();
    if (status.ok()) {
        status = call.check_pieces(**driver, memory);
    }
    if (status.ok()) {
        status = call.device.context->check_stream(call.stream);
    }
    return status.ok() ? Result<std::optional<DeviceCall>>(std::optional(call)) : status;
}

// The first piece that is not empty decides.
Status DeviceCall::find_device(ClientContext& context, const CudaDriver& driver,
                               std::span<const Pieces> memory) {
    for (const Pieces& pieces : memory) {
        const std::span<const iovec> list = pieces.list();
        for (size_t piece = 0; piece < list.size(); ++piece) {
            if (on_host(piece) || list[piece].iov_len == 0) {
                continue;
            }
            const std::optional<int> there = KnownMemory(driver).device_of(list[piece]);
            if (!there) {
                return not_of_a_device(list[piece]);
            }
            Result<GpuDevice> found = context.devices().find(*there);
            if (found.ok()) {
                device = std::move(*found);
            }
            return found.status();
        }
    }
    return {};
}

Status DeviceCall::check_pieces(const CudaDriver& driver, std::span<const Pieces> memory) const {
    KnownMemory known(driver);
    const int wanted = device.context->device();
    for (const Pieces& pieces : memory) {
        const std::span<const iovec> list = pieces.list();
        for (size_t piece = 0; piece < list.size(); ++piece) {
            if (on_host(piece) || list[piece].iov_len == 0) {
                continue;
            }
            const std::optional<int> there = known.device_of(list[piece]);
            if (!there) {
                return not_of_a_device(list[piece]);
            }
            if (there != wanted) {
                return {Code::kInvalidArgument, "memory of device " + std::to_string(wanted) +
                                                    " and of device " + std::to_string(*there) +
                                                    " in one call"};
            }
        }
    }
    return {};
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

size_t DeviceCall::add_sum(const Pieces& memory, uint64_t size, DeviceChecksums* sums) const {
    const size_t object = sums->add_object();
    const std::span<const iovec> list = memory.list();
    for (size_t piece = 0; piece < list.size() && size > 0; ++piece) {
        const uint64_t length = std::min<uint64_t>(list[piece].iov_len, size);
        if (!on_host(piece)) {
            sums->add(reinterpret_cast<uintptr_t>(list[piece].iov_base), length);
        }
        size -= length;
    }
    return object;
}

std::unique_ptr<PageMoves> DeviceCall::page_moves(size_t pages,
                                                  PageMoves::Direction direction) const {
    return grid == nullptr ? nullptr
                           : PageMoves::of(device.kernels, *device.tables, grid, pages, direction);
}

uint32_t DeviceCall::header_from(const Pieces& memory, const uint8_t* host, uint64_t size) const {
    if (!is_header_on_host) {
        return 0;
    }
    const iovec& header = memory.list().front();
    return copy_crc32c(header.iov_base, host, std::min<uint64_t>(header.iov_len, size));
}

uint32_t DeviceCall::header_to(const Pieces& memory, uint8_t* host) const {
    if (!is_header_on_host) {
        return 0;
    }
    const iovec& header = memory.list().front();
    return copy_crc32c(host, header.iov_base, header.iov_len);
}

Status DeviceCall::queue(const Work& work, std::unique_ptr<CudaEvent>* event) const {
    const CudaContext::Scope scope(*device.context);
    if (!scope.status().ok()) {
        return scope.status();
    }
    Status status = work.copies == nullptr ? Status() : work.copies->queue(stream);
    if (status.ok() && work.moves != nullptr && !work.moves->empty()) {
        status = work.moves->launch(stream);
    }
    if (status.ok() && work.sums != nullptr && *work.sums != nullptr &&
        !((*work.sums)->empty() || (*work.sums)->launch(stream).ok())) {
        work.sums->reset();  // nothing depends on it: the host sums
    }
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
