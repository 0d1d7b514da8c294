// A call whose memory is a GPU's: which device, on which stream, and what of it lies on the host.
#pragma once

#include <optional>
#include <span>

#include "base/pieces.h"
#include "client/client_context.h"
#include "gpu/device_checksums.h"
#include "gpu/page_moves.h"

namespace kvstore {

struct DeviceCall {
    GpuDevice device;
    cuda::Stream stream = nullptr;  // null: the legacy default stream of the device
    // The first piece of each object is host memory: the header of a tensor.
    bool is_header_on_host = false;
    std::shared_ptr<const PageGrid> grid;  // set when all objects are pages of it

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
    // Adds an object's bytes on the device, as far as they go. Its number there.
    size_t add_sum(const Pieces& memory, uint64_t size, DeviceChecksums* sums) const;
    // For so many pages of `grid`; null when there is none, or copies serve better.
    std::unique_ptr<PageMoves> page_moves(size_t pages, PageMoves::Direction direction) const;
    // The header between the two, which no GPU copies. The CRC of what was copied.
    uint32_t header_from(const Pieces& memory, const uint8_t* host, uint64_t size) const;
    uint32_t header_to(const Pieces& memory, uint8_t* host) const;
    // What goes onto the stream together; null: none of it. Sums that cannot be computed are set to
    // null.
    struct Work {
        DeviceCopies* copies = nullptr;
        PageMoves* moves = nullptr;
        std::unique_ptr<DeviceChecksums>* sums = nullptr;
    };
    // Queues it; `*event` fires behind it. After an error nothing of it goes on.
    Status queue(const Work& work, std::unique_ptr<CudaEvent>* event) const;

  private:
    Status find_device(ClientContext& context, const CudaDriver& driver,
                       std::span<const Pieces> memory);
    Status check_pieces(const CudaDriver& driver, std::span<const Pieces> memory) const;
};

}  // namespace kvstore
