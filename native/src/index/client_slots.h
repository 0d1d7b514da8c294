// The node's side of the client slots: who is alive, what is held, what was read.
//
// Each client process owns one slot, in a small file of its own, and proves its life by a record
// lock (fcntl) on it, which the kernel drops when the process dies and keeps while it is merely
// stopped. The file is writable by its client, so the node believes nothing in it that can hurt
// another: hazards only delay reuse, touches are checked by the caller, counters are shown. A
// client that spoils its file harms itself alone.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/mutex.h"
#include "base/types.h"
#include "index/shared_layout.h"

namespace kvstore {

using SlotCounters = std::array<uint64_t, kSlotCounterCount>;

// Thread-safe (one internal mutex, taken inside the block store's; the registry's is taken inside
// it).
//
// A slot's life: free → assign() → assigned → confirm() → live → collect_dead() → dead →
// free_slot() → free. The client locks between assign and confirm, and uses the slot only after the
// confirm: the node scans confirmed slots only. Each assignment has a new file, `NAME.NUMBER`, so
// that no earlier client of the number can write into it. A live slot whose file was shortened is
// lost: nothing in it is believed any more, and its client counts as alive until its lock is gone.
// A client whose GPUs reach the segment counts as alive for a second longer: the kernel may drop
// the lock before the driver has stopped what they copy.
class ClientSlots {
  public:
    // Takes the owner's lock on the file `name`: kUnavailable when another process has it. One that
    // is there is kept, with the slot files of the processes that live: they may still write into
    // blocks that they reserved in an earlier life of the node, and read what they hold. One of
    // another format is kVersionMismatch, or replaced with `discard_foreign`. `directory` empty:
    // anonymous memory.
    static Result<std::unique_ptr<ClientSlots>> open(const std::string& directory,
                                                     const std::string& name,
                                                     bool discard_foreign = false);
    ~ClientSlots();
    ClientSlots(const ClientSlots&) = delete;
    ClientSlots& operator=(const ClientSlots&) = delete;

    bool kept() const { return kept_; }  // the file was there before
    void remove_files();                 // no next life will take them over

    // A free slot, its file new. kOverloaded when all are taken, kNoSpace when the file system
    // cannot hold it.
    Result<uint32_t> assign();
    // To be passed to the slot's client, and good until free_slot(); owned by the SlotRegistry.
    int fd(uint32_t slot) const;
    FileKey file(uint32_t slot) const;
    // The client says that it has locked `slot`: kOk when its lock is seen (also for a slot that is
    // already live: another session of the same process), kInvalidArgument otherwise.
    Status confirm(uint32_t slot);
    static constexpr uint64_t kDeviceDrainMs = 1000;

    // Whether the slot's process still holds its lock, or GPUs may still copy for it; one system
    // call, or two.
    bool is_alive(uint32_t slot) const;
    // Who holds the slot's lock; 0: nobody, or a process that this one cannot see.
    pid_t holder(uint32_t slot) const;
    // Live and lost slots whose lock is gone, each once: give back what they owned, then
    // free_slot().
    std::vector<uint32_t> collect_dead();
    // Live slots whose files were shortened since the last call: they are lost from now on.
    std::vector<uint32_t> collect_lost();
    // Makes the slot assignable. For an assigned slot that was never confirmed, or a dead one; a
    // live slot, or one whose lock is still held, is left alone and answers false.
    bool free_slot(uint32_t slot);
    std::vector<uint32_t> live_slots() const;
    bool has_clients() const;  // live or lost

    // Scan of all live slots. Call after Index::invalidate(), whose full fence orders the scan:
    // false means that no client holds the generation or can come to hold it.
    bool hazard_present(Generation gen) const;
    // The same for many generations at once: every generation held now, sorted.
    void collect_hazards(std::vector<Generation>* out) const;
    // Whether a client holds the block, by its generation or by its place: for a node that
    // attaches, whose earlier life may have died before its scan.
    bool holds_block(Generation gen, uint64_t offset) const;
    // Every hazard with the block that it names.
    std::vector<std::pair<Generation, uint64_t>> hazards() const;

    // Takes a spare back from the slot where its client shows it. True: nobody writes into the
    // block, and nobody will.
    bool revoke_spare(uint32_t slot, Generation gen);

    // Hands over the entries that clients read since the last call, oldest first per client. The
    // ring is lossy: returns how many it has lost. Numbers come from clients: check them against
    // the index before use. `fn` is called under the mutex and must not call back.
    uint64_t drain_touches(const std::function<void(uint32_t entry_ref)>& fn);

    SlotCounters counters(uint32_t slot) const;
    // Of live slots and of all that were live before: never shrinks.
    SlotCounters total_counters() const;

  private:
    enum class State : uint8_t { kFree, kAssigned, kLive, kLost, kDead };
    struct Slot {
        State state = State::kFree;
        int fd = -1;  // the SlotRegistry's; -1: there is no file
        FileKey key;
        Mapping mapping;
        uint64_t touches_seen = 0;             // the touch counter up to which the ring was drained
        mutable uint64_t drains_until_ms = 0;  // its lock is gone, but its GPUs may go on; 0: no
    };

    ClientSlots(std::string directory, std::string name)
        : directory_(std::move(directory)), name_(std::move(name)), slots_(kSlotCount) {}
    Status read_or_write_header();
    Status read_header(const ClientsHeader& header, uint64_t file_bytes) const;
    void adopt_slot_files() KV_EXCLUDES(mutex_);
    bool adopt(uint32_t slot, Fd file) KV_REQUIRES(mutex_);
    std::string file_name(uint32_t slot) const;
    Status create_file(uint32_t slot) KV_REQUIRES(mutex_);
    void remove_file(uint32_t slot) KV_REQUIRES(mutex_);
    SlotPage& page(uint32_t slot) const KV_REQUIRES(mutex_);
    bool lock_seen(const Slot& slot) const KV_REQUIRES(mutex_);
    bool lives_or_drains(const Slot& slot) const KV_REQUIRES(mutex_);

    const std::string directory_;  // empty: anonymous memory
    const std::string name_;
    int fd_ = -1;  // of the clients file; the SlotRegistry's
    FileKey key_;
    bool kept_ = false;
    mutable Mutex mutex_;
    std::vector<Slot> slots_ KV_GUARDED_BY(mutex_);
    std::vector<uint32_t> live_ KV_GUARDED_BY(mutex_);  // what the scans go through
    std::vector<uint32_t> lost_ KV_GUARDED_BY(mutex_);
    // Round-robin, so that a number is not reused at once.
    uint32_t next_ KV_GUARDED_BY(mutex_) = 0;
    SlotCounters retired_counters_ KV_GUARDED_BY(mutex_){};
};

}  // namespace kvstore
