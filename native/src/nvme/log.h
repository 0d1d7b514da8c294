// The node's tier on NVMe: objects appended to log files, found through an index in memory.
//
// append() copies into a write buffer and returns, or leaves a large object's data where it is
// until it is written; writer threads write whole buffers, the maintenance thread seals full log
// files (their manifest goes to the catalog), prepares empty ones and reclaims the oldest, moving
// what is still hot to the head of the log. Every read is verified against the checksum that is
// bound to the object's identity before it is answered.
//
// Objects are durable after sync(), removals and flushes after sync_removals(). A process that dies
// loses at most what was appended after the last sync() or within flush_after_ms; after a power
// loss every object is there whole or not at all.
//
// Nothing throws. After a failed write the log is read-only; after repeated failed reads, or when
// its folder is gone, it is off; error() says why. It stays so until it is opened again.
// Thread-safe. Callbacks run on the log's own threads without its mutex, unless said otherwise;
// they may call it, but not destroy it.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "base/types.h"
#include "nvme/file_io.h"
#include "nvme/folder.h"
#include "nvme/index.h"
#include "nvme/log_files.h"
#include "nvme/manifest.h"
#include "nvme/namespaces.h"
#include "nvme/reads.h"
#include "nvme/reclaim_plan.h"
#include "nvme/removals.h"
#include "nvme/scan.h"
#include "nvme/write_buffers.h"

namespace kvstore {

enum class NvmeState : uint8_t { kActive = 0, kReadOnly = 1, kOff = 2 };

struct NvmeDropped {
    enum class Reason : uint8_t { kReclaimed, kExpired, kChecksum, kIoError, kWriteFailed };
    NamespaceId ns = 0;
    Hash128 hash;
    Version version = 0;
    std::string key;
    Reason reason = Reason::kReclaimed;
};

struct NvmeCounters {
    uint64_t objects = 0;           // findable now (expired ones included until reclaimed)
    uint64_t bytes_live = 0;        // their data
    uint64_t bytes_capacity = 0;    // of all log files
    uint64_t index_bytes = 0;       // memory of the index
    uint64_t free_log_files = 0;    // prepared ones included
    uint64_t bytes_written = 0;     // to log files, by append and readmission
    uint64_t appended_objects = 0;  // without readmitted ones
    uint64_t reads = 0;             // answered Ok
    uint64_t bytes_read = 0;        // of their data
    uint64_t readmitted_objects = 0;
    uint64_t readmitted_bytes = 0;
    uint64_t dropped_objects = 0;  // for whatever reason that NvmeDropped names
    uint64_t log_files_reclaimed = 0;
    uint64_t checksum_errors = 0;
    uint64_t io_errors = 0;
    uint64_t catalog_errors = 0;
    uint64_t overloaded = 0;  // appends and reads refused for want of buffers, log files or queue
    // What open() met.
    uint64_t recovered_objects = 0;
    uint64_t scanned_log_files = 0;  // without a usable manifest
    uint64_t damaged_log_files = 0;  // unreadable header: their objects are lost
    uint64_t damaged_records = 0;    // data that does not match
    uint64_t torn_tails = 0;         // log files that were cut
    uint64_t damaged_removals = 0;   // journal records lost: alert, what they removed may be back
};

struct NvmeProgress {
    uint64_t files_done = 0;
    uint64_t files = 0;
    uint64_t objects = 0;
};

struct NvmeOptions {
    std::string directory;        // nvme_dir; created when missing
    uint64_t size_bytes = 0;      // nvme_size
    uint64_t log_file_bytes = 0;  // 0: as the files there, else chosen from the size
    std::string node_id;
    uint64_t cluster_check = 0;    // tells clusters apart: derived from the hash secret
    bool discard_foreign = false;  // of another format, cluster, node or log file size
    double keep_free = 0;          // share of the file system that new log files leave free
    size_t buffer_bytes = 2 << 20;
    size_t buffers = 10;
    size_t writers = 2;
    NvmeReadEngine::Options reads;
    size_t max_queued_reads = 4096;
    NvmePolicy policy;
    uint32_t flush_after_ms = 200;   // how long an object waits for its buffer to fill
    FileIo* io = nullptr;            // not owned; null: the system
    NvmeCatalog* catalog = nullptr;  // not owned; null: none, every open scans
    std::function<void(const NvmeProgress&)> on_progress;  // during open(), on its thread
    // Once for each object that is dropped, after it went: reads may miss it before this is said.
    // All is said when the log is closed. Only of a log file that cannot be read any more, without
    // a row in the catalog, nobody knows what it held: that is counted.
    std::function<void(const NvmeDropped&)> on_dropped;
    std::function<uint64_t()> wall_ms;  // for tests; null: the system's clock
};

struct NvmeObject {
    Identity identity;
    uint32_t sealed_crc = 0;
    uint64_t expires_at_ms = 0;  // wall clock; 0: never
    uint64_t put_wall_ms = 0;
    Pin pin = Pin::kNone;
    Hash128 parent;
    std::string_view key;
};

struct NvmeFound {
    Version version = 0;
    uint64_t length = 0;
    Pin pin = Pin::kNone;
    uint8_t touches = 0;  // reads since it was written, at most kMaxTouches
    uint32_t file = 0;    // where it lies: for reads in the order of the disk
    uint64_t offset = 0;
};

struct NvmeRead {
    NamespaceId ns = 0;
    Hash128 hash;
    Version version = 0;   // 0: the one that is there
    std::string_view key;  // copied; empty: not compared
    uint8_t* to = nullptr;
    uint64_t capacity = 0;
    uint64_t tag = 0;
    bool ahead = false;  // nobody waits for it: behind all others, and few at once
};

// NotFound, BufferTooSmall, ChecksumMismatch and IoError (the object is dropped), Overloaded,
// Closed. The rest is set when Ok; until then what lies at `to` is nobody's data.
struct NvmeReadResult {
    Status status;
    Identity identity;
    uint32_t sealed_crc = 0;
    uint64_t expires_at_ms = 0;
    uint64_t put_wall_ms = 0;
    Pin pin = Pin::kNone;
    Hash128 parent;
    std::string_view key;  // valid during the call that brings this
};
using NvmeReadDone = std::function<void(uint64_t tag, const NvmeReadResult& result)>;

struct NvmeListed {
    NamespaceEpoch ns;
    std::string key;
    Identity identity;
    uint32_t sealed_crc = 0;
    uint64_t ttl_ms = 0;  // remaining; 0: forever
    uint64_t put_wall_ms = 0;
    Pin pin = Pin::kNone;
    Hash128 parent;
};

// Where a listing goes on; starts empty.
struct NvmeCursor {
    bool done = false;
    uint64_t seq = 0;
    uint64_t at = 0;
    std::shared_ptr<const Manifest> manifest;  // of log file `seq`, when it was loaded
};

class NvmeLog {
  public:
    // Recovers what is in the folder. Unavailable: somebody else uses it. VersionMismatch,
    // InvalidArgument: it belongs to something else, or the options fit nothing. A full disk gives
    // a read-only log.
    static Result<std::unique_ptr<NvmeLog>> open(const NvmeOptions& options);
    ~NvmeLog();  // writes what is buffered, ends all reads
    NvmeLog(const NvmeLog&) = delete;
    NvmeLog& operator=(const NvmeLog&) = delete;

    // Once before the first append into a namespace. NoSpace: too many have objects.
    Status register_namespace(const NamespaceEpoch& ns);

    // Ok: readable. AlreadyExists: this version or a higher one is there. Overloaded: nothing can
    // be taken now, see await_space(). Removed: a remove or flush came first. ChecksumMismatch:
    // `data` is not what sealed_crc says. TooLarge; NoSpace: too much is pinned; InvalidArgument;
    // or why the log is not active.
    // A `lender` keeps `data` as it is: if that is large and starts at a whole block, it is written
    // from there, not copied, and not checked before it is read. Let go on any thread, without the
    // log's mutex.
    Status append(const NvmeObject& object, std::span<const uint8_t> data,
                  const std::shared_ptr<const void>& lender = nullptr);
    // Waits until an append of this size may succeed. False: not in time, or not active.
    bool await_space(uint64_t data_bytes, uint32_t timeout_ms);
    uint64_t max_object_bytes() const { return max_object_bytes_; }

    std::optional<NvmeFound> find(NamespaceId ns, const Hash128& hash, bool touch = false);
    // Calls `done` once for each, on a thread of the reads; for what is answered without the disk
    // on this one, before it returns. Destinations are the caller's and must live until then.
    void read(std::span<const NvmeRead> reads, const NvmeReadDone& done);
    // Somebody waits for these now: what of them was to be read ahead is a read like any other.
    void hurry(std::span<const Hash128> hashes) KV_EXCLUDES(mutex_);

    // Drops every version up to `version`. True: one was there.
    bool remove(NamespaceId ns, const Hash128& hash, Version version);
    void flush_namespace(NamespaceId ns);
    // Ok: every remove and flush that returned before is durable.
    Status sync_removals() KV_EXCLUDES(mutex_);
    // The owner's operations up to this one are among the removals and flushes that were called
    // for. recovered_applied(): the last such number that was durable when the folder was opened.
    void note_applied(uint64_t applied_seq);
    uint64_t recovered_applied() const { return recovered_applied_; }
    // Ok: every append that returned before is durable. Never Ok again once a write of objects, or
    // its sync, has failed.
    Status sync() KV_EXCLUDES(mutex_);

    // Not durable by itself: the pin on disk is that of the append. NoSpace: too much is pinned.
    Status set_pin(NamespaceId ns, const Hash128& hash, Pin pin);
    void set_policy(const NvmePolicy& policy) KV_EXCLUDES(mutex_);

    // Appends at most `max` live objects to `*out`. Each object that is there from the first call
    // to the last is listed at least once.
    Status list(NvmeCursor* cursor, size_t max, std::vector<NvmeListed>* out);

    std::vector<NamespaceEpoch> namespaces() const;  // that have objects and were not flushed
    NvmeState state() const;
    Status error() const;  // Ok while active
    NvmeCounters counters() const;
    const char* read_way() const { return engine_->name(); }
    uint64_t log_file_bytes() const { return log_file_bytes_; }

  private:
    class ReadTask;
    // An append on its way.
    struct Appending {
        const NvmeObject& object;
        std::span<const uint8_t> data;
        std::optional<uint64_t> moved_from = std::nullopt;  // a reclaim moves it from this unit
        std::shared_ptr<const void> lender = nullptr;       // of what is not to be copied
        // What prepare_append() found for it.
        uint16_t ns_slot = 0;
        uint32_t file = 0;
        RecordHead head = {};
        std::unique_ptr<Reservation> room = nullptr;
    };

    explicit NvmeLog(const NvmeOptions& options);
    Status start() KV_EXCLUDES(mutex_);

    // log.cpp and log_append.cpp
    Status append_record(Appending appending) KV_EXCLUDES(mutex_);
    Status prepare_append(Appending* appending) KV_REQUIRES(mutex_);
    void reserve_room(Appending* appending) KV_REQUIRES(mutex_);
    static bool write_record(Appending& appending);
    Status publish_append(Appending& appending, bool is_genuine) KV_REQUIRES(mutex_);
    Status check_append(const NvmeObject& object, std::optional<uint64_t> moved_from) const
        KV_REQUIRES(mutex_);
    Status check_pinned(uint64_t more) const KV_REQUIRES(mutex_);
    uint64_t reserve() const KV_REQUIRES(mutex_);
    bool leaves_reserve(uint64_t size) const KV_REQUIRES(mutex_);
    bool ensure_head(uint64_t record_size, bool reserve_too) KV_REQUIRES(mutex_);
    bool declare_namespace(const NamespaceEpoch& ns) KV_REQUIRES(mutex_);
    void insert(const NvmeObject& object, uint16_t ns_slot, uint32_t file, uint64_t offset)
        KV_REQUIRES(mutex_);
    void account(const NvmeEntry& entry, bool added) KV_REQUIRES(mutex_);
    void erase(const Hash128& hash, const NvmeEntry& entry) KV_REQUIRES(mutex_);
    bool visible(const NvmeEntry& entry, NamespaceId ns) const KV_REQUIRES(mutex_);
    void fail(NvmeState state, const Status& why) KV_REQUIRES(mutex_);
    void remember_removal(const Hash128& hash, Version version) KV_REQUIRES(mutex_);
    bool removed_lately(const Hash128& hash, Version version) const KV_REQUIRES(mutex_);
    uint64_t unit_of(uint32_t file, uint64_t offset) const {
        return (uint64_t{file} * log_file_bytes_ + offset) / kRecordAlign;
    }
    uint32_t file_of(uint64_t unit) const {
        return static_cast<uint32_t>(unit * kRecordAlign / log_file_bytes_);
    }
    static uint64_t entry_bytes(const NvmeEntry& entry) {
        return entry.head_units * kRecordAlign + align_up(entry.length, kRecordAlign);
    }
    static constexpr uint64_t kMinReserve = 1;
    uint64_t offset_of(uint64_t unit) const { return unit * kRecordAlign % log_file_bytes_; }
    int fd_of(uint32_t file) { return folder_->files()[file].fd.get(); }
    const std::string& path_of(uint32_t file) { return folder_->files()[file].path; }
    uint64_t now_ms() const { return options_.wall_ms(); }

    // log_reads.cpp
    Status prepare_read(const NvmeRead& read, ReadTask* task) KV_REQUIRES(mutex_);
    Status admit_read(const NvmeRead& read, std::unique_ptr<ReadTask>* task,
                      std::vector<std::shared_ptr<WriteBuffer>>* in_memory) KV_REQUIRES(mutex_);
    void read_from_memory(std::unique_ptr<ReadTask> task,
                          std::vector<std::shared_ptr<WriteBuffer>>& buffers) KV_EXCLUDES(mutex_);
    static Status take_split_head(ReadTask& task,
                                  const std::vector<std::shared_ptr<WriteBuffer>>& buffers);
    void start_reads() KV_EXCLUDES(mutex_);
    ReadTask* next_read() KV_REQUIRES(mutex_);
    bool may_read_ahead(const ReadTask& task) const KV_REQUIRES(mutex_);
    void finish_read(ReadTask* task, const NvmeReadResult& result) KV_EXCLUDES(mutex_);
    void count_read(const ReadTask& task, const NvmeReadResult& result, bool* drop)
        KV_REQUIRES(mutex_);

    // log_writes.cpp: the writer and maintenance threads
    void write_loop() KV_EXCLUDES(mutex_);
    void give_back() KV_REQUIRES(mutex_);
    Status write_run(std::span<const std::shared_ptr<WriteBuffer>> run) KV_EXCLUDES(mutex_);
    void drop_failed(const WriteBuffer& buffer, std::vector<NvmeDropped>* dropped)
        KV_REQUIRES(mutex_);
    void maintain_loop() KV_EXCLUDES(mutex_);
    void maintain() KV_REQUIRES(mutex_);
    void seal_ready() KV_REQUIRES(mutex_);
    void prepare_files() KV_REQUIRES(mutex_);
    Status write_header(uint32_t file, uint64_t seq);
    Status sync_appends() KV_REQUIRES(mutex_);
    void report(const std::vector<NvmeDropped>& dropped) KV_EXCLUDES(mutex_);

    // log_reclaim.cpp
    bool reclaim() KV_REQUIRES(mutex_);
    bool reclaim_oldest() KV_REQUIRES(mutex_);
    std::shared_ptr<const Manifest> manifest_of(uint32_t file, uint64_t seq) KV_EXCLUDES(mutex_);
    ReclaimPlan plan_reclaim(uint32_t file, const Manifest& manifest,
                             std::vector<NvmeDropped>* dropped) KV_REQUIRES(mutex_);
    void drop(const ManifestRow& row, const NvmeEntry& entry, NamespaceId ns,
              NvmeDropped::Reason reason, std::vector<NvmeDropped>* dropped) KV_REQUIRES(mutex_);
    void move_objects(uint32_t file, std::span<const ReclaimPlan::Move> moves, FileWindow& window,
                      std::vector<NvmeDropped>* dropped) KV_REQUIRES(mutex_);
    Status move(uint32_t file, const ReclaimPlan::Move& moving, FileWindow& window,
                std::vector<uint8_t>& data) KV_REQUIRES(mutex_);
    Status append_moved(const NvmeObject& object, std::span<const uint8_t> data, uint64_t unit)
        KV_REQUIRES(mutex_);
    bool must_stop() const KV_REQUIRES(mutex_) { return stopping_ || state_ != NvmeState::kActive; }
    void sweep(uint32_t file) KV_REQUIRES(mutex_);
    bool free_file(uint32_t file) KV_REQUIRES(mutex_);
    static NvmeObject object_of(const NamespaceEpoch& ns, const ManifestRow& row);
    bool list_rows(uint32_t file, const Manifest& manifest, NvmeCursor* cursor, size_t* wanted,
                   std::vector<NvmeListed>* out) KV_REQUIRES(mutex_);

    // recovery.cpp
    Status recover() KV_EXCLUDES(mutex_);
    void recover_files(const Removals& removals) KV_REQUIRES(mutex_);
    bool recover_file(uint32_t file, bool cataloged, const Removals& removals, LogFileScan* scan)
        KV_REQUIRES(mutex_);
    void recover_rows(uint32_t file, const Manifest& manifest, const Removals& removals)
        KV_REQUIRES(mutex_);
    void save_scanned(uint32_t file, const LogFileScan& scan) KV_REQUIRES(mutex_);
    bool continue_head(uint32_t file, const LogFileScan& scan) KV_REQUIRES(mutex_);

    NvmeOptions options_;
    FileIo& io_;
    NvmeCatalog* const catalog_;
    std::unique_ptr<NvmeFolder> folder_;
    std::unique_ptr<RemovalJournal> journal_;
    uint64_t log_file_bytes_ = 0;
    uint64_t max_object_bytes_ = 0;
    uint64_t recovered_applied_ = 0;

    // Before those of the journal; never held while the catalog or a callback is called, nor during
    // I/O. What has it may release it meanwhile: seal_ready(), prepare_files(), sync_appends() and
    // all that reclaims.
    mutable Mutex mutex_;
    CondVar write_wake_;
    CondVar maintain_wake_;
    CondVar changed_;  // something was written, freed, read or has failed
    NvmeState state_ KV_GUARDED_BY(mutex_) = NvmeState::kActive;
    Status error_ KV_GUARDED_BY(mutex_);
    bool stopping_ KV_GUARDED_BY(mutex_) = false;
    NvmePolicy policy_ KV_GUARDED_BY(mutex_);
    NvmeCounters counters_ KV_GUARDED_BY(mutex_);
    uint64_t pinned_bytes_ KV_GUARDED_BY(mutex_) = 0;  // of records with a hard pin
    uint64_t reclaim_needs_ KV_GUARDED_BY(mutex_) =
        0;  // of room for what the reclaim in progress still has to move
    uint64_t failed_reads_in_a_row_ KV_GUARDED_BY(mutex_) = 0;
    bool must_maintain_ KV_GUARDED_BY(mutex_) = false;
    bool lost_writes_ KV_GUARDED_BY(mutex_) =
        false;  // something that was appended is not on disk, or may not be

    std::unique_ptr<NvmeIndex> index_ KV_PT_GUARDED_BY(mutex_);
    NvmeNamespaces namespaces_ KV_GUARDED_BY(mutex_);
    LogFiles files_ KV_GUARDED_BY(mutex_);
    // Between an object's drop and the end of its log file's header a power loss would bring it
    // back: meanwhile every remove is recorded, found or not.
    bool reclaiming_ KV_GUARDED_BY(mutex_) = false;
    std::unique_ptr<WriteBuffers> buffers_ KV_PT_GUARDED_BY(mutex_);
    // The last removals, for appends that were on their way when the remove came.
    std::unordered_map<Hash128, Version, Hash128Hasher> lately_removed_ KV_GUARDED_BY(mutex_);
    std::deque<Hash128> lately_order_ KV_GUARDED_BY(mutex_);

    std::deque<std::unique_ptr<ReadTask>> waiting_reads_ KV_GUARDED_BY(mutex_);
    std::deque<std::unique_ptr<ReadTask>> waiting_ahead_ KV_GUARDED_BY(mutex_);
    size_t reads_under_way_ KV_GUARDED_BY(mutex_) = 0;  // those ahead included
    size_t ahead_under_way_ KV_GUARDED_BY(mutex_) = 0;
    std::vector<AlignedBuffer> bounce_buffers_ KV_GUARDED_BY(mutex_);

    std::unique_ptr<NvmeReadEngine> engine_;
    std::vector<std::thread> writers_;
    std::thread maintainer_;
};

}  // namespace kvstore
