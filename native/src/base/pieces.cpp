// Walking the pieces of one object.
#include "base/pieces.h"

#include <algorithm>
#include <numeric>

#include "base/checksum.h"
#include "base/status.h"

namespace kvstore {

Pieces::Pieces(std::span<const iovec> many)
    : many_(many),
      size_(std::accumulate(many.begin(), many.end(), uint64_t{0},
                            [](uint64_t sum, const iovec& piece) { return sum + piece.iov_len; })) {
}

uint32_t gather_crc32c(void* to, const Pieces& from) {
    auto* at = static_cast<uint8_t*>(to);
    uint32_t crc = 0;
    for (const iovec& piece : from.list()) {
        crc = copy_crc32c(at, piece.iov_base, piece.iov_len, crc);
        at += piece.iov_len;
    }
    return crc;
}

uint32_t scatter_crc32c(const Pieces& to, const void* from, uint64_t length) {
    KV_ASSERT(length <= to.size());
    const auto* at = static_cast<const uint8_t*>(from);
    uint32_t crc = 0;
    for (const iovec& piece : to.list()) {
        const uint64_t step = std::min<uint64_t>(piece.iov_len, length);
        crc = copy_crc32c(piece.iov_base, at, step, crc);
        at += step;
        length -= step;
    }
    return crc;
}

}  // namespace kvstore
