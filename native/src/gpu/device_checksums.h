// CRC32Cs of objects in GPU memory, computed there by one launch.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/checksum_join.h"
#include "gpu/kernels.h"
#include "gpu/pinned_buffers.h"

namespace kvstore {

class DeviceChecksums {
  public:
    DeviceChecksums(std::shared_ptr<Kernels> kernels, std::shared_ptr<PinnedBuffers> tables)
        : kernels_(std::move(kernels)), tables_(std::move(tables)) {}

    // The next object, and its bytes piece by piece. Its number.
    size_t add_object();
    void add(cuda::DevicePtr data, uint64_t bytes);
    bool empty() const { return pieces_.empty(); }
    // Behind the copies on the stream, in the current context. After an error there are no sums:
    // the kernels are missing, or the memory that they need. Nobody waits for that.
    Status launch(cuda::Stream stream);

    // Once what the stream did has been done: the CRC of the object, behind bytes with `crc`.
    uint32_t crc(size_t object, uint32_t crc = 0);

  private:
    struct Piece {
        cuda::DevicePtr data;
        uint64_t bytes;
    };
    struct Object {
        size_t first_piece;
        uint64_t bytes;
        size_t first_span;
        size_t spans;
    };
    void write_spans(KernelSpan* spans) const;

    const std::shared_ptr<Kernels> kernels_;
    const std::shared_ptr<PinnedBuffers> tables_;
    std::vector<Piece> pieces_;
    std::vector<Object> objects_;
    std::unique_ptr<PinnedBuffers::Buffer> table_;
    const uint32_t* sums_ = nullptr;
    ChecksumJoin join_;
};

}  // namespace kvstore
