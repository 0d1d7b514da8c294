// Scopes of principals: one parser for the servers' native side and their Python side.
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
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

}  // namespace

void bind_scopes(nb::module_& module) {
    module.def(
        "parse_scopes",
        [](std::string_view text, std::string_view separator) {
            const char between = separator.empty() ? ' ' : separator.front();
            return tuples_of(value_or_raise(parse_scopes(text, between)));
        },
        "text"_a, "separator"_a = " ", "[(verbs, tenants, key prefix)], as net/scope.h says.");
}

}  // namespace kvstore
