// Comparing labels, and the order of replicas.
#include "client/nearness.h"

#include <algorithm>

namespace kvstore {
namespace {

constexpr char kJoin = '+';
constexpr std::string_view kRoce = "roce:";  // as kvstore/topology/labels.py names IPv4 networks

// Whether one of a domain's fabrics is `wanted`.
bool any_fabric(std::string_view domain, auto&& wanted) {
    while (!domain.empty()) {
        const std::string_view fabric = domain.substr(0, domain.find(kJoin));
        if (!fabric.empty() && wanted(fabric)) {
            return true;
        }
        domain.remove_prefix(std::min(fabric.size() + 1, domain.size()));
    }
    return false;
}

bool is_roce(std::string_view fabric) { return fabric.starts_with(kRoce); }

}  // namespace

Fabrics compare_fabrics(std::string_view mine, std::string_view theirs) {
    if (mine.empty() || theirs.empty()) {
        return Fabrics::kUnknown;
    }
    const bool shared = any_fabric(mine, [&](std::string_view one) {
        return any_fabric(theirs, [&](std::string_view other) { return one == other; });
    });
    if (shared) {
        return Fabrics::kShared;
    }
    return any_fabric(mine, is_roce) && any_fabric(theirs, is_roce) ? Fabrics::kUnknown
                                                                    : Fabrics::kApart;
}

Nearness nearness_of(const Locality& mine, const Locality& theirs, bool same_host, bool by_ucx) {
    const auto same = [](const std::string& one, const std::string& other) {
        return !one.empty() && one == other;
    };
    return {
        .host = same_host,
        .numa = same_host && same(mine.numa, theirs.numa),
        .rdma_domain =
            by_ucx && compare_fabrics(mine.rdma_domain, theirs.rdma_domain) == Fabrics::kShared,
        .rack = same(mine.rack, theirs.rack),
    };
}

std::string_view nearness_name(const Nearness& near) {
    return near.numa          ? "numa"
           : near.host        ? "host"
           : near.rdma_domain ? "rdma_domain"
           : near.rack        ? "rack"
                              : "other";
}

int read_score(ReadWay way, const Nearness& near) {
    // Each is more than all before it together.
    constexpr int kSocket = 4;
    constexpr int kRack = 8;
    constexpr int kRdmaDomain = 16;
    constexpr int kHost = 32;
    constexpr int kKept = 64;
    constexpr int kMapped = 128;
    switch (way) {
        case ReadWay::kNone:
            return 0;
        case ReadWay::kFailed:
            return 2;
        case ReadWay::kSocket:
            break;
        case ReadWay::kKept:
            return kKept;
        case ReadWay::kMapped:
            return kMapped + (near.numa ? 2 : 0);
    }
    const int apart = (near.rdma_domain ? kRdmaDomain : 0) + (near.rack ? kRack : 0);
    return kSocket + (near.host ? kHost : apart);
}

}  // namespace kvstore
