// Enters a segment's pages into this process's page tables before they are needed.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace kvstore {

// The first touch of a mapped page costs this process half a microsecond (measured), more than
// copying its 4 KiB does, although the node has long filled it. The beginning of the segment is
// mapped for writing at once; from there a thread that runs only on idle processors goes ahead. A
// block that it has not reached yet is mapped granule by granule when it is first written. Only
// what is in memory already is mapped, so nothing is allocated here.
class PageMapper {
  public:
    // Two mappings of one segment, the first one empty for a process that only reads; both stay
    // until this object is gone.
    PageMapper(std::span<uint8_t> writable, std::span<uint8_t> read_only);
    ~PageMapper();
    PageMapper(const PageMapper&) = delete;
    PageMapper& operator=(const PageMapper&) = delete;

    // For a block that is about to be written; the node has pre-faulted it. Thread-safe.
    void map(uint64_t offset, uint64_t size);
    uint64_t mapped_ahead() const { return ahead_bytes_.load(std::memory_order_relaxed); }

  private:
    void run();
    bool pause(uint64_t pause_ms);  // false: stop
    bool resident(uint64_t granule) const;
    void map_granule(uint64_t granule);
    std::span<uint8_t> part(std::span<uint8_t> mapping, uint64_t granule) const;

    std::span<uint8_t> writable_;
    std::span<uint8_t> read_only_;
    std::vector<std::atomic<uint64_t>> mapped_;  // of writable_: a bit per granule
    std::atomic<uint64_t> ahead_bytes_{0};
    Mutex mutex_;
    CondVar stop_;
    bool stopping_ KV_GUARDED_BY(mutex_) = false;
    std::thread thread_;
};

}  // namespace kvstore
