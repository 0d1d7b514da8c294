// One read of an object, in as many steps as its size and the bounce buffer ask for.
#pragma once

#include <string>

#include "base/clock.h"
#include "nvme/log.h"

namespace kvstore {

class NvmeLog::ReadTask : public NvmeReadOp {
  public:
    // Large enough for the common objects in one read, and for the blocks around them.
    static constexpr size_t kBounceBytes = (1 << 20) + 3 * kIoAlign;

    ReadTask(NvmeLog& owner, const NvmeRead& wanted, const NvmeReadDone& callback)
        : log(owner), request(wanted), key(wanted.key), done(callback) {}

    // Aims at what is missing still.
    void aim();
    void complete(int64_t got) override;

    NvmeLog& log;
    NvmeRead request;
    std::string key;
    NvmeReadDone done;
    const uint64_t asked_us = boottime_us();
    NvmeEntry entry;
    uint32_t file = 0;
    uint64_t seq = 0;
    uint64_t place = 0;  // of the record in its log file
    AlignedBuffer bounce;
    bool under_way = false;  // counted as one of those that the engine has

    // The record's bytes from `place + at` on have arrived: takes what it can use of them.
    // Anything but Ok ends the read.
    Status take(uint64_t at, std::span<const uint8_t> bytes);
    bool complete_record() const { return has_head && copied == entry.length; }
    // All has arrived: is it what was put?
    Status verify();
    NvmeReadResult result(const Status& status) const;

    RecordHead head;  // its key is not kept
    bool has_head = false;
    uint64_t copied = 0;  // of the data
    uint32_t crc = 0;     // of the data copied so far
    uint64_t first = 0;   // where in the log file the bounce buffer's bytes begin
    uint64_t filled = 0;  // of the bounce buffer, by earlier parts of this step
    int stalls = 0;

  private:
    bool go_on(uint64_t got, bool took_something);
    uint64_t head_bytes() const { return entry.head_units * kRecordAlign; }
    Status check_head(std::span<const uint8_t> bytes);
};

}  // namespace kvstore
