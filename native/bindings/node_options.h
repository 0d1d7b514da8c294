// kvstore._native.NodeOptions and NodeTunables: what a native node is created with, and what may
// change while it serves. Their defaults are those of the native structs.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>

#include "node/node_core.h"

namespace kvstore {

struct PyNodeOptions : NodeOptions {
    // Of each folder of nvme_dirs: save(seq, bytes), load(seq), drop(seq), list().
    std::vector<nanobind::object> catalogs;
    nanobind::object on_progress = nanobind::none();
};

// The NVMe tier's catalog, kept by Python: called on the tier's threads.
std::vector<std::unique_ptr<NvmeCatalog>> catalogs_of(const PyNodeOptions& options);
// Reports how far the folder is read. Valid while `options` is alive; called without the GIL.
std::function<void(const NvmeProgress&)> progress_of(const PyNodeOptions& options);

void bind_node_options(nanobind::module_& module);

}  // namespace kvstore
