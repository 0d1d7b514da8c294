// SHA-256 (FIPS 180-4), HMAC (RFC 2104) and the kernel's random numbers.
#include "base/hmac.h"

#include <errno.h>
#include <sys/random.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/status.h"

namespace kvstore {
namespace {

constexpr size_t kBlockBytes = 64;

constexpr std::array<uint32_t, 64> kRoundConstants = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

void store_big_endian(uint8_t* out, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) {
        out[i] = static_cast<uint8_t>(value >> (8 * (bytes - 1 - i)));
    }
}

class Sha256 {
  public:
    void update(std::span<const uint8_t> data) {
        total_bytes_ += data.size();
        while (!data.empty()) {
            const size_t taken = std::min(data.size(), kBlockBytes - filled_);
            std::memcpy(block_.data() + filled_, data.data(), taken);
            filled_ += taken;
            data = data.subspan(taken);
            if (filled_ == kBlockBytes) {
                compress();
            }
        }
    }

    Digest finish() {
        const uint64_t total_bits = total_bytes_ * 8;
        block_[filled_++] = 0x80;
        if (filled_ > kBlockBytes - 8) {
            std::fill(block_.begin() + static_cast<ptrdiff_t>(filled_), block_.end(), uint8_t{0});
            compress();
        }
        std::fill(block_.begin() + static_cast<ptrdiff_t>(filled_), block_.end(), uint8_t{0});
        store_big_endian(block_.data() + kBlockBytes - 8, total_bits, 8);
        compress();
        Digest digest;
        for (size_t i = 0; i < state_.size(); ++i) {
            store_big_endian(digest.data() + 4 * i, state_[i], 4);
        }
        return digest;
    }

  private:
    void compress() {
        std::array<uint32_t, 64> w;
        for (size_t i = 0; i < 16; ++i) {
            w[i] = uint32_t{block_[4 * i]} << 24 | uint32_t{block_[4 * i + 1]} << 16 |
                   uint32_t{block_[4 * i + 2]} << 8 | uint32_t{block_[4 * i + 3]};
        }
        for (size_t i = 16; i < 64; ++i) {
            const uint32_t a = w[i - 15];
            const uint32_t b = w[i - 2];
            const uint32_t s0 = std::rotr(a, 7) ^ std::rotr(a, 18) ^ (a >> 3);
            const uint32_t s1 = std::rotr(b, 17) ^ std::rotr(b, 19) ^ (b >> 10);
            w[i] = w[i - 16] + s0 + w[i - 7] + s1;
        }
        auto [a, b, c, d, e, f, g, h] = state_;
        for (size_t i = 0; i < 64; ++i) {
            const uint32_t s1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
            const uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kRoundConstants[i] + w[i];
            const uint32_t s0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
            const uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
            h = g;
            g = f;
            f = e;
            e = d + t1;
            d = c;
            c = b;
            b = a;
            a = t1 + t2;
        }
        const std::array<uint32_t, 8> added = {a, b, c, d, e, f, g, h};
        for (size_t i = 0; i < state_.size(); ++i) {
            state_[i] += added[i];
        }
        filled_ = 0;
    }

    std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<uint8_t, kBlockBytes> block_;
    size_t filled_ = 0;
    uint64_t total_bytes_ = 0;
};

}  // namespace

Digest sha256(std::span<const uint8_t> data) {
    Sha256 hash;
    hash.update(data);
    return hash.finish();
}

Digest hmac_sha256(std::span<const uint8_t> secret, std::span<const uint8_t> message) {
    std::array<uint8_t, kBlockBytes> key{};
    if (secret.size() > kBlockBytes) {
        const Digest shortened = sha256(secret);
        std::copy(shortened.begin(), shortened.end(), key.begin());
    } else {
        std::copy(secret.begin(), secret.end(), key.begin());
    }
    for (uint8_t& byte : key) {
        byte ^= 0x36;
    }
    Sha256 inner;
    inner.update(key);
    inner.update(message);
    const Digest inner_digest = inner.finish();
    for (uint8_t& byte : key) {
        byte ^= 0x36 ^ 0x5c;
    }
    Sha256 outer;
    outer.update(key);
    outer.update(inner_digest);
    return outer.finish();
}

bool equal_constant_time(const Digest& a, const Digest& b) {
    uint8_t difference = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        difference |= static_cast<uint8_t>(a[i] ^ b[i]);
    }
    return difference == 0;
}

void random_bytes(std::span<uint8_t> out) {
    while (!out.empty()) {
        const ssize_t got = getrandom(out.data(), out.size(), 0);
        KV_ASSERT(got > 0 || errno == EINTR);
        if (got > 0) {
            out = out.subspan(static_cast<size_t>(got));
        }
    }
}

std::string hex(std::span<const uint8_t> bytes) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    std::string text;
    text.reserve(bytes.size() * 2);
    for (const uint8_t byte : bytes) {
        text.push_back(kDigits[byte >> 4]);
        text.push_back(kDigits[byte & 15]);
    }
    return text;
}

}  // namespace kvstore
