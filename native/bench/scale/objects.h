// The objects of a generated cluster: keys and versions follow from node and number, so that none
// has to be kept.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "base/types.h"

namespace kvstore::scale {

inline constexpr size_t kKeyBytes = 32;  // a page's hash in hexadecimal
inline constexpr uint64_t kObjectBytes = 262144;
inline constexpr const char* kTenant = "default";
inline constexpr const char* kNamespace = "scale";

// splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
inline uint64_t mix(uint64_t word) {
    word += 0x9e3779b97f4a7c15;
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9;
    word = (word ^ (word >> 27)) * 0x94d049bb133111eb;
    return word ^ (word >> 31);
}

class Key {
  public:
    Key(uint32_t node, uint64_t number) {
        static constexpr char kDigits[] = "0123456789abcdef";
        uint64_t word = mix(uint64_t{node} << 40 | number);
        for (size_t at = 0; at < kKeyBytes; ++at, word >>= 4) {
            if (at == kKeyBytes / 2) {
                word = mix(~(uint64_t{node} << 40 | number));
            }
            text_[at] = kDigits[word & 15];
        }
    }
    std::string_view view() const { return {text_.data(), text_.size()}; }

  private:
    std::array<char, kKeyBytes> text_;
};

}  // namespace kvstore::scale
