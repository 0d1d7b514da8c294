// Mapping ahead in the background, and on demand.
#include "client/page_mapper.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>

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
constexpr std::chrono::nanoseconds kFirstPause = std::chrono::milliseconds(20);  // while the node
constexpr std::chrono::nanoseconds kLastPause = std::chrono::seconds(1);         // pre-faults
constexpr uint64_t kGranulesPerRest = 16;
constexpr int kRestsPerWork = 4;

std::span<uint8_t> part(std::span<uint8_t> mapping, uint64_t granule) {
    const uint64_t at = granule * kGranule;
    return mapping.subspan(at, std::min(kGranule, mapping.size() - at));
}

}  // namespace

PageMapper::Ahead::Ahead(std::span<uint8_t> to_write, std::span<uint8_t> to_read)
    : writable(to_write), read_only(to_read), mapped(to_write.size() / kGranule / 64 + 1) {}

PageMapper::PageMapper(std::span<uint8_t> writable, std::span<uint8_t> read_only, Begin begin,
                       std::shared_ptr<const void> keeps)
    : ahead_(std::make_shared<Ahead>(writable, read_only)), waits_(keeps == nullptr) {
    ahead_->keeps = std::move(keeps);
    const uint64_t at_once =
        begin == Begin::kAtOnce ? std::min<uint64_t>(writable.size(), kAtOnceBytes) : 0;
    for (uint64_t granule = 0; granule * kGranule < at_once && ahead_->resident(granule);
         ++granule) {
        ahead_->map_granule(granule);
    }
    const SignalsBlocked blocked;
    thread_ = std::thread([ahead = ahead_] { ahead->run(); });
}

PageMapper::~PageMapper() {
    {
        const MutexLock lock(ahead_->mutex);
        ahead_->stopping = true;
    }
    ahead_->stop.notify_all();
    if (waits_) {
        thread_.join();
    } else {
        join_later(std::move(thread_), ahead_);
    }
}

// Those that have ended are joined with the next one. The list is never destroyed: at the exit of
// the process, or of a forked child that has none of these threads, nobody waits for them.
void PageMapper::join_later(std::thread thread, std::shared_ptr<Ahead> ahead) {
    struct Ending {
        std::thread thread;
        std::shared_ptr<Ahead> ahead;
    };
    static Mutex mutex;
    static auto* const endings = new std::vector<Ending>();
    const MutexLock lock(mutex);
    std::erase_if(*endings, [](Ending& one) {
        const bool ended = one.ahead->ended.load(std::memory_order_acquire);
        if (ended) {
            one.thread.join();
        }
        return ended;
    });
    endings->push_back({std::move(thread), std::move(ahead)});
}

void PageMapper::map(uint64_t offset, uint64_t size) {
    for (uint64_t granule = offset / kGranule; granule * kGranule < offset + size; ++granule) {
        ahead_->map_granule(granule);
    }
}

void PageMapper::Ahead::map_granule(uint64_t granule) {
    if (writable.empty()) {
        return;
    }
    const uint64_t bit = uint64_t{1} << (granule % 64);
    if ((mapped[granule / 64].fetch_or(bit, std::memory_order_relaxed) & bit) == 0) {
        // An older kernel refuses: then the pages come by faults.
        const std::span<uint8_t> pages = part(writable, granule);
        (void)madvise(pages.data(), pages.size(), kPopulateRead);
    }
}

bool PageMapper::Ahead::resident(uint64_t granule) const {
    const std::span<uint8_t> pages = part(read_only, granule);
    const auto page_bytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    std::array<unsigned char, kGranule / 4096> states{};
    const uint64_t count = (pages.size() + page_bytes - 1) / page_bytes;
    return count <= states.size() && mincore(pages.data(), pages.size(), states.data()) == 0 &&
           std::all_of(states.begin(), states.begin() + static_cast<ptrdiff_t>(count),
                       [](unsigned char state) { return (state & 1) != 0; });
}

bool PageMapper::Ahead::pause(std::chrono::nanoseconds pause) {
    const MutexLock lock(mutex);
    stop.wait_for(mutex, pause, [this]() KV_REQUIRES(mutex) { return stopping; });
    return !stopping;
}

void PageMapper::Ahead::run() {
    pthread_setname_np(pthread_self(), "kv-map-ahead");
    go_ahead();
    {
        const MutexLock lock(mutex);
        stop.wait(mutex, [this]() KV_REQUIRES(mutex) { return stopping; });
    }
    keeps.reset();
    ended.store(true, std::memory_order_release);
}

void PageMapper::Ahead::go_ahead() {
    const uint64_t end = std::min<uint64_t>(read_only.size(), kMaxAheadBytes);
    std::chrono::nanoseconds wait = kFirstPause;
    auto begun = std::chrono::steady_clock::now();
    for (uint64_t granule = 0; granule * kGranule < end;) {
        if (!resident(granule)) {
            if (!pause(wait)) {
                return;
            }
            wait = std::min(2 * wait, kLastPause);
            begun = std::chrono::steady_clock::now();
            continue;
        }
        wait = kFirstPause;
        map_granule(granule);
        const std::span<uint8_t> pages = part(read_only, granule);
        (void)madvise(pages.data(), pages.size(), kPopulateRead);
        ++granule;
        bytes.store(std::min(granule * kGranule, end), std::memory_order_relaxed);
        if (granule % kGranulesPerRest == 0) {
            if (!pause(kRestsPerWork * (std::chrono::steady_clock::now() - begun))) {
                return;
            }
            begun = std::chrono::steady_clock::now();
        }
    }
}

}  // namespace kvstore
