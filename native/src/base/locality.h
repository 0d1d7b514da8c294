// Labels of a process's host that say how near others are to it.
#pragma once

#include <string>

#include "base/limits.h"

namespace kvstore {

// Empty: not known.
struct Locality {
    std::string numa{};         // node whose memory it uses, as a number within its host
    std::string rack{};         // any name
    std::string rdma_domain{};  // fabrics that its RDMA ports reach, joined by '+'
    friend bool operator==(const Locality&, const Locality&) = default;

    // Without labels that are longer than what travels (limits.h): those count as not known.
    Locality bounded() const {
        const auto keep = [](const std::string& label, size_t most) {
            return label.size() <= most ? label : std::string();
        };
        return {.numa = keep(numa, limits::kMaxNumaBytes),
                .rack = keep(rack, limits::kMaxRackBytes),
                .rdma_domain = keep(rdma_domain, limits::kMaxRdmaDomainBytes)};
    }
};

}  // namespace kvstore
