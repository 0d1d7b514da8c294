// Labels numa, rack and rdma_domain, as they come from Python.
#pragma once

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <string>
#include <tuple>

#include "base/locality.h"

namespace kvstore {

using LocalityTuple = std::tuple<std::string, std::string, std::string>;

inline Locality locality_of(const LocalityTuple& labels) {
    const auto& [numa, rack, rdma_domain] = labels;
    return {.numa = numa, .rack = rack, .rdma_domain = rdma_domain};
}

}  // namespace kvstore
