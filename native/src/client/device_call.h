// A call whose memory is a GPU's: which device, on which stream, and what of it lies on the host.
#pragma once

#include <optional>
#include <span>

#include "base/pieces.h"
#include "client/client_context.h"

namespace kvstore {

struct DeviceCall {
    GpuDevice device;
    cuda::Stream stream = nullptr;  // null: the legacy default stream of the device
    // The first piece of each object is host memory: the header of a tensor.
    bool is_header_on_host = false;

    // Finds the device of all pieces, and checks the stream. kInvalidArgument when a piece is not a
    // device's memory, or not all are of one device. Empty when nothing lies on a device.
    static Result<std::optional<DeviceCall>> of(ClientContext& context,
                                                std::span<const Pieces> memory, uintptr_t stream,
                                                bool is_header_on_host);

    bool on_host(size_t piece) const { return is_header_on_host && piece == 0; }
    // Adds the copies between host memory from `host` on and an object's pieces, as far as they go.
    // `slice_offset`: where `host` lies in a registered segment, whose slices no copy crosses.
    void add_copies(const Pieces& memory, const uint8_t* host, uint64_t size,
                    std::optional<uint64_t> slice_offset, DeviceCopies* copies) const;
    // The header between the two, which no GPU copies.
    void header_from(const Pieces& memory, const uint8_t* host, uint64_t size) const;
    void header_to(const Pieces& memory, uint8_t* host) const;
    // Queues the copies; `*event` fires behind them. After an error nothing of them goes on.
    Status queue(DeviceCopies* copies, std::unique_ptr<CudaEvent>* event) const;
};

}  // namespace kvstore
