// When the kernel is used, and its tables.
#include "gpu/page_moves.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>

namespace kvstore {
namespace {

constexpr const char* kPieceSetting = "KVSTORE_GPU_KERNEL_PIECE_BYTES";
// A copy engine spends about a microsecond on each copy, in which a PCIe 5.0 link moves some 50 KB;
// a kernel reads and writes host memory a little slower than copies of many megabytes. Not
// measured.
constexpr uint64_t kMostPieceBytes = 64u << 10;
constexpr uint64_t kLeastPieces = 64;  // below, a launch costs more than it saves
constexpr uint64_t kVector = 16;

uint64_t most_piece_bytes() {
    static const uint64_t bytes = [] {
        const char* const given = std::getenv(kPieceSetting);
        return given != nullptr && *given != 0 ? std::strtoull(given, nullptr, 10)
                                               : kMostPieceBytes;
    }();
    return bytes;
}

bool suits(const PageGrid& grid, size_t pages) {
    return grid.piece_bytes <= most_piece_bytes() && grid.pieces() * pages >= kLeastPieces &&
           grid.buffers.size() <= kMostKernelBuffers && grid.page_bytes() <= UINT32_MAX / 2 &&
           grid.piece_bytes % kVector == 0 && grid.page_stride % kVector == 0 &&
           std::all_of(grid.buffers.begin(), grid.buffers.end(),
                       [](cuda::DevicePtr buffer) { return buffer % kVector == 0; });
}

}  // namespace

void PageGrid::add_pieces(uint64_t page, std::vector<iovec>* pieces) const {
    for (const cuda::DevicePtr buffer : buffers) {
        const uint64_t begin = buffer + page * page_stride;
        for (uint64_t layer = 0; layer < layers; ++layer) {
            for (uint64_t token = 0; token < tokens; ++token) {
                const uint64_t at = begin + (token * layers + layer) * piece_bytes;
                pieces->push_back({reinterpret_cast<void*>(at), piece_bytes});
            }
        }
    }
}

std::unique_ptr<PageMoves> PageMoves::of(std::shared_ptr<Kernels> kernels, PinnedBuffers& tables,
                                         std::shared_ptr<const PageGrid> grid, size_t pages,
                                         Direction direction) {
    if (!kernels->loaded() || !suits(*grid, pages)) {
        return nullptr;
    }
    std::unique_ptr<PageMoves> moves(new PageMoves(std::move(kernels), std::move(grid)));
    const PageGrid& of = *moves->grid_;
    KernelPages& job = moves->job_;
    job.page_stride = of.page_stride;
    job.page_bytes = static_cast<uint32_t>(of.page_bytes());
    job.piece_bytes = static_cast<uint32_t>(of.piece_bytes);
    job.layers = of.layers;
    job.tokens = of.tokens;
    job.span_bytes = kSpanBytes;
    job.spans = (job.page_bytes + kSpanBytes - 1) / kSpanBytes;
    job.to_pool = direction == Direction::kToPool ? 1 : 0;
    std::copy(of.buffers.begin(), of.buffers.end(), job.buffers);
    const uint64_t words = 2 * pages * sizeof(uint64_t);
    const uint64_t sums = pages * job.spans * sizeof(uint32_t);
    // Nobody waits for it: then copies serve.
    Result<std::unique_ptr<PinnedBuffers::Buffer>> taken =
        tables.take(words + sums, Deadline::after_ms(0));
    if (!taken.ok()) {
        return nullptr;
    }
    moves->table_ = std::move(*taken);
    const CudaContext::Scope scope(moves->kernels_->context());
    const cuda::DevicePtr on_device = scope.status().ok() ? moves->table_->on_device() : 0;
    if (on_device == 0) {
        return nullptr;
    }
    job.blocks = on_device;
    job.page_ids = on_device + words / 2;
    job.sums = on_device + words;
    moves->blocks_ = reinterpret_cast<uint64_t*>(moves->table_->data());
    moves->page_ids_ = moves->blocks_ + pages;
    moves->sums_ = reinterpret_cast<uint32_t*>(moves->table_->data() + words);
    std::memset(moves->sums_, 0, sums);
    return moves;
}

size_t PageMoves::add(uint64_t first_byte, const uint8_t* block) {
    blocks_[count_] = reinterpret_cast<uintptr_t>(block);
    page_ids_[count_] = (first_byte - grid_->buffers.front()) / job_.page_stride;
    return count_++;
}

Status PageMoves::launch(cuda::Stream stream) {
    job_.pages = static_cast<uint32_t>(count_);
    return kernels_->move_pages(job_, stream);
}

uint32_t PageMoves::crc(size_t page) {
    const uint32_t* const first = sums_ + page * job_.spans;
    return join_.append(0,
                        std::accumulate(first, first + job_.spans, uint32_t{0}, std::bit_xor<>()),
                        job_.page_bytes);
}

}  // namespace kvstore
