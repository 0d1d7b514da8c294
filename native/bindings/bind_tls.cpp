// kvstore._native.Tls, and hellos to masters and nodes for whoever wants to know who answers.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include "bindings.h"
#include "gil.h"
#include "net/channel.h"
#include "net/tls.h"
#include "server_values.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore {
namespace {

std::shared_ptr<Tls> load_tls(const std::string& cert, const std::string& key,
                              const std::string& ca, int client_auth, bool required, bool follow) {
    if (client_auth < 0 || client_auth > static_cast<int>(ClientAuth::kRequired)) {
        raise_status({Code::kInvalidArgument, "unknown client_auth"});
    }
    return value_or_raise(Tls::load({.cert = cert,
                                     .key = key,
                                     .ca = ca,
                                     .client_auth = static_cast<ClientAuth>(client_auth),
                                     .required = required,
                                     .follow = follow}));
}

WelcomeData say_hello(const std::string& address, const HelloParams& hello, uint32_t timeout_ms) {
    const auto ask = [&]() -> Result<WelcomeData> {
        const Result<Endpoint> endpoint = Endpoint::parse(address);
        if (!endpoint.ok()) {
            return endpoint.status();
        }
        auto channel = Channel::connect(*endpoint, hello, Deadline::after_ms(timeout_ms));
        if (!channel.ok()) {
            return channel.status();
        }
        return (*channel)->welcome();
    };
    return value_or_raise(interruptible(ask));
}

nb::dict probe_master(const std::string& address, int role, const std::string& principal,
                      const std::string& token, uint32_t timeout_ms,
                      const std::shared_ptr<Tls>& tls) {
    HelloParams hello;
    hello.role = role_from(role);  // a node without a session id gets the Welcome and no link
    hello.principal = principal;
    hello.token = token;
    hello.client_name = "probe";
    hello.tls = tls;
    const WelcomeData welcome = say_hello(address, hello, timeout_ms);
    nb::dict out;
    out["cluster_id"] = welcome.cluster_id;
    out["master_epoch"] = welcome.master_epoch;
    out["grpc_endpoint"] = welcome.grpc_endpoint;
    out["http_endpoint"] = welcome.http_endpoint;
    return out;
}

// As another node of the cluster would. With a token the node proves that it knows it, too.
nb::dict probe_node(const std::string& address, const std::string& cluster_id,
                    const std::string& node_id, const std::string& principal,
                    const std::string& token, uint32_t timeout_ms,
                    const std::shared_ptr<Tls>& tls) {
    HelloParams hello;
    hello.role = Role::kNode;
    hello.cluster_id = cluster_id;
    hello.node_id = node_id;
    hello.principal = principal;
    hello.token = token;
    hello.client_name = "master";
    hello.tls = tls;
    const WelcomeData welcome = say_hello(address, hello, timeout_ms);
    nb::dict out;
    out["node_id"] = welcome.node_id;
    out["node_epoch"] = welcome.node_epoch;
    return out;
}

}  // namespace

void bind_tls(nb::module_& module) {
    nb::class_<Tls>(module, "Tls", "Certificates of this process, for TLS on block ports.")
        .def(
            nb::new_(&load_tls), nb::kw_only(), "cert"_a = "", "key"_a = "", "ca"_a,
            "client_auth"_a = 0, "required"_a = true, "follow"_a = false,
            "Files in PEM. client_auth: 0 none, 1 optional, 2 required. follow: read changed files "
            "before a new connection.")
        .def("replace", &Tls::replace, "other"_a, "Take over what another one has read.")
        .def("expires_in_s", &Tls::expires_in_s, "Of the certificate; 0 without one.");
    module.def("probe_master", &probe_master, "address"_a, nb::kw_only(), "role"_a,
               "principal"_a = "", "token"_a = "", "timeout_ms"_a = 5000,
               "tls"_a.none() = nb::none(),
               "Say hello to a master: {cluster_id, master_epoch, grpc_endpoint, http_endpoint}.");
    module.def("probe_node", &probe_node, "address"_a, nb::kw_only(), "cluster_id"_a, "node_id"_a,
               "principal"_a = "", "token"_a = "", "timeout_ms"_a = 5000,
               "tls"_a.none() = nb::none(), "Say hello to a node: {node_id, node_epoch}.");
}

}  // namespace kvstore
