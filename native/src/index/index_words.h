// Arithmetic on the index's words that its writer and its reader share: tag lines and key bytes.
#pragma once

#include <bit>
#include <cstring>
#include <string_view>

#include "index/shared_layout.h"

namespace kvstore {

// Calls fn(slot) for every slot of the bucket whose tag equals `tag`, until fn returns true.
// Four tags are compared at a time; the trick is exact (no false lanes).
template <class Fn>
bool for_each_tag(const TagLine& line, uint16_t tag, Fn&& fn) {
    constexpr uint64_t kLow = 0x7fff7fff7fff7fff;
    const uint64_t pattern = tag * uint64_t{0x0001000100010001};
    for (uint32_t w = 0; w < kTagWords; ++w) {
        const uint64_t x = line.words[w].load(std::memory_order_acquire) ^ pattern;
        uint64_t equal = ~(((x & kLow) + kLow) | x | kLow);  // bit 15 of each lane that is zero
        for (; equal != 0; equal &= equal - 1) {
            if (fn(w * 4 + static_cast<uint32_t>(std::countr_zero(equal)) / 16)) {
                return true;
            }
        }
    }
    return false;
}

// Word `i` of a key, zero-padded at the end.
inline uint64_t key_word(std::string_view key, size_t i) {
    uint64_t word = 0;
    const size_t begin = i * 8;
    std::memcpy(&word, key.data() + begin, key.size() - begin < 8 ? key.size() - begin : 8);
    return word;
}

// Whether the words at `words` are `key`; loads nothing beyond its padded length.
inline bool key_equals(const SharedWord* words, std::string_view key) {
    for (size_t i = 0; i * 8 < key.size(); ++i) {
        if (words[i].load(std::memory_order_relaxed) != key_word(key, i)) {
            return false;
        }
    }
    return true;
}

}  // namespace kvstore
