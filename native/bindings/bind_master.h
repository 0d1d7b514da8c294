// What the files that bind the master share.
#pragma once

#include <nanobind/nanobind.h>

#include "gil.h"
#include "master_facade.h"

namespace kvstore {

// Runs without the GIL; the result is converted with it.
template <class F>
auto unlocked(F f) {
    const GilReleased released;
    return f();
}

void bind_heartbeats(nanobind::class_<PyMaster>& master);
// remove, set_pin and flush, and those that call back.
void bind_master_changes(nanobind::class_<PyMaster>& master);

}  // namespace kvstore
