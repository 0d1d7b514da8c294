// The nodes as a client sees them, and the report about one whose memory it cannot map.
#include <nanobind/stl/string.h>

#include "bindings.h"
#include "py_client.h"

namespace nb = nanobind;

namespace kvstore {
namespace {

nb::list rows_of(const std::vector<ClientCore::NodeSummary>& nodes) {
    nb::list out;
    for (const ClientCore::NodeSummary& node : nodes) {
        nb::dict row;
        row["node_id"] = node.info.id;
        row["state"] = static_cast<int>(node.info.state);
        row["tcp_endpoint"] = node.info.tcp_endpoint;
        row["unix_endpoint"] = node.info.unix_endpoint;
        row["host"] = node.info.host;
        row["weight"] = node.info.weight;
        row["free_bytes"] = node.info.free_bytes;
        row["capacity_bytes"] = node.info.capacity_bytes;
        row["epoch"] = node.info.epoch;
        row["attached"] = node.path.attached;
        row["same_host"] = node.path.place == Place::kUnknown
                               ? nb::object(nb::none())
                               : nb::object(nb::bool_(node.path.place == Place::kThisHost));
        row["cause"] = std::string(attach_cause_name(node.path.cause));
        row["detail"] = node.path.detail;
        row["attach_failures"] = node.path.failures;
        row["ucx"] = node.ucx;
        row["ucx_detail"] = node.ucx_detail;
        row["rdma_apart"] = node.apart;
        row["rdma_domain"] = node.info.locality.rdma_domain;
        row["near"] = std::string(nearness_name(node.near));
        out.append(row);
    }
    return out;
}

nb::dict node_counters(Client& client) {
    const auto all = interruptible([&] { return client->node_counters(); });
    nb::dict out;
    for (const auto& [node, counted] : all) {
        nb::dict row;
        for (const auto& [name, value] : counted) {
            row[name.c_str()] = value;
        }
        out[node.c_str()] = row;
    }
    return out;
}

}  // namespace

void bind_client_nodes(nb::class_<Client>& client) {
    client.def("nodes", [](Client& self) { return rows_of(self->nodes()); })
        .def("peers",
             [](Client& self) { return rows_of(interruptible([&] { return self->peers(); })); })
        .def("node_counters", &node_counters)
        .def_prop_ro("transport", [](Client& self) {
            return static_cast<int>(self->context().options().transport);
        });
}

void report_unattached(const std::string& node_id, const std::string& unix_endpoint,
                       const NodePath& path) {
    const GilHeld held;
    try {
        nb::module_::import_("kvstore.client.paths")
            .attr("report")(node_id, unix_endpoint, std::string(attach_cause_name(path.cause)),
                            path.detail);
    } catch (nb::python_error& error) {
        if (error.matches(PyExc_KeyboardInterrupt)) {
            PyErr_SetInterrupt();  // for the call itself
            return;
        }
        error.discard_as_unraisable("kvstore.client.paths.report");
    }
}

}  // namespace kvstore
