// The extension kvstore._native: the status table, then client, master and node.
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <cstring>

#include "base/limits.h"
#include "base/trace_context.h"
#include "bindings.h"

namespace nb = nanobind;

namespace kvstore {

void raise_status(const Status& status) {
    // Looked up when needed: errors.py is plain Python and imports nothing from here.
    nb::object make = nb::module_::import_("kvstore.errors").attr("error_for");
    nb::object error = make(static_cast<int32_t>(status.code()), status.message());
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
    throw nb::python_error();
}

}  // namespace kvstore

NB_MODULE(_native, module) {
    module.doc() = "Native core of kvstore; private, use the kvstore package.";
    module.def(
        "code_name",
        [](int32_t code) { return kvstore::code_name(static_cast<kvstore::Code>(code)); },
        nb::arg("code"), "Name of a status code, \"Unknown\" for a number outside the table.");
    module.def(
        "miss_reason_name",
        [](uint8_t r) { return kvstore::miss_reason_name(static_cast<kvstore::MissReason>(r)); },
        nb::arg("reason"), "Name of a miss reason.");
    module.def(
        "leak", [](nb::handle object) { object.inc_ref(); }, nb::arg("object"),
        "Keeps an object forever: a forked child must not end its parent's servers.");
    module.def(
        "set_leak_warnings", [](bool on) { nb::set_leak_warnings(on); }, nb::arg("on"),
        "Whether the end of the interpreter lists the objects that are still in use.");
    module.def(
        "set_trace",
        [](const nb::bytes& context) {
            kvstore::TraceContext trace{};
            if (context.size() != 0 && context.size() != trace.size()) {
                kvstore::raise_status({kvstore::Code::kInvalidArgument,
                                       "a trace is 16 bytes of its id and 8 of the span's"});
            }
            std::memcpy(trace.data(), context.c_str(), context.size());
            kvstore::set_current_trace(trace);
        },
        nb::arg("context"), "Of the calling thread's next calls; empty: none.");
    module.attr("MISS_REASON_COUNT") = kvstore::kMissReasonCount;
    module.attr("MAX_KEY_BYTES") = kvstore::limits::kMaxKeyBytes;
    module.attr("MAX_BATCH_KEYS") = kvstore::limits::kMaxBatchKeys;
    module.attr("MAX_LEASE_MS") = kvstore::limits::kMaxLeaseMs;
    module.attr("MAX_TIMEOUT_MS") = kvstore::limits::kMaxTimeoutMs;
    kvstore::bind_tls(module);
    kvstore::bind_client(module);
    kvstore::bind_master(module);
    kvstore::bind_node(module);
    kvstore::bind_reuse(module);
    kvstore::bind_scopes(module);
    kvstore::bind_ucx(module);
}
