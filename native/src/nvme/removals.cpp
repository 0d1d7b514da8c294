// Records of the removal journal, and the files they are in.
#include "nvme/removals.h"

#include <errno.h>
#include <fcntl.h>

#include <algorithm>
#include <cstring>

#include "base/checksum.h"
#include "base/little_endian.h"
#include "base/mutex.h"

namespace kvstore {
namespace {

constexpr char kPrefix[] = "removals-";
constexpr uint32_t kRemovalMagic = 0x4d52564b;  // "KVRM"
constexpr uint8_t kRemove = 1;
constexpr uint8_t kFlush = 2;
constexpr uint8_t kApplied = 3;

}  // namespace

RemovalJournal::Record RemovalJournal::encode(uint8_t kind, const Hash128& hash, Version version,
                                              NamespaceId ns, uint64_t seq) {
    Record record{};
    store_word(record.data(), kRemovalMagic);
    store_word(record.data() + 8, kind);
    store_word(record.data() + 16, seq);
    store_word(record.data() + 24, hash.lo);
    store_word(record.data() + 32, hash.hi);
    store_word(record.data() + 40, version);
    store_word(record.data() + 48, ns);
    store_word(record.data() + 4, crc32c(record.data() + 8, record.size() - 8));
    return record;
}

bool RemovalJournal::decode(const Record& record, Removals* removals, uint64_t* seq) {
    const uint8_t* in = record.data();
    if (load_word<uint32_t>(in) != kRemovalMagic ||
        load_word<uint32_t>(in + 4) != crc32c(in + 8, record.size() - 8)) {
        return false;
    }
    *seq = load_word<uint64_t>(in + 16);
    if (in[8] == kFlush) {
        removals->flushed.insert(load_word<uint64_t>(in + 48));
    } else if (in[8] == kRemove) {
        const Hash128 hash{load_word<uint64_t>(in + 24), load_word<uint64_t>(in + 32)};
        Version& version = removals->versions[hash];
        version = std::max(version, load_word<uint64_t>(in + 40));
    } else if (in[8] == kApplied) {
        removals->applied_seq = std::max(removals->applied_seq, load_word<uint64_t>(in + 40));
    }
    return true;
}

Status RemovalJournal::load_file(uint64_t number, Removals* removals) {
    const std::string path = folder_.file_path(kPrefix, number);
    const int opened = io_.open(path, O_RDONLY);
    if (opened < 0) {
        return io_status("open", path, opened);
    }
    const Fd fd(opened);
    std::vector<uint8_t> bytes(kMostFileBytes);
    const Result<size_t> got = read_fully(io_, fd.get(), bytes.data(), bytes.size(), 0, path);
    if (!got.ok()) {
        return got.status();
    }
    uint64_t unread = 0;  // records that were not whole, since the last one that was
    uint64_t last_seq = 0;
    Record record;
    for (size_t at = 0; at + record.size() <= *got; at += record.size()) {
        std::memcpy(record.data(), bytes.data() + at, record.size());
        uint64_t seq = 0;
        if (decode(record, removals, &seq)) {
            removals->damaged += std::exchange(unread, 0);
            last_seq = std::max(last_seq, seq);
        } else {
            ++unread;
        }
    }
    last_seqs_[number] = last_seq;
    return {};
}

Status RemovalJournal::load(Removals* removals) {
    const Result<std::vector<uint64_t>> numbers = folder_.numbers(kPrefix);
    if (!numbers.ok()) {
        return numbers.status();
    }
    const MutexLock lock(file_mutex_);
    for (const uint64_t number : *numbers) {
        if (number == UINT64_MAX) {
            continue;
        }
        if (Status status = load_file(number, removals); !status.ok()) {
            return status;
        }
        next_number_ = std::max(next_number_, number + 1);
    }
    // The first sync of this life may drop the file that it stands in.
    if (removals->applied_seq != 0) {
        note_applied(removals->applied_seq);
    }
    return {};
}

void RemovalJournal::remove(const Hash128& hash, Version version, uint64_t seq) {
    const MutexLock lock(pending_mutex_);
    pending_.push_back({encode(kRemove, hash, version, 0, seq), seq});
}

void RemovalJournal::flush(NamespaceId ns, uint64_t seq) {
    const MutexLock lock(pending_mutex_);
    pending_.push_back({encode(kFlush, {}, 0, ns, seq), seq});
}

void RemovalJournal::note_applied(uint64_t applied_seq) {
    const MutexLock lock(pending_mutex_);
    pending_.push_back({encode(kApplied, {}, applied_seq, 0, 0), 0});
}

bool RemovalJournal::has_pending() const {
    const MutexLock lock(pending_mutex_);
    return !pending_.empty();
}

Status RemovalJournal::sync() {
    const MutexLock file_lock(file_mutex_);
    std::deque<PendingRecord> records;
    {
        const MutexLock lock(pending_mutex_);
        records.swap(pending_);
    }
    if (records.empty()) {
        return {};
    }
    Status status = write(records);
    if (!status.ok()) {
        const MutexLock lock(pending_mutex_);
        pending_.insert(pending_.begin(), records.begin(), records.end());
        return status;
    }
    drop_files_before(1);  // those that say nothing of any log file
    return {};
}

// Written behind the last successful sync: what a failed one left there is overwritten.
Status RemovalJournal::write(const std::deque<PendingRecord>& records) {
    size_t done = 0;
    while (done < records.size()) {
        if (!file_.valid() || file_bytes_ + sizeof(Record) > kFileBytes) {
            if (Status status = open_next(); !status.ok()) {
                return status;
            }
        }
        const size_t room = (kFileBytes - file_bytes_) / sizeof(Record);
        const size_t count = std::min(room, records.size() - done);
        std::vector<uint8_t> bytes(count * sizeof(Record));
        uint64_t& last_seq = last_seqs_[next_number_ - 1];
        for (size_t i = 0; i < count; ++i) {
            std::memcpy(bytes.data() + i * sizeof(Record), records[done + i].bytes.data(),
                        sizeof(Record));
            last_seq = std::max(last_seq, records[done + i].seq);
        }
        Status status =
            write_fully(io_, file_.get(), bytes.data(), bytes.size(), file_bytes_, file_path_);
        if (!status.ok()) {
            return status;
        }
        if (const int synced = io_.sync(file_.get()); synced < 0) {
            // What the kernel dropped after a failed sync cannot be told: the next try gets a file
            // of its own.
            file_.reset();
            return io_status("fdatasync", file_path_, synced);
        }
        file_bytes_ += bytes.size();
        done += count;
    }
    return {};
}

Status RemovalJournal::open_next() {
    file_path_ = folder_.file_path(kPrefix, next_number_);
    const int opened = io_.open(file_path_, O_RDWR | O_CREAT | O_EXCL);
    if (opened < 0) {
        return io_status("open", file_path_, opened);
    }
    file_ = Fd(opened);
    // A number that was opened is never opened again, whatever comes next.
    last_seqs_[next_number_++] = 0;
    file_bytes_ = 0;
    const int allocated = io_.allocate(opened, kFileBytes);
    if (allocated < 0) {
        file_.reset();
        return io_status("fallocate", file_path_, allocated);
    }
    Status status = folder_.sync_names();
    if (!status.ok()) {
        file_.reset();
    }
    return status;
}

void RemovalJournal::drop_before(uint64_t oldest_seq) {
    const MutexLock lock(file_mutex_);
    drop_files_before(oldest_seq);
}

void RemovalJournal::drop_files_before(uint64_t oldest_seq) {
    for (auto file = last_seqs_.begin(); file != last_seqs_.end();) {
        const bool current = file_.valid() && file->first == next_number_ - 1;
        if (current || file->second >= oldest_seq) {
            ++file;
            continue;
        }
        const int result = io_.unlink(folder_.file_path(kPrefix, file->first));
        if (result < 0 && result != -ENOENT) {
            ++file;
            continue;
        }
        file = last_seqs_.erase(file);
    }
}

}  // namespace kvstore
