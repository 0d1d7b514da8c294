// The directory's own hash of (namespace id, key): SipHash-1-3, keyed with the cluster's secret.
//
// It never leaves the process, so the lighter variant (the one of Rust's hash maps) is enough
// against keys that are chosen to collide; it halves the cost of a lookup's hashing. Source:
// Aumasson and Bernstein, SipHash: a fast short-input PRF, 2012.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "base/hash.h"

namespace kvstore {

// Where a key belongs, and what tells it from others that belong there.
struct KeyHash {
    uint32_t shard = 0;  // below 64
    uint32_t index = 0;
    uint64_t check = 0;
};

class ShardHash {
  public:
    explicit ShardHash(const HashSecret& secret) {
        std::memcpy(&k0_, secret.data(), 8);
        std::memcpy(&k1_, secret.data() + 8, 8);
    }

    KeyHash operator()(NamespaceId ns, std::string_view key) const {
        State state{k0_ ^ 0x736f6d6570736575, k1_ ^ 0x646f72616e646f6d, k0_ ^ 0x6c7967656e657261,
                    k1_ ^ 0x7465646279746573};
        state.absorb(ns);
        const char* at = key.data();
        size_t left = key.size();
        for (; left >= 8; at += 8, left -= 8) {
            uint64_t word;
            std::memcpy(&word, at, 8);
            state.absorb(word);
        }
        uint64_t last = uint64_t{key.size()} << 56;
        for (size_t i = 0; i < left; ++i) {
            last |= uint64_t{static_cast<uint8_t>(at[i])} << (8 * i);
        }
        state.absorb(last);
        state.v2 ^= 0xFF;
        state.round();
        state.round();
        state.round();
        const uint64_t first = state.word();
        state.v1 ^= 0xDD;  // as SipHash makes its second word
        state.round();
        state.round();
        state.round();
        return {static_cast<uint32_t>(first >> 58), static_cast<uint32_t>(first), state.word()};
    }

  private:
    struct State {
        uint64_t v0, v1, v2, v3;
        void absorb(uint64_t word) {
            v3 ^= word;
            round();
            v0 ^= word;
        }
        uint64_t word() const { return v0 ^ v1 ^ v2 ^ v3; }
        void round() {
            v0 += v1;
            v2 += v3;
            v1 = std::rotl(v1, 13) ^ v0;
            v3 = std::rotl(v3, 16) ^ v2;
            v0 = std::rotl(v0, 32);
            v2 += v1;
            v0 += v3;
            v1 = std::rotl(v1, 17) ^ v2;
            v3 = std::rotl(v3, 21) ^ v0;
            v2 = std::rotl(v2, 32);
        }
    };
    uint64_t k0_ = 0;
    uint64_t k1_ = 0;
};

}  // namespace kvstore
