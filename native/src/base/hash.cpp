// SipHash-2-4 (Aumasson and Bernstein, 2012) and the checks of names and keys.
#include "base/hash.h"

#include <bit>
#include <cstring>

#include "base/limits.h"
#include "base/little_endian.h"

namespace kvstore {
namespace {

// The state of one hash; `Wide` selects the 128-bit variant, which differs in three constants.
template <bool Wide>
class SipState {
  public:
    explicit SipState(const HashSecret& secret) {
        const uint64_t k0 = load_word<uint64_t>(secret.data());
        const uint64_t k1 = load_word<uint64_t>(secret.data() + 8);
        v0_ = 0x736f6d6570736575 ^ k0;
        v1_ = 0x646f72616e646f6d ^ k1 ^ (Wide ? 0xee : 0);
        v2_ = 0x6c7967656e657261 ^ k0;
        v3_ = 0x7465646279746573 ^ k1;
    }

    void absorb(uint64_t word) {
        v3_ ^= word;
        round();
        round();
        v0_ ^= word;
    }

    // Absorbs the last bytes; `total_size` counts everything absorbed since the start.
    void finish(const uint8_t* data, size_t size, size_t total_size) {
        for (; size >= 8; data += 8, size -= 8) {
            absorb(load_word<uint64_t>(data));
        }
        uint64_t last = uint64_t{total_size & 0xff} << 56;
        for (size_t i = 0; i < size; ++i) {
            last |= uint64_t{data[i]} << (8 * i);
        }
        absorb(last);
        v2_ ^= Wide ? 0xee : 0xff;
        squeeze();
    }

    uint64_t first() const { return v0_ ^ v1_ ^ v2_ ^ v3_; }
    uint64_t second() {
        v1_ ^= 0xdd;
        squeeze();
        return first();
    }

  private:
    void round() {
        v0_ += v1_;
        v1_ = std::rotl(v1_, 13) ^ v0_;
        v0_ = std::rotl(v0_, 32);
        v2_ += v3_;
        v3_ = std::rotl(v3_, 16) ^ v2_;
        v0_ += v3_;
        v3_ = std::rotl(v3_, 21) ^ v0_;
        v2_ += v1_;
        v1_ = std::rotl(v1_, 17) ^ v2_;
        v2_ = std::rotl(v2_, 32);
    }
    void squeeze() {
        for (int i = 0; i < 4; ++i) {
            round();
        }
    }

    uint64_t v0_, v1_, v2_, v3_;
};

void append_u32(std::string& out, uint64_t value) {
    for (int shift = 0; shift < 32; shift += 8) {
        out.push_back(static_cast<char>(value >> shift));
    }
}

uint64_t hash_string(const HashSecret& secret, const std::string& text) {
    return siphash64(secret, {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

// Bytes of the well-formed UTF-8 sequence at `s` (RFC 3629, section 4), 0 when it is malformed.
size_t sequence_size(const uint8_t* s, size_t left) {
    const uint8_t lead = s[0];
    if (lead < 0x80) {
        return 1;
    }
    const size_t size = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || size > left) {
        return 0;
    }
    // The second byte rules out overlong forms, surrogates and what lies beyond U+10FFFF.
    uint8_t low = 0x80;
    uint8_t high = 0xbf;
    if (lead == 0xe0) {
        low = 0xa0;
    }
    if (lead == 0xed) {
        high = 0x9f;
    }
    if (lead == 0xf0) {
        low = 0x90;
    }
    if (lead == 0xf4) {
        high = 0x8f;
    }
    if (s[1] < low || s[1] > high) {
        return 0;
    }
    for (size_t i = 2; i < size; ++i) {
        if ((s[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    return size;
}

bool is_control(const uint8_t* s) {
    return s[0] < 0x20 || s[0] == 0x7f || (s[0] == 0xc2 && s[1] < 0xa0);  // C0, DEL, C1
}

bool is_text(std::string_view text, bool allow_control) {
    const auto* s = reinterpret_cast<const uint8_t*>(text.data());
    size_t left = text.size();
    while (left > 0) {
        if (allow_control && left >= 8 && (load_word<uint64_t>(s) & 0x8080808080808080) == 0) {
            s += 8;
            left -= 8;
            continue;
        }
        const size_t size = sequence_size(s, left);
        if (size == 0 || (!allow_control && is_control(s))) {
            return false;
        }
        s += size;
        left -= size;
    }
    return true;
}

}  // namespace

uint64_t siphash64(const HashSecret& secret, std::span<const uint8_t> data) {
    SipState<false> state(secret);
    state.finish(data.data(), data.size(), data.size());
    return state.first();
}

Hash128 siphash128(const HashSecret& secret, std::span<const uint8_t> data) {
    SipState<true> state(secret);
    state.finish(data.data(), data.size(), data.size());
    const uint64_t lo = state.first();
    return {lo, state.second()};
}

// The leading letter and the length keep (tenant) and (tenant, namespace) of any spelling apart.
TenantId tenant_id(const HashSecret& secret, std::string_view tenant) {
    return hash_string(secret, std::string("t").append(tenant));
}

NamespaceId namespace_id(const HashSecret& secret, std::string_view tenant, std::string_view ns,
                         uint32_t epoch) {
    std::string text("n");
    append_u32(text, epoch);
    append_u32(text, tenant.size());
    return hash_string(secret, text.append(tenant).append(ns));
}

Hash128 key_hash(const HashSecret& secret, NamespaceId ns, std::string_view key) {
    SipState<true> state(secret);
    state.absorb(ns);
    state.finish(reinterpret_cast<const uint8_t*>(key.data()), key.size(), key.size() + sizeof(ns));
    const uint64_t lo = state.first();
    return {lo, state.second()};
}

bool is_valid_key(std::string_view key) {
    return !key.empty() && key.size() <= limits::kMaxKeyBytes && is_text(key, true);
}

bool is_valid_name(std::string_view name) {
    return name.size() <= limits::kMaxNameBytes && is_text(name, false);
}

}  // namespace kvstore
