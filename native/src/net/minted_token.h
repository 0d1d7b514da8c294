// Short-lived tokens that a principal signs with its secret, offline, for somebody else.
//
//   token  := "kvt1:" key ":" claims
//   claims := "exp=" SECONDS_SINCE_1970 ("+" word of scopes (scope.h))*
//   key    := hex(HMAC-SHA-256(secret, "kvstore 1 minted token" LF name LF claims))
//
// Whoever has a token stands where a secret would: the hello carries the claims, and the key proves
// them in the challenge. A server knows the secret, so it computes the key and stores nothing. The
// claims narrow what the principal may do; nothing in them can widen it.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/hmac.h"
#include "net/scope.h"

namespace kvstore {

// A server takes no token that is valid for longer.
inline constexpr uint64_t kMaxMintedSeconds = 24 * 3600;

struct MintedToken {
    std::string_view key;     // hexadecimal
    std::string_view claims;  // both view the token
};

// Nothing for what is no minted token: an ordinary secret.
std::optional<MintedToken> parse_minted(std::string_view token);
// As MintedToken::key, for a server or whoever mints it.
std::string minted_key(std::string_view secret, std::string_view principal,
                       std::string_view claims);

struct Claims {
    uint64_t expires_s = 0;  // since 1970
    std::vector<Scope> scopes;

    // For claims whose key was proven.
    static Result<Claims> read(std::string_view text);
    // kUnauthenticated: expired, or valid for too long. `now_s`: of this host's calendar.
    Status check_time(uint64_t now_s) const;
};

// What a client proves with: its secret, or the key of its minted token.
std::string_view proving_secret(std::string_view token);
// What its hello says beside: nothing without a minted token.
std::string_view claims_of(std::string_view token);

}  // namespace kvstore
