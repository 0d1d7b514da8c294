// The words of records in files: little-endian, at any address. The caller knows that there is
// room.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

namespace kvstore {

static_assert(std::endian::native == std::endian::little, "swap the bytes of words here");

template <class T>
concept Word = std::is_integral_v<T> || std::is_enum_v<T>;

template <Word T>
void store_word(uint8_t* at, T value) {
    std::memcpy(at, &value, sizeof(T));
}

template <Word T>
T load_word(const uint8_t* at) {
    T value;
    std::memcpy(&value, at, sizeof(T));
    return value;
}

template <Word T>
void append_word(std::vector<uint8_t>& out, T value) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
    out.insert(out.end(), bytes, bytes + sizeof(T));
}

// What is taken is left out of `in`.
template <Word T>
T take_word(std::span<const uint8_t>& in) {
    const T value = load_word<T>(in.data());
    in = in.subspan(sizeof(T));
    return value;
}

}  // namespace kvstore
