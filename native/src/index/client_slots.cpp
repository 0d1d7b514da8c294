// The node's side of the client slots: their files, assignment, liveness, scans.
#include "index/client_slots.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <filesystem>

#include "base/clock.h"
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

uint64_t file_bytes(int fd) {
    struct stat info{};
    return fstat(fd, &info) == 0 ? static_cast<uint64_t>(info.st_size) : 0;
}

// The number behind `prefix` in a file's name; nothing when that is no slot's.
std::optional<uint32_t> slot_of(const std::string& file, const std::string& prefix) {
    if (!file.starts_with(prefix)) {
        return std::nullopt;
    }
    uint32_t slot = 0;
    const char* const end = file.data() + file.size();
    const auto [stop, error] = std::from_chars(file.data() + prefix.size(), end, slot);
    if (error != std::errc() || stop != end || slot >= kSlotCount) {
        return std::nullopt;
    }
    return slot;
}

}  // namespace

// Locked before it is looked at: of two nodes that start at once, one gets it. The file keeps its
// inode for as long as its format is this one, because a lock on another inode would prove nothing.
Result<std::unique_ptr<ClientSlots>> ClientSlots::open(const std::string& directory,
                                                       const std::string& name,
                                                       bool discard_foreign) {
    std::unique_ptr<ClientSlots> slots(new ClientSlots(directory, name));
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
    Status status = slots->read_or_write_header();
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
    if (!directory.empty()) {
        slots->adopt_slot_files();
    }
    return slots;
}

Status ClientSlots::read_or_write_header() {
    if (!directory_.empty() && !is_named(fd_, directory_, name_)) {
        return {Code::kUnavailable, directory_ + "/" + name_ + " was replaced by another node"};
    }
    ClientsHeader header{};
    const uint64_t bytes = file_bytes(fd_);
    if (bytes != 0) {
        const bool read = pread(fd_, &header, sizeof header, 0) == ssize_t{sizeof header};
        // No client was ever given a slot beside a file whose header was not written.
        kept_ = read && header.magic != 0;
    }
    if (kept_) {
        if (Status status = read_header(header, bytes); !status.ok()) {
            return status;
        }
    }
    if (Status sized = size_region(fd_, directory_, sizeof header, name_); !sized.ok()) {
        return sized;
    }
    header.layout_version = kClientsVersion;
    header.slot_count = kSlotCount;
    header.slot_bytes = kSlotBytes;
    header.owner_pid = static_cast<uint32_t>(getpid());
    header.magic = kClientsMagic;
    if (pwrite(fd_, &header, sizeof header, 0) != ssize_t{sizeof header}) {
        return errno_status("pwrite", name_);
    }
    return {};
}

Status ClientSlots::read_header(const ClientsHeader& header, uint64_t file_bytes) const {
    if (header.magic == kClientsMagic && header.layout_version == 1 &&
        header.slot_bytes == kSlotBytes && file_bytes > kSlotBytes) {
        // Slots behind the header, whose clients this build does not scan.
        return SlotRegistry::locked_behind(fd_, 0)
                   ? Status(Code::kVersionMismatch,
                            "clients of an earlier release still map it: restart them first")
                   : Status();
    }
    if (header.magic != kClientsMagic || header.layout_version != kClientsVersion ||
        header.slot_count != kSlotCount || header.slot_bytes != kSlotBytes) {
        return {Code::kVersionMismatch, name_ + " is not a clients file of this format"};
    }
    return {};
}

// A slot whose lock is held counts as live, confirmed or not: its scan is on the safe side. The
// others are of the dead, or never came to be used.
void ClientSlots::adopt_slot_files() {
    std::error_code error;
    std::vector<uint32_t> found;
    for (const auto& entry : std::filesystem::directory_iterator(directory_, error)) {
        if (const auto slot = slot_of(entry.path().filename().string(), name_ + ".")) {
            found.push_back(*slot);
        }
    }
    const MutexLock lock(mutex_);
    for (const uint32_t slot : found) {
        auto file = open_region(directory_, file_name(slot));
        // Without the clients file nothing else was kept either.
        if (file.ok() && (!kept_ || !adopt(slot, std::move(*file)))) {
            unlink((directory_ + "/" + file_name(slot)).c_str());
        }
    }
}

bool ClientSlots::adopt(uint32_t slot, Fd file) {
    Slot& one = slots_[slot];
    const int fd = file.get();
    const auto key = SlotRegistry::instance().keep(std::move(file));
    if (!key.ok()) {
        return false;
    }
    one.fd = fd;
    one.key = *key;
    if (!lives_or_drains(one)) {
        SlotRegistry::instance().release_owner(one.key);
        one = Slot();
        return false;
    }
    // The client could take the owner's lock, and could shorten the file.
    const bool owned = SlotRegistry::instance().own(one.key);
    auto mapping = owned && file_bytes(fd) == kSlotFileBytes
                       ? Mapping::map(fd, kSlotFileBytes, true)
                       : Result<Mapping>(Status(Code::kIoError));
    if (!mapping.ok()) {
        one.state = State::kLost;
        lost_.push_back(slot);
        return true;
    }
    one.mapping = std::move(*mapping);
    one.state = State::kLive;
    // Entry numbers of the earlier index say nothing about the new one.
    one.touches_seen = page(slot).touch_count.load(kRelaxed);
    live_.push_back(slot);
    return true;
}

ClientSlots::~ClientSlots() {
    if (fd_ < 0) {
        return;
    }
    const MutexLock lock(mutex_);
    for (const Slot& slot : slots_) {
        if (slot.fd >= 0) {
            SlotRegistry::instance().release_owner(slot.key);
        }
    }
    SlotRegistry::instance().release_owner(key_);
}

void ClientSlots::remove_files() {
    const MutexLock lock(mutex_);
    if (directory_.empty()) {
        return;
    }
    for (uint32_t slot = 0; slot < kSlotCount; ++slot) {
        if (is_named(slots_[slot].fd, directory_, file_name(slot))) {
            unlink((directory_ + "/" + file_name(slot)).c_str());
        }
    }
    if (is_named(fd_, directory_, name_)) {
        unlink((directory_ + "/" + name_).c_str());
    }
}

std::string ClientSlots::file_name(uint32_t slot) const {
    return name_ + "." + std::to_string(slot);
}

// Its first touch must not fail, so its memory is taken now.
Status ClientSlots::create_file(uint32_t slot) {
    const std::string name = file_name(slot);
    auto file = create_region(directory_, name);
    if (!file.ok()) {
        return file.status();
    }
    const int fd = file->get();
    Status status = size_region(fd, directory_, kSlotFileBytes, name);
    if (status.ok()) {
        status = reserve_bytes(fd, 0, kSlotFileBytes, name);
    }
    const SlotHeader header{kSlotMagic, kLayoutVersion, kSlotBytes, slot,
                            static_cast<uint32_t>(getpid())};
    if (status.ok() && pwrite(fd, &header, sizeof header, 0) != ssize_t{sizeof header}) {
        status = errno_status("pwrite", name);
    }
    auto mapping = status.ok() ? Mapping::map(fd, kSlotFileBytes, true) : Result<Mapping>(status);
    FileKey key;
    if (mapping.ok()) {
        status = SlotRegistry::instance().adopt_owner(std::move(*file), &key).status();
    } else {
        status = mapping.status();
    }
    if (!status.ok()) {
        if (!directory_.empty()) {
            unlink((directory_ + "/" + name).c_str());
        }
        return status;
    }
    Slot& one = slots_[slot];
    one.fd = fd;
    one.key = key;
    one.mapping = std::move(*mapping);
    return {};
}

void ClientSlots::remove_file(uint32_t slot) {
    Slot& one = slots_[slot];
    if (one.fd < 0) {
        return;
    }
    if (!directory_.empty() && is_named(one.fd, directory_, file_name(slot))) {
        unlink((directory_ + "/" + file_name(slot)).c_str());
    }
    one.mapping = Mapping();
    SlotRegistry::instance().release_owner(one.key);
    one.fd = -1;
    one.key = {};
    one.touches_seen = 0;
    one.drains_until_ms = 0;
}

SlotPage& ClientSlots::page(uint32_t slot) const {
    return *reinterpret_cast<SlotPage*>(slots_[slot].mapping.data() + kSlotPageOffset);
}

bool ClientSlots::lock_seen(const Slot& slot) const {
    return slot.fd >= 0 && (SlotRegistry::instance().holds(slot.key) ||
                            SlotRegistry::locked_elsewhere(slot.fd, kSlotPageOffset));
}

// Read from the file: of a lost slot nothing is mapped any more.
bool ClientSlots::lives_or_drains(const Slot& slot) const {
    if (lock_seen(slot)) {
        return true;
    }
    constexpr uint64_t kAt = kSlotPageOffset + offsetof(SlotPage, devices);
    uint64_t devices = 0;
    const bool is_read =
        slot.fd >= 0 && pread(slot.fd, &devices, sizeof devices, kAt) == ssize_t{sizeof devices};
    if (slot.fd < 0 || (is_read && devices == 0)) {
        return false;
    }
    const uint64_t now_ms = boottime_ms();
    if (slot.drains_until_ms == 0) {
        slot.drains_until_ms = now_ms + kDeviceDrainMs;
    }
    return now_ms < slot.drains_until_ms;
}

Result<uint32_t> ClientSlots::assign() {
    const MutexLock lock(mutex_);
    for (uint32_t tried = 0; tried < kSlotCount; ++tried) {
        const uint32_t slot = (next_ + tried) % kSlotCount;
        if (slots_[slot].state != State::kFree) {
            continue;
        }
        Status created;
        steps::recycle_slot(
            steps::RealMemory{},
            [&] {
                mutex_.assert_held();
                created = create_file(slot);
            },
            [&] {
                mutex_.assert_held();
                slots_[slot].state = created.ok() ? State::kAssigned : State::kFree;
            });
        if (!created.ok()) {
            return created;
        }
        next_ = (slot + 1) % kSlotCount;
        return slot;
    }
    return {Code::kOverloaded, "all client slots are taken"};
}

int ClientSlots::fd(uint32_t slot) const {
    const MutexLock lock(mutex_);
    return slot < kSlotCount ? slots_[slot].fd : -1;
}

FileKey ClientSlots::file(uint32_t slot) const {
    const MutexLock lock(mutex_);
    return slot < kSlotCount ? slots_[slot].key : FileKey{};
}

Status ClientSlots::confirm(uint32_t slot) {
    const MutexLock lock(mutex_);
    const bool given = slot < kSlotCount && (slots_[slot].state == State::kAssigned ||
                                             slots_[slot].state == State::kLive);
    if (!given || !lock_seen(slots_[slot])) {
        return {Code::kInvalidArgument, "slot is not assigned or its lock is not held"};
    }
    if (slots_[slot].state == State::kAssigned) {
        slots_[slot].state = State::kLive;
        live_.push_back(slot);
    }
    return {};
}

pid_t ClientSlots::holder(uint32_t slot) const {
    const MutexLock lock(mutex_);
    const Slot& one = slots_[slot];
    return SlotRegistry::instance().holds(one.key)
               ? getpid()
               : SlotRegistry::lock_holder(one.fd, kSlotPageOffset);
}

bool ClientSlots::is_alive(uint32_t slot) const {
    const MutexLock lock(mutex_);
    return slot < kSlotCount && lives_or_drains(slots_[slot]);
}

std::vector<uint32_t> ClientSlots::collect_dead() {
    const MutexLock lock(mutex_);
    std::vector<uint32_t> dead;
    for (const std::vector<uint32_t>* list : {&live_, &lost_}) {
        for (const uint32_t slot : *list) {
            if (steps::slot_is_dead(steps::RealMemory{}, lives_or_drains(slots_[slot]), false)) {
                dead.push_back(slot);
            }
        }
    }
    for (const uint32_t slot : dead) {
        if (slots_[slot].state == State::kLive) {
            add_to(retired_counters_, page(slot));
        }
        slots_[slot].state = State::kDead;
        std::erase(live_, slot);
        std::erase(lost_, slot);
    }
    return dead;
}

std::vector<uint32_t> ClientSlots::collect_lost() {
    const MutexLock lock(mutex_);
    std::vector<uint32_t> torn;
    std::ranges::copy_if(live_, std::back_inserter(torn), [&](uint32_t slot) KV_REQUIRES(mutex_) {
        const Slot& one = slots_[slot];
        return one.mapping.torn() || file_bytes(one.fd) < kSlotFileBytes;
    });
    for (const uint32_t slot : torn) {
        slots_[slot].state = State::kLost;
        std::erase(live_, slot);
        lost_.push_back(slot);
    }
    return torn;
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
    if ((state != State::kAssigned && state != State::kDead) || lock_seen(slots_[slot])) {
        return false;
    }
    remove_file(slot);
    slots_[slot].state = State::kFree;
    return true;
}

std::vector<uint32_t> ClientSlots::live_slots() const {
    const MutexLock lock(mutex_);
    return live_;
}

bool ClientSlots::has_clients() const {
    const MutexLock lock(mutex_);
    return !live_.empty() || !lost_.empty();
}

bool ClientSlots::hazard_present(Generation gen) const {
    const MutexLock lock(mutex_);
    return std::any_of(live_.begin(), live_.end(), [&](uint32_t slot) KV_REQUIRES(mutex_) {
        return steps::slot_holds(steps::RealMemory{}, page(slot).hazards, gen);
    });
}

bool ClientSlots::holds_block(Generation gen, uint64_t offset) const {
    const MutexLock lock(mutex_);
    return std::any_of(live_.begin(), live_.end(), [&](uint32_t slot) KV_REQUIRES(mutex_) {
        const auto& hazards = page(slot).hazards;
        return steps::slot_holds(steps::RealMemory{}, hazards, gen) ||
               steps::slot_holds_block(steps::RealMemory{}, hazards, offset);
    });
}

void ClientSlots::collect_hazards(std::vector<Generation>* out) const {
    const MutexLock lock(mutex_);
    out->clear();
    for (const uint32_t slot : live_) {
        steps::for_each_hazard(steps::RealMemory{}, page(slot).hazards,
                               [&](Generation gen) { out->push_back(gen); });
    }
    std::sort(out->begin(), out->end());
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

uint64_t ClientSlots::drain_touches(const std::function<void(uint32_t entry_ref)>& fn) {
    const MutexLock lock(mutex_);
    uint64_t lost = 0;
    for (const uint32_t slot : live_) {
        SlotPage& p = page(slot);
        const uint64_t count = p.touch_count.load(std::memory_order_acquire);
        uint64_t& seen = slots_[slot].touches_seen;
        // Whatever the client wrote there, at most one ring's worth is read.
        if (count - seen > kSlotTouches) {
            lost += count - kSlotTouches - seen;
            seen = count - kSlotTouches;
        }
        for (; seen != count; ++seen) {
            const uint32_t touch = p.touches[seen % kSlotTouches].load(kRelaxed);
            if (touch != 0) {
                fn(touch - 1);
            }
        }
    }
    return lost;
}

SlotCounters ClientSlots::counters(uint32_t slot) const {
    SlotCounters counters{};
    const MutexLock lock(mutex_);
    if (slot < kSlotCount && slots_[slot].mapping.data() != nullptr) {
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
