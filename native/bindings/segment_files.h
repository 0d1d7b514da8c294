// kvstore._native.SegmentFiles: a node's folder, from before its registration until a NodeCore
// takes it.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <utility>
#include <vector>

#include "store/store_files.h"

namespace kvstore {

// The files of each domain.
struct PySegmentFiles {
    explicit PySegmentFiles(std::vector<std::unique_ptr<StoreFiles>> opened)
        : files(std::move(opened)) {}
    PySegmentFiles(PySegmentFiles&&) = default;

    std::vector<std::unique_ptr<StoreFiles>> files;
};

void bind_segment_files(nanobind::module_& module);

}  // namespace kvstore
