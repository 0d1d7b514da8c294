// Who waits, and when a batch is due.
#include "master/heartbeats.h"

#include <chrono>
#include <iterator>
#include <utility>

#include "base/clock.h"

namespace kvstore {

std::optional<uint64_t> Heartbeats::add(NodeHeartbeat heartbeat) {
    const MutexLock lock(mutex_);
    const auto older = std::ranges::find(waiting_, heartbeat.link, &NodeHeartbeat::link);
    const size_t freed = older == waiting_.end() ? 0 : older->request.size();
    const size_t bytes = bytes_ - freed + heartbeat.request.size();
    if (bytes > limits::kMaxWaitingHeartbeatBytes) {
        return heartbeat.request_id;
    }
    bytes_ = bytes;
    if (older != waiting_.end()) {
        return std::exchange(*older, std::move(heartbeat)).request_id;
    }
    waiting_.push_back(std::move(heartbeat));
    if (waiting_.size() == 1) {
        changed_.notify_one();
    }
    return std::nullopt;
}

void Heartbeats::lost(LinkId link) {
    const MutexLock lock(mutex_);
    std::erase_if(waiting_, [&](const NodeHeartbeat& one) KV_REQUIRES(mutex_) {
        bytes_ -= one.link == link ? one.request.size() : 0;
        return one.link == link;
    });
}

std::vector<NodeHeartbeat> Heartbeats::take(uint32_t timeout_ms, uint64_t gap_ms) {
    using std::chrono::milliseconds;
    const MutexLock lock(mutex_);
    changed_.wait_for(mutex_, milliseconds(timeout_ms),
                      [this]() KV_REQUIRES(mutex_) { return stopped_ || !waiting_.empty(); });
    const uint64_t now_ms = boottime_ms();
    if (!waiting_.empty() && now_ms < taken_ms_ + gap_ms) {
        changed_.wait_for(mutex_, milliseconds(taken_ms_ + gap_ms - now_ms),
                          [this]() KV_REQUIRES(mutex_) { return stopped_; });
    }
    if (stopped_) {
        return {};
    }
    taken_ms_ = waiting_.empty() ? taken_ms_ : boottime_ms();
    const auto end =
        waiting_.begin() + static_cast<std::ptrdiff_t>(std::min(waiting_.size(), kMostTaken));
    std::vector<NodeHeartbeat> taken(std::move_iterator(waiting_.begin()), std::move_iterator(end));
    waiting_.erase(waiting_.begin(), end);
    for (const NodeHeartbeat& one : taken) {
        bytes_ -= one.request.size();
    }
    return taken;
}

void Heartbeats::stop() {
    const MutexLock lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
}

}  // namespace kvstore
