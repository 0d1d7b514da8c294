// Mapping ahead in the background, and on demand.
#include "client/page_mapper.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>

#include "base/mutex.h"
#include "base/signals_blocked.h"

namespace kvstore {
namespace {

// One system call for 64 pages costs a third of 64 page faults. The node hands out memory in slices
// that are whole granules.
constexpr uint64_t kGranule = 256u << 10;
// Mapped before the first block is written, in some 20 ms: where a node that has just started puts
// what comes first.
constexpr uint64_t kAtOnceBytes = 256u << 20;
constexpr uint64_t kMaxAheadBytes = 64ull << 30;  // larger segments have huge pages
constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ, Linux 5.14; older headers do not know it
constexpr uint64_t kFirstPauseMs = 20;  // while the node is still pre-faulting
constexpr uint64_t kLastPauseMs = 1000;

}  // namespace

PageMapper::PageMapper(std::span<uint8_t> writable, std::span<uint8_t> read_only)
    : writable_(writable), read_only_(read_only), mapped_(writable.size() / kGranule / 64 + 1) {
    const uint64_t at_once = std::min<uint64_t>(writable_.size(), kAtOnceBytes);
    for (uint64_t granule = 0; granule * kGranule < at_once && resident(granule); ++granule) {
        map_granule(granule);
    }
    const SignalsBlocked blocked;
    thread_ = std::thread([this] { run(); });
}

PageMapper::~PageMapper() {
    {
        const MutexLock lock(mutex_);
        stopping_ = true;
    }
    stop_.notify_all();
    thread_.join();
}

std::span<uint8_t> PageMapper::part(std::span<uint8_t> mapping, uint64_t granule) const {
    const uint64_t at = granule * kGranule;
    return mapping.subspan(at, std::min(kGranule, mapping.size() - at));
}

void PageMapper::map_granule(uint64_t granule) {
    if (writable_.empty()) {
        return;
    }
    const uint64_t bit = uint64_t{1} << (granule % 64);
    if ((mapped_[granule / 64].fetch_or(bit, std::memory_order_relaxed) & bit) == 0) {
        // An older kernel refuses: then the pages come by faults.
        const std::span<uint8_t> pages = part(writable_, granule);
        (void)madvise(pages.data(), pages.size(), kPopulateRead);
    }
}

void PageMapper::map(uint64_t offset, uint64_t size) {
    for (uint64_t granule = offset / kGranule; granule * kGranule < offset + size; ++granule) {
        map_granule(granule);
    }
}

bool PageMapper::resident(uint64_t granule) const {
    const std::span<uint8_t> pages = part(read_only_, granule);
    const auto page_bytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    std::array<unsigned char, kGranule / 4096> states{};
    const uint64_t count = (pages.size() + page_bytes - 1) / page_bytes;
    return count <= states.size() && mincore(pages.data(), pages.size(), states.data()) == 0 &&
           std::all_of(states.begin(), states.begin() + static_cast<ptrdiff_t>(count),
                       [](unsigned char state) { return (state & 1) != 0; });
}

bool PageMapper::pause(uint64_t pause_ms) {
    const MutexLock lock(mutex_);
    stop_.wait_for(mutex_, std::chrono::milliseconds(pause_ms),
                   [this]() KV_REQUIRES(mutex_) { return stopping_; });
    return !stopping_;
}

void PageMapper::run() {
    const sched_param none{};
    (void)sched_setscheduler(0, SCHED_IDLE, &none);  // this thread alone
    pthread_setname_np(pthread_self(), "kv-map-ahead");
    const uint64_t bytes = std::min<uint64_t>(read_only_.size(), kMaxAheadBytes);
    uint64_t pause_ms = kFirstPauseMs;
    for (uint64_t granule = 0; granule * kGranule < bytes;) {
        if (!resident(granule)) {
            if (!pause(pause_ms)) {
                return;
            }
            pause_ms = std::min(2 * pause_ms, kLastPauseMs);
            continue;
        }
        if (granule % 64 == 0 && !pause(0)) {
            return;
        }
        pause_ms = kFirstPauseMs;
        map_granule(granule);
        const std::span<uint8_t> pages = part(read_only_, granule);
        (void)madvise(pages.data(), pages.size(), kPopulateRead);
        ++granule;
        ahead_bytes_.store(std::min(granule * kGranule, bytes), std::memory_order_relaxed);
    }
}

}  // namespace kvstore
