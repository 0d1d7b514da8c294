// Memory in pages of 2 MiB where it is large enough and the system gives them on request: what is
// read at random has its page tables in the caches, and the kernel pins few pages for a disk.
#pragma once

#include <cstddef>

namespace kvstore {

inline constexpr size_t kHugePageBytes = 2 << 20;
inline constexpr size_t kLargeMemoryAlign = 4096;

// Uninitialized, aligned to kLargeMemoryAlign, from kHugePageBytes on to that. Null: no memory.
void* allocate_large(size_t bytes);
void free_large(void* data, size_t bytes);  // as many as were asked for

// For a std::unique_ptr.
struct FreeLarge {
    size_t bytes = 0;
    void operator()(void* data) const { free_large(data, bytes); }
};

}  // namespace kvstore
