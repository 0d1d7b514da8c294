// Products of polynomials modulo that of CRC32C, in reflected form: bit 31 is x^0.
#include "base/checksum_join.h"

#include "base/checksum_wide.h"

namespace kvstore {
namespace {

constexpr uint32_t kOne = 0x80000000;

uint32_t product(uint32_t a, uint32_t b) {
    uint32_t sum = 0;
    for (; b != 0; b <<= 1) {
        sum ^= (b & kOne) != 0 ? a : 0;
        a = (a >> 1) ^ ((a & 1) != 0 ? kPolynomial : 0);
    }
    return sum;
}

uint32_t power_of_x(uint32_t exponent) {
    uint32_t result = kOne;
    for (uint32_t square = kOne >> 1; exponent != 0; exponent >>= 1) {
        result = (exponent & 1) != 0 ? product(result, square) : result;
        square = product(square, square);
    }
    return result;
}

}  // namespace

uint32_t ChecksumJoin::append(uint32_t crc, uint32_t sum, uint64_t bytes) {
    if (bytes != bytes_) {
        bytes_ = bytes;
        factor_ = power_of_x(exponent_of_bytes(bytes));
        fresh_ = product(~uint32_t{0}, factor_);
    }
    return ~((crc == 0 ? fresh_ : product(~crc, factor_)) ^ sum);
}

}  // namespace kvstore
