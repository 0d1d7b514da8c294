// SHA-256 and HMAC-SHA-256 for the token challenge. Own code because the client core links nothing
// beyond libc and libstdc++; verified with the vectors of FIPS 180-4 and RFC 4231.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

namespace kvstore {

using Digest = std::array<uint8_t, 32>;
Digest sha256(std::span<const uint8_t> data);
Digest hmac_sha256(std::span<const uint8_t> secret, std::span<const uint8_t> message);
// Comparison whose time does not depend on where the difference is.
bool equal_constant_time(const Digest& a, const Digest& b);
// From the kernel (getrandom); aborts when the kernel has none.
void random_bytes(std::span<uint8_t> out);
std::string hex(std::span<const uint8_t> bytes);

}  // namespace kvstore
