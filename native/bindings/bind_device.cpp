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
struct DeviceArguments {
    nb::handle pointers;
    nb::handle sizes;
    bool is_header_on_host = false;
    uintptr_t stream = 0;
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

// Empty when no byte lies on a device: then there is nothing that the host could not copy.
std::optional<DeviceCall> call_of(Client& client, const std::vector<Pieces>& pieces,
                                  const DeviceArguments& arguments) {
    raise_unless_ok(client->context().check_open());
    return value_or_raise(interruptible([&] {
        return DeviceCall::of(client->context(), pieces, arguments.stream,
                              arguments.is_header_on_host);
    }));
}

// As the host reads it; the transfer is over at once.
Status get_on_host(Client& client, std::span<GetItem> items, DeviceTransfer* transfer) {
    const Status status = client->get(items, nullptr);
    for (size_t row = 0; row < items.size(); ++row) {
        transfer->set(row, {items[row].result, items[row].reason});
    }
    return status;
}

nb::object device_get(Client& client, nb::handle keys, const DeviceArguments& where, bool is_queued,
                      bool verify_checksum) {
    const KeyArguments arguments = KeyArguments::many(keys);
    const PointerArguments memory(where.pointers, where.sizes, arguments.size());
    const std::optional<DeviceCall> call = call_of(client, memory.pieces(), where);
    std::vector<GetItem> items(arguments.size());
    for (size_t i = 0; i < items.size(); ++i) {
        items[i].key = arguments.keys()[i];
        items[i].data = memory.pieces()[i];
    }
    const auto transfer = std::make_shared<DeviceTransfer>(items.size());
    const DeviceGet::Options options{.verify_checksum = verify_checksum, .is_queued = is_queued};
    raise_unless_ok(interruptible([&] {
        return call ? client->get(items, *call, options, transfer)
                    : get_on_host(client, items, transfer.get());
    }));
    return nb::cast(new Transfer(transfer), nb::rv_policy::take_ownership);
}

std::vector<int32_t> device_put(Client& client, nb::handle keys, const DeviceArguments& where,
                                const PutHow& how) {
    const KeyArguments arguments = KeyArguments::many(keys);
    const PointerArguments memory(where.pointers, where.sizes, arguments.size());
    const std::optional<DeviceCall> call = call_of(client, memory.pieces(), where);
    std::vector<PutItem> items = put_items(arguments, memory.pieces(), how);
    const PutOptions options = put_options(how);
    raise_unless_ok(interruptible(
        [&] { return call ? client->put(items, options, *call) : client->put(items, options); }));
    std::vector<int32_t> codes(items.size());
    std::transform(items.begin(), items.end(), codes.begin(),
                   [](const PutItem& item) { return static_cast<int32_t>(item.result); });
    return codes;
}

}  // namespace

void bind_device(nb::module_& module, nb::class_<Client>& client) {
    nb::class_<Transfer>(module, "Transfer")
        .def("done", &Transfer::done)
        .def("wait", &Transfer::wait, "timeout_ms"_a)
        .def("results", &Transfer::results)
        .def("reasons", &Transfer::reasons)
        .def("failure", &Transfer::failure);
    client
        .def(
            "device_get",
            [](Client& self, nb::handle keys, nb::handle pointers, nb::handle sizes,
               bool is_header_on_host, uintptr_t stream, bool is_queued, bool verify_checksum) {
                return device_get(self, keys, {pointers, sizes, is_header_on_host, stream},
                                  is_queued, verify_checksum);
            },
            "keys"_a.none(), "pointers"_a.none(), "sizes"_a.none(), nb::kw_only(),
            "header_on_host"_a, "stream"_a, "queued"_a, "verify_checksum"_a)
        .def(
            "device_put",
            [](Client& self, nb::handle keys, nb::handle pointers, nb::handle sizes,
               uint8_t replicas, uint8_t pin, uint32_t ttl_ms, nb::object parent, bool upsert,
               bool is_header_on_host, uintptr_t stream) {
                return device_put(self, keys, {pointers, sizes, is_header_on_host, stream},
                                  {replicas, pin, ttl_ms, std::move(parent), upsert});
            },
            "keys"_a.none(), "pointers"_a.none(), "sizes"_a.none(), "replicas"_a, "pin"_a,
            "ttl_ms"_a, "parent"_a.none(), "upsert"_a, nb::kw_only(), "header_on_host"_a,
            "stream"_a);
}

}  // namespace kvstore
