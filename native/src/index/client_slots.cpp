// The node's side of the clients file: assignment of slots, liveness, scans.
#include "index/client_slots.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "base/mutex.h"
#include "index/protocol_steps.h"
#include "index/slot_registry.h"

namespace kvstore {
namespace {

void add_to(SlotCounters& sum, const SlotPage& page) {
    for (uint32_t i = 0; i < kSlotCounterCount; ++i) {
        sum[i] += page.counters[i].load(kRelaxed);
    }
}

}  // namespace

// Locked before it is looked at: of two nodes that start at once, one gets it. The file keeps its
// inode for as long as its format is this one, because a lock on another inode would prove nothing.
Result<std::unique_ptr<ClientSlots>> ClientSlots::open(const std::string& directory,
                                                       const std::string& name,
                                                       bool discard_foreign) {
    std::unique_ptr<ClientSlots> slots(new ClientSlots);
    slots->name_ = name;
    auto fd = directory.empty() ? create_region(directory, name) : keep_region(directory, name);
    if (!fd.ok()) {
        return fd.status();
    }
    auto owned = SlotRegistry::instance().adopt_owner(std::move(*fd), &slots->key_);
    if (!owned.ok()) {
        return {owned.code(), directory + "/" + name +
                                  " belongs to a node that runs: " + owned.status().message()};
    }
    slots->fd_ = *owned;
    Status status = slots->read_or_write_header(directory, name);
    if (status.code() == Code::kVersionMismatch && discard_foreign && !directory.empty()) {
        // Its clients keep the old inode, and its lock, which says nothing about the new one.
        slots.reset();
        auto fresh = create_region(directory, name);
        if (!fresh.ok()) {
            return fresh.status();
        }
        fresh->reset();
        return open(directory, name, false);
    }
    if (!status.ok()) {
        return status;
    }
    auto mapping = Mapping::map(slots->fd_, kClientsFileBytes, true);
    if (!mapping.ok()) {
        return mapping.status();
    }
    slots->mapping_ = std::move(*mapping);
    if (slots->kept_) {
        slots->adopt_live_slots();
    }
    return slots;
}

Status ClientSlots::read_or_write_header(const std::string& directory, const std::string& name) {
    if (!directory.empty() && !is_named(fd_, directory, name)) {
        return {Code::kUnavailable, directory + "/" + name + " was replaced by another node"};
    }
    struct stat info{};
    if (fstat(fd_, &info) != 0) {
        return errno_status("fstat", name);
    }
    ClientsHeader header{};
    if (info.st_size != 0) {
        if (info.st_size != static_cast<off_t>(kClientsFileBytes)) {
            return {Code::kVersionMismatch, name + " is not a clients file of this format"};
        }
        const bool read = pread(fd_, &header, sizeof header, 0) == ssize_t{sizeof header};
        // Nobody was ever given a file whose header was not written.
        kept_ = read && header.magic != 0;
        if (kept_ && (header.magic != kClientsMagic || header.layout_version != kLayoutVersion ||
                      header.slot_count != kSlotCount || header.slot_bytes != kSlotBytes)) {
            return {Code::kVersionMismatch, name + " is not a clients file of this format"};
        }
    }
    if (Status sized = size_region(fd_, directory, kClientsFileBytes, name); !sized.ok()) {
        return sized;
    }
    header.layout_version = kLayoutVersion;
    header.slot_count = kSlotCount;
    header.slot_bytes = kSlotBytes;
    header.owner_pid = static_cast<uint32_t>(getpid());
    header.magic = kClientsMagic;
    if (pwrite(fd_, &header, sizeof header, 0) != ssize_t{sizeof header}) {
        return errno_status("pwrite", name);
    }
    return {};
}

// A slot whose lock is held counts as live, confirmed or not: its scan is on the safe side.
void ClientSlots::adopt_live_slots() {
    const MutexLock lock(mutex_);
    for (uint32_t slot = 0; slot < kSlotCount; ++slot) {
        if (!lock_seen(slot)) {
            continue;
        }
        slots_[slot].state = State::kLive;
        slots_[slot].backed = true;
        // Entry numbers of the earlier index say nothing about the new one.
        slots_[slot].touches_seen = page(slot).touch_count.load(kRelaxed);
        live_.push_back(slot);
    }
}

ClientSlots::~ClientSlots() {
    if (fd_ >= 0) {
        SlotRegistry::instance().release_owner(key_);
    }
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
    for (SharedWord& counter : p.counters) {
        counter.store(0, kRelaxed);
    }
    for (SharedHalf& touch : p.touches) {
        touch.store(0, kRelaxed);
    }
    p.touch_count.store(0, kRelaxed);
    for (SharedWord& spare : p.spares) {
        spare.store(0, kRelaxed);
    }
}

Status ClientSlots::back(uint32_t slot) {
    if (slots_[slot].backed) {
        return {};
    }
    const uint64_t begin = slot_offset(slot);
    const Status reserved = reserve_bytes(fd_, begin, begin + kSlotBytes, "clients");
    slots_[slot].backed = reserved.ok();
    return reserved;
}

Result<uint32_t> ClientSlots::assign() {
    const MutexLock lock(mutex_);
    for (uint32_t tried = 0; tried < kSlotCount; ++tried) {
        const uint32_t slot = (next_ + tried) % kSlotCount;
        // A lock on a free slot: its client was given up before it came to lock. Not ours to clear.
        if (slots_[slot].state != State::kFree || lock_seen(slot)) {
            continue;
        }
        if (Status backed = back(slot); !backed.ok()) {
            return backed;
        }
        steps::recycle_slot(
            steps::RealMemory{}, [&] { clear(slot); },
            [&] {
                mutex_.assert_held();
                slots_[slot].state = State::kAssigned;
                slots_[slot].touches_seen = 0;
            });
        next_ = (slot + 1) % kSlotCount;
        return slot;
    }
    return {Code::kOverloaded, "all client slots are taken"};
}

Status ClientSlots::confirm(uint32_t slot) {
    const MutexLock lock(mutex_);
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

pid_t ClientSlots::holder(uint32_t slot) const {
    return SlotRegistry::instance().holds(key_, slot)
               ? getpid()
               : SlotRegistry::lock_holder(fd_, slot_offset(slot));
}

bool ClientSlots::is_alive(uint32_t slot) const { return slot < kSlotCount && lock_seen(slot); }

std::vector<uint32_t> ClientSlots::collect_dead() {
    const MutexLock lock(mutex_);
    std::vector<uint32_t> dead;
    for (const uint32_t slot : live_) {
        if (steps::slot_is_dead(steps::RealMemory{}, lock_seen(slot), false)) {
            dead.push_back(slot);
        }
    }
    for (const uint32_t slot : dead) {
        slots_[slot].state = State::kDead;
        std::erase(live_, slot);
        add_to(retired_counters_, page(slot));
    }
    return dead;
}

bool ClientSlots::free_slot(uint32_t slot) {
    const MutexLock lock(mutex_);
    if (slot >= kSlotCount) {
        return false;
    }
    const State state = slots_[slot].state;
    if (state == State::kFree) {
        return true;
    }
    // A live slot goes through collect_dead() first, so that what its client owned is given back.
    if (state == State::kLive || lock_seen(slot)) {
        return false;
    }
    slots_[slot].state = State::kFree;
    return true;
}

std::vector<uint32_t> ClientSlots::live_slots() const {
    const MutexLock lock(mutex_);
    return live_;
}

bool ClientSlots::hazard_present(Generation gen) const {
    const MutexLock lock(mutex_);
    const bool found = std::any_of(live_.begin(), live_.end(), [&](uint32_t slot) {
        return steps::slot_holds(steps::RealMemory{}, page(slot).hazards, gen);
    });
    return found || mapping_.torn();
}

bool ClientSlots::holds_block(Generation gen, uint64_t offset) const {
    const MutexLock lock(mutex_);
    return std::any_of(live_.begin(), live_.end(), [&](uint32_t slot) {
        const auto& hazards = page(slot).hazards;
        return steps::slot_holds(steps::RealMemory{}, hazards, gen) ||
               steps::slot_holds_block(steps::RealMemory{}, hazards, offset);
    });
}

bool ClientSlots::collect_hazards(std::vector<Generation>* out) const {
    const MutexLock lock(mutex_);
    out->clear();
    for (const uint32_t slot : live_) {
        steps::for_each_hazard(steps::RealMemory{}, page(slot).hazards,
                               [&](Generation gen) { out->push_back(gen); });
    }
    std::sort(out->begin(), out->end());
    return !mapping_.torn();
}

std::string ClientSlots::damage() const {
    struct stat info{};
    if (fstat(fd_, &info) == 0 && info.st_size < static_cast<off_t>(kClientsFileBytes)) {
        return name_ + " was cut to " + std::to_string(info.st_size) + " bytes";
    }
    return mapping_.torn() ? name_ + " has lost pages" : std::string();
}

std::vector<std::pair<Generation, uint64_t>> ClientSlots::hazards() const {
    const MutexLock lock(mutex_);
    std::vector<std::pair<Generation, uint64_t>> found;
    for (const uint32_t slot : live_) {
        for (const Hazard& hazard : page(slot).hazards) {
            const Generation gen = hazard.gen.load(std::memory_order_acquire);
            if (gen != 0) {
                found.emplace_back(gen, hazard.offset.load(kRelaxed));
            }
        }
    }
    return found;
}

bool ClientSlots::revoke_spare(uint32_t slot, Generation gen) {
    const MutexLock lock(mutex_);
    if (slot >= kSlotCount || slots_[slot].state != State::kLive) {
        return false;
    }
    return std::ranges::any_of(page(slot).spares, [gen](SharedWord& word) {
        return word.load(kRelaxed) == gen && steps::revoke_spare(steps::RealMemory{}, word, gen);
    });
}

void ClientSlots::drain_touches(const std::function<void(uint32_t entry_ref)>& fn) {
    const MutexLock lock(mutex_);
    for (const uint32_t slot : live_) {
        SlotPage& p = page(slot);
        const uint64_t count = p.touch_count.load(std::memory_order_acquire);
        uint64_t& seen = slots_[slot].touches_seen;
        // Whatever the client wrote there, at most one ring's worth is read.
        if (count - seen > kSlotTouches) {
            seen = count - kSlotTouches;
        }
        for (; seen != count; ++seen) {
            const uint32_t touch = p.touches[seen % kSlotTouches].load(kRelaxed);
            if (touch != 0) {
                fn(touch - 1);
            }
        }
    }
}

SlotCounters ClientSlots::counters(uint32_t slot) const {
    SlotCounters counters{};
    const MutexLock lock(mutex_);
    if (slot < kSlotCount && slots_[slot].backed) {
        add_to(counters, page(slot));
    }
    return counters;
}

SlotCounters ClientSlots::total_counters() const {
    const MutexLock lock(mutex_);
    SlotCounters sum = retired_counters_;
    for (const uint32_t slot : live_) {
        add_to(sum, page(slot));
    }
    return sum;
}

}  // namespace kvstore
