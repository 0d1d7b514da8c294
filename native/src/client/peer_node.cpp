// Attaching to a node, opening channels to it, following its restarts.
#include "client/peer_node.h"

#include <algorithm>
#include <mutex>

#include "base/interrupt.h"
#include "base/mutex.h"
#include "net/host_identity.h"

namespace kvstore {
namespace {

constexpr int kAttachMs = 1000;
constexpr uint32_t kRepeated = 3;  // failures of unknown cause before they are reported

HelloParams without_shared_memory(HelloParams hello) {
    hello.features &= ~kFeatureSharedMemory;
    return hello;
}

// Whether the node itself said no, on its Unix socket: so it is up, and on this host.
bool is_answer(AttachCause cause) {
    return cause == AttachCause::kUser || cause == AttachCause::kTenant ||
           cause == AttachCause::kNoSlot || cause == AttachCause::kScope;
}

}  // namespace

PeerNode::PeerNode(PeerInfo info, HelloParams hello, Transport transport,
                   OnUnattached on_unattached)
    : hello_(std::move(hello)),
      transport_(transport),
      info_(std::make_shared<const PeerInfo>(std::move(info))),
      on_unattached_(std::move(on_unattached)),
      attach_breaker_(50, 5000),
      ucx_breaker_(500, 30'000),
      sockets_([this](Deadline deadline) { return open_pooled(deadline); }) {}

std::shared_ptr<const PeerInfo> PeerNode::info() const {
    const MutexLock lock(mutex_);
    return info_;
}

std::shared_ptr<LocalNode> PeerNode::update(PeerInfo info) {
    const MutexLock lock(mutex_);
    if (info.epoch != info_->epoch || info.tcp_endpoint != info_->tcp_endpoint) {
        breaker_.success();  // what failed before was another process
        attach_breaker_.success();
    }
    if (info.epoch != info_->epoch) {
        path_.cause = AttachCause::kNone;
        path_.detail.clear();
        if (place_epoch_ != info.epoch) {
            note_place(Place::kUnknown, info.epoch);  // it may have moved
        }
    }
    info_ = std::make_shared<const PeerInfo>(std::move(info));
    // That of a node that restarts stays mapped: it is read meanwhile.
    return info_->state == NodeState::kDead ? take_if_gone() : nullptr;
}

std::shared_ptr<LocalNode> PeerNode::forget() {
    const MutexLock lock(mutex_);
    return take_if_gone();
}

// A mapping would keep the memory of a dead process from its host, and from its next life.
std::shared_ptr<LocalNode> PeerNode::take_if_gone() {
    return local_ != nullptr && !local_->usable() ? std::move(local_) : nullptr;
}

std::shared_ptr<LocalNode> PeerNode::attached() const {
    const MutexLock lock(mutex_);
    return local_ != nullptr && local_->usable() ? local_ : nullptr;
}

bool PeerNode::ended(uint32_t epoch) const {
    const MutexLock lock(mutex_);
    return local_ != nullptr && local_->owner_gone() && local_->node_epoch() == epoch;
}

std::shared_ptr<LocalNode> PeerNode::kept() const {
    const MutexLock lock(mutex_);
    const bool is_kept =
        info_->state == NodeState::kRestarting && local_ != nullptr && local_->kept();
    return is_kept ? local_ : nullptr;
}

ReadWay PeerNode::read_way() const {
    if (is_gone(info()->state)) {
        return kept() == nullptr ? ReadWay::kNone : ReadWay::kKept;
    }
    if (breaker_.is_open()) {
        return ReadWay::kFailed;
    }
    return attached() != nullptr ? ReadWay::kMapped : ReadWay::kSocket;
}

std::shared_ptr<LocalNode> PeerNode::local(Deadline deadline) {
    if (transport_ == Transport::kTcp || transport_ == Transport::kUcx) {
        return nullptr;
    }
    if (std::shared_ptr<LocalNode> node = attached()) {
        return node;
    }
    const std::shared_ptr<const PeerInfo> known = info();
    // The process that the table speaks of may have ended: what is left of its socket would keep a
    // read waiting. The next lookup brings the table of its successor.
    const bool only_way = transport_ == Transport::kShm;
    if (known->unix_endpoint.empty() || is_gone(known->state) ||
        (ended(known->epoch) && !only_way) || !attach_breaker_.allow()) {
        return nullptr;
    }
    Result<Endpoint> endpoint = Endpoint::parse(known->unix_endpoint);
    if (!endpoint.ok() || !endpoint->is_unix()) {
        return nullptr;
    }
    std::shared_ptr<LocalNode> node;
    {
        // One thread attaches; meanwhile the others take the socket.
        std::unique_lock attaching(attach_mutex_, std::try_to_lock);
        if (!attaching.owns_lock()) {
            return nullptr;
        }
        const WaitsLocked waits;
        node = attach(*known, *endpoint, deadline);
    }
    if (node == nullptr) {
        report_unattached(*known, false);
    }
    return node;
}

std::shared_ptr<LocalNode> PeerNode::attach(const PeerInfo& known, const Endpoint& endpoint,
                                            Deadline deadline) {
    const Deadline until =
        Deadline::after_ms(static_cast<uint64_t>(std::min(deadline.left_ms(), kAttachMs)));
    AttachCause cause = AttachCause::kNone;
    Result<std::shared_ptr<LocalNode>> node =
        LocalNode::attach(endpoint, hello_, known.id, &cause, until);
    if (!node.ok()) {
        attach_breaker_.failure();
        note_failure(known, cause, node.status());
        return nullptr;
    }
    attach_breaker_.success();
    const MutexLock lock(mutex_);
    note_place(Place::kThisHost, known.epoch);
    failures_in_a_row_ = 0;
    if (closed_) {
        return nullptr;
    }
    path_.cause = AttachCause::kNone;
    path_.detail.clear();
    local_ = *node;
    return local_;
}

// ---- why it is not mapped --------------------------------------------------------------------

NodePath PeerNode::path() const {
    const MutexLock lock(mutex_);
    NodePath path = path_;
    path.attached = local_ != nullptr && local_->usable();
    path.place = place();
    return path;
}

void PeerNode::note_place(Place place, uint32_t epoch) {
    place_ = place;
    place_epoch_ = epoch;
}

void PeerNode::note_failure(const PeerInfo& known, AttachCause cause, const Status& status) {
    const MutexLock lock(mutex_);
    if (is_answer(cause)) {
        note_place(Place::kThisHost, known.epoch);
    }
    path_.cause = cause;
    path_.detail = status.message().empty() ? status.to_string() : status.message();
    ++path_.failures;
    ++failures_in_a_row_;
    failed_epoch_ = known.epoch;
}

// The node answers by socket: on which host is it?
void PeerNode::learn_place(const WelcomeData& welcome) {
    if (welcome.host_identity != 0 && host_identity() != 0) {
        const bool same = welcome.host_identity == host_identity();
        const MutexLock lock(mutex_);
        note_place(same ? Place::kThisHost : Place::kOtherHost, welcome.node_epoch);
    }
}

// `answered`: by socket, after the failure. So this incarnation was not down when it was tried.
void PeerNode::report_unattached(const PeerInfo& known, bool answered) {
    if (!on_unattached_) {
        return;
    }
    NodePath path;
    {
        const MutexLock lock(mutex_);
        const AttachCause cause = path_.cause;
        const uint32_t bit = 1u << static_cast<uint32_t>(cause);
        const bool no_accident =
            is_answer(cause) || cause == AttachCause::kPermission ||
            (answered && (cause != AttachCause::kOther || failures_in_a_row_ >= kRepeated));
        const bool is_here = place() == Place::kThisHost ||
                             (known.tcp_endpoint.empty() && cause == AttachCause::kPermission);
        if (cause == AttachCause::kNone || !no_accident || !is_here ||
            failed_epoch_ != known.epoch || (reported_ & bit) != 0) {
            return;
        }
        reported_ |= bit;
        path = path_;
    }
    path.place = Place::kThisHost;
    on_unattached_(known.id, known.unix_endpoint, path);
}

Result<std::unique_ptr<Channel>> PeerNode::open_socket(Deadline deadline) {
    const std::shared_ptr<const PeerInfo> known = info();
    const std::string& text =
        known->tcp_endpoint.empty() ? known->unix_endpoint : known->tcp_endpoint;
    Result<Endpoint> endpoint = Endpoint::parse(text);
    if (!endpoint.ok()) {
        return {Code::kUnavailable, known->id + " has no endpoint"};
    }
    HelloParams hello = without_shared_memory(hello_);
    if (transport_ != Transport::kTcp && transport_ != Transport::kUcx) {
        hello.host_identity = host_identity();
        hello.attach_cause = path().cause;
    }
    Result<std::unique_ptr<Channel>> channel = Channel::connect(*endpoint, hello, deadline);
    if (channel.ok() && (*channel)->welcome().node_id != known->id) {
        return {Code::kUnavailable, text + " is another node than " + known->id};
    }
    if (channel.ok() && !known->unix_endpoint.empty()) {  // else it shares no memory anyway
        learn_place((*channel)->welcome());
    }
    return channel;
}

// Here and not in open_socket(), whose callers may hold a lock: who hears of it may call back.
Result<std::unique_ptr<Channel>> PeerNode::open_pooled(Deadline deadline) {
    const std::shared_ptr<const PeerInfo> known = info();
    Result<std::unique_ptr<Channel>> channel = open_socket(deadline);
    if (channel.ok() && (*channel)->welcome().node_epoch == known->epoch) {
        report_unattached(*known, true);
    }
    return channel;
}

void PeerNode::shutdown() {
    sockets_.shutdown();
    std::shared_ptr<LocalNode> node;
    {
        const MutexLock lock(mutex_);
        closed_ = true;
        node = std::move(local_);
    }
    if (node != nullptr) {
        node->channels().shutdown();
    }
}

// ---- UCX -------------------------------------------------------------------------------------

std::shared_ptr<const UcxRegion> PeerNode::ucx_region(Channel& channel, Deadline deadline) {
    {
        const MutexLock lock(mutex_);
        if (ucx_region_ != nullptr) {
            return ucx_region_;
        }
    }
    UcxOpenReply reply;
    std::string why;
    auto region = std::make_shared<UcxRegion>();
    if ((channel.welcome().features & kFeatureUcx) == 0) {
        why = "the node does not offer UCX";
    } else if (const Status status = channel.exchange(UcxOpen{}, &reply, deadline); !status.ok()) {
        why = status.message();
    } else if (reply.code != 0) {
        why = reply.text;
    } else {
        region->life = reply.life;
        region->worker = reply.worker;
        uint64_t end = 0;
        for (size_t i = 0; i < reply.offsets.size(); ++i) {
            if (reply.offsets[i] != end || reply.sizes[i] == 0) {
                break;  // no node says this
            }
            region->slices.push_back(
                {reply.offsets[i], reply.sizes[i], reply.addresses[i], std::string(reply.keys[i])});
            end += reply.sizes[i];
        }
        why = region->slices.empty() ? "nothing of the node's memory is registered yet" : "";
    }
    const MutexLock lock(mutex_);
    ucx_detail_ = why;
    if (!why.empty()) {
        ucx_breaker_.failure();
        return nullptr;
    }
    ucx_region_ = std::move(region);
    return ucx_region_;
}

bool PeerNode::knows_ucx_region() const {
    const MutexLock lock(mutex_);
    return ucx_region_ != nullptr;
}

void PeerNode::forget_ucx_region() {
    const MutexLock lock(mutex_);
    ucx_region_ = nullptr;
}

std::string PeerNode::ucx_detail() const {
    const MutexLock lock(mutex_);
    return ucx_detail_;
}

}  // namespace kvstore
