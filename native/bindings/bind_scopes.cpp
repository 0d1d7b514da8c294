// Scopes of principals and minted tokens: one parser for the servers' native and Python sides.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "base/clock.h"
#include "bindings.h"
#include "net/minted_token.h"
#include "server_values.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore {
namespace {

std::vector<ScopeTuple> tuples_of(const std::vector<Scope>& scopes) {
    std::vector<ScopeTuple> out;
    for (const Scope& scope : scopes) {
        out.emplace_back(scope.verbs, scope.tenants, scope.prefix);
    }
    return out;
}

using Claimed = std::pair<uint64_t, std::vector<ScopeTuple>>;

Claimed read_claims(std::string_view text, std::optional<uint64_t> now_s) {
    const Claims claims = value_or_raise(Claims::read(text));
    if (now_s) {
        raise_unless_ok(claims.check_time(*now_s));
    }
    return {claims.expires_s, tuples_of(claims.scopes)};
}

}  // namespace

void bind_scopes(nb::module_& module) {
    module.def(
        "parse_scopes",
        [](std::string_view text, std::string_view separator) {
            const char between = separator.empty() ? ' ' : separator.front();
            return tuples_of(value_or_raise(parse_scopes(text, between)));
        },
        "text"_a, "separator"_a = " ", "[(verbs, tenants, key prefix)], as net/scope.h says.");
    module.def(
        "parse_minted",
        [](std::string_view token) -> std::optional<std::pair<std::string_view, std::string_view>> {
            const std::optional<MintedToken> found = parse_minted(token);
            return found ? std::optional(std::pair(found->key, found->claims)) : std::nullopt;
        },
        "token"_a, "Key and claims of a minted token; None: an ordinary secret.");
    module.def("minted_key", &minted_key, "secret"_a, "principal"_a, "claims"_a,
               "That proves claims of a principal.");
    module.def("read_claims", &read_claims, "claims"_a, "now_s"_a.none(),
               "When they expire, and their scopes. now_s: when they have to be valid, if at all.");
    nb::class_<FailedProofs>(module, "FailedProofs",
                             "Wrong tokens by principal and network (net/failed_proofs.h).")
        .def(nb::init<>())
        .def(
            "refuse_ms",
            [](FailedProofs& self, std::string_view principal, std::string_view network) {
                return self.refuse_ms(principal, network, boottime_ms());
            },
            "principal"_a, "network"_a, "How long its attempts are refused yet.")
        .def(
            "failed",
            [](FailedProofs& self, std::string_view principal, std::string_view network) {
                return self.failed(principal, network, boottime_ms());
            },
            "principal"_a, "network"_a, "The pause that begins now; 0: none.")
        .def("passed", &FailedProofs::passed, "principal"_a, "network"_a)
        .def("clear", &FailedProofs::clear)
        .def("stats", [](const FailedProofs& self) { return proofs_from(self.stats()); });
    module.attr("MAX_CLAIMS_BYTES") = limits::kMaxClaimsBytes;
}

}  // namespace kvstore
