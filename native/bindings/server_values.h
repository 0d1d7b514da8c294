// What both servers' bindings take from Python and give to it: roles, principals, secrets,
// counters.
#pragma once

#include <nanobind/nanobind.h>

#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "net/event_server.h"

namespace kvstore {

// (verbs, tenants, key prefix), as kvstore.scopes.Scope.native() makes it.
using ScopeTuple = std::tuple<uint8_t, std::vector<std::string>, std::string>;
// (name, role, tenants, secret, scopes), as kvstore.security.Principal.native() makes it.
using PrincipalTuple =
    std::tuple<std::string, int, std::vector<std::string>, std::string, std::vector<ScopeTuple>>;

inline Role role_from(int role) {
    if (role < 0 || role > static_cast<int>(Role::kOperator)) {
        raise_status(Status(Code::kInvalidArgument, "unknown role"));
    }
    return static_cast<Role>(role);
}

inline std::vector<Principal> principals_from(const std::vector<PrincipalTuple>& tuples) {
    std::vector<Principal> principals;
    for (const auto& [name, role, tenants, secret, scopes] : tuples) {
        Principal& one = principals.emplace_back(Principal{name, role_from(role), tenants, secret});
        for (const auto& [verbs, of_tenants, prefix] : scopes) {
            one.scopes.push_back({verbs, of_tenants, prefix});
        }
    }
    return principals;
}

inline HashSecret secret_from(const nanobind::bytes& bytes) {
    HashSecret secret{};
    if (bytes.size() != secret.size()) {
        raise_status(Status(Code::kInvalidArgument, "the hash secret must have 16 bytes"));
    }
    std::memcpy(secret.data(), bytes.c_str(), secret.size());
    return secret;
}

// By what became of them; a pause is what begins after several wrong ones.
inline nanobind::dict proofs_from(const FailedProofs::Stats& stats) {
    nanobind::dict out;
    out["wrong"] = stats.failures;
    out["pauses"] = stats.pauses;
    out["paused"] = stats.refused;
    return out;
}

inline void add_server(nanobind::dict& out, const ServerStats& server) {
    out["connections"] = server.open;
    out["connections_accepted"] = server.accepted;
    out["sessions"] = server.sessions;
    out["frames_in"] = server.frames_in;
    out["frames_out"] = server.frames_out;
    out["bytes_in"] = server.bytes_in;
    out["bytes_out"] = server.bytes_out;
    out["proofs"] = proofs_from(server.proofs);
    nanobind::dict refusals;
    for (size_t code = 0; code < server.refusals.size(); ++code) {
        if (server.refusals[code] != 0) {
            const std::string name(code_name(static_cast<Code>(-static_cast<int>(code))));
            refusals[name.c_str()] = server.refusals[code];
        }
    }
    out["refusals"] = refusals;
}

// A text that a peer has chosen.
inline nanobind::object text_from(std::string_view text) {
    return nanobind::bytes(text.data(), text.size()).attr("decode")("utf-8", "replace");
}

// [{id, principal, role, tenant, …}], as kvstore.sessions takes them.
inline nanobind::list sessions_from(const std::vector<SessionView>& views) {
    nanobind::list out;
    for (const SessionView& view : views) {
        nanobind::dict one;
        one["id"] = view.ref->id();
        one["principal"] = text_from(view.peer.principal);
        one["role"] = static_cast<int>(view.peer.role);
        one["tenant"] = text_from(view.peer.tenant);
        one["namespace"] = text_from(view.peer.ns);
        one["client"] = text_from(view.peer.client_name);
        one["address"] = view.peer.address;
        one["pid"] = view.peer.pid;
        one["age_ms"] = view.age_ms;
        one["in_progress"] = view.in_progress;
        one["outgoing"] = view.is_outgoing;
        out.append(one);
    }
    return out;
}

// [{status, host, principal, reason, count}], as kvstore.refusals takes them.
inline nanobind::list refusals_from(const std::vector<Refusal>& refusals) {
    nanobind::list out;
    for (const Refusal& refusal : refusals) {
        nanobind::dict one;
        one["status"] = static_cast<int>(refusal.code);
        one["host"] = refusal.host;
        one["principal"] = text_from(refusal.who);
        one["reason"] = text_from(refusal.reason);
        one["count"] = refusal.count;
        out.append(one);
    }
    return out;
}

}  // namespace kvstore
