// Joining CRC32Cs that were computed apart: what a GPU sums becomes the CRC of an object.
#pragma once

#include <cstdint>

namespace kvstore {

// Multiplying a CRC's register by x to this power moves it on by so many bytes; x^(2^31 - 1) is 1.
inline uint32_t exponent_of_bytes(uint64_t bytes) {
    return static_cast<uint32_t>(bytes % 0x7fffffff * 8 % 0x7fffffff);
}

// Fast for many of one length, one after the other.
class ChecksumJoin {
  public:
    // The CRC32C of what has `crc` followed by `bytes` more, whose register, begun at zero and not
    // inverted in the end, is `sum`.
    uint32_t append(uint32_t crc, uint32_t sum, uint64_t bytes);

  private:
    uint64_t bytes_ = 0;
    uint32_t factor_ = 0x80000000;  // x^0
    uint32_t fresh_ = 0xffffffff;   // the register of a new CRC moved on by them
};

}  // namespace kvstore
