// What changes objects through the master: calls that block, and calls that call back.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <utility>

#include "bind_master.h"
#include "server_values.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore {
namespace {

// A callable of Python that a native thread calls once, with a tuple.
class Callback {
  public:
    explicit Callback(nb::object callable)
        : callable_(std::make_shared<Owned>(std::move(callable))) {}
    template <class T>
    void operator()(T&& answer) const {
        const GilHeld acquire;
        try {
            callable_->object(*nb::cast(std::forward<T>(answer)));
        } catch (nb::python_error& error) {
            error.discard_as_unraisable("an answer of the master");
        }
    }

  private:
    struct Owned {
        explicit Owned(nb::object given) : object(std::move(given)) {}
        ~Owned() {
            const GilHeld acquire;
            object.reset();
        }
        nb::object object;
    };
    std::shared_ptr<Owned> callable_;
};

void bind_callbacks(nb::class_<PyMaster>& master) {
    master
        .def(
            "remove_then",
            [](PyMaster& self, const std::string& tenant, const std::string& ns,
               const std::vector<std::string>& keys, uint32_t timeout_ms,
               const std::string& principal, nb::object done) {
                Callback callback(std::move(done));
                raise_unless_ok(unlocked([&] {
                    return self.remove(tenant, ns, keys, timeout_ms, principal, callback);
                }));
            },
            "tenant"_a, "namespace"_a, "keys"_a, "timeout_ms"_a, "principal"_a, "done"_a,
            "Calls done(codes, unreached node ids) once, from any thread.")
        .def(
            "flush_then",
            [](PyMaster& self, const std::string& tenant, const std::string& ns,
               uint32_t timeout_ms, const std::string& principal, nb::object done) {
                Callback callback(std::move(done));
                raise_unless_ok(unlocked(
                    [&] { return self.flush(tenant, ns, timeout_ms, principal, callback); }));
            },
            "tenant"_a, "namespace"_a, "timeout_ms"_a, "principal"_a, "done"_a,
            "Calls done(code, unreached node ids, new namespace epoch) once, from any thread.")
        .def(
            "recorded_then",
            [](PyMaster& self, const std::string& tenant, const std::string& ns,
               const std::vector<std::string>& keys, nb::object done) {
                Callback callback(std::move(done));
                unlocked([&] {
                    self.when_recorded(tenant, ns, keys, [callback](Code code) {
                        callback(std::tuple(static_cast<int32_t>(code)));
                    });
                });
            },
            "tenant"_a, "namespace"_a, "keys"_a, "done"_a,
            "Calls done(code) once, from any thread, when all that nodes have answered of these "
            "keys (none: of any) is recorded. After a second, or after a stop never.");
}

void bind_blocking(nb::class_<PyMaster>& master) {
    master
        .def(
            "remove",
            [](PyMaster& self, const std::string& tenant, const std::string& ns,
               const std::vector<std::string>& keys, uint32_t timeout_ms) {
                return value_or_raise(unlocked([&] {
                    return PyMaster::wait_for<Codes>([&](PyMaster::CodesDone done) {
                        return self.remove(tenant, ns, keys, timeout_ms, "", std::move(done));
                    });
                }));
            },
            "tenant"_a, "namespace"_a, "keys"_a, "timeout_ms"_a, "(codes, unreached node ids)")
        .def(
            "set_pin",
            [](PyMaster& self, const std::string& tenant, const std::string& ns,
               const std::vector<std::string>& keys, int level, uint32_t timeout_ms) {
                if (level < 0 || level > static_cast<int>(Pin::kHard)) {
                    raise_status(Status(Code::kInvalidArgument, "unknown pin level"));
                }
                return value_or_raise(unlocked([&] {
                    return PyMaster::wait_for<Codes>([&](PyMaster::CodesDone done) {
                        return self.set_pin(tenant, ns, keys, static_cast<Pin>(level), timeout_ms,
                                            std::move(done));
                    });
                }));
            },
            "tenant"_a, "namespace"_a, "keys"_a, "level"_a, "timeout_ms"_a,
            "(codes, unreached node ids)")
        .def(
            "flush",
            [](PyMaster& self, const std::string& tenant, const std::string& ns,
               uint32_t timeout_ms) {
                return value_or_raise(unlocked([&] {
                    return PyMaster::wait_for<PyMaster::Flushed>(
                        [&](std::function<void(PyMaster::Flushed)> done) {
                            return self.flush(tenant, ns, timeout_ms, "", std::move(done));
                        });
                }));
            },
            "tenant"_a, "namespace"_a, "timeout_ms"_a,
            "(code, unreached node ids, new namespace epoch)");
}

}  // namespace

void bind_master_changes(nb::class_<PyMaster>& master) {
    bind_blocking(master);
    bind_callbacks(master);
}

}  // namespace kvstore
