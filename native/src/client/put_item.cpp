// The columns of a put's messages.
#include "client/put_item.h"

#include "wire/messages_node.h"

namespace kvstore {

PutRows::PutRows(std::span<PutItem* const> items, const PutOptions& options) {
    bool chained = false;
    for (const PutItem* item : items) {
        keys.push_back(item->key);
        parents.push_back(item->parent);
        sizes.push_back(item->data.size());
        chained |= !item->parent.empty();
    }
    if (!chained) {
        parents.clear();
    }
    pins.assign(options.pin == Pin::kNone ? 0 : items.size(), static_cast<uint8_t>(options.pin));
    replicas.assign(items.size(), options.replicas);
    ttl_ms.assign(options.ttl_ms == 0 ? 0 : items.size(), options.ttl_ms);
    flags.assign(options.upsert ? items.size() : 0, kPutUpsert);
}

}  // namespace kvstore
