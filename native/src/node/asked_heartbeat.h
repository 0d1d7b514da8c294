// The heartbeat of a node that waits for its master's answer over the link.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "base/mutex.h"
#include "base/status.h"

namespace kvstore {

// Thread-safe.
class AskedHeartbeat {
  public:
    // The reply's bytes, or the master's refusal. Called once, from any thread, without locks held.
    using Heard = std::function<void(Result<std::string>)>;

    // Returns the number that the answer has to carry. One that waited before hears kUnavailable:
    // whoever asked has given it up.
    uint64_t begin(Heard heard) KV_EXCLUDES(mutex_) {
        MutexLock lock(mutex_);
        const uint64_t number = ++number_;
        std::swap(heard_, heard);
        lock.unlock();
        call(heard, Status(Code::kUnavailable, "a newer heartbeat was asked"));
        return number;
    }
    // Dropped, unless it is the answer to the last one.
    void end(uint64_t number, Result<std::string> answer) KV_EXCLUDES(mutex_) {
        MutexLock lock(mutex_);
        Heard heard = number == number_ ? std::exchange(heard_, nullptr) : nullptr;
        lock.unlock();
        call(heard, std::move(answer));
    }
    void lost() KV_EXCLUDES(mutex_) {
        MutexLock lock(mutex_);
        Heard heard = std::exchange(heard_, nullptr);
        lock.unlock();
        call(heard, Status(Code::kUnavailable, "the link was lost"));
    }

  private:
    static void call(const Heard& heard, Result<std::string> answer) {
        if (heard) {
            heard(std::move(answer));
        }
    }

    Mutex mutex_;
    uint64_t number_ KV_GUARDED_BY(mutex_) = 0;
    Heard heard_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
