// An array that grows in place: what it holds is never moved, and elements begin as zero bytes.
//
// Address space for all that it may ever hold is reserved at once; memory comes with the first
// touch of a page. For tables with an element for each possible entry of an index.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <type_traits>
#include <utility>

#include "base/status.h"

namespace kvstore {

template <class T>
class GrowingArray {
    static_assert(std::is_trivially_copyable_v<T>);

  public:
    explicit GrowingArray(size_t most) : most_(most) {
        void* place = mmap(nullptr, most * sizeof(T), PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (place == MAP_FAILED) {
            throw std::bad_alloc();
        }
        data_ = static_cast<T*>(place);
    }
    GrowingArray(GrowingArray&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), most_(other.most_), size_(other.size_) {}
    GrowingArray& operator=(GrowingArray&&) = delete;
    ~GrowingArray() {
        if (data_ != nullptr) {
            munmap(data_, most_ * sizeof(T));
        }
    }

    // False, and nothing changed: the system grants no further memory. A smaller size does nothing.
    [[nodiscard]] bool grow(size_t size) {
        KV_ASSERT(size <= most_);
        if (size > size_ && mprotect(data_, size * sizeof(T), PROT_READ | PROT_WRITE) != 0) {
            return false;
        }
        size_ = size > size_ ? size : size_;
        return true;
    }

    T& operator[](size_t i) { return data_[i]; }
    const T& operator[](size_t i) const { return data_[i]; }
    size_t size() const { return size_; }

  private:
    T* data_ = nullptr;
    size_t most_ = 0;
    size_t size_ = 0;
};

}  // namespace kvstore
