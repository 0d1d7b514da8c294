// The NVMe tier's folder: who owns it, which life this is, and the log files in it.
//
//   owner            locked (fcntl) while a process uses the folder, never unlinked; its first
//   block
//                    holds the number of the last life
//   segment-<n>.kvs  the log files, n from 0, all of one size
//   removals-<n>.kvs the removal journal (nvme_removals.h)
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/status.h"
#include "nvme/file_io.h"
#include "nvme/format.h"

namespace kvstore {

class NvmeFolder {
  public:
    struct LogFile {
        std::string path;
        Fd fd;
        uint64_t seq = 0;  // of a whole header that is ours; 0: free
        // The last header was there but not whole (or the second of its number).
        bool damaged = false;
    };
    struct Expected {
        uint64_t size_bytes = 0;
        uint64_t log_file_bytes = 0;  // 0: that of the files there, else chosen from the size
        std::string node_id;
        uint64_t cluster_check = 0;
        bool discard_foreign = false;
        double keep_free = 0;  // share of the file system that no new log file takes
    };

    // Creates and locks the folder. Unavailable: another process, or another object of this one,
    // owns it.
    static Result<std::unique_ptr<NvmeFolder>> open(FileIo& io, const std::string& path);
    ~NvmeFolder();
    NvmeFolder(const NvmeFolder&) = delete;
    NvmeFolder& operator=(const NvmeFolder&) = delete;

    // Opens what is there, then creates and allocates what is missing. VersionMismatch,
    // InvalidArgument: files of another format, cluster, node or log file size. `*shortage` is why
    // files are missing (a full disk); the ones that are there are open all the same.
    Status open_log_files(const Expected& expected, Status* shortage);

    const std::string& path() const { return path_; }
    uint64_t session() const { return session_; }  // greater than any earlier life's
    uint64_t log_file_bytes() const { return log_file_bytes_; }
    bool direct() const { return direct_; }
    std::vector<LogFile>& files() { return files_; }
    // Other files of the tier by their beginning, with numbers, ascending.
    Result<std::vector<uint64_t>> numbers(const std::string& prefix) const;
    std::string file_path(const std::string& prefix, uint64_t number) const;
    Status sync_names() const;  // makes created and deleted files' names last
    // Whether the folder and its lock file are still what was opened.
    bool still_there() const;

    // The size of one log file for a tier of this size, and the least that a tier may have.
    static uint64_t choose_log_file_bytes(uint64_t size_bytes);
    static constexpr uint64_t kMinLogFiles = 4;
    static constexpr uint64_t kMinLogFileBytes = 64 << 10;

  private:
    NvmeFolder(FileIo& io, std::string path) : io_(io), path_(std::move(path)) {}
    Status lock();
    Status next_session();
    Status open_file(uint64_t number, bool create, LogFile* file);
    Status read_header(const Expected& expected, LogFile* file, bool* foreign);
    Status choose_size(const Expected& expected, const std::vector<uint64_t>& present);
    Status discard_file(uint64_t number);
    Status check_room(const Expected& expected, uint64_t missing_files);

    FileIo& io_;
    std::string path_;
    Fd owner_;
    std::pair<uint64_t, uint64_t> inode_{};  // of the lock file; what this process holds
    bool registered_ = false;
    uint64_t session_ = 0;
    uint64_t log_file_bytes_ = 0;
    bool direct_ = true;
    std::vector<LogFile> files_;
};

}  // namespace kvstore
