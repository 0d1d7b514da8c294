// Leases: timed protection of objects, owned by a session, their bytes capped per tenant.
//
// Only the bookkeeping of who protects what until when; what protection means is the block store's.
// Private to the node and not thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/types.h"

namespace kvstore {

class LeaseTable {
  public:
    static constexpr size_t kMaxLeases = 65'536;
    static constexpr size_t kMaxTenantLeases = kMaxLeases / 2;
    struct Item {
        uint32_t entry = 0;
        Generation generation = 0;
    };
    struct Lease {
        uint64_t session = 0;
        TenantId tenant = 0;
        uint64_t deadline_ms = 0;
        uint64_t bytes = 0;
        std::vector<Item> items;
    };

    explicit LeaseTable(uint64_t tenant_cap_bytes) : tenant_cap_bytes_(tenant_cap_bytes) {}

    bool full(TenantId tenant) const;
    uint64_t room_bytes(TenantId tenant) const;
    // Returns the lease's id, never 0. The caller has kept to full() and room_bytes().
    uint64_t add(Lease lease);
    // False when the lease is unknown, over, or another session's.
    bool renew(uint64_t session, uint64_t lease_id, uint64_t deadline_ms, uint64_t now_ms);
    // Take a lease out; the caller ends the protection of its items.
    std::optional<Lease> take(uint64_t session, uint64_t lease_id);
    std::vector<Lease> take_session(uint64_t session);
    std::vector<Lease> take_expired(uint64_t now_ms);

    size_t size() const { return leases_.size(); }
    uint64_t bytes() const { return bytes_; }
    const std::unordered_map<uint64_t, Lease>& all() const { return leases_; }

  private:
    Lease extract(std::unordered_map<uint64_t, Lease>::iterator it);

    uint64_t tenant_cap_bytes_;
    uint64_t next_id_ = 1;
    uint64_t bytes_ = 0;
    uint64_t next_expires_at_ms_ = UINT64_MAX;  // no lease ends before it
    std::unordered_map<uint64_t, Lease> leases_;
    struct Held {
        size_t leases = 0;
        uint64_t bytes = 0;
    };
    std::unordered_map<TenantId, Held> tenants_;
};

}  // namespace kvstore
