// Regions that double up to one huge page.
#include "directory/table_memory.h"

#include <algorithm>

namespace kvstore {
namespace {

constexpr size_t kFirstRegion = 256 << 10;

}  // namespace

TableMemory::~TableMemory() {
    for (const Region& region : regions_) {
        free_large(region.data, region.bytes);
    }
}

char* TableMemory::take(size_t bytes) {
    const MutexLock lock(mutex_);
    if (bytes > left_) {
        // As much as there is already, so that small tables take little.
        const size_t region =
            std::max(bytes, std::clamp<size_t>(bytes_, kFirstRegion, kHugePageBytes));
        void* data = allocate_large(region);
        if (data == nullptr) {
            throw std::bad_alloc();
        }
        next_ = static_cast<char*>(data);
        left_ = region;
        bytes_ += region;
        regions_.push_back({next_, region});
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
