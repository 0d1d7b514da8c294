// Fuzzes scopes and minted tokens, which come from token files and hellos. What is read has to stay
// within its limits, and a grant must not allow with two layers what one of them denies.
#include <cstdlib>
#include <string_view>

#include "net/minted_token.h"
#include "wire/fields.h"

namespace {

using namespace kvstore;

void require(bool holds) {
    if (!holds) {
        std::abort();
    }
}

void check(const std::vector<Scope>& scopes) {
    require(scopes.size() <= kMaxScopes);
    Scope reading;
    reading.verbs = static_cast<uint8_t>(Verb::kRead);
    const std::vector<Scope> read_only = {reading};
    const std::span<const Scope> one[] = {scopes};
    const std::span<const Scope> both[] = {scopes, read_only};
    const auto whole = Grant::of("p", "default", one);
    const auto narrow = Grant::of("p", "default", both);
    require((whole == nullptr) == scopes.empty() && narrow != nullptr);
    for (const Scope& scope : scopes) {
        require(scope.verbs != 0 && scope.verbs <= kAllVerbs);
        const std::string_view key = scope.prefix;
        require(!narrow->check(Verb::kWrite, key).ok());
        require(!narrow->check(Verb::kRead, key).ok() || whole->check(Verb::kRead, key).ok());
        require(!whole->check_prefix(Verb::kRead, "").ok() || whole->check(Verb::kRead, key).ok());
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    for (const char separator : {' ', '+'}) {
        if (const Result<std::vector<Scope>> scopes = parse_scopes(text, separator); scopes.ok()) {
            check(*scopes);
        }
    }
    if (const Result<Claims> claims = Claims::read(text); claims.ok()) {
        require(size <= limits::kMaxClaimsBytes);
        check(claims->scopes);
        require(!claims->check_time(UINT64_MAX).ok());
    }
    if (const std::optional<MintedToken> token = parse_minted(text)) {
        require(token->key.size() == 64 && !token->claims.empty());
        require(token->key.size() + token->claims.size() + 6 == size);
    }
    return 0;
}
