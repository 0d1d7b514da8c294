// Aligned mappings, and the heap for what is small.
#include "base/large_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

namespace kvstore {
namespace {

constexpr std::align_val_t kSmallAlign{kLargeMemoryAlign};

size_t rounded(size_t bytes) {
    return (bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
}

// More than that is mapped, and its ends are given back.
void* map_aligned(size_t bytes) {
    void* mapped = mmap(nullptr, bytes + kHugePageBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) {
        return nullptr;
    }
    char* begin = static_cast<char*>(mapped);
    const auto address = reinterpret_cast<uintptr_t>(begin);
    const size_t before = rounded(address) - address;
    if (before != 0) {
        (void)munmap(begin, before);
    }
    (void)munmap(begin + before + bytes, kHugePageBytes - before);
    (void)madvise(begin + before, bytes, MADV_HUGEPAGE);  // refused: ordinary pages
    return begin + before;
}

}  // namespace

void* allocate_large(size_t bytes) {
    return bytes < kHugePageBytes ? ::operator new(bytes, kSmallAlign, std::nothrow)
                                  : map_aligned(rounded(bytes));
}

void free_large(void* data, size_t bytes) {
    if (bytes < kHugePageBytes) {
        ::operator delete(data, kSmallAlign);
    } else {
        (void)munmap(data, rounded(bytes));
    }
}

}  // namespace kvstore
