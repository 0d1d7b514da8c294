// The caller's memory of one object: what it is gathered from, or scattered to.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <span>

namespace kvstore {

// One piece or several, in order; an engine's page lies layer by layer, and is one object. Owns
// nothing: memory and list stay where they are as long as this is used.
class Pieces {
  public:
    Pieces() = default;
    // Only read from where it is the source: iovec has no constant form.
    Pieces(const void* data, uint64_t size) : one_{const_cast<void*>(data), size}, size_(size) {}
    explicit Pieces(std::span<const iovec> many);

    uint64_t size() const { return size_; }  // of all pieces together, in bytes
    bool is_null() const { return list().front().iov_base == nullptr; }
    std::span<const iovec> list() const { return many_.empty() ? std::span(&one_, 1) : many_; }

  private:
    iovec one_{};
    std::span<const iovec> many_;
    uint64_t size_ = 0;
};

// Both copy in one pass with the data's CRC32C, which they return. `to` and `from` have `length`
// bytes at least.
uint32_t gather_crc32c(void* to, const Pieces& from);
uint32_t scatter_crc32c(const Pieces& to, const void* from, uint64_t length);

}  // namespace kvstore
