// The memory between append() and the log files: a chain of buffers in the order of the log.
//
// A record's room is reserved under the log's mutex, its bytes are copied without it, and a buffer
// is written once it is closed and nobody copies into it any more. Buffers are as large as one
// write, records may lie across several. A buffer stays readable until every record that touches it
// is on disk as a whole: what the chain has a part of, it has all of.
//
// The data of a large object may stay where it is: a piece of the chain is then the object's own
// memory, which its owner keeps until it is written and nobody reads it there any more. Such data
// starts at a whole block of the log file, behind a pad; its last, incomplete block is copied.
//
// Not thread-safe: the log's mutex guards it, except the bytes themselves.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "nvme/file_io.h"
#include "nvme/format.h"

namespace kvstore {

struct WriteBuffer {
    enum class State : uint8_t { kFilling, kClosed, kWriting, kWritten, kFailed };
    uint8_t* data = nullptr;                // of `capacity` bytes, in one of these two
    std::shared_ptr<AlignedBuffer> memory;  // of the chain
    std::shared_ptr<const void> lender;     // whose memory it is otherwise: only read
    uint32_t file = 0;                      // the file's number
    uint64_t seq = 0;
    uint64_t start = 0;         // in the log file, a multiple of kIoAlign
    uint64_t capacity = 0;      // multiple of kIoAlign
    uint64_t used = 0;          // multiple of kRecordAlign; of kIoAlign once closed
    uint64_t needed_until = 0;  // where in the log file the last record that touches it ends
    uint32_t copying = 0;
    State state = State::kFilling;
    uint64_t opened_ms = 0;
};

// The room of one record. Writing goes on where the last piece ended.
class Reservation {
  public:
    uint64_t offset() const { return offset_; }
    uint64_t size() const { return size_; }
    // Copies; `crc` (of the data so far) is continued when it is given.
    void write(const void* bytes, size_t size, uint32_t* crc = nullptr);
    void zero(size_t size);
    void skip_lent();  // what follows is lent
    // Replaces what was written by a pad of the same size.
    void make_pad(uint64_t session);

  private:
    friend class WriteBuffers;
    std::span<uint8_t> room(size_t size);
    std::vector<std::shared_ptr<WriteBuffer>> buffers_;
    uint64_t offset_ = 0;  // in the log file
    uint64_t size_ = 0;
    uint64_t at_ = 0;  // in the log file: where write() goes on
};

class WriteBuffers {
  public:
    WriteBuffers(size_t buffer_bytes, size_t count);  // a multiple of kIoAlign; 2 at least
    bool has_memory() const { return has_memory_; }   // else it must not be used

    // The most that one record may have: a buffer less than there are, since a record rarely starts
    // at a buffer's start.
    uint64_t max_record_bytes() const { return buffer_bytes_ * (count_ - 1); }

    // The log goes on in this log file at `position`. `head`: the bytes of its block in front of
    // `position`, which are written again with it. Only while no buffer is open. False: no buffer
    // is free.
    bool begin_file(uint32_t file, uint64_t seq, uint64_t position, uint64_t log_file_bytes,
                    uint64_t session, std::span<const uint8_t> head, uint64_t now_ms);
    bool has_file() const { return seq_ != 0; }
    uint32_t file() const { return file_; }
    uint64_t seq() const { return seq_; }
    uint64_t file_room() const { return has_file() ? log_file_bytes_ - position_ : 0; }
    bool fits(uint64_t size) const { return size <= file_room(); }

    bool has_room(uint64_t size);  // enough free buffers for a record of this size, in any log file

    // `size` is a multiple of kRecordAlign that fits. Empty: too few buffers are free now.
    std::unique_ptr<Reservation> reserve(uint64_t size, uint64_t now_ms);
    // The same for a record of a head and this data, whose whole blocks are lent and stay in the
    // chain as they are. It ends less than kIoAlign behind where it would end otherwise.
    std::unique_ptr<Reservation> reserve_lent(uint64_t head_bytes, std::span<const uint8_t> data,
                                              std::shared_ptr<const void> lender, uint64_t now_ms);
    static bool may_lend(std::span<const uint8_t> data);
    bool has_room_to_lend(uint64_t size) const;
    // Who lent what is not needed any more. To be let go without the mutex: that calls the lender.
    std::vector<std::shared_ptr<const void>> take_returned();
    void finish(std::unique_ptr<Reservation> reservation);

    // Closes the open buffer, if it holds anything, padded to whole blocks. True: it did.
    bool close_buffer();
    void end_file();                 // close_buffer(), and no log file until begin_file()
    uint64_t open_since_ms() const;  // UINT64_MAX: nothing waits in an open buffer

    // Buffers one behind the other in a log file, whose state becomes kWriting: no further one when
    // they have as much as a write should. Empty: none is ready.
    std::vector<std::shared_ptr<WriteBuffer>> next_to_write();
    void written(const std::shared_ptr<WriteBuffer>& buffer, bool ok);
    bool idle() const;                   // nothing is closed and unwritten, or being copied
    bool unwritten(uint64_t seq) const;  // of that log file, the open buffer included

    std::vector<std::shared_ptr<WriteBuffer>> unwritten_buffers() const;  // closed ones

    // The buffers that hold the record at `offset`: all of it, or none when it is on disk. They are
    // let go under the mutex, so that the next writer into them comes after.
    std::vector<std::shared_ptr<WriteBuffer>> find(uint64_t seq, uint64_t offset,
                                                   uint64_t size) const;
    // Copies a part of a record out of such buffers.
    static void copy_out(const std::vector<std::shared_ptr<WriteBuffer>>& buffers, uint64_t offset,
                         uint8_t* to, size_t size);

  private:
    using Memory = std::shared_ptr<AlignedBuffer>;
    // Below this a pad would be more than a few hundredths of the record.
    static constexpr size_t kMinLentBytes = 128 << 10;
    static constexpr size_t kLentBuffers = 4;  // so much may be lent, in buffers

    size_t free_count();
    uint64_t open_room() const;
    void add_buffer(uint64_t start, uint64_t now_ms);
    void take_room(uint64_t size, uint64_t record_end, uint64_t now_ms, Reservation* reservation);
    void add_lent(std::span<const uint8_t> data, std::shared_ptr<const void> lender,
                  uint64_t record_end, uint64_t now_ms, Reservation* reservation);
    void release_written();

    const size_t buffer_bytes_;
    const size_t count_;
    bool has_memory_ = true;
    std::deque<std::shared_ptr<WriteBuffer>> chain_;
    std::vector<Memory> memory_;
    std::vector<std::shared_ptr<WriteBuffer>> retired_;  // perhaps still read by somebody
    uint64_t lent_bytes_ = 0;                            // in the chain

    uint32_t file_ = 0;
    uint64_t seq_ = 0;
    uint64_t position_ = 0;
    uint64_t log_file_bytes_ = 0;
    uint64_t session_ = 0;
    std::shared_ptr<WriteBuffer> open_;
    // Where the next buffer goes on in memory that an earlier one has begun; null: in another one.
    Memory begun_;
    uint64_t begun_used_ = 0;
};

}  // namespace kvstore
