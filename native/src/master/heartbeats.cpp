// Who waits, and when a batch is due.
#include "master/heartbeats.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <utility>

#include "base/clock.h"

namespace kvstore {

std::optional<uint64_t> Heartbeats::add(NodeHeartbeat heartbeat) {
    const MutexLock lock(mutex_);
    const std::optional<uint64_t> older = erase(heartbeat.link);
    const size_t bytes = heartbeat.request.size();
    if (bytes_ + bytes > limits::kMaxWaitingHeartbeatBytes) {
        return heartbeat.request_id;
    }
    bytes_ += bytes;
    waiting_.push_back(std::move(heartbeat));
    if (waiting_.size() == 1) {
        changed_.notify_one();
    }
    return older;
}

std::optional<uint64_t> Heartbeats::erase(LinkId link) {
    const auto at = std::ranges::find(waiting_, link, &NodeHeartbeat::link);
    if (at == waiting_.end()) {
        return std::nullopt;
    }
    const uint64_t request_id = at->request_id;
    bytes_ -= at->request.size();
    waiting_.erase(at);
    return request_id;
}

void Heartbeats::lost(LinkId link) {
    const MutexLock lock(mutex_);
    erase(link);
}

std::vector<NodeHeartbeat> Heartbeats::take(uint32_t timeout_ms) {
    using std::chrono::milliseconds;
    const MutexLock lock(mutex_);
    changed_.wait_for(mutex_, milliseconds(timeout_ms),
                      [this]() KV_REQUIRES(mutex_) { return stopped_ || !waiting_.empty(); });
    const uint64_t now_ms = boottime_ms();
    if (!waiting_.empty() && now_ms < taken_ms_ + kGapMs) {
        changed_.wait_for(mutex_, milliseconds(taken_ms_ + kGapMs - now_ms),
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
