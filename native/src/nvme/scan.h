// Reads a log file record by record: what is in it when no manifest says so.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "nvme/file_io.h"
#include "nvme/format.h"
#include "nvme/manifest.h"

namespace kvstore {

// A window on a file that moves forward; reads are large and aligned.
class FileWindow {
  public:
    static constexpr size_t kBytes = 1 << 20;

    FileWindow(FileIo& io, int fd, std::string path, uint64_t file_bytes);
    bool has_memory() const { return buffer_.size() == kBytes; }
    // The bytes from `offset` on, at least `least` of them (at most kBytes - kIoAlign) unless the
    // file ends before. Valid until the next call. Empty after an error, which status() tells.
    std::span<const uint8_t> at(uint64_t offset, size_t least);
    const Status& status() const { return status_; }
    // Copies `size` bytes. False: an error, or the file ends before.
    bool copy(uint64_t offset, uint8_t* to, size_t size);

  private:
    FileIo& io_;
    int fd_;
    std::string path_;
    uint64_t file_bytes_;
    AlignedBuffer buffer_;
    uint64_t start_ = 0;
    uint64_t filled_ = 0;
    Status status_;
};

struct LogFileScan {
    Manifest manifest;
    uint64_t end = kLogFileHeaderBytes;  // behind the last whole record
    uint64_t session = 0;                // of that record
    uint64_t damaged = 0;                // objects whose data does not match
    bool torn = false;                   // it ended at something that is no whole record
    Status status;                       // not Ok: the file could not be read further
};

// Stops at the first head that is not whole or not of this use of the log file. With `verify` an
// object counts only when its data matches; what follows it is read all the same.
LogFileScan scan_log_file(FileIo& io, int fd, const std::string& path, uint64_t seq,
                          uint64_t log_file_bytes, bool verify);

}  // namespace kvstore
