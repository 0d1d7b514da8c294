// CRC32C: folding in wide registers (checksum_wide.cpp), three interleaved streams of the
// processor's instruction, or slicing by eight.
//
// The instruction takes three cycles but one can start in each, so three independent streams run at
// eight bytes a cycle; their results are joined by "shifting" a CRC over the bytes of the streams
// behind it, which is linear and therefore a table look-up per byte of the CRC.
#include "base/checksum.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/checksum_wide.h"
#include "base/little_endian.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace kvstore {
namespace {

static_assert(std::endian::native == std::endian::little, "words are read as they lie in memory");

using ByteTable = std::array<uint32_t, 256>;

// kSlices[k][b]: the effect of byte b followed by k zero bytes.
constexpr auto make_slices() {
    std::array<ByteTable, 8> slices{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; ++bit) {
            crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
        }
        slices[0][byte] = crc;
    }
    for (size_t k = 1; k < 8; ++k) {
        for (size_t byte = 0; byte < 256; ++byte) {
            const uint32_t crc = slices[k - 1][byte];
            slices[k][byte] = (crc >> 8) ^ slices[0][crc & 0xff];
        }
    }
    return slices;
}
constexpr std::array<ByteTable, 8> kSlices = make_slices();

// Works on the raw register: without the inversions at both ends.
uint32_t raw_portable(uint32_t crc, const uint8_t* data, size_t size) {
    for (; size >= 8; data += 8, size -= 8) {
        const uint64_t word = load_word<uint64_t>(data) ^ crc;
        crc = 0;
        for (size_t k = 0; k < 8; ++k) {
            crc ^= kSlices[7 - k][word >> (8 * k) & 0xff];
        }
    }
    for (; size > 0; ++data, --size) {
        crc = (crc >> 8) ^ kSlices[0][(crc ^ *data) & 0xff];
    }
    return crc;
}

uint32_t raw_copy_portable(uint32_t crc, uint8_t* to, const uint8_t* from, size_t size) {
    constexpr size_t kStepBytes = 4096;  // still in the first-level cache when it is summed
    while (size > 0) {
        const size_t step = std::min(size, kStepBytes);
        std::memcpy(to, from, step);
        crc = raw_portable(crc, to, step);
        to += step;
        from += step;
        size -= step;
    }
    return crc;
}

#if defined(__x86_64__) || defined(__aarch64__)

// Inline assembly, because intrinsics would need this file to be compiled for processors that have
// the instruction, and because it pins the word in a register: the copy stores the very bits that
// were summed, even when another process changes the source meanwhile.
inline uint32_t sum_word(uint32_t crc, uint64_t word) {
#if defined(__x86_64__)
    uint64_t wide = crc;
    __asm__("crc32q %1, %0" : "+r"(wide) : "r"(word));
    return static_cast<uint32_t>(wide);
#else
    __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %1" : "+r"(crc) : "r"(word));
    return crc;
#endif
}

inline uint32_t sum_byte(uint32_t crc, uint8_t byte) {
#if defined(__x86_64__)
    __asm__("crc32b %1, %0" : "+r"(crc) : "r"(byte));
#else
    __asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"(uint32_t{byte}));
#endif
    return crc;
}

bool processor_has_instruction() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("sse4.2") != 0;
#else
    return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
#endif
}

enum class Store { kNone, kCached, kNonTemporal };

template <Store store>
inline void store_word(uint8_t* to, uint64_t word) {
#if defined(__x86_64__)
    if constexpr (store == Store::kNonTemporal) {
        _mm_stream_si64(reinterpret_cast<long long*>(to), static_cast<long long>(word));
        return;
    }
#endif
    if constexpr (store != Store::kNone) {
        std::memcpy(to, &word, sizeof(word));
    }
}

// Lengths of one stream: whole cache lines, so that non-temporal stores fill lines, and no multiple
// of 4 KiB, so that the loads of one stream do not alias with the stores of another.
constexpr size_t kLongBytes = 1344;
constexpr size_t kShortBytes = 192;

using ShiftTable = std::array<ByteTable, 4>;

constexpr ShiftTable make_shift(size_t zero_bytes) {
    std::array<uint32_t, 32> bits{};  // the image of each bit of the register
    for (size_t i = 0; i < 32; ++i) {
        uint32_t crc = uint32_t{1} << i;
        for (size_t n = 0; n < zero_bytes; ++n) {
            crc = (crc >> 8) ^ kSlices[0][crc & 0xff];
        }
        bits[i] = crc;
    }
    ShiftTable table{};
    for (size_t k = 0; k < 4; ++k) {
        for (size_t byte = 0; byte < 256; ++byte) {
            for (size_t bit = 0; bit < 8; ++bit) {
                if ((byte >> bit & 1) != 0) {
                    table[k][byte] ^= bits[8 * k + bit];
                }
            }
        }
    }
    return table;
}
constexpr ShiftTable kLongShift = make_shift(kLongBytes);
constexpr ShiftTable kShortShift = make_shift(kShortBytes);

inline uint32_t shift(const ShiftTable& table, uint32_t crc) {
    return table[0][crc & 0xff] ^ table[1][crc >> 8 & 0xff] ^ table[2][crc >> 16 & 0xff] ^
           table[3][crc >> 24];
}

// Where a pass stands; `to` is unused when nothing is stored.
struct Cursor {
    uint8_t* to;
    const uint8_t* from;
    size_t left;

    void advance(size_t bytes) {
        if (to != nullptr) {
            to += bytes;
        }
        from += bytes;
        left -= bytes;
    }
};

// Asks for the cache lines that the next round of streams starts with; a prefetch never faults.
// Streams this short leave the processor's own prefetching behind: from memory it gains a third
// (measured).
template <size_t kStreamBytes>
inline void prefetch_next_round(const uint8_t* from) {
    __builtin_prefetch(from + 3 * kStreamBytes);
    __builtin_prefetch(from + 4 * kStreamBytes);
    __builtin_prefetch(from + 5 * kStreamBytes);
}

template <Store store, size_t kStreamBytes>
uint32_t sum_streams(uint32_t crc, Cursor& at, const ShiftTable& table) {
    while (at.left >= 3 * kStreamBytes) {
        uint32_t second = 0;
        uint32_t third = 0;
        for (size_t i = 0; i < kStreamBytes; i += 8) {
            if (kStreamBytes == kLongBytes && i % 64 == 0) {
                prefetch_next_round<kStreamBytes>(at.from + i);
            }
            const uint64_t a = load_word<uint64_t>(at.from + i);
            const uint64_t b = load_word<uint64_t>(at.from + kStreamBytes + i);
            const uint64_t c = load_word<uint64_t>(at.from + 2 * kStreamBytes + i);
            crc = sum_word(crc, a);
            second = sum_word(second, b);
            third = sum_word(third, c);
            if constexpr (store != Store::kNone) {
                store_word<store>(at.to + i, a);
                store_word<store>(at.to + kStreamBytes + i, b);
                store_word<store>(at.to + 2 * kStreamBytes + i, c);
            }
        }
        crc = shift(table, shift(table, crc) ^ second) ^ third;
        at.advance(3 * kStreamBytes);
    }
    return crc;
}

// The instruction alone, for the ends: at most `bytes` of what is left.
template <Store store>
uint32_t sum_plain(uint32_t crc, Cursor& at, size_t bytes) {
    bytes = std::min(bytes, at.left);
    for (; bytes >= 8; bytes -= 8) {
        const uint64_t word = load_word<uint64_t>(at.from);
        crc = sum_word(crc, word);
        if constexpr (store != Store::kNone) {
            std::memcpy(at.to, &word, sizeof(word));
        }
        at.advance(8);
    }
    for (; bytes > 0; --bytes) {
        const uint8_t byte = *at.from;
        crc = sum_byte(crc, byte);
        if constexpr (store != Store::kNone) {
            *at.to = byte;
        }
        at.advance(1);
    }
    return crc;
}

template <Store store>
uint32_t sum_all(uint32_t crc, Cursor at) {
    crc = sum_streams<store, kLongBytes>(crc, at, kLongShift);
    crc = sum_streams<store, kShortBytes>(crc, at, kShortShift);
    return sum_plain<store>(crc, at, at.left);
}

// What of `size` bytes goes through the wide registers.
size_t wide_part(CrcWay way, size_t size) {
    return way == CrcWay::kWide && size >= kWideBytes ? size & ~size_t{63} : 0;
}

uint32_t raw_hardware(CrcWay way, uint32_t crc, const uint8_t* data, size_t size) {
    Cursor at{nullptr, data, size};
    if (const size_t wide = wide_part(way, size); wide > 0) {
        crc = crc_wide(crc, data, wide);
        at.advance(wide);
    }
    return sum_all<Store::kNone>(crc, at);
}

// From here on the copied bytes would only push others out of the caches.
constexpr size_t kNonTemporalBytes = 64u << 10;

uint32_t raw_copy_hardware([[maybe_unused]] CrcWay way, uint32_t crc, uint8_t* to,
                           const uint8_t* from, size_t size) {
    Cursor at{to, from, size};
#if defined(__x86_64__)
    if (size >= kNonTemporalBytes) {
        const size_t head = (64 - reinterpret_cast<uintptr_t>(to) % 64) % 64;
        crc = sum_plain<Store::kCached>(crc, at, head);
        if (const size_t wide = wide_part(way, at.left); wide > 0) {
            crc = crc_wide_copy(crc, at.to, at.from, wide, true);
            at.advance(wide);
        }
        crc = sum_streams<Store::kNonTemporal, kLongBytes>(crc, at, kLongShift);
        crc = sum_all<Store::kCached>(crc, at);
        // Non-temporal stores are not ordered by a release store: whoever publishes these bytes
        // relies on this fence (native/README.md, rule 3).
        _mm_sfence();
        return crc;
    }
    if (const size_t wide = wide_part(way, size); wide > 0) {
        crc = crc_wide_copy(crc, to, from, wide, false);
        at.advance(wide);
    }
#endif
    return sum_all<Store::kCached>(crc, at);
}

#else

bool processor_has_instruction() { return false; }
uint32_t raw_hardware(CrcWay, uint32_t crc, const uint8_t* data, size_t size) {
    return raw_portable(crc, data, size);
}
uint32_t raw_copy_hardware(CrcWay, uint32_t crc, uint8_t* to, const uint8_t* from, size_t size) {
    return raw_copy_portable(crc, to, from, size);
}

#endif

}  // namespace

CrcWay best_crc_way() {
    static const CrcWay best = !processor_has_instruction() ? CrcWay::kPortable
                               : has_wide_crc()             ? CrcWay::kWide
                                                            : CrcWay::kInstruction;
    return best;
}

uint32_t crc32c_by(CrcWay way, const void* data, size_t size, uint32_t crc) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    return way == CrcWay::kPortable ? ~raw_portable(~crc, bytes, size)
                                    : ~raw_hardware(way, ~crc, bytes, size);
}

uint32_t copy_crc32c_by(CrcWay way, void* destination, const void* source, size_t size,
                        uint32_t crc) {
    auto* to = static_cast<uint8_t*>(destination);
    const auto* from = static_cast<const uint8_t*>(source);
    return way == CrcWay::kPortable ? ~raw_copy_portable(~crc, to, from, size)
                                    : ~raw_copy_hardware(way, ~crc, to, from, size);
}

uint32_t crc32c(const void* data, size_t size, uint32_t crc) {
    return crc32c_by(best_crc_way(), data, size, crc);
}

uint32_t copy_crc32c(void* destination, const void* source, size_t size, uint32_t crc) {
    return copy_crc32c_by(best_crc_way(), destination, source, size, crc);
}

uint32_t seal_checksum(uint32_t data_crc, const Identity& identity) {
    const std::array<uint64_t, 6> trailer = {identity.tenant,  identity.ns,      identity.hash.lo,
                                             identity.hash.hi, identity.version, identity.length};
    static_assert(sizeof(trailer) == 48);
    return crc32c(trailer.data(), sizeof(trailer), data_crc);
}

}  // namespace kvstore
