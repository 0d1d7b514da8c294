// The list of watched mappings, which a signal handler may read at any moment, and the handler.
#include "base/bus_guard.h"

#include <errno.h>
#include <linux/magic.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

namespace kvstore {
namespace {

std::atomic<BusGuard::Watch*> watches{nullptr};
struct sigaction previous{};

// Async-signal-safe: atomics and one system call.
bool mend(uintptr_t address) {
    for (auto* watch = watches.load(std::memory_order_acquire); watch != nullptr;
         watch = watch->next) {
        const uintptr_t begin = watch->begin.load(std::memory_order_acquire);
        const uintptr_t end = watch->end.load(std::memory_order_acquire);
        const uintptr_t page = watch->page_bytes.load(std::memory_order_acquire);
        const int protection = watch->protection.load(std::memory_order_acquire);
        // The mapping that this thread has touched stays; an entry that has passed to another one
        // meanwhile is not it.
        if (begin <= BusGuard::Watch::kTaken || address < begin || address >= end ||
            begin != watch->begin.load(std::memory_order_relaxed)) {
            continue;
        }
        const uintptr_t from = begin + (address - begin) / page * page;
        void* const zeros = mmap(reinterpret_cast<void*>(from), end - from, protection,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        watch->torn.store(true, std::memory_order_release);
        return zeros != MAP_FAILED;
    }
    return false;
}

void pass_on(int signal, siginfo_t* info, void* context) {
    if ((previous.sa_flags & SA_SIGINFO) != 0) {
        previous.sa_sigaction(signal, info, context);
        return;
    }
    if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(signal);
        return;
    }
    const bool is_fault = info->si_code > 0;
    if (previous.sa_handler == SIG_IGN && !is_fault) {
        return;
    }
    // A fault comes again as soon as the thread goes on, and a signal that was sent is sent again:
    // either ends the process where it stands. Nobody can ignore a fault.
    struct sigaction usual{};
    usual.sa_handler = SIG_DFL;
    sigaction(signal, &usual, nullptr);
    if (!is_fault) {
        raise(signal);
    }
}

void on_sigbus(int signal, siginfo_t* info, void* context) {
    const int error = errno;
    // A handler above this one has looked at a fault, put back what was there before it, and raised
    // the signal again. The fault itself follows when it returns, and that one has an address.
    const bool is_raised_again = info->si_code == SI_TKILL && info->si_pid == getpid() &&
                                 (previous.sa_flags & SA_SIGINFO) == 0 &&
                                 previous.sa_handler == SIG_DFL;
    const bool is_mended = info->si_code > 0 && mend(reinterpret_cast<uintptr_t>(info->si_addr));
    if (!is_raised_again && !is_mended) {
        pass_on(signal, info, context);
    }
    errno = error;
}

// A child does not inherit writable mappings (Mapping::map()): where they were, something else may
// lie. Their owners, which it has copies of, leave them alone.
void forget_writable() {
    for (auto* watch = watches.load(std::memory_order_acquire); watch != nullptr;
         watch = watch->next) {
        if (watch->begin.load(std::memory_order_relaxed) > BusGuard::Watch::kTaken &&
            (watch->protection.load(std::memory_order_relaxed) & PROT_WRITE) != 0) {
            watch->begin.store(BusGuard::Watch::kFree, std::memory_order_release);
        }
    }
}

bool install_handler() {
    if (pthread_atfork(nullptr, nullptr, forget_writable) != 0) {
        return false;
    }
    struct sigaction guard{};
    guard.sa_sigaction = on_sigbus;
    guard.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&guard.sa_mask);
    // Asked for first: the handler may be called before the second call returns.
    sigaction(SIGBUS, nullptr, &previous);
    return sigaction(SIGBUS, &guard, nullptr) == 0;
}

BusGuard::Watch* free_watch() {
    for (auto* watch = watches.load(std::memory_order_acquire); watch != nullptr;
         watch = watch->next) {
        uintptr_t expected = BusGuard::Watch::kFree;
        if (watch->begin.compare_exchange_strong(expected, BusGuard::Watch::kTaken)) {
            return watch;
        }
    }
    auto* watch = new BusGuard::Watch();
    watch->next = watches.load(std::memory_order_relaxed);
    while (!watches.compare_exchange_weak(watch->next, watch, std::memory_order_release)) {
    }
    return watch;
}

}  // namespace

BusGuard::Watch* BusGuard::watch(void* data, uint64_t size, int fd, bool writable) {
    static const bool installed = install_handler();
    (void)installed;  // without it a torn page ends the process, as it did
    struct statfs fs{};
    const bool is_huge = fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC;
    const auto page_bytes = static_cast<uintptr_t>(is_huge ? fs.f_bsize : sysconf(_SC_PAGESIZE));
    const auto begin = reinterpret_cast<uintptr_t>(data);
    Watch* watch = free_watch();
    watch->torn.store(false, std::memory_order_relaxed);
    watch->end.store(begin + (size + page_bytes - 1) / page_bytes * page_bytes,
                     std::memory_order_release);
    watch->page_bytes.store(page_bytes, std::memory_order_release);
    watch->protection.store(writable ? PROT_READ | PROT_WRITE : PROT_READ,
                            std::memory_order_release);
    watch->begin.store(begin, std::memory_order_release);
    return watch;
}

void BusGuard::end(Watch* watch) {
    if (watch != nullptr) {
        watch->begin.store(Watch::kFree, std::memory_order_release);
    }
}

}  // namespace kvstore
