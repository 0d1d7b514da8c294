// The fast way through CRC32C on processors that multiply without carries 64 bytes at a time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvstore {

constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected 0x1edc6f41 (RFC 3720, 12.1)

// From this many bytes on `crc_wide` may be used; less leaves nothing to fold.
constexpr size_t kWideBytes = 256;

// Whether this processor has the instructions (AVX-512 and VPCLMULQDQ).
bool has_wide_crc();

// The raw register (without the inversions at both ends) after the first `size` bytes. `size` is at
// least kWideBytes and a multiple of 64.
uint32_t crc_wide(uint32_t crc, const uint8_t* data, size_t size);

// The same, and copies what was summed. With `past_caches` the stores are non-temporal: then `to`
// lies on a cache line and the caller orders them (sfence).
uint32_t crc_wide_copy(uint32_t crc, uint8_t* to, const uint8_t* from, size_t size,
                       bool past_caches);

}  // namespace kvstore
