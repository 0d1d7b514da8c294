// CRC32C by folding (Gopal et al., "Fast CRC Computation Using PCLMULQDQ").
//
// A message is a polynomial, and its CRC is the remainder by P. Sixteen bytes that lie D bits
// before others may be added to those when they are first multiplied by x^D: only the remainder of
// x^D matters, so the product of 64 by 32 bits fits in those sixteen bytes again. Four registers of
// 64 bytes step over the message like this; the 64 bytes that remain in the end have the CRC of
// all.
#include "base/checksum_wide.h"

#include <array>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvstore {

#if defined(__x86_64__)
namespace {

#define KVSTORE_WIDE __attribute__((target("sse4.2,crc32,avx512f,avx512vl,pclmul,vpclmulqdq")))

// x^exponent mod P, reflected: bit 31 is the coefficient of x^0. The additional shift makes up for
// the product of two reflected numbers being one bit short.
constexpr int64_t power(uint32_t exponent) {
    uint32_t remainder = 0x80000000;
    for (uint32_t i = 0; i < exponent; ++i) {
        remainder = (remainder >> 1) ^ ((remainder & 1) != 0 ? kPolynomial : 0);
    }
    return static_cast<int64_t>(uint64_t{remainder} << 1);
}

// The factors of the two halves of sixteen bytes that are moved on by `bits`.
struct Factors {
    int64_t low;
    int64_t high;
};
constexpr Factors factors(uint32_t bits) { return {power(bits + 32), power(bits - 32)}; }
constexpr Factors kOneLine = factors(512);
constexpr Factors kFourLines = factors(4 * 512);

KVSTORE_WIDE inline __m512i spread(Factors f) {
    return _mm512_set_epi64(f.high, f.low, f.high, f.low, f.high, f.low, f.high, f.low);
}

// `sum` moved on and added to `line`.
KVSTORE_WIDE inline __m512i fold(__m512i sum, __m512i line, __m512i by) {
    const __m512i low = _mm512_clmulepi64_epi128(sum, by, 0x00);
    const __m512i high = _mm512_clmulepi64_epi128(sum, by, 0x11);
    return _mm512_ternarylogic_epi64(low, high, line, 0x96);  // the exclusive or of all three
}

enum class Copy { kNone, kCached, kPastCaches };

template <Copy copy>
KVSTORE_WIDE inline __m512i take(uint8_t* to, const uint8_t* from) {
    __m512i line = _mm512_loadu_si512(from);
    // What is stored must be what was summed, even when another process changes the source
    // meanwhile: the compiler may not load it twice.
    __asm__("" : "+v"(line));
    if constexpr (copy == Copy::kCached) {
        _mm512_storeu_si512(to, line);
    }
    if constexpr (copy == Copy::kPastCaches) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to), line);
    }
    return line;
}

template <Copy copy>
KVSTORE_WIDE uint32_t sum(uint32_t crc, uint8_t* to, const uint8_t* from, size_t size) {
    constexpr size_t kLine = 64;
    // A prefetch never faults. The processor's own prefetching ends at each page.
    constexpr size_t kAhead = 1024;
    constexpr size_t kStored = copy == Copy::kNone ? 0 : kLine;  // `to` goes on only then
    __m512i a = take<copy>(to, from);
    __m512i b = take<copy>(to + kStored, from + kLine);
    __m512i c = take<copy>(to + 2 * kStored, from + 2 * kLine);
    __m512i d = take<copy>(to + 3 * kStored, from + 3 * kLine);
    a = _mm512_xor_si512(a, _mm512_castsi128_si512(_mm_cvtsi32_si128(static_cast<int>(crc))));
    const __m512i by_four = spread(kFourLines);
    for (from += 4 * kLine, to += 4 * kStored, size -= 4 * kLine; size >= 4 * kLine;
         from += 4 * kLine, to += 4 * kStored, size -= 4 * kLine) {
        for (size_t i = 0; i < 4; ++i) {
            __builtin_prefetch(from + kAhead + i * kLine);
        }
        a = fold(a, take<copy>(to, from), by_four);
        b = fold(b, take<copy>(to + kStored, from + kLine), by_four);
        c = fold(c, take<copy>(to + 2 * kStored, from + 2 * kLine), by_four);
        d = fold(d, take<copy>(to + 3 * kStored, from + 3 * kLine), by_four);
    }
    const __m512i by_one = spread(kOneLine);
    a = fold(a, b, by_one);
    a = fold(a, c, by_one);
    a = fold(a, d, by_one);
    for (; size >= kLine; from += kLine, to += kStored, size -= kLine) {
        a = fold(a, take<copy>(to, from), by_one);
    }
    std::array<uint64_t, 8> words;
    _mm512_storeu_si512(words.data(), a);
    uint64_t rest = 0;
    for (const uint64_t word : words) {
        rest = _mm_crc32_u64(rest, word);
    }
    return static_cast<uint32_t>(rest);
}

}  // namespace

bool has_wide_crc() {
    return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
           __builtin_cpu_supports("vpclmulqdq") != 0 && __builtin_cpu_supports("sse4.2") != 0;
}

uint32_t crc_wide(uint32_t crc, const uint8_t* data, size_t size) {
    return sum<Copy::kNone>(crc, nullptr, data, size);
}

uint32_t crc_wide_copy(uint32_t crc, uint8_t* to, const uint8_t* from, size_t size,
                       bool past_caches) {
    return past_caches ? sum<Copy::kPastCaches>(crc, to, from, size)
                       : sum<Copy::kCached>(crc, to, from, size);
}

#else

bool has_wide_crc() { return false; }
uint32_t crc_wide(uint32_t, const uint8_t*, size_t) { return 0; }
uint32_t crc_wide_copy(uint32_t, uint8_t*, const uint8_t*, size_t, bool) { return 0; }

#endif

}  // namespace kvstore
