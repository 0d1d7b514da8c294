// Keyed hashing (SipHash-2-4, 64 and 128 bit) of names and keys.
#pragma once

#include <array>
#include <span>
#include <string_view>

#include "base/types.h"

namespace kvstore {

// The cluster's hash secret: drawn once by the master, persisted, handed to authenticated peers.
using HashSecret = std::array<uint8_t, 16>;

uint64_t siphash64(const HashSecret& secret, std::span<const uint8_t> data);
// Tells clusters apart in what is kept over restarts: a keyed hash of nothing.
inline uint64_t cluster_check(const HashSecret& secret) { return siphash64(secret, {}); }
Hash128 siphash128(const HashSecret& secret, std::span<const uint8_t> data);

TenantId tenant_id(const HashSecret& secret, std::string_view tenant);
NamespaceId namespace_id(const HashSecret& secret, std::string_view tenant, std::string_view ns,
                         uint32_t epoch);
// Allocates nothing: hashes the namespace id followed by the key's bytes.
Hash128 key_hash(const HashSecret& secret, NamespaceId ns, std::string_view key);

// True for well-formed UTF-8 of 1 to limits::kMaxKeyBytes bytes.
bool is_valid_key(std::string_view key);
// True for well-formed UTF-8 of at most limits::kMaxNameBytes bytes without control characters
// (empty is allowed: the default namespace).
bool is_valid_name(std::string_view name);

}  // namespace kvstore
