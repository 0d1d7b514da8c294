// Locking a node's folder, and what an earlier life of the node has left in it.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "bindings.h"
#include "gil.h"
#include "segment_files.h"
#include "server_values.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore {
namespace {

void open_files(PySegmentFiles* self, const std::string& directory,
                const std::vector<std::string>& domains, bool discard_foreign) {
    const auto open = [&](const std::string& domain) {
        const GilReleased release;
        return StoreFiles::open({directory, domain, discard_foreign});
    };
    std::vector<std::unique_ptr<StoreFiles>> files;
    for (const std::string& domain : domains) {
        files.push_back(value_or_raise(open(domain)));
    }
    // The folder is this process's now.
    StoreFiles::remove_other_domains(directory, domains);
    new (self) PySegmentFiles{std::move(files)};
}

}  // namespace

void bind_segment_files(nb::module_& module) {
    nb::class_<PySegmentFiles>(
        module, "SegmentFiles",
        "A node's folder: locked, with what an earlier life of the node has left in it.")
        .def("__init__", &open_files, "directory"_a, "domains"_a = std::vector<std::string>(1),
             nb::kw_only(), "discard_foreign"_a = false,
             "Raises UnavailableError when another process owns the folder, VersionMismatchError "
             "when another format wrote it (unless it may be discarded).")
        .def_prop_ro(
            "kept_epoch",
            [](const PySegmentFiles& self) {
                uint32_t epoch = 0;
                for (const auto& one : self.files) {
                    epoch = std::max(epoch, one->kept_epoch());
                }
                return epoch;
            },
            "Epoch of the life that wrote what is there; 0 for nothing.");
}

}  // namespace kvstore
