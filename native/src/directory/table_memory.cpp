// Regions that double up to one huge page.
#include "directory/table_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace kvstore {
namespace {

constexpr size_t kFirstRegion = 256 << 10;

size_t rounded(size_t bytes) {
    return (bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
}

// Aligned: more than that is mapped, and its ends are given back.
char* map_huge(size_t bytes) {
    void* mapped = mmap(nullptr, bytes + kHugePageBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) {
        throw std::bad_alloc();
    }
    char* begin = static_cast<char*>(mapped);
    const size_t before =
        rounded(reinterpret_cast<uintptr_t>(begin)) - reinterpret_cast<uintptr_t>(begin);
    if (before != 0) {
        (void)munmap(begin, before);
    }
    if (before != kHugePageBytes) {
        (void)munmap(begin + before + bytes, kHugePageBytes - before);
    }
    (void)madvise(begin + before, bytes, MADV_HUGEPAGE);  // refused: ordinary pages
    return begin + before;
}

}  // namespace

void* allocate_for_table(size_t bytes) {
    return bytes < kHugePageBytes ? ::operator new(bytes, std::align_val_t(TableMemory::kAlign))
                                  : map_huge(rounded(bytes));
}

void free_of_table(void* data, size_t bytes) {
    if (bytes < kHugePageBytes) {
        ::operator delete(data, std::align_val_t(TableMemory::kAlign));
    } else {
        (void)munmap(data, rounded(bytes));
    }
}

TableMemory::~TableMemory() {
    for (const Region& region : regions_) {
        free_of_table(region.data, region.bytes);
    }
}

char* TableMemory::take(size_t bytes) {
    const MutexLock lock(mutex_);
    if (bytes > left_) {
        // As much as there is already, so that small tables take little.
        const size_t region =
            std::max(bytes, std::clamp<size_t>(bytes_, kFirstRegion, kHugePageBytes));
        next_ = static_cast<char*>(allocate_for_table(region));
        regions_.push_back({next_, region});
        left_ = region;
        bytes_ += region;
    }
    char* data = next_;
    next_ += bytes;
    left_ -= bytes;
    return data;
}

uint64_t TableMemory::bytes() const {
    const MutexLock lock(mutex_);
    return bytes_;
}

}  // namespace kvstore
