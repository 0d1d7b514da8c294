// Memory of tables that grow and never shrink, in large regions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "base/large_memory.h"
#include "base/mutex.h"

namespace kvstore {

// For a vector that a table reads at random.
template <class T>
struct TableAllocator {
    using value_type = T;
    TableAllocator() = default;
    template <class U>
    TableAllocator(const TableAllocator<U>&) {}
    T* allocate(size_t count) {
        void* data = allocate_large(count * sizeof(T));
        return data == nullptr ? throw std::bad_alloc() : static_cast<T*>(data);
    }
    void deallocate(T* data, size_t count) { free_large(data, count * sizeof(T)); }
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

    // Uninitialized; `bytes` is a multiple of kAlign. Lives as long as this object. Throws
    // std::bad_alloc.
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
