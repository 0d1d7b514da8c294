// Memory for what is read from NVMe on its way to a socket: kept when it is given back, because
// fresh memory costs a page fault every 4 KiB. Thread-safe.
#pragma once

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"

namespace kvstore {

class ReadBuffers {
  public:
    explicit ReadBuffers(size_t keep_bytes) : pool_(std::make_shared<Pool>(keep_bytes)) {}

    // Null: no memory. What is taken may outlive this object.
    std::shared_ptr<uint8_t> take(size_t size) {
        const size_t rounded = std::bit_ceil(std::max<size_t>(size, kSmallest));
        uint8_t* memory = pool_->take(rounded);
        if (memory == nullptr) {
            return nullptr;
        }
        return {memory, [pool = pool_, rounded](uint8_t* data) { pool->give_back(data, rounded); }};
    }

  private:
    static constexpr size_t kSmallest = 4096;
    struct Pool {
        explicit Pool(size_t keep) : keep_bytes(keep) {}
        ~Pool() {
            for (const auto& [size, buffers] : free) {
                for (uint8_t* buffer : buffers) {
                    std::free(buffer);
                }
            }
        }
        uint8_t* take(size_t size) {
            {
                const MutexLock lock(mutex);
                std::vector<uint8_t*>& buffers = free[size];
                if (!buffers.empty()) {
                    uint8_t* buffer = buffers.back();
                    buffers.pop_back();
                    kept_bytes -= size;
                    return buffer;
                }
            }
            return static_cast<uint8_t*>(std::aligned_alloc(kSmallest, size));
        }
        void give_back(uint8_t* buffer, size_t size) {
            {
                const MutexLock lock(mutex);
                if (kept_bytes + size <= keep_bytes) {
                    free[size].push_back(buffer);
                    kept_bytes += size;
                    return;
                }
            }
            std::free(buffer);
        }
        const size_t keep_bytes;
        Mutex mutex;
        std::unordered_map<size_t, std::vector<uint8_t*>> free KV_GUARDED_BY(mutex);
        size_t kept_bytes KV_GUARDED_BY(mutex) = 0;
    };
    std::shared_ptr<Pool> pool_;
};

}  // namespace kvstore
