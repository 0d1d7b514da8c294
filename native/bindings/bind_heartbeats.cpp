// The heartbeats that came over the nodes' links: batches to Python, and its answers back.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "bind_master.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore {
namespace {

nb::list take(PyMaster& self, uint32_t timeout_ms) {
    nb::list out;
    for (const NodeHeartbeat& one :
         unlocked([&] { return self.core().take_heartbeats(timeout_ms); })) {
        out.append(nb::make_tuple(one.link, one.request_id, one.node_id, one.session_id,
                                  nb::bytes(one.request.data(), one.request.size())));
    }
    return out;
}

// Link, request id, code, and the reply's bytes or what is wrong.
using Answer = std::tuple<LinkId, uint64_t, int32_t, nb::bytes>;

void answer(PyMaster& self, const std::vector<Answer>& answers) {
    const GilReleased release;
    for (const auto& [link, request_id, code, text] : answers) {
        self.core().answer_heartbeat(link, request_id, static_cast<Code>(code),
                                     {text.c_str(), text.size()});
    }
}

}  // namespace

void bind_heartbeats(nb::class_<PyMaster>& master) {
    master
        .def("take_heartbeats", &take, "timeout_ms"_a,
             "Blocks for heartbeats over links: [(link, request id, node id, session id, "
             "request)], empty after the time or stop(). The node and its session are proved.")
        .def("answer_heartbeats", &answer, "answers"_a,
             "[(link, request id, code, reply or message)]; those of lost links are dropped.");
}

}  // namespace kvstore
