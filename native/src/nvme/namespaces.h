// The namespaces of the NVMe tier's objects: small numbers for the index, names for the announce.
// Not thread-safe: the log's mutex guards it.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "nvme/index.h"
#include "nvme/manifest.h"

namespace kvstore {

class NvmeNamespaces {
  public:
    static constexpr uint16_t kMax = NvmeIndex::kMaxNamespaceSlots;

    struct Slot {
        NamespaceEpoch names;
        uint64_t objects = 0;  // in the index, hidden ones included
        uint64_t bytes = 0;
        uint64_t pinned_bytes = 0;  // hard
        uint32_t appending = 0;     // appends in progress: the slot must stay
        bool flushed = false;       // its objects are hidden until their log files are reused
    };

    // The namespace's slot; a new one takes the place of one without objects when all are taken.
    // Empty: kMax namespaces have objects.
    std::optional<uint16_t> add(const NamespaceEpoch& ns);
    std::optional<uint16_t> find(NamespaceId ns) const;
    uint16_t size() const { return static_cast<uint16_t>(slots_.size()); }
    Slot& slot(uint16_t number) { return slots_[number]; }
    const Slot& slot(uint16_t number) const { return slots_[number]; }

  private:
    std::vector<Slot> slots_;
    std::unordered_map<NamespaceId, uint16_t> numbers_;
};

}  // namespace kvstore
