// Offering, confirming and reading the client slots.
#include "node/served_slots.h"

#include <algorithm>

#include "base/mutex.h"

namespace kvstore {

static_assert(kSharedCounterCount <= static_cast<int>(kSlotCounterCount));

// The clients of an earlier life of the node: their slots are theirs still, and they come back.
ServedSlots::ServedSlots(ClientSlots& slots) : slots_(slots) {
    for (const uint32_t slot : slots.live_slots()) {
        live_.emplace(slot, Tenant{slots.holder(slot), {}, {}});
    }
}

int ServedSlots::offer(pid_t pid, int* fd) {
    const MutexLock lock(mutex_);
    const Result<uint32_t> slot = slots_.assign();
    if (!slot.ok()) {
        return -1;
    }
    offered_[*slot] = {pid};
    *fd = slots_.fd(*slot);
    return static_cast<int>(*slot);
}

void ServedSlots::give_back(int slot) {
    const MutexLock lock(mutex_);
    const auto offer = offered_.find(static_cast<uint32_t>(slot));
    if (offer == offered_.end()) {
        return;
    }
    // While it is locked, another session of that process may be about to confirm it.
    offer->second.is_over = !slots_.free_slot(offer->first);
    if (!offer->second.is_over) {
        offered_.erase(offer);
    }
}

bool ServedSlots::is_held(uint32_t slot, const FileKey& file, pid_t pid) const {
    const MutexLock lock(mutex_);
    const auto known = live_.find(slot);
    return known != live_.end() && known->second.pid == pid && file == slots_.file(slot) &&
           slots_.is_alive(slot);
}

Code ServedSlots::confirm(uint32_t slot, pid_t pid, const std::string& tenant) {
    const MutexLock lock(mutex_);
    const auto known = live_.find(slot);
    const auto offer = offered_.find(slot);
    const bool offered = offer != offered_.end();
    // A slot is one process: nobody speaks for the slot of another.
    if (offered ? offer->second.pid != pid : known == live_.end() || known->second.pid != pid) {
        return Code::kPermissionDenied;
    }
    const Status confirmed = slots_.confirm(slot);
    if (confirmed.ok() && !offered && known->second.tenant.empty()) {
        known->second.tenant = tenant;
    }
    if (confirmed.ok() && offered) {
        if (known != live_.end()) {
            add(retired_[known->second.tenant], known->second.seen);
        }
        live_.insert_or_assign(slot, Tenant{pid, tenant, {}});
        offered_.erase(offer);
    }
    return confirmed.code();
}

void ServedSlots::add(Values& to, const Values& more) {
    std::transform(to.begin(), to.end(), more.begin(), to.begin(), std::plus<>());
}

void ServedSlots::tick() {
    const MutexLock lock(mutex_);
    std::erase_if(offered_, [this](const auto& offer) {
        return offer.second.is_over && slots_.free_slot(offer.first);
    });
    for (const uint32_t slot : slots_.collect_lost()) {
        const auto known = live_.find(slot);
        if (known != live_.end() && lost_.size() < kSlotCount) {
            lost_.push_back(holder(known->second));
        }
    }
    const std::vector<uint32_t> live = slots_.live_slots();
    for (auto at = live_.begin(); at != live_.end();) {
        if (std::find(live.begin(), live.end(), at->first) == live.end()) {
            add(retired_[at->second.tenant], at->second.seen);
            at = live_.erase(at);
            continue;
        }
        const SlotCounters counted = slots_.counters(at->first);
        std::copy_n(counted.begin(), at->second.seen.size(), at->second.seen.begin());
        ++at;
    }
}

uint64_t ServedSlots::live() const { return slots_.live_slots().size(); }

std::string ServedSlots::holders() const {
    const MutexLock lock(mutex_);
    std::string text;
    for (const auto& [slot, owner] : live_) {
        text += (text.empty() ? "mapped by " : ", ") + holder(owner);
    }
    return text.empty() ? "mapped by no client" : text;
}

std::string ServedSlots::holder(const Tenant& tenant) {
    return "pid " + std::to_string(tenant.pid) +
           (tenant.tenant.empty() ? "" : " (tenant " + tenant.tenant + ")");
}

std::vector<std::string> ServedSlots::take_lost() {
    const MutexLock lock(mutex_);
    return std::exchange(lost_, {});
}

std::vector<TenantCounters> ServedSlots::counters() const {
    std::map<std::string, TenantCounters> by_tenant;
    const MutexLock lock(mutex_);
    for (const auto& [tenant, values] : retired_) {
        add(by_tenant[tenant].values, values);
    }
    for (const auto& [slot, owner] : live_) {
        TenantCounters& sum = by_tenant[owner.tenant];
        add(sum.values, owner.seen);
        ++sum.live_slots;
    }
    std::vector<TenantCounters> out;
    for (auto& [tenant, sum] : by_tenant) {
        sum.tenant = tenant;
        out.push_back(std::move(sum));
    }
    return out;
}

}  // namespace kvstore
