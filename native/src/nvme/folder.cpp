// Locking the folder, counting its lives, opening and allocating log files.
#include "nvme/folder.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstring>
#include <set>

#include "base/checksum.h"
#include "base/mutex.h"

namespace kvstore {
namespace {

constexpr char kSuffix[] = ".kvs";
constexpr char kLogFilePrefix[] = "segment-";
constexpr uint64_t kDefaultLogFileBytes = 64 << 20;
constexpr uint64_t kMaxLogFileBytes = 4ull << 30;
// One descriptor each: greater tiers have greater log files.
constexpr uint64_t kManyLogFiles = 512;
// Some are always free, and the oldest leaves as a whole: fewer would hold much less than they
// could.
constexpr uint64_t kFewLogFiles = 32;

// Record locks belong to the process: a second owner inside it has to be told apart here.
Mutex held_mutex;
std::set<std::pair<uint64_t, uint64_t>>& held_folders() {
    static std::set<std::pair<uint64_t, uint64_t>> folders;
    return folders;
}

struct SessionBlock {
    uint64_t session;
    uint32_t crc;
};

}  // namespace

uint64_t NvmeFolder::choose_log_file_bytes(uint64_t size_bytes) {
    uint64_t bytes = kDefaultLogFileBytes;
    while (size_bytes / bytes > kManyLogFiles && bytes < kMaxLogFileBytes) {
        bytes *= 2;
    }
    while (size_bytes / bytes < kFewLogFiles && bytes > kMinLogFileBytes) {
        bytes /= 2;
    }
    return bytes;
}

Result<std::unique_ptr<NvmeFolder>> NvmeFolder::open(FileIo& io, const std::string& path) {
    if (const int made = io.make_directory(path); made < 0) {
        return io_status("mkdir", path, made);
    }
    std::unique_ptr<NvmeFolder> folder(new NvmeFolder(io, path));
    if (Status status = folder->lock(); !status.ok()) {
        return status;
    }
    if (Status status = folder->next_session(); !status.ok()) {
        return status;
    }
    return folder;
}

NvmeFolder::~NvmeFolder() {
    if (!registered_) {
        return;
    }
    const MutexLock lock(held_mutex);
    owner_.reset();
    held_folders().erase(inode_);
}

Status NvmeFolder::lock() {
    const std::string name = path_ + "/owner";
    const MutexLock guard(held_mutex);
    struct stat by_path{};
    // Opening and closing the file again would drop a lock that this process holds.
    if (io_.stat(name, &by_path) == 0 &&
        held_folders().contains({by_path.st_dev, by_path.st_ino})) {
        return {Code::kUnavailable, "nvme_dir " + path_ + " is in use by this process"};
    }
    const int fd = io_.open(name, O_RDWR | O_CREAT);
    if (fd < 0) {
        return io_status("open", name, fd);
    }
    owner_ = Fd(fd);
    struct flock whole{};
    whole.l_type = F_WRLCK;
    whole.l_whence = SEEK_SET;
    if (fcntl(fd, F_SETLK, &whole) != 0) {
        return {Code::kUnavailable, "nvme_dir " + path_ + " is in use by another process"};
    }
    struct stat opened{};
    const int result = io_.stat(fd, &opened);
    if (result < 0) {
        return io_status("fstat", name, result);
    }
    if (io_.stat(name, &by_path) < 0 || by_path.st_ino != opened.st_ino ||
        by_path.st_dev != opened.st_dev) {
        return {Code::kUnavailable, name + " was replaced while it was being locked; try again"};
    }
    inode_ = {opened.st_dev, opened.st_ino};
    registered_ = held_folders().insert(inode_).second;
    return {};
}

// The clock is a second source: a lost or damaged count must not let a number come again.
Status NvmeFolder::next_session() {
    const std::string name = path_ + "/owner";
    SessionBlock block{};
    const Result<size_t> got = read_fully(io_, owner_.get(), &block, sizeof(block), 0, name);
    if (!got.ok()) {
        return got.status();
    }
    if (*got != sizeof(block) || block.crc != crc32c(&block.session, 8) ||
        block.session == UINT64_MAX) {
        block.session = 0;
    }
    const auto now_ms = std::chrono::duration_cast<std::chrono::milliseconds>(
                            std::chrono::system_clock::now().time_since_epoch())
                            .count();
    session_ = std::max(block.session, static_cast<uint64_t>(std::max<int64_t>(now_ms, 0))) + 1;
    std::array<uint8_t, 16> bytes{};
    const uint32_t crc = crc32c(&session_, 8);
    std::memcpy(bytes.data(), &session_, 8);
    std::memcpy(bytes.data() + 8, &crc, 4);
    Status status = write_fully(io_, owner_.get(), bytes.data(), bytes.size(), 0, name);
    if (!status.ok()) {
        return status;
    }
    if (const int synced = io_.sync(owner_.get()); synced < 0) {
        return io_status("fdatasync", name, synced);
    }
    return {};
}

std::string NvmeFolder::file_path(const std::string& prefix, uint64_t number) const {
    return path_ + "/" + prefix + std::to_string(number) + kSuffix;
}

Result<std::vector<uint64_t>> NvmeFolder::numbers(const std::string& prefix) const {
    std::vector<std::string> names;
    if (const int result = io_.list(path_, &names); result < 0) {
        return io_status("readdir", path_, result);
    }
    std::vector<uint64_t> found;
    for (const std::string& name : names) {
        if (!name.starts_with(prefix) || !name.ends_with(kSuffix)) {
            continue;
        }
        const char* first = name.data() + prefix.size();
        const char* last = name.data() + name.size() - (sizeof(kSuffix) - 1);
        uint64_t number = 0;
        const auto [end, error] = std::from_chars(first, last, number);
        if (error == std::errc() && end == last &&
            file_path(prefix, number) == path_ + "/" + name) {
            found.push_back(number);
        }
    }
    std::sort(found.begin(), found.end());
    return found;
}

Status NvmeFolder::open_file(uint64_t number, bool create, LogFile* file) {
    file->path = file_path(kLogFilePrefix, number);
    const int flags = O_RDWR | (create ? O_CREAT | O_EXCL : 0);
    int fd = direct_ ? io_.open(file->path, flags | O_DIRECT) : -EINVAL;
    if (fd == -EINVAL) {
        // The file system knows no O_DIRECT (some tmpfs). The file may have been created before
        // that was found out.
        direct_ = false;
        fd = io_.open(file->path, create ? O_RDWR | O_CREAT : O_RDWR);
    }
    if (fd < 0) {
        return io_status("open", file->path, fd);
    }
    file->fd = Fd(fd);
    return {};
}

Status NvmeFolder::read_header(const Expected& expected, LogFile* file, bool* foreign) {
    AlignedBuffer block(kLogFileHeaderBytes);
    if (block.size() == 0) {
        return {Code::kNoSpace, "no memory to open " + file->path};
    }
    const Result<size_t> got =
        read_fully(io_, file->fd.get(), block.data(), block.size(), 0, file->path);
    if (!got.ok()) {
        return got.status();
    }
    std::fill(block.data() + *got, block.data() + block.size(), uint8_t{0});
    Result<LogFileHeader> header =
        decode_log_file_header({block.data(), kLogFileHeaderBytes}, file->path);
    if (header.code() == Code::kNotFound) {
        return {};
    }
    if (header.code() == Code::kChecksumMismatch) {
        file->damaged = true;
        return {};
    }
    *foreign = true;
    const std::string advice = ": give another nvme_dir, or set discard_foreign_nvme";
    if (!header.ok()) {
        return header.status();
    }
    if (header->cluster_check != expected.cluster_check) {
        return {Code::kInvalidArgument, file->path + " belongs to another cluster" + advice};
    }
    if (header->node_id != expected.node_id) {
        return {Code::kInvalidArgument,
                file->path + " belongs to node '" + header->node_id + "'" + advice};
    }
    if (log_file_bytes_ != 0 && header->log_file_bytes != log_file_bytes_) {
        return {Code::kInvalidArgument,
                file->path + " has log files of " + std::to_string(header->log_file_bytes) +
                    " bytes, not " + std::to_string(log_file_bytes_) + advice};
    }
    *foreign = false;
    log_file_bytes_ = header->log_file_bytes;
    file->seq = header->seq;
    return {};
}

Status NvmeFolder::discard_file(uint64_t number) {
    const std::string path = file_path(kLogFilePrefix, number);
    const int result = io_.unlink(path);
    return result < 0 && result != -ENOENT ? io_status("unlink", path, result) : Status();
}

// Reads every header and so learns the size of a log file; a foreign file ends it or goes.
Status NvmeFolder::choose_size(const Expected& expected, const std::vector<uint64_t>& present) {
    for (const uint64_t number : present) {
        LogFile file;
        bool foreign = false;
        Status status = open_file(number, false, &file);
        if (status.ok()) {
            status = read_header(expected, &file, &foreign);
        }
        if (!status.ok() && foreign && expected.discard_foreign) {
            status = discard_file(number);
        }
        if (!status.ok()) {
            return status;
        }
    }
    if (log_file_bytes_ == 0) {
        log_file_bytes_ = choose_log_file_bytes(expected.size_bytes);
    }
    if (log_file_bytes_ % kIoAlign != 0 || log_file_bytes_ < kMinLogFileBytes ||
        log_file_bytes_ > kMaxLogFileBytes ||
        expected.size_bytes / log_file_bytes_ < kMinLogFiles) {
        return {Code::kInvalidArgument,
                "nvme_size of " + std::to_string(expected.size_bytes) + " bytes has no room for " +
                    std::to_string(kMinLogFiles) + " log files of " +
                    std::to_string(log_file_bytes_) + " bytes: raise nvme_size"};
    }
    return {};
}

// Before anything is allocated: a full disk would also stop everybody else who uses it.
Status NvmeFolder::check_room(const Expected& expected, uint64_t missing_files) {
    uint64_t free_bytes = 0;
    uint64_t total_bytes = 0;
    if (const int result = io_.room(path_, &free_bytes, &total_bytes); result < 0) {
        return io_status("statvfs", path_, result);
    }
    const uint64_t needed = missing_files * log_file_bytes_;
    const auto kept = static_cast<uint64_t>(expected.keep_free * static_cast<double>(total_bytes));
    if (missing_files == 0 || total_bytes == 0 || needed + kept <= free_bytes) {
        return {};
    }
    return {Code::kNoSpace, path_ + " needs " + std::to_string(needed >> 20) + " MiB more, of " +
                                std::to_string(free_bytes >> 20) + " MiB free, and " +
                                std::to_string(kept >> 20) + " MiB stay free (nvme_keep_free)"};
}

Status NvmeFolder::open_log_files(const Expected& expected, Status* shortage) {
    Result<std::vector<uint64_t>> present = numbers(kLogFilePrefix);
    if (!present.ok()) {
        return present.status();
    }
    log_file_bytes_ = expected.log_file_bytes;
    if (Status status = choose_size(expected, *present); !status.ok()) {
        return status;
    }
    present = numbers(kLogFilePrefix);
    if (!present.ok()) {
        return present.status();
    }
    const uint64_t count = expected.size_bytes / log_file_bytes_;
    const auto beyond = std::lower_bound(present->begin(), present->end(), count);
    *shortage = check_room(expected, count - static_cast<uint64_t>(beyond - present->begin()));
    std::set<uint64_t> seqs;
    for (uint64_t number = 0; number < count; ++number) {
        const bool exists = std::binary_search(present->begin(), present->end(), number);
        if (!exists && !shortage->ok()) {
            break;
        }
        LogFile file;
        bool foreign = false;
        Status status = open_file(number, !exists, &file);
        if (status.ok()) {
            const int result = io_.allocate(file.fd.get(), log_file_bytes_);
            if (result < 0 && shortage->ok()) {
                *shortage = io_status("fallocate", file.path, result);
            }
            if (exists) {
                status = read_header(expected, &file, &foreign);
            }
        }
        if (!exists && (!status.ok() || !shortage->ok())) {
            if (shortage->ok()) {
                *shortage = status;
            }
            discard_file(number).ok();  // what is too short to be used would only be in the way
            break;
        }
        if (!status.ok()) {
            return status;
        }
        if (file.seq != 0 && !seqs.insert(file.seq).second) {
            file.seq = 0;
            file.damaged = true;
        }
        files_.push_back(std::move(file));
    }
    // A smaller nvme_size gives the rest back.
    for (const uint64_t number : *present) {
        if (number >= count) {
            discard_file(number).ok();
        }
    }
    return sync_names();
}

Status NvmeFolder::sync_names() const {
    const int folder = io_.open(path_, O_RDONLY | O_DIRECTORY);
    if (folder < 0) {
        return io_status("open", path_, folder);
    }
    const Fd fd(folder);
    const int synced = io_.sync(folder);
    return synced < 0 ? io_status("fdatasync", path_, synced) : Status();
}

bool NvmeFolder::still_there() const {
    struct stat info{};
    return io_.stat(path_ + "/owner", &info) == 0 && inode_.first == info.st_dev &&
           inode_.second == info.st_ino;
}

}  // namespace kvstore
