// Leases by id, with their bytes summed per tenant and the next expiry kept.
#include "store/lease_table.h"

#include <algorithm>
#include <utility>

#include "base/status.h"

namespace kvstore {

uint64_t LeaseTable::room_bytes(TenantId tenant) const {
    const auto it = tenants_.find(tenant);
    const uint64_t used = it == tenants_.end() ? 0 : it->second.bytes;
    return used >= tenant_cap_bytes_ ? 0 : tenant_cap_bytes_ - used;
}

bool LeaseTable::full(TenantId tenant) const {
    const auto it = tenants_.find(tenant);
    return leases_.size() >= kMaxLeases ||
           (it != tenants_.end() && it->second.leases >= kMaxTenantLeases);
}

uint64_t LeaseTable::add(Lease lease) {
    KV_ASSERT(!full(lease.tenant));
    const uint64_t id = next_id_++;
    bytes_ += lease.bytes;
    Held& held = tenants_[lease.tenant];
    ++held.leases;
    held.bytes += lease.bytes;
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
    const auto tenant = tenants_.find(lease.tenant);
    KV_ASSERT(tenant != tenants_.end() && tenant->second.bytes >= lease.bytes);
    tenant->second.bytes -= lease.bytes;
    if (--tenant->second.leases == 0) {
        tenants_.erase(tenant);
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
