// kvstore._native.Client's calls for memory of a GPU, and Transfer. kvstore/client has found
// address and size of each buffer.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "bindings.h"
#include "gil.h"
#include "py_arguments.h"
#include "py_client.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore {
namespace {

// Where the bytes are, and how they are ordered; plain values that kvstore/client has checked.
struct DeviceMemory {
    const std::vector<Pieces>& pieces;
    bool is_header_on_host = false;
    uintptr_t stream = 0;
    std::shared_ptr<const PageGrid> grid{};
};

class Transfer {
  public:
    explicit Transfer(std::shared_ptr<DeviceTransfer> transfer) : transfer_(std::move(transfer)) {}
    bool done() const { return transfer_->done(); }
    bool wait(uint32_t timeout_ms) {
        return *interruptible(
            [&] { return Result<bool>(transfer_->wait(Deadline::after_ms(timeout_ms))); });
    }
    nb::list results() const {
        nb::list out;
        for (const DeviceTransfer::Row& row : transfer_->rows()) {
            out.append(row.result);
        }
        return out;
    }
    nb::list reasons() const {
        nb::list out;
        for (const DeviceTransfer::Row& row : transfer_->rows()) {
            out.append(static_cast<int>(row.reason));
        }
        return out;
    }
    nb::tuple failure() const {
        const Status status = transfer_->status();
        return nb::make_tuple(static_cast<int32_t>(status.code()), status.message());
    }

  private:
    std::shared_ptr<DeviceTransfer> transfer_;
};

// Python compiles the kernels, or finds them compiled; once for each device, and before the first
// call that could use them. Without them the host verifies checksums.
void provide_kernels(const GpuDevice& device) {
    if (device.kernels->decided()) {
        return;
    }
    const CudaContext& context = *device.context;
    int version = 0;
    if (context.api().driver_get_version != nullptr) {
        (void)context.api().driver_get_version(&version);
    }
    std::string why;
    for (const bool is_fresh : {false, true}) {  // a kept image may be damaged
        const nb::object answer =
            nb::module_::import_("kvstore.gpu.kernels")
                .attr("image")(context.attribute(cuda::kComputeMajor),
                               context.attribute(cuda::kComputeMinor), version, is_fresh);
        const auto image = nb::cast<nb::bytes>(answer[0]);
        why = nb::cast<std::string>(answer[1]);
        if (image.size() == 0) {
            break;
        }
        const Status status = device.kernels->load({image.c_str(), image.size()});
        if (status.ok()) {
            return;
        }
        why = status.message();
    }
    device.kernels->refuse(why);
}

// Empty when no byte lies on a device: then there is nothing that the host could not copy.
std::optional<DeviceCall> call_of(Client& client, const DeviceMemory& memory) {
    raise_unless_ok(client->context().check_open());
    std::optional<DeviceCall> call = value_or_raise(interruptible([&] {
        return DeviceCall::of(client->context(), memory.pieces, memory.stream,
                              memory.is_header_on_host);
    }));
    if (call) {
        call->grid = memory.grid;
        provide_kernels(call->device);
    }
    return call;
}

// As the host reads it; the transfer is over at once.
Status get_on_host(Client& client, std::span<GetItem> items, DeviceTransfer* transfer) {
    const Status status = client->get(items, nullptr);
    for (size_t row = 0; row < items.size(); ++row) {
        transfer->set(row, {items[row].result, items[row].reason});
    }
    return status;
}

nb::object device_get(Client& client, const KeyArguments& keys, const DeviceMemory& memory,
                      const DeviceGet::Options& options) {
    const std::optional<DeviceCall> call = call_of(client, memory);
    std::vector<GetItem> items(keys.size());
    for (size_t i = 0; i < items.size(); ++i) {
        items[i].key = keys.keys()[i];
        items[i].data = memory.pieces[i];
    }
    const auto transfer = std::make_shared<DeviceTransfer>(items.size());
    raise_unless_ok(interruptible([&] {
        return call ? client->get(items, *call, options, transfer)
                    : get_on_host(client, items, transfer.get());
    }));
    return nb::cast(new Transfer(transfer), nb::rv_policy::take_ownership);
}

std::vector<int32_t> device_put(Client& client, const KeyArguments& keys,
                                const DeviceMemory& memory, const PutHow& how) {
    const std::optional<DeviceCall> call = call_of(client, memory);
    std::vector<PutItem> items = put_items(keys, memory.pieces, how);
    const PutOptions options = put_options(how);
    raise_unless_ok(interruptible(
        [&] { return call ? client->put(items, options, *call) : client->put(items, options); }));
    std::vector<int32_t> codes(items.size());
    std::transform(items.begin(), items.end(), codes.begin(),
                   [](const PutItem& item) { return static_cast<int32_t>(item.result); });
    return codes;
}

// Each device that calls have used: its number, and why it has no kernels.
nb::list gpu_devices(Client& client) {
    nb::list rows;
    for (const auto& [ordinal, device] : client->context().devices().used()) {
        rows.append(nb::make_tuple(ordinal, device.kernels->why_not()));
    }
    return rows;
}

}  // namespace

void bind_device(nb::module_& module, nb::class_<Client>& client) {
    nb::class_<Transfer>(module, "Transfer")
        .def("done", &Transfer::done)
        .def("wait", &Transfer::wait, "timeout_ms"_a)
        .def("results", &Transfer::results)
        .def("reasons", &Transfer::reasons)
        .def("failure", &Transfer::failure);
    client.def("gpu_devices", &gpu_devices);
    client.def(
        "device_get",
        [](Client& self, nb::handle keys, nb::handle pointers, nb::handle sizes,
           bool is_header_on_host, uintptr_t stream, bool is_queued, bool verify_checksum) {
            const KeyArguments names = KeyArguments::many(keys);
            const PointerArguments places(pointers, sizes, names.size());
            return device_get(self, names, {places.pieces(), is_header_on_host, stream},
                              {verify_checksum, is_queued});
        },
        "keys"_a.none(), "pointers"_a.none(), "sizes"_a.none(), nb::kw_only(), "header_on_host"_a,
        "stream"_a, "queued"_a, "verify_checksum"_a);
    client.def(
        "device_get_pages",
        [](Client& self, nb::handle keys, nb::handle pool, nb::handle page_ids, uintptr_t stream,
           bool is_queued, bool verify_checksum) {
            const KeyArguments names = KeyArguments::many(keys);
            const PageArguments pages(pool, page_ids, names.size());
            return device_get(self, names, {pages.pieces(), false, stream, pages.grid()},
                              {verify_checksum, is_queued});
        },
        "keys"_a.none(), "pool"_a, "page_ids"_a.none(), nb::kw_only(), "stream"_a, "queued"_a,
        "verify_checksum"_a);
    client.def(
        "device_put",
        [](Client& self, nb::handle keys, nb::handle pointers, nb::handle sizes, uint8_t replicas,
           uint8_t pin, uint32_t ttl_ms, nb::object parent, bool upsert, bool is_header_on_host,
           uintptr_t stream) {
            const KeyArguments names = KeyArguments::many(keys);
            const PointerArguments places(pointers, sizes, names.size());
            return device_put(self, names, {places.pieces(), is_header_on_host, stream},
                              {replicas, pin, ttl_ms, std::move(parent), upsert});
        },
        "keys"_a.none(), "pointers"_a.none(), "sizes"_a.none(), "replicas"_a, "pin"_a, "ttl_ms"_a,
        "parent"_a.none(), "upsert"_a, nb::kw_only(), "header_on_host"_a, "stream"_a);
    client.def(
        "device_put_pages",
        [](Client& self, nb::handle keys, nb::handle pool, nb::handle page_ids, uint8_t replicas,
           uint8_t pin, uint32_t ttl_ms, nb::object parent, bool upsert, uintptr_t stream) {
            const KeyArguments names = KeyArguments::many(keys);
            const PageArguments pages(pool, page_ids, names.size());
            return device_put(self, names, {pages.pieces(), false, stream, pages.grid()},
                              {replicas, pin, ttl_ms, std::move(parent), upsert});
        },
        "keys"_a.none(), "pool"_a, "page_ids"_a.none(), "replicas"_a, "pin"_a, "ttl_ms"_a,
        "parent"_a.none(), "upsert"_a, nb::kw_only(), "stream"_a);
}

}  // namespace kvstore
