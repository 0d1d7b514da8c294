// Attaching to a node of this host, and noticing that it is gone.
#include "client/local_node.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>

#include "base/interrupt.h"

namespace kvstore {
namespace {

constexpr uint64_t kOwnerCheckMs = 10;
constexpr uint64_t kUnholdMs = 500;
constexpr int kSlotTries = 4;  // another process may have locked the slot that we were offered

// The mapping must not reach behind the file's end: touching it would raise SIGBUS.
Status check_file_holds(int fd, uint64_t bytes) {
    struct stat info{};
    if (fstat(fd, &info) != 0) {
        return errno_status("fstat", "segment");
    }
    if (bytes == 0 || static_cast<uint64_t>(info.st_size) < bytes) {
        return {Code::kProtocolError, "the segment is shorter than the node says"};
    }
    return {};
}

// A slot file is never closed directly: that would drop this process's lock on it.
void dispose(std::vector<Fd> fds) {
    if (fds.size() == 3) {
        SlotRegistry::instance().dispose(std::move(fds[2]));
    }
}

// What a process has one slot for: tenants of a node may lie in memory of their own.
std::string place_of(const std::string& node_id, const HelloParams& hello) {
    return node_id + '\n' + hello.tenant;
}

// So that no descriptor comes of what this process has already.
HelloParams with_slot(HelloParams hello, const ClientSlot& slot, uint32_t mapped_epoch) {
    hello.slot_plus_one = slot.number() + 1;
    hello.slot_device = slot.file().device;
    hello.slot_inode = slot.file().inode;
    hello.mapped_epoch = mapped_epoch;
    return hello;
}

AttachCause cause_of(int error) {
    switch (error) {
        case EACCES:
        case EPERM:
            return AttachCause::kPermission;
        case ENOENT:
        case ENOTDIR:
            return AttachCause::kNotFound;
        case ECONNREFUSED:
            return AttachCause::kNoListener;
        default:
            return AttachCause::kOther;
    }
}

}  // namespace

Result<std::shared_ptr<LocalNode>> LocalNode::attach(const Endpoint& endpoint,
                                                     const HelloParams& hello,
                                                     const std::string& node_id, AttachCause* cause,
                                                     Deadline deadline) {
    Status last;
    *cause = AttachCause::kOther;
    for (int i = 0; i < kSlotTries; ++i) {
        std::shared_ptr<ClientSlot> held = SlotRegistry::instance().find(place_of(node_id, hello));
        int error = 0;
        Result<Fd> fd = connect_to(endpoint, deadline, &error);
        if (!fd.ok()) {
            *cause = cause_of(error);
            return fd.status();
        }
        Result<std::unique_ptr<Channel>> channel = Channel::handshake(
            std::move(*fd), held != nullptr ? with_slot(hello, *held, 0) : hello, deadline);
        if (!channel.ok()) {
            // With a token it is the principal that is refused, and sockets tell the same.
            if (channel.code() == Code::kPermissionDenied && hello.token.empty()) {
                *cause = AttachCause::kUser;
            }
            return channel.status();
        }
        const WelcomeData& welcome = (*channel)->welcome();
        std::vector<Fd> fds = (*channel)->take_fds();
        if (welcome.node_id != node_id) {
            dispose(std::move(fds));
            return {Code::kUnavailable, endpoint.to_string() + " is another node"};
        }
        if (fds.size() < 2 || welcome.slot < 0) {
            dispose(std::move(fds));
            // An older node does not say why.
            *cause = welcome.attach_cause == AttachCause::kNone ? AttachCause::kTenant
                                                                : welcome.attach_cause;
            return {Code::kUnsupported, node_id + " does not share its memory with this client"};
        }
        std::shared_ptr<LocalNode> node(new LocalNode());
        node->endpoint_ = endpoint;
        node->hello_ = hello;
        const bool again = held != nullptr;
        last = node->take_slot(std::move(held), &fds, **channel, deadline);
        if (last.ok()) {
            last = node->map(std::move(fds), welcome, again);
        }
        if (last.ok()) {
            LocalNode* raw = node.get();
            node->channels_ = std::make_unique<ChannelPool>(
                [raw](Deadline until) { return raw->open_channel(until); });
            node->channels_->adopt(std::move(*channel));
            // Asked for now, so that reads go on when the node hangs later.
            (void)node->current_namespace(deadline);
            return node;
        }
        if (last.code() != Code::kUnavailable) {
            break;
        }
    }
    return last;
}

Status LocalNode::take_slot(std::shared_ptr<ClientSlot> held, std::vector<Fd>* fds,
                            Channel& channel, Deadline deadline) {
    const auto number = static_cast<uint32_t>(channel.welcome().slot);
    if (fds->size() == 3) {
        Fd file = std::move(fds->back());
        fds->pop_back();
        Result<std::shared_ptr<ClientSlot>> slot = SlotRegistry::instance().acquire(
            std::move(file), number, place_of(channel.welcome().node_id, hello_));
        if (!slot.ok()) {
            return slot.status();
        }
        held = std::move(*slot);
    } else if (held == nullptr || held->number() != number) {
        return {Code::kProtocolError, "the node offers a slot without its descriptor"};
    }
    if (Status status = confirm_slot(*held, channel, deadline); !status.ok()) {
        return status;
    }
    // From here on the node scans this slot, so its hazards count.
    held->set_confirmed();
    slot_ = std::move(held);
    return {};
}

Status LocalNode::confirm_slot(ClientSlot& slot, Channel& channel, Deadline deadline) {
    SlotReady ready;
    ready.slot = slot.number();
    const uint32_t epoch = channel.welcome().node_epoch;
    const bool ended = slot.end_earlier_writes(epoch);
    ready.writes_ended_below = ended ? epoch : 0;
    StatusReply reply;
    if (Status status = channel.exchange(ready, &reply, deadline); !status.ok()) {
        return status;
    }
    if (reply.status.size() != 1 || reply.status[0] != 0) {
        return {Code::kUnavailable, "the node does not see this process's slot lock"};
    }
    if (ended) {
        earlier_writes_ended_.store(true, std::memory_order_relaxed);
    }
    return {};
}

Status LocalNode::map(std::vector<Fd> fds, const WelcomeData& welcome, bool again) {
    if (Status status = check_file_holds(fds[0].get(), welcome.segment_bytes); !status.ok()) {
        return status;
    }
    Result<Mapping> reading = Mapping::map(fds[0].get(), welcome.segment_bytes, false);
    if (!reading.ok()) {
        return reading.status();
    }
    const int flags = fcntl(fds[0].get(), F_GETFL);
    const bool is_writable = flags >= 0 && (flags & O_ACCMODE) == O_RDWR;
    Result<Mapping> writing =
        is_writable ? Mapping::map(fds[0].get(), welcome.segment_bytes, true) : Mapping();
    if (!writing.ok()) {
        return writing.status();
    }
    Result<std::unique_ptr<IndexReader>> index =
        IndexReader::attach(fds[1].get(), welcome.segment_bytes);
    if (!index.ok()) {
        return index.status();
    }
    auto mapped = std::make_shared<Mapped>();
    mapped->segment = std::move(*reading);
    mapped->writable = std::move(*writing);
    mapped_ = std::move(mapped);
    const std::span<uint8_t> read_only(mapped_->segment.data(), mapped_->segment.size());
    const std::span<uint8_t> writable(mapped_->writable.data(), mapped_->writable.size());
    mapper_ = std::make_unique<PageMapper>(
        writable, read_only, again ? PageMapper::Begin::kLater : PageMapper::Begin::kAtOnce,
        mapped_);
    for_gpus_ = std::make_unique<RegisteredSegment>(read_only, writable);
    index_ = std::move(*index);
    if (index_->node_epoch() != welcome.node_epoch || index_->node_id() != welcome.node_id) {
        return {Code::kProtocolError, "index and node disagree about who they are"};
    }
    return {};
}

Result<std::unique_ptr<Channel>> LocalNode::open_channel(Deadline deadline) {
    Result<std::unique_ptr<Channel>> channel =
        Channel::connect(endpoint_, with_slot(hello_, *slot_, node_epoch()), deadline);
    if (!channel.ok()) {
        // Nobody listens: the node is gone, and a new incarnation has to be attached.
        if (channel.code() != Code::kDeadlineExceeded && channel.code() != Code::kOverloaded) {
            mark_gone();
        }
        return channel.status();
    }
    const WelcomeData& welcome = (*channel)->welcome();
    std::vector<Fd> fds = (*channel)->take_fds();
    // Another slot than the one that all of this object's hazards are in: not with this object.
    if (!fds.empty() || welcome.slot != static_cast<int>(slot_->number()) ||
        welcome.node_epoch != node_epoch() || welcome.node_id != node_id()) {
        dispose(std::move(fds));
        mark_gone();
        return {Code::kUnavailable, node_id() + " was restarted"};
    }
    if (Status status = confirm_slot(*slot_, **channel, deadline); !status.ok()) {
        return status;
    }
    return std::move(*channel);
}

uint8_t* LocalNode::block(uint64_t offset, uint64_t size) {
    const Mapping& writable = mapped_->writable;
    if (offset > writable.size() || size > writable.size() - offset) {
        return nullptr;
    }
    mapper_->map(offset, size);
    return writable.data() + offset;
}

bool LocalNode::usable() {
    if (gone_.load(std::memory_order_relaxed) || index_->retired() || torn()) {
        return false;
    }
    const uint64_t now = boottime_ms();
    if (now - owner_checked_ms_.load(std::memory_order_relaxed) >= kOwnerCheckMs) {
        const bool has_slot = slot_->usable();
        if (!has_slot || !slot_->owner_alive()) {
            owner_gone_.store(has_slot, std::memory_order_relaxed);
            mark_gone();
            return false;
        }
        owner_checked_ms_.store(now, std::memory_order_relaxed);
    }
    return true;
}

Result<NamespaceId> LocalNode::current_namespace(Deadline deadline) {
    if (resolved_flushes_.load(std::memory_order_acquire) == index_->flush_counter()) {
        return namespace_id_.load(std::memory_order_relaxed);
    }
    const MutexLock lock(resolve_mutex_);
    const WaitsLocked waits;
    const uint64_t flushes = index_->flush_counter();
    if (resolved_flushes_.load(std::memory_order_relaxed) == flushes) {
        return namespace_id_.load(std::memory_order_relaxed);
    }
    Resolve request;
    ResolveReply reply;
    ChannelPool::Lease lease;
    const Status status = channels_->exchange(request, &reply, &lease, deadline);
    if (!status.ok()) {
        return status;
    }
    if (reply.code != 0) {
        return static_cast<Code>(reply.code);
    }
    // Whatever was flushed after the older of the two readings makes us ask again.
    namespace_id_.store(reply.namespace_id, std::memory_order_relaxed);
    resolved_flushes_.store(std::min(flushes, reply.flush_counter), std::memory_order_release);
    return NamespaceId{reply.namespace_id};
}

Status LocalNode::hold(Generation gen, Deadline deadline) {
    std::vector<bool> held;
    if (Status status = hold_all({&gen, 1}, &held, deadline); !status.ok()) {
        return status;
    }
    return held[0] ? Status() : Status(Code::kNotFound);
}

Status LocalNode::hold_all(std::span<const Generation> generations, std::vector<bool>* held,
                           Deadline deadline) {
    held->assign(generations.size(), false);
    const MutexLock talking(holder_mutex_);
    const WaitsLocked waits;
    if (holder_ == nullptr || !holder_->alive()) {
        Result<std::unique_ptr<Channel>> opened = open_channel(deadline);
        if (!opened.ok()) {
            return opened.status();
        }
        holder_ = std::move(*opened);
    }
    Hold request;
    request.generations = generations;
    StatusReply reply;
    if (Status status = holder_->exchange(request, &reply, deadline); !status.ok()) {
        return status;
    }
    if (reply.status.size() != generations.size()) {
        return Code::kProtocolError;
    }
    for (size_t row = 0; row < generations.size(); ++row) {
        (*held)[row] = static_cast<Code>(reply.status[row]) == Code::kOk;
    }
    return {};
}

void LocalNode::unhold(Generation gen) { unhold_all({&gen, 1}); }

void LocalNode::unhold_all(std::span<const Generation> generations) {
    const MutexLock talking(holder_mutex_);
    const WaitsLocked waits;
    if (holder_ == nullptr || !holder_->alive()) {
        return;  // the node gives the blocks back when this process ends
    }
    Unhold request;
    request.generations = generations;
    StatusReply reply;
    (void)holder_->exchange(request, &reply, Deadline::after_ms(kUnholdMs));
}

void LocalNode::keep_spare(uint64_t size_bytes, Generation generation, uint64_t offset,
                           uint32_t valid_ms) {
    if (generation == 0) {
        return;
    }
    // Given back long before it expires: its first byte may be written at the last moment.
    const uint64_t now_ms = boottime_ms();
    const SpareBlocks::Block spare{size_bytes, generation, offset, now_ms + valid_ms / 2};
    abandon(spares_.put(*slot_, spare, now_ms));
}

void LocalNode::abandon(std::span<const Generation> generations) {
    if (generations.empty()) {
        return;
    }
    const MutexLock lock(abandoned_mutex_);
    abandoned_.insert(abandoned_.end(), generations.begin(), generations.end());
    any_abandoned_.store(true, std::memory_order_relaxed);
}

void LocalNode::send_abandoned(Channel& channel, Deadline deadline) {
    if (!earlier_writes_ended_.load(std::memory_order_relaxed)) {
        (void)confirm_slot(*slot_, channel, deadline);
    }
    if (!any_abandoned_.load(std::memory_order_relaxed)) {
        return;
    }
    std::vector<Generation> generations;
    {
        const MutexLock lock(abandoned_mutex_);
        const size_t count = std::min(abandoned_.size(), limits::kMaxBatchKeys);
        generations.assign(abandoned_.end() - static_cast<ptrdiff_t>(count), abandoned_.end());
        abandoned_.resize(abandoned_.size() - count);
        any_abandoned_.store(!abandoned_.empty(), std::memory_order_relaxed);
    }
    Abort request;
    request.generations = generations;
    StatusReply reply;
    // What the node does not know (any more) is none of its blocks: the statuses say nothing new.
    if (!channel.exchange(request, &reply, deadline).ok()) {
        abandon(generations);
    }
}

}  // namespace kvstore
