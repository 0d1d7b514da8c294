// Taking, giving back and shutting down pooled channels.
#include "client/channel_pool.h"

#include <algorithm>

namespace kvstore {

void ChannelPool::Lease::give_back() {
    if (channel_ != nullptr) {
        pool_->give_back(std::move(channel_));
    }
}

Result<ChannelPool::Lease> ChannelPool::checkout(Deadline deadline) {
    while (true) {
        std::unique_ptr<Channel> channel;
        {
            const MutexLock lock(mutex_);
            if (closed_) {
                return {Code::kClosed, "the store is closed"};
            }
            if (idle_.empty()) {
                break;
            }
            channel = std::move(idle_.back());
            idle_.pop_back();
        }
        if (!channel->usable()) {
            continue;
        }
        const MutexLock lock(mutex_);
        if (closed_) {
            return {Code::kClosed, "the store is closed"};
        }
        busy_.push_back(channel.get());
        return Lease(this, std::move(channel), false);
    }
    Result<std::unique_ptr<Channel>> opened = connect_(deadline);
    if (!opened.ok()) {
        return opened.status();
    }
    const MutexLock lock(mutex_);
    if (closed_) {
        return {Code::kClosed, "the store is closed"};
    }
    busy_.push_back(opened->get());
    return Lease(this, std::move(*opened), true);
}

void ChannelPool::adopt(std::unique_ptr<Channel> channel) {
    const MutexLock lock(mutex_);
    if (!closed_ && idle_.size() < kMaxIdle) {
        idle_.push_back(std::move(channel));
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
}

void ChannelPool::give_back(std::unique_ptr<Channel> channel) {
    const MutexLock lock(mutex_);
    std::erase(busy_, channel.get());
    if (!closed_ && channel->alive() && channel->payload_left() == 0 && idle_.size() < kMaxIdle) {
        idle_.push_back(std::move(channel));
    }
}

}  // namespace kvstore
