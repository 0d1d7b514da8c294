// Which pages of a part of a file have memory: they get it when they are first needed, by
// fallocate(), so that no touch can fail with SIGBUS. Not thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"

namespace kvstore {

class BackedPages {
  public:
    BackedPages() = default;  // of nothing
    // None of [begin, end) has memory yet. `fd` stays the caller's.
    BackedPages(int fd, uint64_t begin, uint64_t end)
        : fd_(fd), begin_(begin), pages_((end - begin + kPageBytes - 1) / kPageBytes) {}

    // Of file offsets. Nothing is marked when it fails.
    Status back(uint64_t begin, uint64_t end);
    bool is_backed(uint64_t offset) const { return pages_[(offset - begin_) / kPageBytes]; }

  private:
    static constexpr uint64_t kPageBytes = 4096;
    int fd_ = -1;
    uint64_t begin_ = 0;
    std::vector<bool> pages_;
};

}  // namespace kvstore
