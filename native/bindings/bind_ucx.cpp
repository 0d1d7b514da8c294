// UCX for Python: the process that serves a segment by it, and memory that an engine registers.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "py_arguments.h"
#include "py_client.h"
#include "ucx/ucx_process.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore {
namespace {

using Settings = std::vector<std::pair<std::string, std::string>>;

void serve(int socket, int segment, const std::vector<std::string>& libraries,
           const Settings& settings, uint64_t slice_bytes) {
    UcxProcessOptions options;
    options.ucx = {libraries, settings};
    options.slice_bytes = slice_bytes;
    raise_unless_ok(without_gil([&] { return run_ucx_process(Fd(socket), Fd(segment), options); }));
}

void register_memory(Client& client, void* data, size_t bytes) {
    raise_unless_ok(interruptible([&] {
        const Status open = client->context().check_open();
        return open.ok()
                   ? client->context().ucx().register_memory(data, bytes, ucp::MemoryType::kHost)
                   : open;
    }));
}

void register_on_device(Client& client, uintptr_t address, size_t bytes) {
    raise_unless_ok(interruptible([&] {
        const Status open = client->context().check_open();
        return open.ok() ? register_device_memory(client->context(), address, bytes) : open;
    }));
}

}  // namespace

void bind_ucx(nb::module_& module) {
    module.def("serve_by_ucx", &serve, "socket"_a, "segment"_a, nb::kw_only(), "libraries"_a,
               "settings"_a, "slice_bytes"_a,
               "Serve a segment until the node closes the socket. Owns both descriptors.");
}

void bind_client_ucx(nb::class_<Client>& client) {
    client
        .def(
            "register_buffer",
            [](Client& self, nb::handle buffer) {
                const BufferArguments one(buffer, true);
                const iovec whole = one.pieces().front().list().front();
                register_memory(self, whole.iov_base, whole.iov_len);
                return std::pair(reinterpret_cast<uintptr_t>(whole.iov_base), whole.iov_len);
            },
            "buffer"_a)
        .def(
            "register_memory",
            [](Client& self, uintptr_t address, size_t bytes) {
                register_memory(self, reinterpret_cast<void*>(address), bytes);
            },
            "address"_a, "bytes"_a)
        .def("register_on_device", &register_on_device, "address"_a, "bytes"_a)
        .def(
            "forget_memory",
            [](Client& self, uintptr_t address) {
                return !self->in_forked_child() && interruptible([&] {
                    return self->context().ucx().forget_memory(reinterpret_cast<void*>(address));
                });
            },
            "address"_a)
        .def("ucx_state", [](Client& self) {
            ClientUcx& ucx = self->context().ucx();
            nb::dict out;
            out["wanted"] = ucx.wanted();
            out["error"] = ucx.status().message();
            out["registered_bytes"] = ucx.registered_bytes();
            out["moves_cuda"] = ucx.moves_cuda();
            return out;
        });
}

}  // namespace kvstore
