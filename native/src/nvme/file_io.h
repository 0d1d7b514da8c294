// The one seam through which every system call on the NVMe tier's files goes, so that a test can
// fail the Nth of them, cut a write short, or fill the disk.
//
// Calls return what the system call returns, with -errno in place of -1: no errno to lose between
// threads.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/large_memory.h"
#include "base/status.h"

namespace kvstore {

class FileIo {
  public:
    virtual ~FileIo() = default;
    static FileIo& system();

    virtual int open(const std::string& path, int flags);  // O_CLOEXEC | O_NOFOLLOW are added, 0600
    virtual int make_directory(const std::string& path);   // 0700; an existing one is fine
    virtual int list(const std::string& path, std::vector<std::string>* names);
    virtual int64_t read(int fd, void* to, size_t size, uint64_t offset);
    // The parts one behind the other; at most kMaxWriteParts.
    virtual int64_t write(int fd, std::span<const iovec> parts, uint64_t offset);
    // Gives the file this size, with its blocks where the file system can.
    virtual int allocate(int fd, uint64_t size);
    // Bytes of the file system: free for this process, and all; 0 of 0 when it does not say.
    virtual int room(const std::string& path, uint64_t* free_bytes, uint64_t* total_bytes);
    virtual int sync(int fd);  // data, and the metadata that finding it needs
    virtual int unlink(const std::string& path);
    virtual int stat(const std::string& path, struct stat* info);
    virtual int stat(int fd, struct stat* info);
    // What io_uring said of a read of `size` bytes: the seam's chance to say something else.
    virtual int64_t ring_result(int64_t result, size_t size);
};

inline constexpr size_t kMaxWriteParts = 64;

// O_DIRECT wants memory, offsets and sizes in these steps.
inline constexpr uint64_t kIoAlign = 4096;
static_assert(kLargeMemoryAlign % kIoAlign == 0);
constexpr uint64_t align_down(uint64_t value, uint64_t step) { return value - value % step; }
constexpr uint64_t align_up(uint64_t value, uint64_t step) {
    return align_down(value + step - 1, step);
}

class AlignedBuffer {
  public:
    AlignedBuffer() = default;
    // Rounds up to kIoAlign; empty (size 0) when there is no memory.
    explicit AlignedBuffer(size_t size);
    uint8_t* data() const { return data_.get(); }
    size_t size() const { return size_; }

  private:
    std::unique_ptr<uint8_t, FreeLarge> data_;
    size_t size_ = 0;
};

// A negative result of a FileIo call as a Status: kNoSpace for ENOSPC and EDQUOT, else kIoError.
Status io_status(const char* call, const std::string& path, int64_t result);
// Repeats short writes; sizes and offsets are multiples of kIoAlign when `fd` is O_DIRECT.
Status write_fully(FileIo& io, int fd, const void* from, size_t size, uint64_t offset,
                   const std::string& path);
// The same for at most kMaxWriteParts one behind the other.
Status write_fully(FileIo& io, int fd, std::span<const iovec> parts, uint64_t offset,
                   const std::string& path);
// Repeats short reads; the value is less than `size` only at the end of the file.
Result<size_t> read_fully(FileIo& io, int fd, void* to, size_t size, uint64_t offset,
                          const std::string& path);

}  // namespace kvstore
