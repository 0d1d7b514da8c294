// The process-wide registry of slot files: which this process holds as a client, as the node.
//
// Why process-wide: a record lock belongs to (process, inode), and closing *any* descriptor of the
// inode drops it. So every descriptor of a slot file that reaches this process is handed to the
// registry, which keeps it open until the slot is given back. A session that names the held slot in
// its hello gets no further descriptor.
//
// Fork: a child inherits neither the lock nor (MADV_DONTFORK) the slot's memory. Calls on a slot
// that was acquired before the fork do nothing and answer "no"; usable() says so. The child may
// acquire a slot of its own.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/fork_guard.h"
#include "base/mutex.h"
#include "base/types.h"
#include "index/shared_layout.h"

namespace kvstore {

class SlotRegistry;

// This process's slot at one node. Thread-safe. Destroying the last handle clears
// the slot and drops the lock; keep a handle for as long as anything is held or being written.
class ClientSlot {
  public:
    using Handle = uint32_t;  // of a published hazard
    ~ClientSlot();
    ClientSlot(const ClientSlot&) = delete;
    ClientSlot& operator=(const ClientSlot&) = delete;

    const FileKey& file() const;
    uint32_t number() const;
    // The node has answered Ok to "slot ready". Until then the node does not look into this slot,
    // so every hazard is refused.
    void set_confirmed();
    bool usable() const;       // confirmed, and not in a forked child
    bool torn() const;         // the file has lost pages: nothing in the slot reaches the node
    bool owner_alive() const;  // the node's own lock is still there; one system call

    // First half of a hold (hold_object() in object_reader.h does all of it): enters the generation
    // into the slot. Nothing when all hazards are in use or the slot is not usable: hold by socket
    // instead. The caller must then pass steps::confirm_hold() before it reads.
    std::optional<Handle> publish_hazard(uint64_t offset, Generation gen);
    void clear_hazard(Handle handle);
    uint32_t hazards_in_use() const;

    // Shows the node a block that was granted ahead of its key and that nobody writes into: it may
    // have it back. The place of the generation, for take_spare(); nothing when all are in use.
    std::optional<uint32_t> show_spare(Generation gen);
    // Whether the spare is still there, and with take_spare() this process's to write into.
    bool has_spare(uint32_t place, Generation gen) const;
    bool take_spare(uint32_t place, Generation gen);

    // Before a GPU is told to copy from or to the segment: the node then gives it time to stop when
    // this process has died.
    void set_reached_by_devices();

    // Recency: touch a chain's tail first and its head last, so that the chain loses its tail
    // first.
    void touch(uint32_t entry_ref);
    // Around the copies of this process into blocks that it reserved in an epoch of the node. False
    // once it was said that they have ended: nothing may be written then.
    bool begin_writing(uint32_t node_epoch);
    void end_writing(uint32_t node_epoch);
    // Whether no copies of epochs below are in progress; then none will begin, and the node may be
    // told so.
    bool end_earlier_writes(uint32_t node_epoch);
    void add_counter(uint32_t counter, uint64_t amount);

  private:
    friend class SlotRegistry;
    struct State;
    bool in_own_process() const;
    ClientSlot(SlotRegistry* registry, State* state);
    SlotRegistry* registry_;
    State* state_;  // owned by the registry, alive while a handle is
    ForkGuard fork_guard_;
};

class SlotRegistry {
  public:
    // The registry of this process; a forked child gets a new, empty one.
    static SlotRegistry& instance();

    // Locks slot `number`, whose file is behind `fd`, or returns a further handle on it when this
    // process has it already. Takes `fd` over in every case, failures included. kUnavailable:
    // another process holds that slot (connect again for another one). kVersionMismatch: not its
    // file, or not of this format.
    Result<std::shared_ptr<ClientSlot>> acquire(Fd fd, uint32_t number,
                                                const std::string& place = {});
    // A further handle on the slot that was acquired last for this place and is whole; null: none
    // is held.
    std::shared_ptr<ClientSlot> find(const std::string& place);
    // For a received descriptor of a slot file that is not wanted after all.
    void dispose(Fd fd);

    // The node's side, so that a node and a client in one process do not drop each other's locks.
    // Keeps a file open until release_owner(); own() locks its owner's byte, and is false when
    // another process has that lock. adopt_owner() is both, and returns the descriptor.
    Result<FileKey> keep(Fd fd);
    bool own(const FileKey& key);
    Result<int> adopt_owner(Fd fd, FileKey* key);
    void release_owner(const FileKey& key);
    // Whether this very process holds the slot (a process does not see its own record locks).
    bool holds(const FileKey& key) const;
    // Whether another process holds a record lock on this byte of the file, or on one behind it.
    static bool locked_elsewhere(int fd, uint64_t byte);
    static bool locked_behind(int fd, uint64_t byte);
    // Its process; 0 when there is none, or none that this process can see.
    static pid_t lock_holder(int fd, uint64_t byte);

  private:
    friend class ClientSlot;
    struct File;
    SlotRegistry();
    ~SlotRegistry();
    Status open_slot(File& file, const FileKey& key, int fd, uint32_t number) KV_REQUIRES(mutex_);
    std::shared_ptr<ClientSlot> new_handle(const File& file) KV_REQUIRES(mutex_);
    bool owner_alive(const ClientSlot::State& state) const KV_EXCLUDES(mutex_);
    void release(ClientSlot::State* state) KV_EXCLUDES(mutex_);
    void close_if_unused(const FileKey& key) KV_REQUIRES(mutex_);

    mutable Mutex mutex_;  // nothing else is locked while it is held
    std::map<FileKey, std::unique_ptr<File>> files_ KV_GUARDED_BY(mutex_);
    uint64_t acquired_ KV_GUARDED_BY(mutex_) = 0;  // counts
};

}  // namespace kvstore
