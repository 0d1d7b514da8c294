// The memory fences of the shared-memory protocol, in one place.
//
// ThreadSanitizer does not model std::atomic_thread_fence (g++ rejects it), so under TSan a fence
// is a read-modify-write of one process-wide word: at least as strong, and understood by the tool.
#pragma once

#include <atomic>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvstore {

#if defined(__SANITIZE_THREAD__)
inline std::atomic<unsigned> tsan_fence_word{0};
inline void full_fence() { tsan_fence_word.fetch_add(0, std::memory_order_seq_cst); }
inline void acquire_fence() { tsan_fence_word.fetch_add(0, std::memory_order_acq_rel); }
inline void release_fence() { tsan_fence_word.fetch_add(0, std::memory_order_acq_rel); }
#else
// Orders everything before it against everything after it, stores against later loads included.
inline void full_fence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
// Loads before it are done before any access after it.
inline void acquire_fence() { std::atomic_thread_fence(std::memory_order_acquire); }
// Accesses before it are done before any store after it.
inline void release_fence() { std::atomic_thread_fence(std::memory_order_release); }
#endif

// Drains non-temporal stores, which a release store does not order on x86.
inline void store_fence() {
#if defined(__x86_64__)
    _mm_sfence();
#else
    release_fence();
#endif
}

}  // namespace kvstore
