// The interpreter, and the conversion of what goes in and comes out.
#define PY_SSIZE_T_CLEAN
#include "policy.h"

#include <Python.h>

#include <cstdio>
#include <cstdlib>

namespace kvstore::sim::policy {
namespace {

PyObject* bridge = nullptr;

[[noreturn]] void python_failed(const char* where) {
    fprintf(stderr, "sim: Python failed in %s\n", where);
    PyErr_Print();
    if (Runtime::active() != nullptr) {
        Runtime::active()->fail("harness", std::string("Python failed in ") + where);
    }
    exit(2);
}

// Calls a function of the bridge on the scheduler's stack and reads its result there.
template <class Read>
void call(const char* name, const Read& read, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const auto work = [&] {
        PyObject* const function = PyObject_GetAttrString(bridge, name);
        PyObject* const tuple = Py_VaBuildValue(format, arguments);
        PyObject* const result = function == nullptr || tuple == nullptr
                                     ? nullptr
                                     : PyObject_CallObject(function, tuple);
        if (result == nullptr) {
            python_failed(name);
        }
        read(result);
        if (PyErr_Occurred() != nullptr) {
            python_failed(name);
        }
        Py_DECREF(result);
        Py_XDECREF(tuple);
        Py_XDECREF(function);
    };
    Runtime::active()->on_main_stack(work);
    va_end(arguments);
}

uint64_t number(PyObject* object) { return PyLong_AsUnsignedLongLongMask(object); }
Code code(PyObject* object) { return static_cast<Code>(PyLong_AsLong(object)); }
std::string text(PyObject* object) { return PyUnicode_AsUTF8(object); }

PolicyCalls calls_from(PyObject* list) {
    PolicyCalls out;
    for (Py_ssize_t i = 0; i < PyList_Size(list); ++i) {
        PyObject* const made = PyList_GetItem(list, i);
        PolicyCall one;
        one.name = text(PyTuple_GetItem(made, 0));
        int texts = 0;
        for (Py_ssize_t item = 1; item < PyTuple_Size(made); ++item) {
            PyObject* const value = PyTuple_GetItem(made, item);
            if (PyUnicode_Check(value)) {
                std::string* const into[] = {&one.node_id, &one.tcp, &one.host};
                *into[texts++] = text(value);
            } else if (PyFloat_Check(value)) {
                one.rate = PyFloat_AsDouble(value);
            } else {
                one.numbers.push_back(number(value));
            }
        }
        out.push_back(std::move(one));
    }
    return out;
}

}  // namespace

void start_interpreter() {
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;
    config.use_hash_seed = 1;
    config.hash_seed = 1;
    // As if started as this program: its environment's packages are found from there.
    PyStatus status = PyConfig_SetBytesString(&config, &config.program_name, KVSTORE_SIM_PYTHON);
    if (!PyStatus_Exception(status)) {
        status = Py_InitializeFromConfig(&config);
    }
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status)) {
        Py_ExitStatusException(status);
    }
    PyObject* const path = PySys_GetObject("path");
    for (const char* folder : {KVSTORE_SIM_FOLDER}) {
        PyObject* const entry = PyUnicode_FromString(folder);
        PyList_Insert(path, 0, entry);
        Py_DECREF(entry);
    }
    bridge = PyImport_ImportModule("policy_bridge");
    if (bridge == nullptr) {
        python_failed("import policy_bridge");
    }
}

bool rebuilding() {
    bool out = false;
    call("rebuilding", [&](PyObject* result) { out = result == Py_True; }, "()");
    return out;
}

PolicyCalls start_master() {
    PolicyCalls out;
    call("start_master", [&](PyObject* result) { out = calls_from(result); }, "()");
    return out;
}

Registered register_node(const std::string& node_id, uint64_t incarnation, uint32_t node_epoch,
                         uint64_t session_id, const std::string& tcp, uint64_t capacity) {
    Registered out;
    call(
        "register",
        [&](PyObject* result) {
            out.code = code(PyTuple_GetItem(result, 0));
            out.session_id = number(PyTuple_GetItem(result, 1));
            out.node_epoch = static_cast<uint32_t>(number(PyTuple_GetItem(result, 2)));
            out.calls = calls_from(PyTuple_GetItem(result, 3));
        },
        "(sKIKsK)", node_id.c_str(), incarnation, node_epoch, session_id, tcp.c_str(), capacity);
    return out;
}

Beaten heartbeat(const std::string& node_id, uint64_t session_id, uint64_t capacity, uint64_t used,
                 const std::string& tcp, bool refuses_writes) {
    Beaten out;
    call(
        "heartbeat",
        [&](PyObject* result) {
            out.code = code(PyTuple_GetItem(result, 0));
            out.state = static_cast<NodeState>(number(PyTuple_GetItem(result, 1)));
            out.calls = calls_from(PyTuple_GetItem(result, 2));
        },
        "(sKKKsi)", node_id.c_str(), session_id, capacity, used, tcp.c_str(),
        static_cast<int>(refuses_writes));
    return out;
}

PolicyCalls unregister(const std::string& node_id, uint64_t session_id) {
    PolicyCalls out;
    call(
        "unregister", [&](PyObject* result) { out = calls_from(result); }, "(sK)", node_id.c_str(),
        session_id);
    return out;
}

PolicyCalls drain(const std::string& node_id, bool cancel) {
    PolicyCalls out;
    call(
        "drain", [&](PyObject* result) { out = calls_from(result); }, "(si)", node_id.c_str(),
        static_cast<int>(cancel));
    return out;
}

PolicyCalls tick(const std::vector<MasterCore::NodeView>& seen) {
    PolicyCalls out;
    Runtime::active()->on_main_stack([&] {
        PyObject* const list = PyList_New(0);
        for (const MasterCore::NodeView& node : seen) {
            PyObject* const one =
                Py_BuildValue("(sii)", node.info.node_id.c_str(), static_cast<int>(node.connected),
                              static_cast<int>(node.synced));
            PyList_Append(list, one);
            Py_DECREF(one);
        }
        PyObject* const result = PyObject_CallMethod(bridge, "tick", "(O)", list);
        if (result == nullptr) {
            python_failed("tick");
        }
        out = calls_from(result);
        Py_DECREF(result);
        Py_DECREF(list);
    });
    return out;
}

NodeStep after_register(Code status, bool served_before) {
    int out = 0;
    call(
        "after_register", [&](PyObject* result) { out = static_cast<int>(number(result)); }, "(ii)",
        static_cast<int>(status), static_cast<int>(served_before));
    return static_cast<NodeStep>(out);
}

NodeStep after_heartbeat(Code status) {
    int out = 0;
    call(
        "after_heartbeat", [&](PyObject* result) { out = static_cast<int>(number(result)); }, "(i)",
        static_cast<int>(status));
    return static_cast<NodeStep>(out);
}

uint64_t backoff_ms(int failures, double jitter) {
    uint64_t out = 0;
    call("backoff_ms", [&](PyObject* result) { out = number(result); }, "(id)", failures, jitter);
    return out;
}

void carry_out(MasterCore& core, const PolicyCalls& calls) {
    for (const PolicyCall& one : calls) {
        const auto& n = one.numbers;
        if (one.name == "register") {
            NodeInfo info;
            info.node_id = one.node_id;
            info.session_id = n[0];
            info.node_epoch = static_cast<uint32_t>(n[1]);
            info.tcp_endpoint = one.tcp;
            info.host = one.host;
            info.weight = static_cast<uint32_t>(n[2]);
            info.capacity_bytes = n[3];
            info.free_bytes = n[4];
            info.state = static_cast<NodeState>(n[5]);
            info.fresh = n[7] != 0;
            (void)core.register_node(info, n[6] != 0);
        } else if (one.name == "endpoints") {
            (void)core.set_endpoints(one.node_id, one.tcp, "", one.host);
        } else if (one.name == "set") {
            (void)core.set_node(one.node_id, static_cast<NodeState>(n[0]),
                                static_cast<uint32_t>(n[1]), n[2], n[3]);
        } else if (one.name == "heard") {
            core.heard(one.node_id);
        } else if (one.name == "remove") {
            (void)core.remove_node(one.node_id);
        } else if (one.name == "finish_rebuild") {
            core.finish_rebuild();
        } else if (one.name == "copy_rate") {
            CopyPolicy copies = core.copy_policy();
            copies.copies_per_s = one.rate;
            core.set_copy_policy(copies);
        } else {
            Runtime::active()->fail("harness", "the policy asks for " + one.name);
        }
    }
}

}  // namespace kvstore::sim::policy
