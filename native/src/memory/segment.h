// A segment: a shared-memory region of a node that holds blocks, pre-faulted in the background.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "base/file.h"
#include "base/mutex.h"

namespace kvstore {

std::string in_mebibytes(uint64_t bytes);  // "64.0 MiB", for messages about room

// Owner's side. Pages are fallocated and pre-faulted slice by slice by a background thread, and
// only bytes below `ready_bytes` may be handed out (native/README.md, rule 6).
class Segment {
  public:
    struct Options {
        std::string directory;  // tmpfs or hugetlbfs mount; empty: an anonymous memfd
        std::string name;       // file name inside `directory`
        uint64_t size_bytes = 0;
        uint64_t beside_bytes = 0;  // that other files will take in `directory`
        bool drop_end = false;      // of a file that is larger: nobody uses it
        uint64_t slice_bytes = 16u << 20;
        uint64_t huge_pages_from_bytes = 16ull
                                         << 30;  // from this size on 2 MiB pages are asked for
    };
    // Whether create() would find room: kNoSpace as there.
    static Status has_room(const Options& options);
    // Checks room (statvfs, cgroup limit) before anything is created: kNoSpace with a sentence that
    // names the setting. Blocks until the first slice is ready.
    static Result<std::unique_ptr<Segment>> create(const Options& options);
    // The file that an earlier life has left, grown to the size asked for; its first `kept_bytes`
    // are ready at once, as far as the file goes. One that is larger stays so, since clients may
    // map it, but its end gives its memory back with `drop_end`. kNotFound when there is none,
    // kNoSpace as above.
    static Result<std::unique_ptr<Segment>> attach(const Options& options, uint64_t kept_bytes);
    ~Segment();  // stops the thread, unmaps; the file stays unless remove_file() was called

    uint8_t* data() const { return mapping_.data(); }
    uint64_t size() const { return mapping_.size(); }
    int fd() const { return fd_.get(); }
    int read_only_fd() const { return read_only_fd_.get(); }
    uint64_t ready_bytes() const { return ready_bytes_.load(std::memory_order_acquire); }
    // True when the first `ready_bytes` (at most the size) are ready; false when `timeout_ms`
    // passed or pre-faulting stopped.
    bool wait_ready(uint64_t ready_bytes, uint32_t timeout_ms) KV_EXCLUDES(mutex_);
    Status prefault_status() const;  // why pre-faulting stopped early, Ok otherwise
    void remove_file();
    // What somebody has done to the file from outside: a sentence, empty when it is whole.
    std::string damage() const;

  private:
    Segment() = default;
    static Result<std::unique_ptr<Segment>> over(const Options& options, Fd fd, uint64_t unit,
                                                 uint64_t kept_bytes);
    Status open_memory();
    Status set_size() const;
    std::string path() const;
    void prefault_loop();
    Status prefault_slice(uint64_t begin, uint64_t end);
    Status reserve(uint64_t begin, uint64_t end);

    Options options_;
    Fd fd_;
    Fd read_only_fd_;
    Mapping mapping_;
    bool counts_blocks_ = false;  // st_blocks says what has memory: tmpfs, hugetlbfs
    std::atomic<uint64_t> ready_bytes_{0};
    mutable Mutex mutex_;
    CondVar changed_;  // more is ready, or pre-faulting stopped
    bool stopping_ KV_GUARDED_BY(mutex_) = false;
    Status status_ KV_GUARDED_BY(mutex_);
    std::thread thread_;
};

}  // namespace kvstore
