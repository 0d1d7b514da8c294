// What the binding files share: one bind function per side and the way a Status becomes an
// exception.
#pragma once

#include <nanobind/nanobind.h>

#include "base/status.h"

namespace kvstore {

void bind_client(nanobind::module_& module);
void bind_master(nanobind::module_& module);
void bind_node(nanobind::module_& module);
void bind_reuse(nanobind::module_& module);
void bind_scopes(nanobind::module_& module);
void bind_tls(nanobind::module_& module);
void bind_ucx(nanobind::module_& module);

// Raises kvstore.errors' class for the status (the table lives there). Needs the GIL.
[[noreturn]] void raise_status(const Status& status);

inline void raise_unless_ok(const Status& status) {
    if (!status.ok()) {
        raise_status(status);
    }
}

// The value, or the exception for its Status.
template <class T>
T value_or_raise(Result<T>&& result) {
    if (!result.ok()) {
        raise_status(result.status());
    }
    return std::move(result).value();
}

}  // namespace kvstore
