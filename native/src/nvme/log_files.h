// The log's files and the state of each:
//
//   free → prepared → head → sealing → sealed → reclaiming → free
//
//   free        holds nothing; its header is empty
//   prepared    has its number in the log's order; ready once the header is on disk
//   head        takes the appended records; one file at most
//   sealing     full, but not all of it is written and durable
//   sealed      whole and durable; only read
//   reclaiming  its objects move or are dropped; no reader may start to depend on it
//
// Besides, a prepared file whose header cannot be written is free again, and a reclaim that stops
// early seals its file again. A file with a header that open() finds is *recovered* until it is
// known what it holds: then it is free, continued as the head, or sealed.
//
// Not thread-safe: the log's mutex guards it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "nvme/manifest.h"

namespace kvstore {

enum class LogFileState : uint8_t {
    kFree,
    kPrepared,
    kHead,
    kSealing,
    kSealed,
    kReclaiming,
    kRecovered
};

class LogFiles {
  public:
    class File {
      public:
        LogFileState state() const { return state_; }
        uint64_t seq() const { return seq_; }  // place in the log's order; 0: free
        // Of a head, and until it is sealed.
        const std::shared_ptr<Manifest>& manifest() const { return manifest_; }

        uint32_t readers = 0;  // reads in progress: the file must not be freed
        uint64_t live_objects = 0;
        uint64_t writes = 0;         // since the process started
        uint64_t synced_writes = 0;  // the first so many of them are durable

      private:
        friend class LogFiles;
        LogFileState state_ = LogFileState::kFree;
        uint64_t seq_ = 0;
        std::shared_ptr<Manifest> manifest_;
    };

    static bool is_legal(LogFileState from, LogFileState to);

    explicit LogFiles(size_t count = 0) : files_(count), free_(count) {}

    uint32_t count() const { return static_cast<uint32_t>(files_.size()); }
    File& operator[](uint32_t file) { return files_[file]; }
    const File& operator[](uint32_t file) const { return files_[file]; }

    // Each function takes one arrow of the picture; asserts that it is there.
    std::optional<uint32_t> prepare();                     // empty: no file is free
    void header_written(uint32_t file);                    // prepared, and ready from now on
    void header_failed(uint32_t file);                     // prepared → free
    void begin_head(uint32_t file);                        // the one that next_ready() named
    void end_head(uint32_t file);                          // head → sealing
    void seal(uint32_t file);                              // sealing → sealed
    void begin_reclaim(uint32_t file);                     // sealed → reclaiming
    void stop_reclaim(uint32_t file);                      // reclaiming → sealed
    void release(uint32_t file);                           // reclaiming → free
    void recover(uint32_t file, uint64_t seq);             // free → recovered
    void discard_recovered(uint32_t file);                 // recovered → free
    void continue_head(uint32_t file, Manifest manifest);  // recovered → head
    void seal_recovered();                                 // all that are still recovered

    std::optional<uint32_t> next_ready() const;
    size_t ready() const { return ready_.size(); }
    // A prepared file counts once it is ready.
    uint64_t free_or_ready() const { return free_ + ready_.size(); }

    // The oldest file with records whose seq is at least this.
    std::optional<uint32_t> oldest(uint64_t least_seq = 0) const;
    // A sealed file without live objects.
    std::optional<uint32_t> sealed_without_objects() const;
    std::vector<uint32_t> recovered() const;  // oldest first
    uint64_t oldest_seq() const;              // that any file has, else the next one
    uint64_t newest_seq() const { return next_seq_ - 1; }

  private:
    void change(uint32_t file, LogFileState to);
    void make_free(uint32_t file);

    std::vector<File> files_;
    std::deque<uint32_t> ready_;
    uint64_t free_ = 0;
    uint64_t next_seq_ = 1;
};

}  // namespace kvstore
