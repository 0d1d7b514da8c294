// Pinned host memory for bytes on their way between a socket and a device, a limited amount of it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "gpu/cuda_driver.h"

namespace kvstore {

// Thread-safe. Buffers that were given back are used again, and freed with the pool.
class PinnedBuffers : public std::enable_shared_from_this<PinnedBuffers> {
  public:
    struct Limits {
        uint64_t least_bytes;  // of a buffer
        uint64_t total_bytes;  // of all buffers together
    };
    static constexpr uint64_t kMaxBytes = 64u << 20;
    static constexpr Limits kBytes{1u << 20, kMaxBytes};
    // What kernels read and write on the host: a few dozen bytes for each span.
    static constexpr Limits kTables{64u << 10, 16u << 20};
    // What an object takes of a buffer that it shares with others.
    static uint64_t aligned(uint64_t size) { return (size + 63) / 64 * 64; }

    // Gives itself back at its end, which must come after the last copy from or to it.
    class Buffer {
      public:
        Buffer(std::shared_ptr<PinnedBuffers> pool, uint8_t* data, uint64_t capacity)
            : pool_(std::move(pool)), data_(data), capacity_(capacity) {}
        // Where kernels find it; 0 when they cannot.
        cuda::DevicePtr on_device() const;
        ~Buffer() { pool_->give_back(data_, capacity_); }
        Buffer(const Buffer&) = delete;
        Buffer& operator=(const Buffer&) = delete;
        uint8_t* data() const { return data_; }

      private:
        const std::shared_ptr<PinnedBuffers> pool_;
        uint8_t* const data_;
        const uint64_t capacity_;
    };

    explicit PinnedBuffers(std::shared_ptr<CudaContext> context, const Limits& limits = kBytes)
        : context_(std::move(context)), limits_(limits) {}
    ~PinnedBuffers();

    // Waits until others have given back enough. A buffer above the limit is given to whoever is
    // alone: an object is never too large to be read. kDeadlineExceeded, or what the driver says.
    Result<std::unique_ptr<Buffer>> take(uint64_t size, Deadline deadline) KV_EXCLUDES(mutex_);

  private:
    struct Free {
        uint8_t* data;
        uint64_t capacity;
    };
    void give_back(uint8_t* data, uint64_t capacity) KV_EXCLUDES(mutex_);
    Result<Free> find(uint64_t size) KV_REQUIRES(mutex_);
    void release(const Free& memory) KV_REQUIRES(mutex_);

    const std::shared_ptr<CudaContext> context_;
    const Limits limits_;
    Mutex mutex_;
    CondVar given_back_;
    std::vector<Free> free_ KV_GUARDED_BY(mutex_);
    uint64_t total_bytes_ KV_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvstore
