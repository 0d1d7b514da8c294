// Walking the parts of a transfer.
#include "net/transfer_cursor.h"

#include <algorithm>

#include "base/checksum.h"
#include "base/status.h"

namespace kvstore {

TransferCursor::TransferCursor(std::span<const iovec> parts, std::span<uint32_t> crcs,
                               std::span<const uint32_t> crc_of)
    : parts_(parts), crcs_(crcs), crc_of_(crc_of) {
    KV_ASSERT(crcs.empty() || parts.size() == (crc_of.empty() ? crcs.size() : crc_of.size()));
    std::fill(crcs.begin(), crcs.end(), 0);
    skip_full();
}

void TransferCursor::skip_full() {
    while (!done() && parts_[at_].iov_len == offset_) {
        ++at_;
        offset_ = 0;
    }
}

size_t TransferCursor::gather(std::span<iovec> out) const {
    size_t left = crcs_.empty() ? SIZE_MAX : kStepBytes;
    size_t filled = 0;
    size_t skip = offset_;
    for (size_t i = at_; i < parts_.size() && filled < out.size() && left != 0; ++i) {
        const size_t size = std::min(parts_[i].iov_len - skip, left);
        if (size != 0) {
            out[filled++] = {static_cast<uint8_t*>(parts_[i].iov_base) + skip, size};
        }
        left -= size;
        skip = 0;
    }
    return filled;
}

void TransferCursor::passed(size_t count) {
    while (count != 0) {
        KV_ASSERT(!done());
        const size_t step = std::min(count, parts_[at_].iov_len - offset_);
        if (!crcs_.empty()) {
            const auto* bytes = static_cast<const uint8_t*>(parts_[at_].iov_base) + offset_;
            uint32_t& crc = crcs_[crc_of_.empty() ? at_ : crc_of_[at_]];
            crc = crc32c(bytes, step, crc);
        }
        offset_ += step;
        count -= step;
        skip_full();
    }
}

}  // namespace kvstore
