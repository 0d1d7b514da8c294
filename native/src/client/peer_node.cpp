// Attaching to a node, opening channels to it, following its restarts.
#include "client/peer_node.h"

#include <algorithm>
#include <mutex>

#include "base/interrupt.h"
#include "base/mutex.h"

namespace kvstore {
namespace {

constexpr int kAttachMs = 1000;

HelloParams without_shared_memory(HelloParams hello) {
    hello.features &= ~kFeatureSharedMemory;
    return hello;
}

}  // namespace

PeerNode::PeerNode(PeerInfo info, HelloParams hello, Transport transport)
    : hello_(std::move(hello)),
      transport_(transport),
      info_(std::make_shared<const PeerInfo>(std::move(info))),
      attach_breaker_(50, 5000),
      sockets_([this](Deadline deadline) { return open_socket(deadline); }) {}

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
    info_ = std::make_shared<const PeerInfo>(std::move(info));
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

std::shared_ptr<LocalNode> PeerNode::local(Deadline deadline) {
    if (transport_ == Transport::kTcp) {
        return nullptr;
    }
    if (std::shared_ptr<LocalNode> node = attached()) {
        return node;
    }
    const std::shared_ptr<const PeerInfo> known = info();
    if (known->unix_endpoint.empty() || known->state == NodeState::kDead ||
        !attach_breaker_.allow()) {
        return nullptr;
    }
    // One thread attaches; meanwhile the others take the socket.
    std::unique_lock attaching(attach_mutex_, std::try_to_lock);
    if (!attaching.owns_lock()) {
        return nullptr;
    }
    const WaitsLocked waits;
    Result<Endpoint> endpoint = Endpoint::parse(known->unix_endpoint);
    if (!endpoint.ok() || !endpoint->is_unix()) {
        return nullptr;
    }
    const Deadline until =
        Deadline::after_ms(static_cast<uint64_t>(std::min(deadline.left_ms(), kAttachMs)));
    Result<std::shared_ptr<LocalNode>> node =
        LocalNode::attach(*endpoint, hello_, known->id, until);
    if (!node.ok()) {
        attach_breaker_.failure();
        return nullptr;
    }
    attach_breaker_.success();
    const MutexLock lock(mutex_);
    if (closed_) {
        return nullptr;
    }
    local_ = *node;
    return local_;
}

Result<std::unique_ptr<Channel>> PeerNode::open_socket(Deadline deadline) const {
    const std::shared_ptr<const PeerInfo> known = info();
    const std::string& text =
        known->tcp_endpoint.empty() ? known->unix_endpoint : known->tcp_endpoint;
    Result<Endpoint> endpoint = Endpoint::parse(text);
    if (!endpoint.ok()) {
        return {Code::kUnavailable, known->id + " has no endpoint"};
    }
    Result<std::unique_ptr<Channel>> channel =
        Channel::connect(*endpoint, without_shared_memory(hello_), deadline);
    if (channel.ok() && (*channel)->welcome().node_id != known->id) {
        return {Code::kUnavailable, text + " is another node than " + known->id};
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

}  // namespace kvstore
