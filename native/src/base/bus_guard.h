// Outlives the loss of a mapped file's pages.
//
// Whoever has a shared file open for writing can shorten it, and a hole may find no memory: then a
// touch of its mapping raises SIGBUS, which ends the process. For mappings that are watched, a
// handler instead puts zeros of this process's own in place of everything from that page on, marks
// the mapping as torn, and lets the thread go on. What it reads fails its checksum; what it writes
// reaches nobody. Owners look at torn() and stop using the file.
//
// The handler is installed with the first watched mapping, above the one that is there: a SIGBUS of
// any other origin goes to that one, or ends the process. One that is installed later should hand
// over what it does not know; Python's faulthandler does.
#pragma once

#include <atomic>
#include <cstdint>

namespace kvstore {

class BusGuard {
  public:
    // One mapping, as the handler sees it. Never freed, but used again.
    struct Watch {
        static constexpr uintptr_t kFree = 0;
        static constexpr uintptr_t kTaken = 1;  // and being filled in

        std::atomic<uintptr_t> begin{kTaken};  // stored last, so the others are right when it is
        std::atomic<uintptr_t> end{0};
        std::atomic<uintptr_t> page_bytes{0};
        std::atomic<int> protection{0};
        std::atomic<bool> torn{false};
        Watch* next = nullptr;
    };
    // `fd` is the file that is mapped there: hugetlbfs has pages of its own size.
    static Watch* watch(void* data, uint64_t size, int fd, bool writable);
    // Before the mapping goes. Null is allowed.
    static void end(Watch* watch);
    // Whether pages of it were lost; they never come back.
    static bool torn(const Watch& watch) { return watch.torn.load(std::memory_order_relaxed); }
};

}  // namespace kvstore
