// kvstore._native.Client, Leases and Block: the client core for kvstore/client.
//
// Arguments are read with the GIL, all I/O and copying is done without it. Codes are returned as
// numbers (status.h); what the caller has to fix is raised through kvstore.errors.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "bindings.h"
#include "gil.h"
#include "locality_tuple.h"
#include "net/tls.h"
#include "py_arguments.h"
#include "py_client.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore {
namespace {

// One view's bytes behind the buffer protocol. They are given up when it was asked for and no
// memoryview shows them any more.
class Block {
  public:
    explicit Block(std::unique_ptr<ObjectView> view) : view_(std::move(view)) {}
    ~Block() { drop(); }
    void release() {
        released_ = true;
        if (exports_ == 0) {
            drop();
        }
    }
    bool released() const { return released_; }
    uint64_t size() const { return view_ != nullptr ? view_->size() : 0; }
    bool zero_copy() const { return view_ != nullptr && view_->zero_copy(); }

    static int get_buffer(PyObject* self, Py_buffer* buffer, int flags) {
        Block* block = nb::inst_ptr<Block>(self);
        if (block->released_) {
            PyErr_SetString(PyExc_BufferError, "the view was released");
            return -1;
        }
        const ObjectView& view = *block->view_;
        // PyBuffer_FillInfo refuses a writable request itself.
        const int result = PyBuffer_FillInfo(buffer, self, const_cast<uint8_t*>(view.data()),
                                             static_cast<Py_ssize_t>(view.size()), 1, flags);
        if (result == 0) {
            ++block->exports_;
        }
        return result;
    }
    static void release_buffer(PyObject* self, Py_buffer*) {
        Block* block = nb::inst_ptr<Block>(self);
        if (--block->exports_ == 0 && block->released_) {
            block->drop();
        }
    }

  private:
    void drop() {
        std::unique_ptr<ObjectView> view = std::move(view_);
        if (view != nullptr) {
            GilReleased unlocked;  // a hold by socket is ended by a message
            view.reset();
        }
    }
    std::unique_ptr<ObjectView> view_;
    size_t exports_ = 0;
    bool released_ = false;
};

PyType_Slot block_slots[] = {
    {Py_bf_getbuffer, reinterpret_cast<void*>(&Block::get_buffer)},
    {Py_bf_releasebuffer, reinterpret_cast<void*>(&Block::release_buffer)},
    {0, nullptr},
};

class Leases {
  public:
    explicit Leases(std::unique_ptr<LeasedPrefix> prefix) : prefix_(std::move(prefix)) {}
    ~Leases() {
        GilReleased unlocked;
        prefix_.reset();
    }
    LeasedPrefix* operator->() const { return prefix_.get(); }

  private:
    std::unique_ptr<LeasedPrefix> prefix_;
};

nb::list list_of(const std::vector<int64_t>& numbers) {
    nb::object list = nb::steal(PyList_New(static_cast<Py_ssize_t>(numbers.size())));
    for (size_t i = 0; i < numbers.size(); ++i) {
        PyList_SetItem(list.ptr(), static_cast<Py_ssize_t>(i), PyLong_FromLongLong(numbers[i]));
    }
    return nb::cast<nb::list>(list);
}

nb::list list_of(const std::vector<Code>& codes) {
    std::vector<int64_t> numbers(codes.size());
    std::transform(codes.begin(), codes.end(), numbers.begin(),
                   [](Code code) { return static_cast<int64_t>(code); });
    return list_of(numbers);
}

// The two kinds of objects that a get returns. Both are made without touching their bytes.
struct Bytes {
    static PyObject* make(Py_ssize_t size) { return PyBytes_FromStringAndSize(nullptr, size); }
    static char* data(PyObject* object) { return PyBytes_AsString(object); }
    static Py_ssize_t size(PyObject* object) { return PyBytes_Size(object); }
};
struct ByteArray {
    static PyObject* make(Py_ssize_t size) { return PyByteArray_FromStringAndSize(nullptr, size); }
    static char* data(PyObject* object) { return PyByteArray_AsString(object); }
    static Py_ssize_t size(PyObject* object) { return PyByteArray_Size(object); }
};

// Makes the objects that get() returns as soon as their sizes are known.
template <class Kind>
class ObjectMemory final : public GetMemory {
  public:
    explicit ObjectMemory(size_t count) : objects_(count, nullptr) {}
    ~ObjectMemory() override {
        for (PyObject* object : objects_) {
            Py_XDECREF(object);
        }
    }
    void provide(std::span<const Want> wants, std::span<GetItem> items) override {
        GilHeld locked;
        for (const Want& want : wants) {
            PyObject*& object = objects_[want.item];
            Py_XDECREF(object);
            object = want.size <= PY_SSIZE_T_MAX ? Kind::make(static_cast<Py_ssize_t>(want.size))
                                                 : nullptr;
            GetItem& item = items[want.item];
            item.data = Pieces();
            if (object == nullptr) {
                PyErr_Clear();
                out_of_memory_ = true;
                continue;
            }
            item.data = Pieces(Kind::data(object), want.size);
        }
    }
    bool out_of_memory() const { return out_of_memory_; }
    // The item's bytes, cut to what was read; None for a miss.
    nb::object take(size_t item, int64_t result) {
        nb::object object = nb::steal(std::exchange(objects_[item], nullptr));
        if (result < 0 || !object.is_valid()) {
            return nb::none();
        }
        const auto size = static_cast<Py_ssize_t>(result);
        if (Kind::size(object.ptr()) == size) {
            return object;
        }
        // Replaced by a shorter one while it was read.
        nb::object shorter = nb::steal(Kind::make(size));
        if (!shorter.is_valid()) {
            throw nb::python_error();
        }
        std::memcpy(Kind::data(shorter.ptr()), Kind::data(object.ptr()), static_cast<size_t>(size));
        return shorter;
    }

  private:
    std::vector<PyObject*> objects_;
    bool out_of_memory_ = false;
};

std::vector<GetItem> get_items(const KeyArguments& keys) {
    std::vector<GetItem> items(keys.size());
    for (size_t i = 0; i < keys.size(); ++i) {
        items[i].key = keys.keys()[i];
    }
    return items;
}

void check_reasons(const nb::object& reasons) {
    if (!reasons.is_none() && !PyList_Check(reasons.ptr())) {
        raise_status(Status(Code::kInvalidArgument,
                            "reasons must be None or a list, not " + class_name(reasons)));
    }
}

// Into a list of the caller's, one number a key; None: it does not want them.
void tell_reasons(std::span<const GetItem> items, const nb::object& reasons) {
    if (reasons.is_none()) {
        return;
    }
    auto list = nb::cast<nb::list>(reasons);
    list.clear();
    for (const GetItem& item : items) {
        list.append(static_cast<int>(item.reason));
    }
}

template <class Kind>
nb::list get_objects(Client& client, const KeyArguments& keys,
                     const nb::object& reasons = nb::none()) {
    check_reasons(reasons);
    std::vector<GetItem> items = get_items(keys);
    ObjectMemory<Kind> memory(items.size());
    raise_unless_ok(interruptible([&] { return client->get(items, &memory); }));
    if (memory.out_of_memory()) {
        PyErr_NoMemory();
        throw nb::python_error();
    }
    tell_reasons(items, reasons);
    nb::list out;
    for (size_t i = 0; i < items.size(); ++i) {
        out.append(memory.take(i, items[i].result));
    }
    return out;
}

std::vector<int64_t> get_into(Client& client, const KeyArguments& keys,
                              const std::vector<Pieces>& pieces,
                              const nb::object& reasons = nb::none()) {
    check_reasons(reasons);
    std::vector<GetItem> items = get_items(keys);
    for (size_t i = 0; i < items.size(); ++i) {
        items[i].data = pieces[i];
    }
    raise_unless_ok(interruptible([&] { return client->get(items, nullptr); }));
    tell_reasons(items, reasons);
    std::vector<int64_t> results(items.size());
    std::transform(items.begin(), items.end(), results.begin(),
                   [](const GetItem& item) { return item.result; });
    return results;
}

std::vector<Code> put_pieces(Client& client, const KeyArguments& keys,
                             const std::vector<Pieces>& pieces, const PutHow& how) {
    std::vector<PutItem> items = put_items(keys, pieces, how);
    const PutOptions options = put_options(how);
    raise_unless_ok(interruptible([&] { return client->put(items, options); }));
    std::vector<Code> codes(items.size());
    std::transform(items.begin(), items.end(), codes.begin(),
                   [](const PutItem& item) { return item.result; });
    return codes;
}

Client* connect(const std::vector<std::string>& masters, const std::string& tenant,
                const std::string& ns, const std::string& principal, const std::string& token,
                const std::string& client_name, uint32_t timeout_ms, uint8_t transport,
                uint32_t stripes, uint32_t poll_us, const std::vector<std::string>& ucx_libraries,
                const std::vector<std::pair<std::string, std::string>>& ucx_settings,
                const LocalityTuple& locality, const std::shared_ptr<Tls>& tls) {
    ClientOptions options;
    options.masters = masters;
    options.tenant = tenant;
    options.ns = ns;
    options.principal = principal;
    options.token = token;
    options.client_name = client_name;
    options.timeout_ms = timeout_ms;
    options.transport = static_cast<Transport>(transport);
    options.stripes = stripes;
    options.poll_us = poll_us;
    options.ucx = {ucx_libraries, ucx_settings};
    options.locality = locality_of(locality).bounded();
    options.on_unattached = report_unattached;
    options.tls = tls;
    Result<std::unique_ptr<ClientCore>> core =
        interruptible([&] { return ClientCore::connect(std::move(options)); });
    return new Client(value_or_raise(std::move(core)));
}

std::vector<int64_t> sizes(Client& client, const KeyArguments& keys, bool local) {
    std::vector<int64_t> out;
    raise_unless_ok(interruptible([&] { return client->sizes(keys.keys(), &out, local); }));
    return out;
}

nb::tuple prefix_length(Client& client, nb::handle keys, size_t stride, uint32_t wait_ms,
                        bool local) {
    const KeyArguments arguments = KeyArguments::many(keys);
    MissReason reason = MissReason::kNone;
    const size_t length = value_or_raise(interruptible(
        [&] { return client->prefix_length(arguments.keys(), stride, wait_ms, &reason, local); }));
    return nb::make_tuple(length, static_cast<int>(reason));
}

nb::object lease(Client& client, nb::handle keys, size_t stride, uint32_t lease_ms,
                 uint32_t wait_ms, bool local) {
    const KeyArguments arguments = KeyArguments::many(keys);
    Result<std::unique_ptr<LeasedPrefix>> prefix = interruptible(
        [&] { return client->lease_prefix(arguments.keys(), stride, lease_ms, wait_ms, local); });
    return nb::cast(new Leases(value_or_raise(std::move(prefix))), nb::rv_policy::take_ownership);
}

nb::object view(Client& client, nb::handle key) {
    const KeyArguments arguments = KeyArguments::one(key);
    Result<std::unique_ptr<ObjectView>> opened =
        interruptible([&] { return client->view(arguments.keys()[0]); });
    std::unique_ptr<ObjectView> found = value_or_raise(std::move(opened));
    return found == nullptr ? nb::none()
                            : nb::cast(new Block(std::move(found)), nb::rv_policy::take_ownership);
}

nb::tuple remove(Client& client, nb::handle keys) {
    const KeyArguments arguments = KeyArguments::many(keys);
    std::vector<Code> codes;
    std::vector<std::string> unreached;
    raise_unless_ok(
        interruptible([&] { return client->remove(arguments.keys(), &codes, &unreached); }));
    return nb::make_tuple(list_of(codes), nb::cast(unreached));
}

nb::list set_pin(Client& client, nb::handle keys, uint8_t level) {
    const KeyArguments arguments = KeyArguments::many(keys);
    std::vector<Code> codes;
    raise_unless_ok(interruptible(
        [&] { return client->set_pin(arguments.keys(), static_cast<Pin>(level), &codes); }));
    return list_of(codes);
}

nb::tuple list_keys(Client& client, nb::handle prefix, const nb::bytes& cursor, uint32_t limit) {
    const std::string_view from(cursor.c_str(), cursor.size());
    const std::string_view start = utf8_of(prefix, "prefix");
    if (start.size() > limits::kMaxKeyBytes) {
        raise_status(Status(Code::kInvalidArgument, "prefix is longer than 1024 bytes of UTF-8"));
    }
    Result<ClientCore::KeyPage> page =
        interruptible([&] { return client->list(start, from, limit); });
    const ClientCore::KeyPage found = value_or_raise(std::move(page));
    return nb::make_tuple(nb::cast(found.keys),
                          nb::bytes(found.cursor.data(), found.cursor.size()));
}

nb::object inspect(Client& client, nb::handle key) {
    const KeyArguments arguments = KeyArguments::one(key);
    Result<ClientCore::Inspection> result =
        interruptible([&] { return client->inspect(arguments.keys()[0]); });
    const ClientCore::Inspection found = value_or_raise(std::move(result));
    if (!found.found) {
        return nb::none();
    }
    nb::list replicas;
    for (const auto& [node, tier] : found.replicas) {
        replicas.append(nb::make_tuple(node, tier));
    }
    nb::dict out;
    out["size"] = found.size;
    out["version"] = found.version;
    out["pin"] = static_cast<int>(found.pin);
    out["create_ms"] = found.create_ms;
    out["replicas_wanted"] = found.replicas_wanted;
    out["replicas"] = replicas;
    return out;
}

nb::list explain(Client& client, nb::handle key) {
    const KeyArguments arguments = KeyArguments::one(key);
    Result<std::vector<ClientCore::Explanation>> result =
        interruptible([&] { return client->explain(arguments.keys()[0]); });
    nb::list out;
    for (const ClientCore::Explanation& known : value_or_raise(std::move(result))) {
        out.append(nb::make_tuple(known.node, known.in_dram, known.on_nvme, known.version,
                                  known.size, known.put_ms, known.used_ms, known.gone_ms,
                                  std::string(miss_reason_name(known.reason))));
    }
    return out;
}

size_t prefetch(Client& client, nb::handle keys) {
    const KeyArguments arguments = KeyArguments::many(keys);
    Result<size_t> result = interruptible([&] { return client->prefetch(arguments.keys()); });
    return value_or_raise(std::move(result));
}

nb::dict counters(Client& client) {
    nb::dict out;
    for (int i = 0; i < kClientCounterCount; ++i) {
        const std::string name(client_counter_name(i));
        out[name.c_str()] = client->context().counter(static_cast<ClientCounter>(i));
    }
    return out;
}

void bind_reads(nb::class_<Client>& client) {
    client
        .def(
            "get",
            [](Client& self, nb::handle key) -> nb::object {
                return get_objects<Bytes>(self, KeyArguments::one(key))[0];
            },
            "key"_a.none())
        .def(
            "batch_get",
            [](Client& self, nb::handle keys, const nb::object& reasons) {
                return get_objects<Bytes>(self, KeyArguments::many(keys), reasons);
            },
            "keys"_a.none(), "reasons"_a = nb::none())
        .def(
            "batch_get_bytearrays",
            [](Client& self, nb::handle keys) {
                return get_objects<ByteArray>(self, KeyArguments::many(keys));
            },
            "keys"_a.none())
        .def(
            "get_into",
            [](Client& self, nb::handle key, nb::handle out) {
                const KeyArguments keys = KeyArguments::one(key);
                const BufferArguments buffers(out, true);
                return get_into(self, keys, buffers.pieces())[0];
            },
            "key"_a.none(), "out"_a.none())
        .def(
            "batch_get_into",
            [](Client& self, nb::handle keys, nb::handle outs, const nb::object& reasons) {
                const KeyArguments arguments = KeyArguments::many(keys);
                const BufferArguments buffers(outs, true, arguments.size());
                return list_of(get_into(self, arguments, buffers.pieces(), reasons));
            },
            "keys"_a.none(), "buffers"_a.none(), "reasons"_a = nb::none())
        .def(
            "batch_get_into_pointers",
            [](Client& self, nb::handle keys, nb::handle pointers, nb::handle capacities,
               const nb::object& reasons) {
                const KeyArguments arguments = KeyArguments::many(keys);
                return list_of(get_into(
                    self, arguments,
                    PointerArguments(pointers, capacities, arguments.size()).pieces(), reasons));
            },
            "keys"_a.none(), "pointers"_a.none(), "sizes"_a.none(), "reasons"_a = nb::none())
        .def(
            "size",
            [](Client& self, nb::handle key, bool local) {
                return sizes(self, KeyArguments::one(key), local)[0];
            },
            "key"_a.none(), "local"_a = false)
        .def(
            "sizes",
            [](Client& self, nb::handle keys, bool local) {
                return list_of(sizes(self, KeyArguments::many(keys), local));
            },
            "keys"_a.none(), "local"_a = false)
        .def("prefix_length", &prefix_length, "keys"_a.none(), "stride"_a, "wait_ms"_a = 0,
             "local"_a = false);
}

void bind_writes(nb::class_<Client>& client) {
    client
        .def(
            "put",
            [](Client& self, nb::handle key, nb::handle buffer, uint8_t replicas, uint8_t pin,
               uint32_t ttl_ms, nb::object parent, bool upsert) {
                const KeyArguments keys = KeyArguments::one(key);
                const BufferArguments buffers(buffer, false);
                return static_cast<int64_t>(
                    put_pieces(self, keys, buffers.pieces(),
                               {replicas, pin, ttl_ms, std::move(parent), upsert})[0]);
            },
            "key"_a.none(), "buffer"_a.none(), "replicas"_a, "pin"_a, "ttl_ms"_a, "parent"_a.none(),
            "upsert"_a = false)
        .def(
            "batch_put",
            [](Client& self, nb::handle keys, nb::handle buffers, uint8_t replicas, uint8_t pin,
               uint32_t ttl_ms, nb::object parent, bool upsert) {
                const KeyArguments arguments = KeyArguments::many(keys);
                const BufferArguments data(buffers, false, arguments.size());
                return list_of(put_pieces(self, arguments, data.pieces(),
                                          {replicas, pin, ttl_ms, std::move(parent), upsert}));
            },
            "keys"_a.none(), "buffers"_a.none(), "replicas"_a, "pin"_a, "ttl_ms"_a,
            "parent"_a.none(), "upsert"_a = false)
        .def(
            "batch_put_from",
            [](Client& self, nb::handle keys, nb::handle pointers, nb::handle lengths,
               uint8_t replicas, uint8_t pin, uint32_t ttl_ms, nb::object parent, bool upsert) {
                const KeyArguments arguments = KeyArguments::many(keys);
                return list_of(put_pieces(
                    self, arguments, PointerArguments(pointers, lengths, arguments.size()).pieces(),
                    {replicas, pin, ttl_ms, std::move(parent), upsert}));
            },
            "keys"_a.none(), "pointers"_a.none(), "sizes"_a.none(), "replicas"_a, "pin"_a,
            "ttl_ms"_a, "parent"_a.none(), "upsert"_a = false)
        .def("remove", &remove, "keys"_a.none())
        .def("set_pin", &set_pin, "keys"_a.none(), "level"_a)
        .def("flush", [](Client& self) {
            return static_cast<int32_t>(interruptible([&] { return self->flush(); }).code());
        });
}

}  // namespace

std::vector<PutItem> put_items(const KeyArguments& keys, const std::vector<Pieces>& pieces,
                               const PutHow& how) {
    std::vector<PutItem> items(keys.size());
    const std::string_view parent =
        how.parent.is_none() ? std::string_view() : utf8_of(how.parent, "parent");
    if (parent.size() > limits::kMaxKeyBytes) {
        raise_status(Status(Code::kInvalidArgument, "parent is longer than 1024 bytes of UTF-8"));
    }
    for (size_t i = 0; i < items.size(); ++i) {
        items[i].key = keys.keys()[i];
        items[i].data = pieces[i];
        // A batch with a parent is a chain: each block follows the one before it.
        items[i].parent = parent.empty() || i == 0 ? parent : items[i - 1].key;
    }
    return items;
}

PutOptions put_options(const PutHow& how) {
    PutOptions options;
    options.replicas = how.replicas;
    options.pin = static_cast<Pin>(how.pin);
    options.ttl_ms = how.ttl_ms;
    options.upsert = how.upsert;
    return options;
}

void bind_client(nb::module_& module) {
    nb::class_<Block>(module, "Block", nb::type_slots(block_slots))
        .def("release", &Block::release)
        .def_prop_ro("released", &Block::released)
        .def_prop_ro("size", &Block::size)
        .def_prop_ro("zero_copy", &Block::zero_copy);

    nb::class_<Leases>(module, "Leases")
        .def_prop_ro("length", [](Leases& self) { return self->length(); })
        .def_prop_ro("reason", [](Leases& self) { return static_cast<int>(self->reason()); })
        .def(
            "alive", [](Leases& self) { return self->alive(); }, nb::call_guard<GilReleased>())
        .def("release", [](Leases& self) { self->release(); }, nb::call_guard<GilReleased>());

    nb::class_<Client> client(module, "Client");
    client.def(nb::new_(&connect), nb::kw_only(), "masters"_a, "tenant"_a, "namespace"_a,
               "principal"_a, "token"_a, "client_name"_a, "timeout_ms"_a, "transport"_a,
               "stripes"_a, "poll_us"_a = 0, "ucx_libraries"_a = std::vector<std::string>(),
               "ucx_settings"_a = std::vector<std::pair<std::string, std::string>>(),
               "locality"_a = LocalityTuple(), "tls"_a.none() = nb::none());
    bind_reads(client);
    bind_writes(client);
    bind_client_nodes(client);
    bind_client_ucx(client);
    bind_device(module, client);
    client
        .def("lease", &lease, "keys"_a.none(), "stride"_a, "lease_ms"_a, "wait_ms"_a = 0,
             "local"_a = false)
        .def("view", &view, "key"_a.none())
        .def("list_keys", &list_keys, "prefix"_a.none(), "cursor"_a, "limit"_a)
        .def("explain", &explain, "key"_a.none())
        .def("prefetch", &prefetch, "keys"_a.none())
        .def("inspect", &inspect, "key"_a.none())
        .def("counters", &counters)
        .def("close",
             [](Client& self) {
                 if (!self->in_forked_child()) {
                     GilReleased unlocked;
                     self->close();
                 }
             })
        .def_prop_ro("closed",
                     [](Client& self) { return self->closed() || self->in_forked_child(); });
}

}  // namespace kvstore
