// Parsing of scopes, and what they allow.
#include "net/scope.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "base/hash.h"
#include "base/limits.h"
#include "wire/fields.h"

namespace kvstore {
namespace {

constexpr std::array<std::pair<std::string_view, Verb>, 6> kVerbs = {{
    {"read", Verb::kRead},
    {"write", Verb::kWrite},
    {"remove", Verb::kRemove},
    {"list", Verb::kList},
    {"watch", Verb::kWatch},
    {"admin", Verb::kAdmin},
}};

bool has(uint8_t verbs, Verb verb) { return (verbs & static_cast<uint8_t>(verb)) != 0; }

// Up to the next separator, which is taken off, too.
std::string_view take(std::string_view* text, char separator) {
    const std::string_view part = text->substr(0, text->find(separator));
    text->remove_prefix(std::min(part.size() + 1, text->size()));
    return part;
}

int digit(char c) {
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    const char lower = static_cast<char>(c | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

std::optional<std::string> unescaped(std::string_view text) {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '%') {
            out.push_back(text[i]);
            continue;
        }
        const int high = i + 2 < text.size() ? digit(text[i + 1]) : -1;
        const int low = i + 2 < text.size() ? digit(text[i + 2]) : -1;
        if (high < 0 || low < 0) {
            return std::nullopt;
        }
        out.push_back(static_cast<char>(high * 16 + low));
        i += 2;
    }
    return out;
}

Status parse_verbs(std::string_view text, Scope* scope) {
    scope->verbs = 0;
    while (!text.empty()) {
        const std::string_view name = take(&text, ',');
        const auto known =
            std::ranges::find(kVerbs, name, [](const auto& row) { return row.first; });
        if (known == kVerbs.end()) {
            return {Code::kInvalidArgument,
                    "no verb is called " + std::string(name.substr(0, 32)) +
                        ": verbs are read, write, remove, list, watch and admin"};
        }
        scope->verbs |= static_cast<uint8_t>(known->second);
    }
    return scope->verbs != 0 ? Status() : Status(Code::kInvalidArgument, "verbs= names none");
}

Status parse_tenants(std::string_view text, Scope* scope) {
    while (!text.empty()) {
        const std::optional<std::string> name = unescaped(take(&text, ','));
        if (!name || name->empty() || !is_valid_name(*name)) {
            return {Code::kInvalidArgument, "tenants= has a name that is not well-formed"};
        }
        scope->tenants.push_back(*name);
    }
    return scope->tenants.empty() ? Status(Code::kInvalidArgument, "tenants= names none")
                                  : Status();
}

Status parse_prefix(std::string_view text, Scope* scope) {
    std::optional<std::string> prefix = unescaped(text);
    if (!prefix || !is_valid_key(*prefix)) {
        return {Code::kInvalidArgument,
                "keys= needs what keys start with: 1 to 1024 bytes of UTF-8, with % only in front "
                "of two hexadecimal digits"};
    }
    scope->prefix = std::move(*prefix);
    return {};
}

// `seen`: which words the scope has had.
Status parse_word(std::string_view word, Scope* scope, uint8_t* seen) {
    using Parse = Status (*)(std::string_view, Scope*);
    constexpr std::array<std::pair<std::string_view, Parse>, 3> kWords = {{
        {"verbs=", parse_verbs},
        {"tenants=", parse_tenants},
        {"keys=", parse_prefix},
    }};
    for (size_t i = 0; i < kWords.size(); ++i) {
        const auto& [start, parse] = kWords[i];
        if (!word.starts_with(start)) {
            continue;
        }
        const auto bit = static_cast<uint8_t>(1u << i);
        if ((*seen & bit) != 0) {
            return {Code::kInvalidArgument,
                    std::string(start) + " comes twice in a scope; | starts another one"};
        }
        *seen |= bit;
        return parse(word.substr(start.size()), scope);
    }
    return {Code::kInvalidArgument, "not a word of a scope: need verbs=, tenants=, keys= or |"};
}

}  // namespace

std::string_view verb_name(Verb verb) {
    const auto known = std::ranges::find(kVerbs, verb, [](const auto& row) { return row.second; });
    return known == kVerbs.end() ? std::string_view("unknown") : known->first;
}

bool Scope::covers(std::string_view tenant) const {
    return tenants.empty() || std::ranges::any_of(tenants, [tenant](const std::string& one) {
               return one == "*" || one == tenant;
           });
}

Result<std::vector<Scope>> parse_scopes(std::string_view text, char separator) {
    if (text.size() > kMaxScopesBytes) {
        return {Code::kInvalidArgument, "the scopes have more than 4096 bytes"};
    }
    std::vector<Scope> scopes;
    Scope scope;
    uint8_t seen = 0;
    bool ended = false;  // the last word was |
    const auto end = [&] {
        if (seen == 0) {
            return Status(Code::kInvalidArgument, "an empty scope");
        }
        if (scopes.size() == kMaxScopes) {
            return Status(Code::kInvalidArgument, "more than 32 scopes");
        }
        scopes.push_back(std::exchange(scope, {}));
        seen = 0;
        return Status();
    };
    while (!text.empty()) {
        const std::string_view word = take(&text, separator);
        if (word.empty()) {
            continue;
        }
        ended = word == "|";
        if (const Status status = ended ? end() : parse_word(word, &scope, &seen); !status.ok()) {
            return status;
        }
    }
    if (seen != 0 || ended) {
        if (const Status status = end(); !status.ok()) {
            return status;
        }
    }
    return scopes;
}

std::shared_ptr<const Grant> Grant::of(std::string_view principal, std::string_view tenant,
                                       std::span<const std::span<const Scope>> layers) {
    auto grant = std::make_shared<Grant>();
    grant->principal_ = principal;
    for (const std::span<const Scope> scopes : layers) {
        if (scopes.empty()) {
            continue;
        }
        Layer layer;
        for (const Scope& scope : scopes) {
            if (scope.covers(tenant)) {
                layer.push_back({scope.verbs, scope.prefix});
            }
        }
        grant->layers_.push_back(std::move(layer));
    }
    return grant->layers_.empty() ? nullptr : grant;
}

bool Grant::is_empty() const {
    return std::ranges::any_of(layers_, [](const Layer& layer) { return layer.empty(); });
}

bool Grant::allows(Verb verb) const {
    return std::ranges::all_of(layers_, [verb](const Layer& layer) {
        return std::ranges::any_of(layer,
                                   [verb](const Rule& rule) { return has(rule.verbs, verb); });
    });
}

bool Grant::allows_prefix(Verb verb, std::string_view prefix) const {
    return std::ranges::all_of(layers_, [&](const Layer& layer) {
        return std::ranges::any_of(layer, [&](const Rule& rule) {
            return has(rule.verbs, verb) && prefix.starts_with(rule.prefix);
        });
    });
}

Status Grant::denied(Verb verb, std::string_view why) const {
    return {Code::kPermissionDenied, "principal " + principal_ + " may not " +
                                         std::string(verb_name(verb)) + " " + std::string(why) +
                                         " (its line of the token file, or its minted token)"};
}

Status Grant::check(Verb verb, const KeyList& keys) const {
    if (!allows(verb)) {
        return denied(verb, "here: `verbs` of its scopes lack it");
    }
    for (size_t row = 0; row < keys.size(); ++row) {
        if (!allows_prefix(verb, keys[row])) {
            return denied(verb, "key " + std::to_string(row + 1) +
                                    " of this request: none of its scopes with this verb has "
                                    "`keys` that the key starts with");
        }
    }
    return {};
}

Status Grant::check_prefix(Verb verb, std::string_view prefix) const {
    if (!allows(verb)) {
        return denied(verb, "here: `verbs` of its scopes lack it");
    }
    return allows_prefix(verb, prefix)
               ? Status()
               : denied(verb,
                        "all these keys: none of its scopes with this verb has `keys` that "
                        "they all start with");
}

}  // namespace kvstore
