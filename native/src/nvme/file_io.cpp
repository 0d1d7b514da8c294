// The system calls themselves, and the loops around short reads and writes.
#include "nvme/file_io.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <system_error>

namespace kvstore {
namespace {

template <class T>
T or_errno(T result) {
    return result < 0 ? static_cast<T>(-errno) : result;
}

// What is left of the parts behind their first `skip` bytes.
std::span<iovec> rest_of(std::span<const iovec> parts, size_t skip,
                         std::array<iovec, kMaxWriteParts>* rest) {
    size_t count = 0;
    for (const iovec& part : parts) {
        const size_t skipped = std::min(skip, part.iov_len);
        skip -= skipped;
        if (skipped < part.iov_len) {
            (*rest)[count++] = {static_cast<uint8_t*>(part.iov_base) + skipped,
                                part.iov_len - skipped};
        }
    }
    return std::span(*rest).first(count);
}

// Pages of a shared file that somebody has cut cannot be read for a write either. A touch lets the
// BusGuard put zeros in their place.
void touch(std::span<const iovec> parts) {
    for (const iovec& part : parts) {
        const auto* bytes = static_cast<const volatile uint8_t*>(part.iov_base);
        for (size_t at = 0; at < part.iov_len; at += kIoAlign) {
            static_cast<void>(bytes[at]);
        }
    }
}

constexpr int kMaxFaults = 8;  // of one write: each leaves fewer pages that can be cut

}  // namespace

FileIo& FileIo::system() {
    static FileIo io;
    return io;
}

int FileIo::open(const std::string& path, int flags) {
    return or_errno(::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, 0600));
}

int FileIo::make_directory(const std::string& path) {
    const int result = or_errno(::mkdir(path.c_str(), 0700));
    return result == -EEXIST ? 0 : result;
}

int FileIo::list(const std::string& path, std::vector<std::string>* names) {
    std::error_code error;
    std::filesystem::directory_iterator entry(path, error);
    while (!error && entry != std::filesystem::directory_iterator()) {
        names->push_back(entry->path().filename().string());
        entry.increment(error);
    }
    return -error.value();
}

int64_t FileIo::read(int fd, void* to, size_t size, uint64_t offset) {
    return or_errno(int64_t{::pread(fd, to, size, static_cast<off_t>(offset))});
}

int64_t FileIo::write(int fd, std::span<const iovec> parts, uint64_t offset) {
    return or_errno(int64_t{
        ::pwritev(fd, parts.data(), static_cast<int>(parts.size()), static_cast<off_t>(offset))});
}

int FileIo::allocate(int fd, uint64_t size) {
    const int result = or_errno(::fallocate(fd, 0, 0, static_cast<off_t>(size)));
    if (result != -EOPNOTSUPP && result != -ENOSYS) {
        return result;
    }
    return or_errno(::ftruncate(fd, static_cast<off_t>(size)));
}

int FileIo::room(const std::string& path, uint64_t* free_bytes, uint64_t* total_bytes) {
    struct statvfs info{};
    const int result = or_errno(::statvfs(path.c_str(), &info));
    *free_bytes = uint64_t{info.f_bavail} * info.f_frsize;
    *total_bytes = uint64_t{info.f_blocks} * info.f_frsize;
    return result;
}

int FileIo::sync(int fd) { return or_errno(::fdatasync(fd)); }

int FileIo::unlink(const std::string& path) { return or_errno(::unlink(path.c_str())); }

int FileIo::stat(const std::string& path, struct stat* info) {
    return or_errno(::lstat(path.c_str(), info));
}

int FileIo::stat(int fd, struct stat* info) { return or_errno(::fstat(fd, info)); }

int64_t FileIo::ring_result(int64_t result, size_t) { return result; }

AlignedBuffer::AlignedBuffer(size_t size) {
    const size_t rounded = align_up(size, kIoAlign);
    data_ = {static_cast<uint8_t*>(allocate_large(rounded)), FreeLarge{rounded}};
    size_ = data_ == nullptr ? 0 : rounded;
}

Status io_status(const char* call, const std::string& path, int64_t result) {
    const int error = static_cast<int>(-result);
    const Code code = error == ENOSPC || error == EDQUOT ? Code::kNoSpace : Code::kIoError;
    return {code, std::string(call) + "(" + path + "): " + std::generic_category().message(error)};
}

Status write_fully(FileIo& io, int fd, const void* from, size_t size, uint64_t offset,
                   const std::string& path) {
    const iovec part{const_cast<void*>(from), size};
    return write_fully(io, fd, {&part, 1}, offset, path);
}

Status write_fully(FileIo& io, int fd, std::span<const iovec> parts, uint64_t offset,
                   const std::string& path) {
    KV_ASSERT(parts.size() <= kMaxWriteParts);
    size_t size = 0;
    for (const iovec& part : parts) {
        size += part.iov_len;
    }
    std::array<iovec, kMaxWriteParts> rest{};
    size_t done = 0;
    int faults = 0;
    while (done < size) {
        const int64_t result = io.write(fd, rest_of(parts, done, &rest), offset + done);
        if (result == -EINTR) {
            continue;
        }
        if (result == -EFAULT && ++faults <= kMaxFaults) {
            touch(parts);
            continue;
        }
        if (result < 0) {
            return io_status("pwritev", path, result);
        }
        if (result == 0) {
            return io_status("pwritev", path, -EIO);
        }
        done += static_cast<size_t>(result);
        // O_DIRECT goes on from a block's start: what was cut inside one is written again.
        if (done < size && done % kIoAlign != 0) {
            const size_t back = align_down(done, kIoAlign);
            if (back + kIoAlign > size || static_cast<size_t>(result) < done - back) {
                return io_status("pwritev", path, -EIO);
            }
            done = back;
        }
    }
    return {};
}

Result<size_t> read_fully(FileIo& io, int fd, void* to, size_t size, uint64_t offset,
                          const std::string& path) {
    auto* bytes = static_cast<uint8_t*>(to);
    size_t done = 0;
    size_t last_end = SIZE_MAX;
    while (done < size) {
        const int64_t result = io.read(fd, bytes + done, size - done, offset + done);
        if (result == -EINTR) {
            continue;
        }
        if (result < 0) {
            return io_status("pread", path, result);
        }
        const size_t end = done + static_cast<size_t>(result);
        if (end >= size) {
            return size;
        }
        // Short inside a block, twice in a row at the same place: that is the end of the file.
        if (result == 0 || end == last_end) {
            return end;
        }
        last_end = end;
        done = align_down(end, kIoAlign);
    }
    return done;
}

}  // namespace kvstore
