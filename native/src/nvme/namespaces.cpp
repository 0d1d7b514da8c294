// Slots of namespaces.
#include "nvme/namespaces.h"

#include <algorithm>

namespace kvstore {

std::optional<uint16_t> NvmeNamespaces::add(const NamespaceEpoch& ns) {
    if (const auto known = find(ns.id)) {
        return known;
    }
    auto slot = slots_.end();
    if (slots_.size() >= kMax) {
        slot = std::find_if(slots_.begin(), slots_.end(),
                            [](const Slot& one) { return one.objects == 0 && one.appending == 0; });
        if (slot == slots_.end()) {
            return std::nullopt;
        }
        numbers_.erase(slot->names.id);
    } else {
        slots_.emplace_back();
        slot = slots_.end() - 1;
    }
    *slot = Slot{.names = ns};
    const auto number = static_cast<uint16_t>(slot - slots_.begin());
    numbers_.emplace(ns.id, number);
    return number;
}

std::optional<uint16_t> NvmeNamespaces::find(NamespaceId ns) const {
    const auto found = numbers_.find(ns);
    if (found == numbers_.end()) {
        return std::nullopt;
    }
    return found->second;
}

}  // namespace kvstore
