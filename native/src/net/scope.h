// What a principal may do with which keys, beside its role: verbs, tenants and key prefixes.
//
//   scopes := scope ("|" scope)*
//   scope  := ("verbs=" VERB ("," VERB)* | "tenants=" NAME ("," NAME)* | "keys=" PREFIX)*
//
// Words are separated by blanks. So written behind a line of the token file and, joined by "+", in
// a minted token (minted_token.h). A word that is left out limits nothing. In names and prefixes
// %XX stands for a byte that could not be written.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "wire/frame.h"

namespace kvstore {

class KeyList;

// Numbers are bits of Scope::verbs, the same in kvstore/scopes.py.
enum class Verb : uint8_t {
    kRead = 1,
    kWrite = 2,
    kRemove = 4,
    kList = 8,
    kWatch = 16,
    kAdmin = 32,
};
inline constexpr uint8_t kAllVerbs = 63;

std::string_view verb_name(Verb verb);

struct Scope {
    uint8_t verbs = kAllVerbs;
    std::vector<std::string> tenants;  // none: every one of the principal
    std::string prefix;                // of keys

    bool covers(std::string_view tenant) const;
    bool operator==(const Scope&) const = default;
};

inline constexpr size_t kMaxScopes = 32;         // of one principal, or one minted token
inline constexpr size_t kMaxScopesBytes = 4096;  // of their text

// kInvalidArgument says which word is wrong. No words: no scopes.
Result<std::vector<Scope>> parse_scopes(std::string_view text, char separator = ' ');

// What a session may do with keys of its tenant: every layer of scopes has to allow it.
class Grant {
  public:
    // `layers`: the scopes of the principal, and those of its minted token; empty ones limit
    // nothing. Null: the session has no limits.
    static std::shared_ptr<const Grant> of(std::string_view principal, std::string_view tenant,
                                           std::span<const std::span<const Scope>> layers);

    // Whether any scope is left for the tenant.
    bool is_empty() const;
    // kPermissionDenied names the verb and the setting. Without keys: whether the verb is allowed
    // for any key.
    Status check(Verb verb, const KeyList& keys) const;
    // For every key that starts with `prefix`.
    Status check_prefix(Verb verb, std::string_view prefix) const;
    bool covers_every_key(Verb verb) const { return allows_prefix(verb, {}); }

  private:
    struct Rule {
        uint8_t verbs = 0;
        std::string prefix;
    };
    using Layer = std::vector<Rule>;

    bool allows(Verb verb) const;
    bool allows_prefix(Verb verb, std::string_view prefix) const;
    Status denied(Verb verb, std::string_view why) const;

    std::string principal_;
    std::vector<Layer> layers_;
};

// Whether a session of a client or operator with this grant may send a request. Decodes its keys,
// so only sessions that have limits pay for it. A message that it does not know is denied; one that
// is malformed is let through to whoever decodes it.
Status check_request(const Grant& grant, MessageType type, std::span<const uint8_t> body);

}  // namespace kvstore
