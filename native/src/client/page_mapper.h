// Enters a segment's pages into this process's page tables before they are needed.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace kvstore {

// The first touch of a mapped page costs this process half a microsecond (measured), more than
// copying its 4 KiB does, although the node has long filled it. The beginning of the segment is
// mapped for writing at once; from there a thread goes ahead, which rests four times as long as it
// works. A block that it has not reached yet is mapped granule by granule when it is first written.
// Only what is in memory already is mapped, so nothing is allocated here.
//
// The thread has the priority of every other: while it maps, it holds the lock that the whole
// process needs to map or unmap anything. On a busy machine one that runs only on idle processors
// kept the process from that for six seconds (measured).
class PageMapper {
  public:
    enum class Begin : uint8_t {
        kAtOnce,
        kLater,  // by the thread: a call waits for this, and its next ones will
    };
    // Two mappings of one segment, the first one empty for a process that only reads. `keeps` holds
    // them, until the thread has ended. Without it both stay until this object is gone.
    PageMapper(std::span<uint8_t> writable, std::span<uint8_t> read_only,
               Begin begin = Begin::kAtOnce, std::shared_ptr<const void> keeps = nullptr);
    // With `keeps` it waits for nothing: to unmap a large segment takes its time.
    ~PageMapper();
    PageMapper(const PageMapper&) = delete;
    PageMapper& operator=(const PageMapper&) = delete;

    // For a block that is about to be written; the node has pre-faulted it. Thread-safe.
    void map(uint64_t offset, uint64_t size);
    uint64_t mapped_ahead() const { return ahead_->bytes.load(std::memory_order_relaxed); }

  private:
    // Shared with the thread.
    struct Ahead {
        Ahead(std::span<uint8_t> to_write, std::span<uint8_t> to_read);
        void run();
        void go_ahead();
        bool pause(std::chrono::nanoseconds pause);  // false: stop
        bool resident(uint64_t granule) const;
        void map_granule(uint64_t granule);

        const std::span<uint8_t> writable;
        const std::span<uint8_t> read_only;
        std::shared_ptr<const void> keeps;          // given up by the thread
        std::vector<std::atomic<uint64_t>> mapped;  // of `writable`: a bit per granule
        std::atomic<uint64_t> bytes{0};
        std::atomic<bool> ended{false};
        Mutex mutex;
        CondVar stop;
        bool stopping KV_GUARDED_BY(mutex) = false;
    };
    static void join_later(std::thread thread, std::shared_ptr<Ahead> ahead);

    const std::shared_ptr<Ahead> ahead_;
    const bool waits_;  // for the thread, at the end
    std::thread thread_;
};

}  // namespace kvstore
