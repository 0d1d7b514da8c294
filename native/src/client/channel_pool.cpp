// Taking, giving back and shutting down pooled channels.
#include "client/channel_pool.h"

#include <algorithm>
#include <chrono>

namespace kvstore {

void ChannelPool::Lease::give_back() {
    if (channel_ != nullptr) {
        pool_->give_back(std::move(channel_));
    }
}

Result<ChannelPool::Lease> ChannelPool::checkout(Deadline deadline) {
    const Deadline patience =
        Deadline::after_ms(static_cast<uint64_t>(std::clamp(deadline.left_ms(), 0, kMaxWaitMs)));
    while (true) {
        Result<std::unique_ptr<Channel>> idle = take_idle();
        if (!idle.ok()) {
            return idle.status();
        }
        if (*idle != nullptr && !(*idle)->usable()) {
            continue;
        }
        if (*idle != nullptr) {
            return lend(std::move(*idle), false);
        }
        Result<std::unique_ptr<Channel>> opened = connect_(deadline);
        if (opened.ok()) {
            return lend(std::move(*opened), true);
        }
        if (opened.code() != Code::kOverloaded || !wait_for_return(patience)) {
            return opened.status();
        }
    }
}

Result<std::unique_ptr<Channel>> ChannelPool::take_idle() {
    const MutexLock lock(mutex_);
    if (closed_) {
        return {Code::kClosed, "the store is closed"};
    }
    std::unique_ptr<Channel> channel;
    if (!idle_.empty()) {
        channel = std::move(idle_.back());
        idle_.pop_back();
    }
    return channel;
}

Result<ChannelPool::Lease> ChannelPool::lend(std::unique_ptr<Channel> channel, bool fresh) {
    const MutexLock lock(mutex_);
    if (closed_) {
        return {Code::kClosed, "the store is closed"};
    }
    busy_.push_back(channel.get());
    note_use();
    return Lease(this, std::move(channel), fresh);
}

void ChannelPool::note_use() {
    const uint64_t now_ms = boottime_ms();
    if (now_ms - since_ms_ >= lately_ms_) {
        peak_before_ = now_ms - since_ms_ < 2 * lately_ms_ ? peak_ : 1;
        peak_ = 1;
        since_ms_ = now_ms;
    }
    peak_ = std::max(peak_, busy_.size());
}

bool ChannelPool::may_keep_one_more() const { return idle_.size() + busy_.size() < peak_lately(); }

// Whether it is worth another try: somebody gave a channel back. False at once when nobody has one.
bool ChannelPool::wait_for_return(Deadline deadline) {
    const MutexLock lock(mutex_);
    if (!idle_.empty()) {
        return true;
    }
    if (busy_.empty() || deadline.expired()) {
        return false;
    }
    const auto left = std::chrono::milliseconds(deadline.left_ms());
    return given_back_.wait_for(mutex_, left) == std::cv_status::no_timeout;
}

void ChannelPool::adopt(std::unique_ptr<Channel> channel) {
    const MutexLock lock(mutex_);
    if (!closed_ && may_keep_one_more()) {
        idle_.push_back(std::move(channel));
        given_back_.notify_one();
    }
}

void ChannelPool::drop_idle() {
    std::vector<std::unique_ptr<Channel>> dropped;  // closed outside the lock
    const MutexLock lock(mutex_);
    dropped.swap(idle_);
}

void ChannelPool::shutdown() {
    std::vector<std::unique_ptr<Channel>> dropped;
    const MutexLock lock(mutex_);
    closed_ = true;
    dropped.swap(idle_);
    for (Channel* channel : busy_) {
        channel->shutdown();
    }
    given_back_.notify_all();
}

void ChannelPool::give_back(std::unique_ptr<Channel> channel) {
    std::vector<std::unique_ptr<Channel>> dropped;  // closed outside the lock
    const MutexLock lock(mutex_);
    std::erase(busy_, channel.get());
    note_use();
    if (!closed_ && channel->alive() && channel->payload_left() == 0 && may_keep_one_more()) {
        idle_.push_back(std::move(channel));
    }
    // Those that have lain idle for the longest go when fewer are in use than before.
    while (!idle_.empty() && idle_.size() + busy_.size() > peak_lately()) {
        dropped.push_back(std::move(idle_.front()));
        idle_.erase(idle_.begin());
    }
    given_back_.notify_one();
}

}  // namespace kvstore
