// One incarnation of a namespace: what a flush ends, and what objects belong to.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/types.h"

namespace kvstore {

struct NamespaceEpoch {
    std::string tenant;
    std::string name;
    uint32_t epoch = 0;
    // Of (tenant) and (tenant, name, epoch), keyed with the cluster's secret.
    TenantId tenant_id = 0;
    NamespaceId id = 0;
};
using NamespaceRef = std::shared_ptr<const NamespaceEpoch>;

}  // namespace kvstore
