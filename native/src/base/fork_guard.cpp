// Counts forks through pthread_atfork.
#include "base/fork_guard.h"

#include <pthread.h>

#include <atomic>

#include "base/status.h"

namespace kvstore {
namespace {

std::atomic<uint64_t> generation{0};

void count_fork() { generation.fetch_add(1, std::memory_order_relaxed); }

bool install() {
    KV_ASSERT(pthread_atfork(nullptr, nullptr, count_fork) == 0);
    return true;
}

}  // namespace

uint64_t fork_generation() {
    static const bool installed = install();
    return installed ? generation.load(std::memory_order_relaxed) : 0;
}

}  // namespace kvstore
