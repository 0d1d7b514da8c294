// Opening of shared regions, and the release of descriptors and mappings.
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <system_error>

namespace kvstore {
namespace {

Status refused(const std::string& path) {
    return {Code::kIoError, path + " exists and is no regular file of this user: refusing it"};
}

// A region that an earlier process left behind may still be mapped by its clients, so it is never
// truncated or reused: its name is given to a new inode. Anything else under that name is refused.
Status discard_stale(const std::string& path) {
    struct stat info{};
    if (lstat(path.c_str(), &info) != 0) {
        return errno == ENOENT ? Status() : errno_status("lstat", path);
    }
    if (!S_ISREG(info.st_mode) || info.st_uid != geteuid()) {
        return refused(path);
    }
    if (unlink(path.c_str()) != 0 && errno != ENOENT) {
        return errno_status("unlink", path);
    }
    return {};
}

}  // namespace

Fd& Fd::operator=(Fd&& other) noexcept {
    if (this != &other) {
        reset();
        fd_ = other.release();
    }
    return *this;
}

void Fd::reset() {
    // Linux releases the descriptor even when close(2) reports EINTR, so it is never repeated.
    if (fd_ >= 0) {
        ::close(std::exchange(fd_, -1));
    }
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      writable_(other.writable_),
      watch_(std::exchange(other.watch_, nullptr)),
      fork_guard_(other.fork_guard_) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(writable_, other.writable_);
    std::swap(watch_, other.watch_);
    std::swap(fork_guard_, other.fork_guard_);
    return *this;
}

Mapping::~Mapping() {
    if (data_ != nullptr && !(writable_ && fork_guard_.in_child())) {
        BusGuard::end(watch_);
        munmap(data_, size_);
    }
}

Result<Mapping> Mapping::map(int fd, uint64_t size, bool writable, uint64_t offset) {
    const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    void* data = mmap(nullptr, size, protection, MAP_SHARED, fd, static_cast<off_t>(offset));
    if (data == MAP_FAILED) {
        return errno_status("mmap", std::to_string(size) + " bytes");
    }
    Mapping mapping;
    mapping.data_ = static_cast<uint8_t*>(data);
    mapping.size_ = size;
    mapping.writable_ = writable;
    mapping.watch_ = BusGuard::watch(data, size, fd, writable);
    // A forked child must not write into its parent's blocks (native/README.md, rule 8).
    if (writable && madvise(data, size, MADV_DONTFORK) != 0) {
        return errno_status("madvise", "MADV_DONTFORK");
    }
    return mapping;
}

Status reserve_bytes(int fd, uint64_t begin, uint64_t end, const std::string& name) {
    while (fallocate(fd, 0, static_cast<off_t>(begin), static_cast<off_t>(end - begin)) != 0) {
        if (errno != EINTR) {
            return errno_status("fallocate", name);
        }
    }
    return {};
}

void FileExtents::look(uint64_t offset) {
    if (offset >= begin_ && offset < end_) {
        return;
    }
    const off_t data = lseek(fd_, static_cast<off_t>(offset), SEEK_DATA);
    // ENXIO: no data from here on. Anything else: a file system that does not tell.
    is_data_ = data >= 0 ? static_cast<uint64_t>(data) == offset : errno != ENXIO;
    const off_t end = is_data_ ? lseek(fd_, static_cast<off_t>(offset), SEEK_HOLE) : data;
    begin_ = offset;
    end_ = end < 0 ? UINT64_MAX : static_cast<uint64_t>(end);
}

Result<Fd> create_region(const std::string& directory, const std::string& name) {
    if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos) {
        return {Code::kInvalidArgument, "not a file name: '" + name + "'"};
    }
    if (directory.empty()) {
        Fd fd(memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
        if (!fd.valid()) {
            return errno_status("memfd_create", name);
        }
        return fd;
    }
    const std::string path = directory + "/" + name;
    if (Status status = discard_stale(path); !status.ok()) {
        return status;
    }
    Fd fd(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!fd.valid()) {
        return errno_status("open", path);
    }
    return fd;
}

Status size_region(int fd, const std::string& directory, uint64_t bytes, const std::string& name) {
    if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
        return errno_status("ftruncate", name);
    }
    if (directory.empty() &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        return errno_status("fcntl", "F_ADD_SEALS");
    }
    return {};
}

namespace {

Result<Fd> open_own(const std::string& directory, const std::string& name, int flags) {
    const std::string path = directory + "/" + name;
    Fd fd(open(path.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC | flags, 0600));
    if (!fd.valid()) {
        return errno == ENOENT ? Status(Code::kNotFound, path + " does not exist")
                               : errno_status("open", path);
    }
    struct stat info{};
    if (fstat(fd.get(), &info) != 0) {
        return errno_status("fstat", path);
    }
    if (!S_ISREG(info.st_mode) || info.st_uid != geteuid()) {
        return refused(path);
    }
    return fd;
}

}  // namespace

Result<Fd> open_region(const std::string& directory, const std::string& name) {
    return open_own(directory, name, 0);
}

Result<Fd> keep_region(const std::string& directory, const std::string& name) {
    return open_own(directory, name, O_CREAT);
}

bool is_named(int fd, const std::string& directory, const std::string& name) {
    struct stat ours{};
    struct stat named{};
    return fstat(fd, &ours) == 0 && lstat((directory + "/" + name).c_str(), &named) == 0 &&
           ours.st_dev == named.st_dev && ours.st_ino == named.st_ino;
}

Status rename_region(const std::string& directory, const std::string& from, const std::string& to) {
    const std::string old_path = directory + "/" + from;
    const std::string new_path = directory + "/" + to;
    if (rename(old_path.c_str(), new_path.c_str()) != 0) {
        return errno_status("rename", new_path);
    }
    return {};
}

Result<Fd> reopen_read_only(const Fd& fd) {
    const std::string path = "/proc/self/fd/" + std::to_string(fd.get());
    Fd again(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!again.valid()) {
        return errno_status("open", path);
    }
    return again;
}

Status errno_status(const char* call, const std::string& path) {
    const int error = errno;
    const Code code = error == ENOSPC || error == EDQUOT ? Code::kNoSpace : Code::kIoError;
    return {code, std::string(call) + "(" + path + "): " + std::generic_category().message(error)};
}

}  // namespace kvstore
