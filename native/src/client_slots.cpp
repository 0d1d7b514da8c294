// The node's side of the clients file: assignment of slots, liveness, scans.
#include "kvstore/client_slots.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "kvstore/protocol_steps.h"
#include "kvstore/slot_registry.h"

namespace kvstore {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

void add_to(SlotCounters& sum, const SlotPage& page) {
    for (uint32_t i = 0; i < kSlotCounterCount; ++i) sum[i] += page.counters[i].load(kRelaxed);
}

}  // namespace

Result<std::unique_ptr<ClientSlots>> ClientSlots::create(const std::string& directory,
                                                         const std::string& name) {
    auto fd = create_region(directory, name);
    if (!fd.ok()) return fd.status();
    if (ftruncate(fd->get(), static_cast<off_t>(kClientsFileBytes)) != 0) {
        return errno_status("ftruncate", name);
    }
    ClientsHeader header{};
    header.magic = kClientsMagic;
    header.layout_version = kLayoutVersion;
    header.slot_count = kSlotCount;
    header.slot_bytes = kSlotBytes;
    header.owner_pid = static_cast<uint32_t>(getpid());
    if (pwrite(fd->get(), &header, sizeof(header), 0) != static_cast<ssize_t>(sizeof(header))) {
        return errno_status("pwrite", name);
    }
    auto mapping = Mapping::map(fd->get(), kClientsFileBytes, true);
    if (!mapping.ok()) return mapping.status();
    std::unique_ptr<ClientSlots> slots(new ClientSlots);
    slots->mapping_ = std::move(*mapping);
    slots->slots_.resize(kSlotCount);
    auto owned = SlotRegistry::instance().adopt_owner(std::move(*fd), &slots->key_);
    if (!owned.ok()) return owned.status();
    slots->fd_ = *owned;
    return slots;
}

ClientSlots::~ClientSlots() {
    if (fd_ >= 0) SlotRegistry::instance().release_owner(key_);
}

SlotPage& ClientSlots::page(uint32_t slot) const {
    return *reinterpret_cast<SlotPage*>(mapping_.data() + slot_offset(slot));
}

bool ClientSlots::lock_seen(uint32_t slot) const {
    return SlotRegistry::instance().holds(key_, slot) ||
           SlotRegistry::locked_elsewhere(fd_, slot_offset(slot));
}

void ClientSlots::clear(uint32_t slot) {
    SlotPage& p = page(slot);
    for (Hazard& hazard : p.hazards) {
        steps::clear_hazard(steps::RealMemory{}, hazard);
        hazard.offset.store(0, kRelaxed);
    }
    for (SharedWord& counter : p.counters) counter.store(0, kRelaxed);
    for (SharedHalf& touch : p.touches) touch.store(0, kRelaxed);
    p.touch_count.store(0, kRelaxed);
}

Status ClientSlots::back(uint32_t slot) {
    if (slots_[slot].backed) return {};
    while (fallocate(fd_, 0, static_cast<off_t>(slot_offset(slot)), kSlotBytes) != 0) {
        if (errno != EINTR) return errno_status("fallocate", "clients");
    }
    slots_[slot].backed = true;
    return {};
}

Result<uint32_t> ClientSlots::assign() {
    const std::lock_guard lock(mutex_);
    for (uint32_t tried = 0; tried < kSlotCount; ++tried) {
        const uint32_t slot = (next_ + tried) % kSlotCount;
        // A lock on a free slot: its client was given up before it came to lock. Not ours to clear.
        if (slots_[slot].state != State::kFree || lock_seen(slot)) continue;
        if (Status backed = back(slot); !backed.ok()) return backed;
        steps::recycle_slot(
            steps::RealMemory{}, [&] { clear(slot); },
            [&] {
                slots_[slot].state = State::kAssigned;
                slots_[slot].touches_seen = 0;
            });
        next_ = (slot + 1) % kSlotCount;
        return slot;
    }
    return {Code::kOverloaded, "all client slots are taken"};
}

Status ClientSlots::confirm(uint32_t slot) {
    const std::lock_guard lock(mutex_);
    const bool given = slot < kSlotCount && (slots_[slot].state == State::kAssigned ||
                                             slots_[slot].state == State::kLive);
    if (!given || !lock_seen(slot)) {
        return {Code::kInvalidArgument, "slot is not assigned or its lock is not held"};
    }
    if (slots_[slot].state == State::kAssigned) {
        slots_[slot].state = State::kLive;
        live_.push_back(slot);
    }
    return {};
}

bool ClientSlots::is_alive(uint32_t slot) const { return slot < kSlotCount && lock_seen(slot); }

std::vector<uint32_t> ClientSlots::collect_dead() {
    const std::lock_guard lock(mutex_);
    std::vector<uint32_t> dead;
    for (const uint32_t slot : live_) {
        if (steps::slot_is_dead(steps::RealMemory{}, lock_seen(slot), false)) dead.push_back(slot);
    }
    for (const uint32_t slot : dead) {
        slots_[slot].state = State::kDead;
        std::erase(live_, slot);
        add_to(retired_counters_, page(slot));
    }
    return dead;
}

bool ClientSlots::free_slot(uint32_t slot) {
    const std::lock_guard lock(mutex_);
    if (slot >= kSlotCount) return false;
    const State state = slots_[slot].state;
    if (state == State::kFree) return true;
    // A live slot goes through collect_dead() first, so that what its client owned is given back.
    if (state == State::kLive || lock_seen(slot)) return false;
    slots_[slot].state = State::kFree;
    return true;
}

std::vector<uint32_t> ClientSlots::live_slots() const {
    const std::lock_guard lock(mutex_);
    return live_;
}

bool ClientSlots::hazard_present(Generation gen) const {
    const std::lock_guard lock(mutex_);
    return std::any_of(live_.begin(), live_.end(), [&](uint32_t slot) {
        return steps::slot_holds(steps::RealMemory{}, page(slot).hazards, gen);
    });
}

void ClientSlots::collect_hazards(std::vector<Generation>* out) const {
    const std::lock_guard lock(mutex_);
    out->clear();
    for (const uint32_t slot : live_) {
        steps::for_each_hazard(steps::RealMemory{}, page(slot).hazards,
                               [&](Generation gen) { out->push_back(gen); });
    }
    std::sort(out->begin(), out->end());
}

void ClientSlots::drain_touches(const std::function<void(uint32_t entry_ref)>& fn) {
    const std::lock_guard lock(mutex_);
    for (const uint32_t slot : live_) {
        SlotPage& p = page(slot);
        const uint64_t count = p.touch_count.load(std::memory_order_acquire);
        uint64_t& seen = slots_[slot].touches_seen;
        // Whatever the client wrote there, at most one ring's worth is read.
        if (count - seen > kSlotTouches) seen = count - kSlotTouches;
        for (; seen != count; ++seen) {
            const uint32_t touch = p.touches[seen % kSlotTouches].load(kRelaxed);
            if (touch != 0) fn(touch - 1);
        }
    }
}

SlotCounters ClientSlots::counters(uint32_t slot) const {
    SlotCounters counters{};
    const std::lock_guard lock(mutex_);
    if (slot < kSlotCount && slots_[slot].backed) add_to(counters, page(slot));
    return counters;
}

SlotCounters ClientSlots::total_counters() const {
    const std::lock_guard lock(mutex_);
    SlotCounters sum = retired_counters_;
    for (const uint32_t slot : live_) add_to(sum, page(slot));
    return sum;
}

}  // namespace kvstore
