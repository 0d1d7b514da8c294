// Leases by id, with their bytes summed per tenant and the next expiry kept.
#include "store/lease_table.h"

#include <algorithm>
#include <utility>

#include "base/status.h"

namespace kvstore {

uint64_t LeaseTable::room_bytes(TenantId tenant) const {
    const auto it = tenant_bytes_.find(tenant);
    const uint64_t used = it == tenant_bytes_.end() ? 0 : it->second;
    return used >= tenant_cap_bytes_ ? 0 : tenant_cap_bytes_ - used;
}

uint64_t LeaseTable::add(Lease lease) {
    KV_ASSERT(!full());
    const uint64_t id = next_id_++;
    bytes_ += lease.bytes;
    if (lease.bytes > 0) {
        tenant_bytes_[lease.tenant] += lease.bytes;
    }
    next_expires_at_ms_ = std::min(next_expires_at_ms_, lease.deadline_ms);
    leases_.emplace(id, std::move(lease));
    return id;
}

bool LeaseTable::renew(uint64_t session, uint64_t lease_id, uint64_t deadline_ms, uint64_t now_ms) {
    const auto it = leases_.find(lease_id);
    if (it == leases_.end() || it->second.session != session) {
        return false;
    }
    if (it->second.deadline_ms <= now_ms) {
        return false;
    }
    it->second.deadline_ms = deadline_ms;
    next_expires_at_ms_ = std::min(next_expires_at_ms_, deadline_ms);
    return true;
}

LeaseTable::Lease LeaseTable::extract(std::unordered_map<uint64_t, Lease>::iterator it) {
    Lease lease = std::move(it->second);
    leases_.erase(it);
    bytes_ -= lease.bytes;
    if (lease.bytes == 0) {
        return lease;  // of empty objects only
    }
    const auto tenant = tenant_bytes_.find(lease.tenant);
    KV_ASSERT(tenant != tenant_bytes_.end() && tenant->second >= lease.bytes);
    tenant->second -= lease.bytes;
    if (tenant->second == 0) {
        tenant_bytes_.erase(tenant);
    }
    return lease;
}

std::optional<LeaseTable::Lease> LeaseTable::take(uint64_t session, uint64_t lease_id) {
    const auto it = leases_.find(lease_id);
    if (it == leases_.end() || it->second.session != session) {
        return std::nullopt;
    }
    return extract(it);
}

std::vector<LeaseTable::Lease> LeaseTable::take_session(uint64_t session) {
    std::vector<Lease> taken;
    for (auto it = leases_.begin(); it != leases_.end();) {
        const auto next = std::next(it);
        if (it->second.session == session) {
            taken.push_back(extract(it));
        }
        it = next;
    }
    return taken;
}

std::vector<LeaseTable::Lease> LeaseTable::take_expired(uint64_t now_ms) {
    std::vector<Lease> taken;
    if (now_ms < next_expires_at_ms_) {
        return taken;
    }
    next_expires_at_ms_ = UINT64_MAX;
    for (auto it = leases_.begin(); it != leases_.end();) {
        const auto next = std::next(it);
        if (it->second.deadline_ms <= now_ms) {
            taken.push_back(extract(it));
        } else {
            next_expires_at_ms_ = std::min(next_expires_at_ms_, it->second.deadline_ms);
        }
        it = next;
    }
    return taken;
}

}  // namespace kvstore
