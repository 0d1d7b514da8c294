// A claim's rows as the columns of its message, which views them.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "wire/link_types.h"
#include "wire/messages_node.h"

namespace kvstore {

class ClaimColumns {
  public:
    explicit ClaimColumns(std::span<const ClaimItem> items) {
        for (const ClaimItem& item : items) {
            ids_.push_back(item.claim_id);
            keys_.push_back(item.key);
            sizes_.push_back(item.size_bytes);
            flags_.push_back(item.upsert ? kPutUpsert : 0);
            pins_.push_back(static_cast<uint8_t>(item.pin));
            replicas_.push_back(item.replicas);
        }
    }
    // Valid as long as these columns and `ns`.
    Claim message(const NamespaceEpoch& ns, uint32_t timeout_ms) const {
        return {.tenant = ns.tenant,
                .ns = ns.name,
                .epoch = ns.epoch,
                .claim_ids = ids_,
                .keys = keys_,
                .sizes = sizes_,
                .flags = flags_,
                .pins = pins_,
                .replicas = replicas_,
                .timeout_ms = timeout_ms};
    }

  private:
    std::vector<uint64_t> ids_;
    std::vector<std::string_view> keys_;
    std::vector<uint64_t> sizes_;
    std::vector<uint8_t> flags_;
    std::vector<uint8_t> pins_;
    std::vector<uint8_t> replicas_;
};

}  // namespace kvstore
