// RAII for descriptors and mappings, and how files are opened (O_CLOEXEC, O_NOFOLLOW, 0600).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "base/bus_guard.h"
#include "base/fork_guard.h"
#include "base/status.h"

namespace kvstore {

class Fd {
  public:
    Fd() = default;
    explicit Fd(int fd) : fd_(fd) {}
    Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Fd& operator=(Fd&& other) noexcept;
    ~Fd() { reset(); }
    int get() const { return fd_; }
    bool valid() const { return fd_ >= 0; }
    int release() { return std::exchange(fd_, -1); }
    void reset();

  private:
    int fd_ = -1;
};

// Of a shared file. A page that the file has lost reads as zeros (bus_guard.h). A writable one is
// not there in a forked child, where it must not be used any more; destroying it does nothing.
class Mapping {
  public:
    Mapping() = default;
    Mapping(Mapping&& other) noexcept;
    Mapping& operator=(Mapping&& other) noexcept;
    ~Mapping();
    static Result<Mapping> map(int fd, uint64_t size, bool writable, uint64_t offset = 0);
    uint8_t* data() const { return data_; }
    uint64_t size() const { return size_; }
    // Whether a touch has met a page that the file does not have any more.
    bool torn() const { return watch_ != nullptr && BusGuard::torn(*watch_); }

  private:
    uint8_t* data_ = nullptr;
    uint64_t size_ = 0;
    bool writable_ = false;
    BusGuard::Watch* watch_ = nullptr;
    ForkGuard fork_guard_;
};

// Where a file has data and where it has holes. A hole of a mapped file must not be read: that
// takes memory, and fails with SIGBUS when there is none. Allocated pages that were never written
// count as holes. `fd` stays the caller's.
class FileExtents {
  public:
    explicit FileExtents(int fd) : fd_(fd) {}
    // Whether [begin, begin + bytes) is data.
    bool has_data(uint64_t begin, uint64_t bytes) { return data_end(begin) >= begin + bytes; }
    // Where the data ends that `offset` is in; `offset` itself when it is in a hole.
    uint64_t data_end(uint64_t offset) { return look(offset), is_data_ ? end_ : offset; }
    // The first data at or behind `offset`; UINT64_MAX when there is none.
    uint64_t next_data(uint64_t offset) { return look(offset), is_data_ ? offset : end_; }

  private:
    void look(uint64_t offset);

    int fd_;
    // What the last question met.
    uint64_t begin_ = 0;
    uint64_t end_ = 0;
    bool is_data_ = false;
};

// Where a shared region lives: a file in `directory` (created 0600, never followed through a link),
// or an anonymous memfd when `directory` is empty (embedded mode: nothing is left behind).
Result<Fd> create_region(const std::string& directory, const std::string& name);
// Gives a new region its size. Anonymous memory keeps it: whoever receives a writable descriptor
// could otherwise shorten it under our feet (bus_guard.h).
Status size_region(int fd, const std::string& directory, uint64_t bytes, const std::string& name);
// An existing region, for reading and writing: kNotFound when there is none, kIoError when it is
// not a regular file of this user.
Result<Fd> open_region(const std::string& directory, const std::string& name);
// The same, but created empty (0600) when there is none.
Result<Fd> keep_region(const std::string& directory, const std::string& name);
// Whether the name in the directory still leads to this very file.
bool is_named(int fd, const std::string& directory, const std::string& name);
// Gives a region in `directory` its final name, in place of whatever had it.
Status rename_region(const std::string& directory, const std::string& from, const std::string& to);
// Another descriptor of the same file that cannot write, to hand to processes that only read.
Result<Fd> reopen_read_only(const Fd& fd);
// Memory for [begin, end) of a file, so that a later first touch cannot fail with SIGBUS. What has
// some keeps it. `name` is for the message.
Status reserve_bytes(int fd, uint64_t begin, uint64_t end, const std::string& name);
Status errno_status(const char* call, const std::string& path);  // kIoError, or kNoSpace for ENOSPC

}  // namespace kvstore
