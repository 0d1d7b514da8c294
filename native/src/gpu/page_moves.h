// Pages of a KV cache between a pool in GPU memory and blocks in host memory, by one launch.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "base/checksum_join.h"
#include "gpu/kernels.h"
#include "gpu/pinned_buffers.h"

namespace kvstore {

// Where the pieces of a page lie. An object has those of all buffers in order, of a buffer those of
// all layers, of a layer those of all tokens; in memory the tokens are outside.
struct PageGrid {
    std::vector<cuda::DevicePtr> buffers;  // where page 0 begins
    uint64_t page_stride = 0;              // bytes from a page to the next
    uint64_t piece_bytes = 0;
    uint32_t layers = 1;  // of one buffer that are pieces of their own
    uint32_t tokens = 1;  // the same
    uint64_t pieces() const { return buffers.size() * layers * tokens; }
    uint64_t page_bytes() const { return pieces() * piece_bytes; }
    void add_pieces(uint64_t page, std::vector<iovec>* pieces) const;
};

class PageMoves {
  public:
    enum class Direction : uint8_t { kToPool, kToBlocks };
    // Null when copies serve these pages as well or better, or the kernel cannot.
    static std::unique_ptr<PageMoves> of(std::shared_ptr<Kernels> kernels, PinnedBuffers& tables,
                                         std::shared_ptr<const PageGrid> grid, size_t pages,
                                         Direction direction);

    // Whether the kernel can move a page from or to this address.
    bool reaches(const uint8_t* block) const {
        return reinterpret_cast<uintptr_t>(block) % 16 == 0;
    }
    // A page by the address of its first byte, and its whole object in registered memory that
    // kernels reach (HostRegistration::for_kernels). Its number.
    size_t add(uint64_t first_byte, const uint8_t* block);
    bool empty() const { return count_ == 0; }
    // In the current context.
    Status launch(cuda::Stream stream);
    // Once what the stream did has been done: the CRC of the bytes that were moved.
    uint32_t crc(size_t page);

  private:
    PageMoves(std::shared_ptr<Kernels> kernels, std::shared_ptr<const PageGrid> grid)
        : kernels_(std::move(kernels)), grid_(std::move(grid)) {}

    const std::shared_ptr<Kernels> kernels_;
    const std::shared_ptr<const PageGrid> grid_;
    KernelPages job_;
    size_t count_ = 0;
    std::unique_ptr<PinnedBuffers::Buffer> table_;
    uint64_t* blocks_ = nullptr;
    uint64_t* page_ids_ = nullptr;
    uint32_t* sums_ = nullptr;
    ChecksumJoin join_;
};

}  // namespace kvstore
