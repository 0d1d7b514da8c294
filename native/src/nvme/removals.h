// The removal journal: what must not come back from a log file that still holds it.
//
// Fixed records of 64 bytes, each with its own crc, appended to small files; a file goes, whole,
// once every log file that was written before its last record has been reused. So nothing is ever
// compacted and nothing of it is kept in memory. Thread-safe.
//
//   0 magic u32 | 4 crc u32 (of the rest) | 8 kind u8, zeros | 16 file seq u64 | 24 hash 16 |
//   40 version (or number of an operation) u64 | 48 namespace u64 | 56 zeros
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/file.h"
#include "base/mutex.h"
#include "base/status.h"
#include "base/types.h"
#include "nvme/folder.h"

namespace kvstore {

// What earlier lives removed; needed only until the log files have been read.
struct Removals {
    uint64_t applied_seq = 0;                                      // the highest that was noted
    std::unordered_map<Hash128, Version, Hash128Hasher> versions;  // the highest one
    std::unordered_set<NamespaceId> flushed;
    uint64_t damaged = 0;  // records in front of whole ones whose crc is wrong
    bool covers(NamespaceId ns, const Hash128& hash, Version version) const {
        if (flushed.contains(ns)) {
            return true;
        }
        const auto found = versions.find(hash);
        return found != versions.end() && version <= found->second;
    }
};

class RemovalJournal {
  public:
    static constexpr uint64_t kFileBytes = 1 << 20;
    static constexpr uint64_t kMostFileBytes = 4 << 20;  // of any build that wrote this format

    RemovalJournal(FileIo& io, const NvmeFolder& folder) : io_(io), folder_(folder) {}
    // Reads the files of earlier lives; later records go to a new file.
    Status load(Removals* removals);

    // `seq`: of the newest log file that may hold what is removed. Durable after sync().
    void remove(const Hash128& hash, Version version, uint64_t seq);
    void flush(NamespaceId ns, uint64_t seq);
    // The owner's operations up to `applied_seq` are among what was recorded so far. A file of an
    // earlier life with nothing but such notes goes when a later one is on disk.
    void note_applied(uint64_t applied_seq);
    // Ok: everything recorded before the call is on disk. After an error it is tried again by the
    // next call.
    Status sync();
    bool has_pending() const;
    // Unlinks the files that only speak of log files below `oldest_seq`.
    void drop_before(uint64_t oldest_seq);

  private:
    using Record = std::array<uint8_t, 64>;
    struct PendingRecord {
        Record bytes;
        uint64_t seq;
    };
    static Record encode(uint8_t kind, const Hash128& hash, Version version, NamespaceId ns,
                         uint64_t seq);
    static bool decode(const Record& record, Removals* removals, uint64_t* seq);
    Status load_file(uint64_t number, Removals* removals) KV_REQUIRES(file_mutex_);
    Status write(const std::deque<PendingRecord>& records) KV_REQUIRES(file_mutex_);
    Status open_next() KV_REQUIRES(file_mutex_);
    void drop_files_before(uint64_t oldest_seq) KV_REQUIRES(file_mutex_);

    FileIo& io_;
    const NvmeFolder& folder_;

    mutable Mutex pending_mutex_;
    std::deque<PendingRecord> pending_ KV_GUARDED_BY(pending_mutex_);

    Mutex file_mutex_ KV_ACQUIRED_BEFORE(pending_mutex_);
    Fd file_ KV_GUARDED_BY(file_mutex_);
    std::string file_path_ KV_GUARDED_BY(file_mutex_);
    uint64_t file_bytes_ KV_GUARDED_BY(file_mutex_) = 0;
    uint64_t next_number_ KV_GUARDED_BY(file_mutex_) = 1;
    std::map<uint64_t, uint64_t> last_seqs_
        KV_GUARDED_BY(file_mutex_);  // file number → greatest log file seq in it
};

}  // namespace kvstore
