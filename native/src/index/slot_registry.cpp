// The process-wide table of slot files: who locks what, and which descriptors must stay open.
#include "index/slot_registry.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>

#include "base/mutation.h"
#include "index/protocol_steps.h"

namespace kvstore {
namespace {

constexpr uint64_t kOwnerByte = 0;

std::atomic<SlotRegistry*> current_registry{nullptr};

// Runs in a forked child. The parent's registry may be locked by a thread that does not exist here,
// and its descriptors must never be closed: it is abandoned.
void abandon_registry() { current_registry.store(nullptr, std::memory_order_release); }

bool set_lock(int fd, short type, uint64_t at) {
    struct flock lock{};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = static_cast<off_t>(at);
    lock.l_len = 1;
    return fcntl(fd, F_SETLK, &lock) == 0;
}

// The lock that another process holds in [at, at + bytes), if any; 0 bytes: to the end.
std::optional<struct flock> foreign_lock_at(int fd, uint64_t at, uint64_t bytes = 1) {
    struct flock lock{};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = static_cast<off_t>(at);
    lock.l_len = static_cast<off_t>(bytes);
    if (fcntl(fd, F_GETLK, &lock) != 0 || lock.l_type == F_UNLCK) {
        return std::nullopt;
    }
    return lock;
}

Result<FileKey> key_of(int fd) {
    struct stat info{};
    if (fstat(fd, &info) != 0) {
        return errno_status("fstat", "slot");
    }
    return FileKey{static_cast<uint64_t>(info.st_dev), static_cast<uint64_t>(info.st_ino)};
}

Status check_slot_file(int fd, uint32_t number) {
    struct stat info{};
    SlotHeader header{};
    if (fstat(fd, &info) != 0) {
        return errno_status("fstat", "slot");
    }
    if (static_cast<uint64_t>(info.st_size) < kSlotFileBytes ||
        pread(fd, &header, sizeof(header), 0) != static_cast<ssize_t>(sizeof(header)) ||
        header.magic != kSlotMagic || header.layout_version != kLayoutVersion ||
        header.slot_bytes != kSlotBytes || header.number != number) {
        return {Code::kVersionMismatch, "not a slot file of this format"};
    }
    return {};
}

}  // namespace

// What all handles of this process on one slot share.
struct ClientSlot::State {
    FileKey key;
    uint32_t number = 0;
    int fd = -1;  // one of the File's
    Mapping mapping;
    SlotPage* page = nullptr;
    std::atomic<uint64_t> hazards_used{
        0};  // bit i: hazards[i] is taken by a thread of this process
    std::atomic<bool> confirmed{false};
    uint32_t handles = 0;  // guarded by the registry's mutex, which has no name here
    Mutex writes_mutex;
    // Under way, by epoch of the node.
    std::map<uint32_t, uint32_t> writes KV_GUARDED_BY(writes_mutex);
    uint32_t writes_ended_below KV_GUARDED_BY(writes_mutex) = 0;
};
static_assert(kSlotHazards == 64, "hazards_used has one bit for each");

// A file that this process has to do with, as the node, as its client, or as both.
struct SlotRegistry::File {
    std::vector<Fd> fds;  // every descriptor of the inode that reached this process
    bool kept = false;    // by the node, until release_owner()
    bool owner = false;   // and its lock is ours
    std::unique_ptr<ClientSlot::State> slot;
    std::string place;      // of the slot, as its client says
    uint64_t acquired = 0;  // the later one has the greater number
};

SlotRegistry::SlotRegistry() = default;
SlotRegistry::~SlotRegistry() = default;

SlotRegistry& SlotRegistry::instance() {
    static const int registered = pthread_atfork(nullptr, nullptr, abandon_registry);
    KV_ASSERT(registered == 0);
    SlotRegistry* registry = current_registry.load(std::memory_order_acquire);
    if (registry != nullptr) {
        return *registry;
    }
    auto* fresh = new SlotRegistry;  // lives as long as the process: handles point to it
    if (current_registry.compare_exchange_strong(registry, fresh, std::memory_order_acq_rel)) {
        return *fresh;
    }
    delete fresh;  // another thread was faster
    return *registry;
}

Result<std::shared_ptr<ClientSlot>> SlotRegistry::acquire(Fd fd, uint32_t number,
                                                          const std::string& place) {
    const auto key = key_of(fd.get());
    if (!key.ok()) {
        return key.status();
    }
    const Status checked = check_slot_file(fd.get(), number);
    const MutexLock lock(mutex_);
    auto& file = files_[*key];
    if (!file) {
        file = std::make_unique<File>();
    }
    const int raw = fd.get();
    file->fds.push_back(std::move(fd));
    Status failure = checked;
    if (failure.ok() && !file->slot) {
        failure = open_slot(*file, *key, raw, number);
    }
    if (!failure.ok()) {
        close_if_unused(*key);
        return failure;
    }
    file->place = place;
    file->acquired = ++acquired_;
    return new_handle(*file);
}

std::shared_ptr<ClientSlot> SlotRegistry::find(const std::string& place) {
    const MutexLock lock(mutex_);
    const File* found = nullptr;
    for (const auto& [key, file] : files_) {
        if (file->slot && file->place == place && !file->slot->mapping.torn() &&
            (found == nullptr || file->acquired > found->acquired)) {
            found = file.get();
        }
    }
    return found == nullptr ? nullptr : new_handle(*found);
}

std::shared_ptr<ClientSlot> SlotRegistry::new_handle(const File& file) {
    ++file.slot->handles;
    return std::shared_ptr<ClientSlot>(new ClientSlot(this, file.slot.get()));
}

Status SlotRegistry::open_slot(File& file, const FileKey& key, int fd, uint32_t number) {
    if (!set_lock(fd, F_WRLCK, kSlotPageOffset)) {
        const bool taken = errno == EAGAIN || errno == EACCES;
        if (taken) {
            return {Code::kUnavailable, "another process has this slot"};
        }
        return errno_status("fcntl", "slot");
    }
    auto mapping = Mapping::map(fd, kSlotFileBytes, true);
    if (!mapping.ok()) {
        set_lock(fd, F_UNLCK, kSlotPageOffset);
        return mapping.status();
    }
    file.slot = std::make_unique<ClientSlot::State>();
    file.slot->key = key;
    file.slot->number = number;
    file.slot->fd = fd;
    file.slot->mapping = std::move(*mapping);
    file.slot->page = reinterpret_cast<SlotPage*>(file.slot->mapping.data() + kSlotPageOffset);
    return {};
}

void SlotRegistry::dispose(Fd fd) {
    const auto key = key_of(fd.get());
    if (!key.ok()) {
        return;
    }
    const MutexLock lock(mutex_);
    const auto it = files_.find(*key);
    if (it != files_.end()) {
        it->second->fds.push_back(std::move(fd));
    } else {
        // Closed under the mutex: a slot acquired a moment later would lose its lock to this close.
        fd.reset();
    }
}

Result<FileKey> SlotRegistry::keep(Fd fd) {
    const auto key = key_of(fd.get());
    if (!key.ok()) {
        return key.status();
    }
    const MutexLock lock(mutex_);
    auto& file = files_[*key];
    if (!file) {
        file = std::make_unique<File>();
    }
    file->fds.push_back(std::move(fd));
    // One of two nodes in this process that keep the same file owns it; the other lets go.
    if (file->kept) {
        return {Code::kUnavailable, "this file has an owner already"};
    }
    file->kept = true;
    return *key;
}

bool SlotRegistry::own(const FileKey& key) {
    const MutexLock lock(mutex_);
    File& file = *files_.at(key);
    const bool is_taken = !set_lock(file.fds.front().get(), F_WRLCK, kOwnerByte);
    file.owner = !KV_GUARD("owner-lock", is_taken);
    return file.owner;
}

Result<int> SlotRegistry::adopt_owner(Fd fd, FileKey* key) {
    const int raw = fd.get();
    const auto kept = keep(std::move(fd));
    if (!kept.ok()) {
        return kept.status();
    }
    *key = *kept;
    if (!own(*key)) {
        release_owner(*key);
        return {Code::kUnavailable, "this file has an owner already"};
    }
    return raw;
}

void SlotRegistry::release_owner(const FileKey& key) {
    const MutexLock lock(mutex_);
    const auto it = files_.find(key);
    if (it == files_.end() || !it->second->kept) {
        return;
    }
    if (it->second->owner) {
        set_lock(it->second->fds.front().get(), F_UNLCK, kOwnerByte);
    }
    it->second->kept = false;
    it->second->owner = false;
    close_if_unused(key);
}

bool SlotRegistry::holds(const FileKey& key) const {
    const MutexLock lock(mutex_);
    const auto it = files_.find(key);
    return it != files_.end() && it->second->slot;
}

bool SlotRegistry::locked_elsewhere(int fd, uint64_t byte) {
    return foreign_lock_at(fd, byte).has_value();
}

bool SlotRegistry::locked_behind(int fd, uint64_t byte) {
    return foreign_lock_at(fd, byte + 1, 0).has_value();
}

pid_t SlotRegistry::lock_holder(int fd, uint64_t byte) {
    const auto lock = foreign_lock_at(fd, byte);
    return lock ? lock->l_pid : 0;
}

bool SlotRegistry::owner_alive(const ClientSlot::State& state) const {
    {
        const MutexLock lock(mutex_);
        const auto it = files_.find(state.key);
        if (it != files_.end() && it->second->owner) {
            return true;
        }
    }
    return locked_elsewhere(state.fd, kOwnerByte);
}

void SlotRegistry::release(ClientSlot::State* state) {
    const MutexLock lock(mutex_);
    KV_ASSERT(state->handles > 0);
    if (--state->handles > 0) {
        return;
    }
    for (Hazard& hazard : state->page->hazards) {
        steps::clear_hazard(steps::RealMemory{}, hazard);
    }
    state->page->devices.store(0, kRelaxed);  // whoever copies keeps a handle until it has stopped
    set_lock(state->fd, F_UNLCK, kSlotPageOffset);
    const FileKey key = state->key;
    files_.at(key)->slot.reset();
    close_if_unused(key);
}

// Closing drops every lock of this process on the inode, so it is all or nothing.
void SlotRegistry::close_if_unused(const FileKey& key) {
    const auto it = files_.find(key);
    if (it != files_.end() && !it->second->kept && !it->second->slot) {
        files_.erase(it);
    }
}

ClientSlot::ClientSlot(SlotRegistry* registry, State* state) : registry_(registry), state_(state) {}

ClientSlot::~ClientSlot() {
    // In a forked child the state belongs to the parent: its memory is not mapped here, and closing
    // its descriptors could drop a lock that the child took for itself.
    if (in_own_process()) {
        registry_->release(state_);
    }
}

bool ClientSlot::in_own_process() const { return !fork_guard_.in_child(); }

const FileKey& ClientSlot::file() const { return state_->key; }

uint32_t ClientSlot::number() const { return state_->number; }

void ClientSlot::set_confirmed() {
    if (in_own_process()) {
        state_->confirmed.store(true, std::memory_order_release);
    }
}

bool ClientSlot::usable() const {
    return in_own_process() &&
           steps::may_use_slot(steps::RealMemory{},
                               state_->confirmed.load(std::memory_order_acquire));
}

bool ClientSlot::torn() const { return state_->mapping.torn(); }

bool ClientSlot::owner_alive() const { return in_own_process() && registry_->owner_alive(*state_); }

std::optional<ClientSlot::Handle> ClientSlot::publish_hazard(uint64_t offset, Generation gen) {
    if (!usable()) {
        return std::nullopt;
    }
    uint64_t used = state_->hazards_used.load(kRelaxed);
    uint32_t free = 0;
    do {
        if (used == UINT64_MAX) {
            return std::nullopt;
        }
        free = static_cast<uint32_t>(std::countr_one(used));
    } while (!state_->hazards_used.compare_exchange_weak(used, used | uint64_t{1} << free,
                                                         std::memory_order_acquire, kRelaxed));
    steps::publish_hazard(steps::RealMemory{}, state_->page->hazards[free], offset, gen);
    if (torn()) {  // the node does not see it
        clear_hazard(free);
        return std::nullopt;
    }
    return free;
}

void ClientSlot::clear_hazard(Handle handle) {
    KV_ASSERT(handle < kSlotHazards);
    if (!in_own_process()) {
        return;
    }
    steps::clear_hazard(steps::RealMemory{}, state_->page->hazards[handle]);
    const uint64_t bit = uint64_t{1} << handle;
    const uint64_t before = state_->hazards_used.fetch_and(~bit, std::memory_order_release);
    KV_ASSERT((before & bit) != 0);
}

uint32_t ClientSlot::hazards_in_use() const {
    return static_cast<uint32_t>(std::popcount(state_->hazards_used.load(kRelaxed)));
}

// Places are shared by all stores of the process. What an earlier life of the node granted is no
// spare any more, so its place is free.
std::optional<uint32_t> ClientSlot::show_spare(Generation gen) {
    if (!usable()) {
        return std::nullopt;
    }
    for (uint32_t place = 0; place < kSlotSpares; ++place) {
        SharedWord& word = state_->page->spares[place];
        const Generation there = word.load(kRelaxed);
        const bool free = there == 0 || epoch_of(there) < epoch_of(gen);
        if (free && steps::show_spare(steps::RealMemory{}, word, there, gen)) {
            return place;
        }
    }
    return std::nullopt;
}

bool ClientSlot::has_spare(uint32_t place, Generation gen) const {
    KV_ASSERT(place < kSlotSpares);
    return usable() && state_->page->spares[place].load(kRelaxed) == gen;
}

bool ClientSlot::take_spare(uint32_t place, Generation gen) {
    KV_ASSERT(place < kSlotSpares);
    return usable() && steps::take_spare(steps::RealMemory{}, state_->page->spares[place], gen);
}

void ClientSlot::touch(uint32_t entry_ref) {
    if (!usable()) {
        return;
    }
    const uint64_t at = state_->page->touch_count.fetch_add(1, kRelaxed) % kSlotTouches;
    state_->page->touches[at].store(entry_ref + 1, kRelaxed);
}

bool ClientSlot::begin_writing(uint32_t node_epoch) {
    if (!in_own_process()) {
        return false;
    }
    const MutexLock lock(state_->writes_mutex);
    if (node_epoch < state_->writes_ended_below) {
        return false;
    }
    ++state_->writes[node_epoch];
    return true;
}

void ClientSlot::end_writing(uint32_t node_epoch) {
    if (!in_own_process()) {
        return;
    }
    const MutexLock lock(state_->writes_mutex);
    const auto at = state_->writes.find(node_epoch);
    KV_ASSERT(at != state_->writes.end());
    if (--at->second == 0) {
        state_->writes.erase(at);
    }
}

bool ClientSlot::end_earlier_writes(uint32_t node_epoch) {
    if (!in_own_process()) {
        return false;
    }
    const MutexLock lock(state_->writes_mutex);
    const auto oldest = state_->writes.begin();
    if (oldest != state_->writes.end() && oldest->first < node_epoch) {
        return false;
    }
    state_->writes_ended_below = std::max(state_->writes_ended_below, node_epoch);
    return true;
}

void ClientSlot::set_reached_by_devices() {
    if (in_own_process()) {
        state_->page->devices.store(1, kRelaxed);
    }
}

void ClientSlot::add_counter(uint32_t counter, uint64_t amount) {
    KV_ASSERT(counter < kSlotCounterCount);
    if (usable()) {
        state_->page->counters[counter].fetch_add(amount, kRelaxed);
    }
}

}  // namespace kvstore
