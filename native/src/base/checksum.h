// CRC32C (Castagnoli), folded into the copy, and its seal over an object's identity.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/types.h"

namespace kvstore {

// CRC32C of `size` bytes, continuing from `crc` (0 for a fresh start), the fastest way that the
// processor has; all give the same numbers (RFC 3720, B.4).
uint32_t crc32c(const void* data, size_t size, uint32_t crc = 0);

// Copies and returns the CRC32C of the copied bytes in one pass. Large copies use non-temporal
// stores and end with an sfence. The ranges must not overlap.
uint32_t copy_crc32c(void* destination, const void* source, size_t size, uint32_t crc = 0);

// The ways, slowest first: a table; the processor's CRC32C instruction; folding in registers of 64
// bytes (checksum_wide.cpp). A processor has all ways up to its best one.
enum class CrcWay : uint8_t { kPortable, kInstruction, kWide };
CrcWay best_crc_way();
uint32_t crc32c_by(CrcWay way, const void* data, size_t size, uint32_t crc = 0);
uint32_t copy_crc32c_by(CrcWay way, void* destination, const void* source, size_t size,
                        uint32_t crc = 0);

// Continues the data's CRC over the fixed trailer (tenant, namespace, hash, version, length; each
// little-endian, 48 bytes). What is stored and compared everywhere is this sealed value.
uint32_t seal_checksum(uint32_t data_crc, const Identity& identity);

}  // namespace kvstore
