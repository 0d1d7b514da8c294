// Bytes of operations that are not on disk yet, and how many there may be. Policy keeps that much
// room on the master's disk, so an operation that was let in can be written: what does not fit is
// refused before it has any effect. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/status.h"

namespace kvstore {

class JournalRoom {
  public:
    // `refusal`: what operations are answered that find none.
    void set_room(uint64_t bytes, Code refusal) {
        refusal_.store(refusal, std::memory_order_relaxed);
        room_.store(bytes, std::memory_order_relaxed);
    }
    Code refusal() const { return refusal_.load(std::memory_order_relaxed); }
    bool has_room() const { return used() < room_.load(std::memory_order_relaxed); }
    uint64_t used() const { return used_.load(std::memory_order_relaxed); }

    // False: there is no room for them, and nothing was added.
    bool admit(uint64_t bytes) {
        const uint64_t before = used_.fetch_add(bytes);
        if (before + bytes <= room_.load(std::memory_order_relaxed)) {
            return true;
        }
        used_.fetch_sub(bytes);
        return false;
    }
    // Operations that follow from what was admitted earlier.
    void add(uint64_t bytes) { used_.fetch_add(bytes); }
    void give_back(uint64_t bytes) { used_.fetch_sub(bytes); }

  private:
    std::atomic<uint64_t> used_{0};
    std::atomic<uint64_t> room_{UINT64_MAX};  // until policy says how much there is
    std::atomic<Code> refusal_{Code::kNoSpace};
};

}  // namespace kvstore
