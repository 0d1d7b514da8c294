// A node on this host, attached: its index and segment mapped, a slot of its own, channels by
// socket.
//
// One object is one incarnation of the node. When the node restarts (another epoch, `retired`, its
// lock gone) the object stays behind for those who still hold blocks, and a new one is attached.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "client/channel_pool.h"
#include "client/page_mapper.h"
#include "client/registered_segment.h"
#include "client/spare_blocks.h"
#include "index/index.h"
#include "index/object_reader.h"
#include "index/slot_registry.h"

namespace kvstore {

class LocalNode : public std::enable_shared_from_this<LocalNode> {
  public:
    // Connects over the Unix endpoint; `node_id` is who has to answer there. kUnsupported when the
    // node passes no descriptors. `*cause`: why it failed.
    static Result<std::shared_ptr<LocalNode>> attach(const Endpoint& endpoint,
                                                     const HelloParams& hello,
                                                     const std::string& node_id, AttachCause* cause,
                                                     Deadline deadline);

    const IndexReader& index() const { return *index_; }
    const uint8_t* segment() const { return mapped_->segment.data(); }
    uint64_t segment_bytes() const { return mapped_->segment.size(); }
    // False: the node gave this process memory to read, and it puts by socket.
    bool may_write() const { return mapped_->writable.data() != nullptr; }
    // Where a reserved block of this process is written; null when the extent leaves the segment,
    // or may_write() is false.
    uint8_t* block(uint64_t offset, uint64_t size);
    // The same memory as GPUs reach it.
    RegisteredSegment& for_gpus() { return *for_gpus_; }
    ClientSlot& slot() const { return *slot_; }
    ChannelPool& channels() { return *channels_; }
    const std::string& node_id() const { return index_->node_id(); }
    uint32_t node_epoch() const { return index_->node_epoch(); }

    // False once the node is gone or has been replaced: nothing new may be read or written through
    // this object. The owner's lock is looked at every few milliseconds only.
    bool usable();
    // Whether what its process published can be read still, though the process may have ended: no
    // other one has taken the memory over. It changes nothing there before it has said so.
    bool kept() const { return !index_->retired() && !torn(); }
    // Whether a mapped file has lost pages (bus_guard.h): what was read may be zeros, and what was
    // written reaches nobody.
    bool torn() const {
        return mapped_->segment.torn() || mapped_->writable.torn() || index_->torn() ||
               slot_->torn();
    }
    void mark_gone() { gone_.store(true, std::memory_order_relaxed); }
    // Whether usable() has seen that its process has ended, and will not answer again.
    bool owner_gone() const { return owner_gone_.load(std::memory_order_relaxed); }

    // The namespace's id as this node has it now; asks the node after a flush of any namespace.
    Result<NamespaceId> current_namespace(Deadline deadline);

    // Holds a block by socket, for when the slot has no free hazard; until unhold(), or until this
    // process is gone. The caller checks the generation afterwards.
    Status hold(Generation gen, Deadline deadline);
    void unhold(Generation gen);
    // Several at once, with one message; `*held`: whether each of them is held.
    Status hold_all(std::span<const Generation> generations, std::vector<bool>* held,
                    Deadline deadline);
    void unhold_all(std::span<const Generation> generations);

    // Blocks granted ahead of their keys.
    SpareBlocks& spares() { return spares_; }
    // Keeps one that came with an answer; generation 0: none did.
    void keep_spare(uint64_t size_bytes, Generation generation, uint64_t offset, uint32_t valid_ms);

    // Reservations that will not be committed and into which nothing is being copied any more. They
    // are told to the node on a channel that works, now or with the next put.
    void abandon(std::span<const Generation> generations);
    void send_abandoned(Channel& channel, Deadline deadline);

  private:
    LocalNode() = default;
    // `again`: this process has mapped an earlier life of the node, and a read may wait for this.
    Status map(std::vector<Fd> fds, const WelcomeData& welcome, bool again);
    // The slot that the Welcome offers: the one that this process holds (`held`), or another by the
    // last of `fds`, which is taken out.
    Status take_slot(std::shared_ptr<ClientSlot> held, std::vector<Fd>* fds, Channel& channel,
                     Deadline deadline);
    // Tells the node that copies into blocks of its earlier epochs have stopped, once they have.
    Status confirm_slot(ClientSlot& slot, Channel& channel, Deadline deadline);
    Result<std::unique_ptr<Channel>> open_channel(Deadline deadline);

    Endpoint endpoint_;
    HelloParams hello_;
    struct Mapped {
        Mapping segment;   // read-only: a forked child may still look at a view
        Mapping writable;  // none where this process may only read
    };
    std::shared_ptr<const Mapped> mapped_;
    std::unique_ptr<PageMapper> mapper_;           // of both, which its thread unmaps at the end
    std::unique_ptr<RegisteredSegment> for_gpus_;  // as the mapper
    std::unique_ptr<IndexReader> index_;
    std::shared_ptr<ClientSlot> slot_;
    std::unique_ptr<ChannelPool> channels_;
    Mutex holder_mutex_;  // held during I/O on holder_
    // The node takes an unhold only on the connection of its hold.
    std::unique_ptr<Channel> holder_ KV_GUARDED_BY(holder_mutex_);
    SpareBlocks spares_;
    Mutex abandoned_mutex_;
    std::vector<Generation> abandoned_ KV_GUARDED_BY(abandoned_mutex_);
    std::atomic<bool> any_abandoned_{false};         // stored with the mutex held
    std::atomic<bool> earlier_writes_ended_{false};  // and the node knows it
    std::atomic<bool> gone_{false};
    std::atomic<bool> owner_gone_{false};
    std::atomic<uint64_t> owner_checked_ms_{0};
    // One thread asks the node; the two below are stored with it held. None of the three mutexes is
    // taken while another one is held.
    Mutex resolve_mutex_;
    std::atomic<uint64_t> namespace_id_{0};
    std::atomic<uint64_t> resolved_flushes_{
        UINT64_MAX};  // flush_counter that namespace_id_ is good for
};

}  // namespace kvstore
