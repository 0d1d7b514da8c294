// How many replicas the objects of a node want, so that a restarted master can be told. Most want
// one, and only the others are remembered. Thread-safe.
#pragma once

#include <cstdint>
#include <unordered_map>

#include "base/mutex.h"
#include "base/types.h"

namespace kvstore {

class ReplicaWishes {
  public:
    void note(Version version, uint8_t replicas) {
        if (replicas > 1) {
            const MutexLock lock(mutex_);
            wanted_[version] = replicas;
        }
    }
    uint8_t wanted(Version version) const {
        const MutexLock lock(mutex_);
        const auto found = wanted_.find(version);
        return found == wanted_.end() ? uint8_t{1} : found->second;
    }
    void forget(Version version) {
        const MutexLock lock(mutex_);
        wanted_.erase(version);
    }

  private:
    mutable Mutex mutex_;
    std::unordered_map<Version, uint8_t> wanted_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
