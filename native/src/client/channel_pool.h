// Open channels to one server: a calling thread takes one, does its own I/O on it, and gives it
// back.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#include "base/mutex.h"
#include "net/channel.h"

namespace kvstore {

// Thread-safe. No lock is held during I/O. A channel that failed is dropped when it is given back.
// As many channels stay open as were in use at once lately: more would withhold descriptors, and
// with fewer the callers would connect again and again.
class ChannelPool {
  public:
    using Connect = std::function<Result<std::unique_ptr<Channel>>(Deadline)>;
    static constexpr uint64_t kLatelyMs = 10'000;  // to twice that
    // Where no further channel can be had for the moment (no descriptor is free, or the server is
    // full), a caller waits this long for another one's.
    static constexpr int kMaxWaitMs = 1000;

    // A channel in use; gives it back when destroyed.
    class Lease {
      public:
        Lease() = default;
        Lease(ChannelPool* pool, std::unique_ptr<Channel> channel, bool fresh)
            : pool_(pool), channel_(std::move(channel)), fresh_(fresh) {}
        Lease(Lease&&) = default;
        Lease& operator=(Lease&& other) noexcept {
            give_back();
            pool_ = other.pool_;
            channel_ = std::move(other.channel_);
            fresh_ = other.fresh_;
            return *this;
        }
        ~Lease() { give_back(); }
        Channel* operator->() const { return channel_.get(); }
        Channel& operator*() const { return *channel_; }
        explicit operator bool() const { return channel_ != nullptr; }
        // False for a channel that had been idle: its first failure may only mean that the server
        // was restarted meanwhile.
        bool fresh() const { return fresh_; }
        void give_back();

      private:
        ChannelPool* pool_ = nullptr;
        std::unique_ptr<Channel> channel_;
        bool fresh_ = false;
    };

    explicit ChannelPool(Connect connect, uint64_t lately_ms = kLatelyMs)
        : connect_(std::move(connect)), lately_ms_(lately_ms) {}
    ~ChannelPool() = default;  // after every Lease
    ChannelPool(const ChannelPool&) = delete;
    ChannelPool& operator=(const ChannelPool&) = delete;

    Result<Lease> checkout(Deadline deadline) KV_EXCLUDES(mutex_);
    // Adds a channel that was opened elsewhere.
    void adopt(std::unique_ptr<Channel> channel) KV_EXCLUDES(mutex_);
    // Drops the idle channels: after a failure they are most likely broken too.
    void drop_idle() KV_EXCLUDES(mutex_);
    // For closing: blocked calls return kClosed and nothing can be taken any more.
    void shutdown() KV_EXCLUDES(mutex_);

    // One request on some channel, tried again on a fresh one when an idle channel turned out to be
    // dead. `reply` views the channel's buffer: keep `lease` while it is used.
    template <class Request, class Reply>
    Status exchange(const Request& request, Reply* reply, Lease* lease, Deadline deadline,
                    const Payload& payload = {}) {
        return call(lease, deadline, [&](Channel& channel) {
            return channel.exchange(request, reply, deadline, payload);
        });
    }
    // The same for a request of several steps: Status(Channel&).
    template <class Call>
    Status call(Lease* lease, Deadline deadline, const Call& call_on) {
        while (true) {
            Result<Lease> taken = checkout(deadline);
            if (!taken.ok()) {
                return taken.status();
            }
            *lease = std::move(*taken);
            Status status = call_on(**lease);
            if (status.ok() || (*lease)->alive() || lease->fresh() ||
                status.code() == Code::kDeadlineExceeded) {
                return status;
            }
            drop_idle();
        }
    }

  private:
    friend class Lease;
    void give_back(std::unique_ptr<Channel> channel) KV_EXCLUDES(mutex_);
    Result<std::unique_ptr<Channel>> take_idle() KV_EXCLUDES(mutex_);  // null: there is none
    Result<Lease> lend(std::unique_ptr<Channel> channel, bool fresh) KV_EXCLUDES(mutex_);
    void note_use() KV_REQUIRES(mutex_);
    size_t peak_lately() const KV_REQUIRES(mutex_) { return std::max(peak_, peak_before_); }
    bool may_keep_one_more() const KV_REQUIRES(mutex_);
    bool wait_for_return(Deadline deadline) KV_EXCLUDES(mutex_);

    const Connect connect_;
    const uint64_t lately_ms_;
    Mutex mutex_;
    bool closed_ KV_GUARDED_BY(mutex_) = false;
    std::vector<std::unique_ptr<Channel>> idle_ KV_GUARDED_BY(mutex_);
    std::vector<Channel*> busy_ KV_GUARDED_BY(mutex_);
    CondVar given_back_;
    // The most that were busy at once since `since_ms_`, and in the time before that.
    uint64_t since_ms_ KV_GUARDED_BY(mutex_) = 0;
    size_t peak_ KV_GUARDED_BY(mutex_) = 1;
    size_t peak_before_ KV_GUARDED_BY(mutex_) = 1;
};

}  // namespace kvstore
