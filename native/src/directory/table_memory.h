// Memory of tables that grow and never shrink, in large regions: what is read at random then lies
// in pages of 2 MiB, where the system gives them on request, and its page tables in the caches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/mutex.h"

namespace kvstore {

inline constexpr size_t kHugePageBytes = 2 << 20;

// Uninitialized. Throws std::bad_alloc.
void* allocate_for_table(size_t bytes);
void free_of_table(void* data, size_t bytes);

// For a vector that a table reads at random.
template <class T>
struct TableAllocator {
    using value_type = T;
    TableAllocator() = default;
    template <class U>
    TableAllocator(const TableAllocator<U>&) {}
    T* allocate(size_t count) { return static_cast<T*>(allocate_for_table(count * sizeof(T))); }
    void deallocate(T* data, size_t count) { free_of_table(data, count * sizeof(T)); }
    bool operator==(const TableAllocator&) const = default;
};

// Thread-safe.
class TableMemory {
  public:
    static constexpr size_t kAlign = 64;

    TableMemory() = default;
    ~TableMemory();
    TableMemory(const TableMemory&) = delete;
    TableMemory& operator=(const TableMemory&) = delete;
    // Uninitialized; `bytes` is a multiple of kAlign. Lives as long as this object.
    char* take(size_t bytes) KV_EXCLUDES(mutex_);
    uint64_t bytes() const KV_EXCLUDES(mutex_);  // asked of the system

  private:
    struct Region {
        char* data;
        size_t bytes;
    };
    mutable Mutex mutex_;
    std::vector<Region> regions_ KV_GUARDED_BY(mutex_);
    char* next_ KV_GUARDED_BY(mutex_) = nullptr;  // of the last region
    size_t left_ KV_GUARDED_BY(mutex_) = 0;
    uint64_t bytes_ KV_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvstore
