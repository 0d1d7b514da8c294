// Creation of a segment: is there room, whose limit says no, and the thread that pre-faults it.
#include "memory/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <string_view>

#include "base/signals_blocked.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; older kernels answer EINVAL
#endif

namespace kvstore {
std::string in_mebibytes(uint64_t bytes) {
    char text[48];
    std::snprintf(text, sizeof(text), "%.1f MiB", static_cast<double>(bytes) / (1 << 20));
    return text;
}

namespace {

constexpr uint64_t kUnlimited = UINT64_MAX;

// The number a kernel file starts with; nothing for "max" or when there is no such file.
std::optional<uint64_t> read_number(const std::string& path) {
    std::ifstream file(path);
    uint64_t number = 0;
    if (file >> number) {
        return number;
    }
    return std::nullopt;
}

// The number behind `name` in a file of "name number" lines.
uint64_t read_field(const std::string& path, std::string_view name) {
    std::ifstream file(path);
    std::string word;
    uint64_t number = 0;
    while (file >> word) {
        if (word == name && file >> number) {
            return number;
        }
    }
    return 0;
}

struct CgroupFiles {
    const char* limit;
    const char* usage;
    const char* active_cache;
    const char* inactive_cache;
};
constexpr CgroupFiles kVersion1 = {"/memory.limit_in_bytes", "/memory.usage_in_bytes",
                                   "total_active_file", "total_inactive_file"};
constexpr CgroupFiles kVersion2 = {"/memory.max", "/memory.current", "active_file",
                                   "inactive_file"};

// Bytes that `folder` and every group above it still allow. Page cache counts as use in a cgroup
// but is given up under pressure, so it counts as room here; shared memory is not part of it.
uint64_t group_room(const std::string& mount, std::string group, const CgroupFiles& files) {
    uint64_t room = kUnlimited;
    while (true) {
        const std::string folder = mount + group;
        const auto limit = read_number(folder + files.limit);
        const auto usage = read_number(folder + files.usage);
        if (limit && usage) {
            const std::string stat = folder + "/memory.stat";
            const uint64_t cache =
                read_field(stat, files.active_cache) + read_field(stat, files.inactive_cache);
            const uint64_t used = *usage - std::min(*usage, cache);
            room = std::min(room, *limit - std::min(*limit, used));
        }
        if (group.empty()) {
            return room;
        }
        group.erase(group.rfind('/'));
    }
}

uint64_t cgroup_room() {
    uint64_t room = kUnlimited;
    std::ifstream file("/proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {
        // "hierarchy:controllers:/path"; the unified hierarchy (version 2) names no controllers.
        const size_t first = line.find(':');
        const size_t second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) {
            continue;
        }
        const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
        std::string group = line.substr(second + 1);
        if (group == "/") {
            group.clear();
        }
        if (controllers == ",,") {
            room = std::min(room, group_room("/sys/fs/cgroup", group, kVersion2));
        } else if (controllers.find(",memory,") != std::string::npos) {
            room = std::min(room, group_room("/sys/fs/cgroup/memory", group, kVersion1));
        }
    }
    return room;
}

Status no_room(const Segment::Options& options, const std::string& what, uint64_t room,
               const char* advice) {
    const std::string beside = options.beside_bytes == 0
                                   ? std::string()
                                   : " (and " + in_mebibytes(options.beside_bytes) +
                                         " beside it, for its index, a second one during a "
                                         "restart, and clients)";
    return {Code::kNoSpace, "segment_size " + in_mebibytes(options.size_bytes) + beside +
                                " does not fit " + what + ", which has " + in_mebibytes(room) +
                                " left: " + advice};
}

// `wanted_bytes` have no memory yet.
Status check_memory(const Segment::Options& options, uint64_t wanted_bytes) {
    if (const uint64_t room = cgroup_room(); wanted_bytes > room) {
        return no_room(options, "the memory limit of this process's cgroup", room,
                       "lower segment_size or raise the limit");
    }
    const uint64_t available = read_field("/proc/meminfo", "MemAvailable:") * 1024;
    if (available != 0 && wanted_bytes > available) {
        return no_room(options, "this host's memory", available, "lower segment_size");
    }
    return {};
}

// Shared memory is charged to the machine and to the cgroup; a file on a disk or on hugetlbfs is
// not. Also returns the unit in which the file system hands out pages.
Result<uint64_t> check_room(const Segment::Options& options, uint64_t backed_bytes) {
    const auto page_bytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    if (options.size_bytes == 0) {
        return {Code::kInvalidArgument, "segment_size is 0"};
    }
    const uint64_t wanted_bytes =
        options.size_bytes - std::min(options.size_bytes, backed_bytes) + options.beside_bytes;
    if (options.directory.empty()) {
        if (Status status = check_memory(options, wanted_bytes); !status.ok()) {
            return status;
        }
        return page_bytes;
    }
    struct statfs fs{};
    if (statfs(options.directory.c_str(), &fs) != 0) {
        const Status status = errno_status("statfs", options.directory);
        return {status.code(), "segment_dir is not usable: " + status.message()};
    }
    const auto unit = static_cast<uint64_t>(fs.f_bsize);
    const bool huge_pages = fs.f_type == HUGETLBFS_MAGIC;
    if (huge_pages && options.size_bytes % unit != 0) {
        return {Code::kInvalidArgument, "segment_size must be a multiple of " + in_mebibytes(unit) +
                                            ", the page size of segment_dir " + options.directory};
    }
    // A tmpfs mounted without a size bound reports no blocks at all.
    const uint64_t room = static_cast<uint64_t>(fs.f_bavail) * unit;
    if (fs.f_blocks != 0 && wanted_bytes > room) {
        return no_room(options, "segment_dir " + options.directory, room,
                       "lower segment_size, free room there, or choose another segment_dir");
    }
    if (fs.f_type == TMPFS_MAGIC) {
        if (Status status = check_memory(options, wanted_bytes); !status.ok()) {
            return status;
        }
    }
    return std::max(unit, page_bytes);
}

// Maps the pages for writing; data that is already there stays.
Status populate(uint8_t* begin, uint64_t size_bytes) {
    if (madvise(begin, size_bytes, MADV_POPULATE_WRITE) == 0) {
        return {};
    }
    if (errno != EINVAL) {
        return errno_status("madvise", "MADV_POPULATE_WRITE");
    }
    const auto page_bytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    for (uint64_t at = 0; at < size_bytes; at += page_bytes) {
        volatile uint8_t* byte = begin + at;
        *byte = *byte;
    }
    return {};
}

}  // namespace

Status Segment::has_room(const Options& options) { return check_room(options, 0).status(); }

Result<std::unique_ptr<Segment>> Segment::create(const Options& options) {
    auto unit = check_room(options, 0);
    if (!unit.ok()) {
        return unit.status();
    }
    auto fd = create_region(options.directory, options.name);
    if (!fd.ok()) {
        return fd.status();
    }
    return over(options, std::move(*fd), *unit, 0);
}

Result<std::unique_ptr<Segment>> Segment::attach(const Options& options, uint64_t kept_bytes) {
    auto fd = open_region(options.directory, options.name);
    if (!fd.ok()) {
        return fd.status();
    }
    struct stat info{};
    if (fstat(fd->get(), &info) != 0) {
        return errno_status("fstat", options.name);
    }
    const uint64_t size = std::min(static_cast<uint64_t>(info.st_size), options.size_bytes);
    auto unit = check_room(options, static_cast<uint64_t>(info.st_blocks) * 512);
    if (!unit.ok()) {
        return unit.status();
    }
    return over(options, std::move(*fd), *unit, std::min(kept_bytes, size));
}

Result<std::unique_ptr<Segment>> Segment::over(const Options& options, Fd fd, uint64_t unit,
                                               uint64_t kept_bytes) {
    std::unique_ptr<Segment> segment(new Segment());
    segment->options_ = options;
    uint64_t& slice = segment->options_.slice_bytes;
    slice = std::max<uint64_t>(1, (slice + unit - 1) / unit) * unit;
    segment->fd_ = std::move(fd);
    Status status = segment->open_memory();
    const uint64_t first = std::min(slice, options.size_bytes);
    if (status.ok()) {
        status = segment->prefault_slice(0, first);
    }
    // A hole (somebody has cut and grown the file again) would be filled at a touch, or not at all.
    if (status.ok() && kept_bytes > first) {
        status = segment->reserve(first, kept_bytes);
    }
    if (!status.ok()) {
        if (kept_bytes == 0) {
            segment->remove_file();
        }
        return status;
    }
    segment->ready_bytes_.store(std::max(first, kept_bytes), std::memory_order_release);
    const SignalsBlocked blocked;
    segment->thread_ = std::thread([raw = segment.get()] { raw->prefault_loop(); });
    return segment;
}

Status Segment::set_size() const {
    struct stat info{};
    if (fstat(fd_.get(), &info) != 0) {
        return errno_status("fstat", path());
    }
    const auto end = static_cast<off_t>(options_.size_bytes);
    if (info.st_size <= end) {
        return size_region(fd_.get(), options_.directory, options_.size_bytes, path());
    }
    if (options_.drop_end && fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, end,
                                       info.st_size - end) != 0) {
        return errno_status("fallocate", path());
    }
    return {};
}

Status Segment::open_memory() {
    if (Status sized = set_size(); !sized.ok()) {
        return sized;
    }
    auto read_only = reopen_read_only(fd_);
    if (!read_only.ok()) {
        return read_only.status();
    }
    read_only_fd_ = std::move(*read_only);
    auto mapping = Mapping::map(fd_.get(), options_.size_bytes, true);
    if (!mapping.ok()) {
        return mapping.status();
    }
    mapping_ = std::move(*mapping);
    struct statfs fs{};
    counts_blocks_ =
        fstatfs(fd_.get(), &fs) == 0 && (fs.f_type == TMPFS_MAGIC || fs.f_type == HUGETLBFS_MAGIC);
    if (options_.size_bytes >= options_.huge_pages_from_bytes) {
        // A wish: kernels and mounts without it keep small pages.
        (void)madvise(mapping_.data(), mapping_.size(), MADV_HUGEPAGE);
    }
    return {};
}

Segment::~Segment() {
    {
        const MutexLock lock(mutex_);
        stopping_ = true;
    }
    if (thread_.joinable()) {
        thread_.join();
    }
}

bool Segment::wait_ready(uint64_t ready_bytes, uint32_t timeout_ms) {
    ready_bytes = std::min(ready_bytes, size());
    MutexLock lock(mutex_);
    changed_.wait_for(mutex_, std::chrono::milliseconds(timeout_ms), [&]() KV_REQUIRES(mutex_) {
        return this->ready_bytes() >= ready_bytes || !status_.ok();
    });
    return this->ready_bytes() >= ready_bytes;
}

Status Segment::prefault_status() const {
    const MutexLock lock(mutex_);
    return status_;
}

std::string Segment::damage() const {
    // Read before the file is looked at: by then it has memory for all of that.
    const uint64_t ready = ready_bytes();
    struct stat info{};
    if (fstat(fd_.get(), &info) != 0) {
        return {};
    }
    if (info.st_size < static_cast<off_t>(size())) {
        return path() + " was cut to " + std::to_string(info.st_size) + " bytes";
    }
    constexpr uint64_t kBlockBytes = 512;  // the unit of st_blocks, whatever the file system
    if (counts_blocks_ && static_cast<uint64_t>(info.st_blocks) * kBlockBytes < ready) {
        return path() + " has holes: only " +
               in_mebibytes(static_cast<uint64_t>(info.st_blocks) * kBlockBytes) + " of " +
               in_mebibytes(ready) + " have memory";
    }
    return mapping_.torn() ? path() + " has lost pages" : std::string();
}

void Segment::remove_file() {
    if (options_.directory.empty()) {
        return;
    }
    // The name may have passed to a successor's inode; that one is not ours to remove.
    if (is_named(fd_.get(), options_.directory, options_.name)) {
        unlink(path().c_str());
    }
}

std::string Segment::path() const {
    return options_.directory.empty() ? options_.name : options_.directory + "/" + options_.name;
}

void Segment::prefault_loop() {
    // With no lower priority than the threads that serve: while it maps a slice, it holds the lock
    // that they need to map or unmap anything.
    // What was kept is mapped first: the node reads it for clients of other hosts.
    for (uint64_t begin = std::min(options_.slice_bytes, size()); begin < size();) {
        const uint64_t end = std::min(begin + options_.slice_bytes, size());
        Status status = prefault_slice(begin, end);
        begin = end;
        const MutexLock lock(mutex_);
        if (status.ok() && end > ready_bytes()) {
            ready_bytes_.store(end, std::memory_order_release);
        }
        status_ = std::move(status);
        changed_.notify_all();
        if (stopping_ || !status_.ok()) {
            return;
        }
    }
}

Status Segment::prefault_slice(uint64_t begin, uint64_t end) {
    if (Status status = reserve(begin, end); !status.ok()) {
        return status;
    }
    return populate(mapping_.data() + begin, end - begin);
}

Status Segment::reserve(uint64_t begin, uint64_t end) {
    const Status status = reserve_bytes(fd_.get(), begin, end, path());
    if (!status.ok()) {
        return {status.code(), "segment_size " + in_mebibytes(options_.size_bytes) +
                                   " could be backed by memory only up to " + in_mebibytes(begin) +
                                   ": " + status.message()};
    }
    return {};
}

}  // namespace kvstore
