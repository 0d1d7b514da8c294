// A key together with its namespace epoch as one string, for the master's small hash maps.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>

#include "base/limits.h"

namespace kvstore {

// Built on the stack, so that a search allocates nothing: `map.find(NsKey(ref, key).view())`.
class NsKey {
  public:
    NsKey(uint32_t ns_ref, std::string_view key) : bytes_(sizeof(ns_ref) + key.size()) {
        std::memcpy(data_, &ns_ref, sizeof(ns_ref));
        if (!key.empty()) {
            std::memcpy(data_ + sizeof(ns_ref), key.data(), key.size());
        }
    }
    std::string_view view() const { return {data_, bytes_}; }
    static std::string_view key_of(std::string_view stored) {
        return stored.substr(sizeof(uint32_t));
    }
    static uint32_t ns_of(std::string_view stored) {
        uint32_t ref = 0;
        std::memcpy(&ref, stored.data(), sizeof(ref));
        return ref;
    }

    struct Hash {
        using is_transparent = void;
        size_t operator()(std::string_view text) const {
            return std::hash<std::string_view>()(text);
        }
    };

  private:
    size_t bytes_;
    char data_[sizeof(uint32_t) + limits::kMaxKeyBytes];
};

}  // namespace kvstore
