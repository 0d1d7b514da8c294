// Bytes on their way into or out of a list of parts, with the CRC32C of each part, or of each run
// of parts, on the way.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvstore {

// A part's checksum is continued right after its bytes have passed, while they are still in the
// cache: a second pass over a large object would read it from memory again. Parts and checksums are
// the caller's and stay where they are until the transfer has finished.
class TransferCursor {
  public:
    // With checksums no step is longer: half of a usual second-level cache.
    static constexpr size_t kStepBytes = 256u << 10;

    TransferCursor() = default;
    // `crcs`: set to that of nothing here; none at all, or one per part, or, where objects have
    // several parts, one per object: then `crc_of` has a part's position in `crcs`.
    explicit TransferCursor(std::span<const iovec> parts, std::span<uint32_t> crcs = {},
                            std::span<const uint32_t> crc_of = {});

    bool done() const { return at_ == parts_.size(); }
    // The next step's extents; how many of `out` were filled (none: done, or `out` is empty).
    size_t gather(std::span<iovec> out) const;
    // The first `count` bytes of what gather() said have been transferred.
    void passed(size_t count);

  private:
    void skip_full();

    std::span<const iovec> parts_;
    std::span<uint32_t> crcs_;
    std::span<const uint32_t> crc_of_;
    size_t at_ = 0;      // the part in progress
    size_t offset_ = 0;  // bytes of it that have passed
};

}  // namespace kvstore
