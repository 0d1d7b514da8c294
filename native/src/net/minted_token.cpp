// Reading minted tokens, and computing their keys.
#include "net/minted_token.h"

#include <charconv>

#include "base/limits.h"

namespace kvstore {
namespace {

constexpr std::string_view kStart = "kvt1:";
constexpr std::string_view kExpires = "exp=";
constexpr size_t kKeyDigits = 2 * std::tuple_size_v<Digest>;

}  // namespace

std::optional<MintedToken> parse_minted(std::string_view token) {
    if (!token.starts_with(kStart) || token.size() <= kStart.size() + kKeyDigits + 1) {
        return std::nullopt;
    }
    token.remove_prefix(kStart.size());
    if (token[kKeyDigits] != ':') {
        return std::nullopt;
    }
    return MintedToken{token.substr(0, kKeyDigits), token.substr(kKeyDigits + 1)};
}

std::string minted_key(std::string_view secret, std::string_view principal,
                       std::string_view claims) {
    // No name has a line feed, so no two pairs of name and claims give the same message.
    std::string message = "kvstore 1 minted token\n";
    message.append(principal).append("\n").append(claims);
    const auto bytes = [](std::string_view text) {
        return std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size());
    };
    return hex(hmac_sha256(bytes(secret), bytes(message)));
}

Result<Claims> Claims::read(std::string_view text) {
    if (text.size() > limits::kMaxClaimsBytes || !text.starts_with(kExpires)) {
        return {Code::kUnauthenticated, "the token's claims do not begin with exp="};
    }
    text.remove_prefix(kExpires.size());
    Claims claims;
    const char* const end = text.data() + text.size();
    const auto [behind, error] = std::from_chars(text.data(), end, claims.expires_s);
    if (error != std::errc() || (behind != end && *behind != '+')) {
        return {Code::kUnauthenticated, "the token's exp= is not a number of seconds"};
    }
    text.remove_prefix(static_cast<size_t>(behind - text.data()));
    Result<std::vector<Scope>> scopes = parse_scopes(text, '+');
    if (!scopes.ok()) {
        return {Code::kUnauthenticated, "the token's claims: " + scopes.status().message()};
    }
    claims.scopes = std::move(*scopes);
    return claims;
}

Status Claims::check_time(uint64_t now_s) const {
    if (expires_s <= now_s) {
        return {Code::kUnauthenticated, "this token expired " + std::to_string(now_s - expires_s) +
                                            " s ago by this server's clock"};
    }
    if (expires_s - now_s > kMaxMintedSeconds) {
        return {Code::kUnauthenticated,
                "this token is valid for more than a day by this server's clock"};
    }
    return {};
}

std::string_view proving_secret(std::string_view token) {
    const std::optional<MintedToken> minted = parse_minted(token);
    return minted ? minted->key : token;
}

std::string_view claims_of(std::string_view token) {
    const std::optional<MintedToken> minted = parse_minted(token);
    return minted ? minted->claims : std::string_view();
}

}  // namespace kvstore
