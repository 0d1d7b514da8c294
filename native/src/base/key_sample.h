// Which keys belong to a sample: the same ones on every node, whatever they are used for (Source:
// Waldspurger et al., "Efficient MRC construction with SHARDS", FAST 2015).
//
// The sample of level N has the keys whose rarity is at least N; eight levels halve it.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace kvstore {

inline constexpr uint32_t kMaxSampleLevel = 255;
inline constexpr uint32_t kHalfSample = 8;  // levels

// Of a key's hash: the number of leading zeros, then what the three bits behind the first one lack.
inline uint8_t key_rarity(uint64_t hash) {
    const auto zeros = static_cast<uint32_t>(std::countl_zero(hash | 1));
    const uint64_t behind = zeros < 60 ? (hash >> (60 - zeros)) & 7 : 0;
    const auto rarity = kHalfSample * zeros + 7 - static_cast<uint32_t>(behind);
    return static_cast<uint8_t>(std::min(rarity, kMaxSampleLevel));
}

// Of all keys, that are in the sample.
inline double sample_share(uint32_t level) {
    return (16 - level % kHalfSample) / 16.0 / static_cast<double>(uint64_t{1} << level / 8);
}

}  // namespace kvstore
