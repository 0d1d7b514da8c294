// Reading: what is in a write buffer from there, the rest in bounded numbers through the engine.
#include <algorithm>
#include <array>

#include "base/checksum.h"
#include "base/mutex.h"
#include "nvme/log.h"
#include "nvme/read_task.h"

namespace kvstore {
namespace {

constexpr uint64_t kFailuresToOff = 8;  // failed reads with no good one in between
// Reads ahead that the disk has at once: what somebody waits for shares it with no more of them.
constexpr size_t kAheadAtOnce = 2;
// After this a read ahead does not wait any more for a moment when nobody else reads.
constexpr uint64_t kAheadPatienceUs = 5000;

}  // namespace

void NvmeLog::ReadTask::aim() {
    const uint64_t from = has_head ? place + head_bytes() + copied : place;
    const uint64_t end = place + head_bytes() + entry.length;
    fd = log.fd_of(file);
    to = bounce.data();
    first = offset = align_down(from, kIoAlign);
    size =
        static_cast<uint32_t>(std::min<uint64_t>(align_up(end, kIoAlign) - offset, bounce.size()));
    filled = 0;
}

// What has arrived was not enough: the rest of this step, or the next step. False: three times
// nothing new came.
bool NvmeLog::ReadTask::go_on(uint64_t got, bool took_something) {
    const auto whole = static_cast<uint32_t>(align_down(got, kIoAlign));
    stalls = took_something || whole > 0 ? 0 : stalls + 1;
    if (whole < size) {
        filled += whole;
        to += whole;
        offset += whole;
        size -= whole;
    } else {
        aim();
    }
    return stalls < 3;
}

Status NvmeLog::ReadTask::check_head(std::span<const uint8_t> bytes) {
    uint64_t total = 0;
    const Status wrong(Code::kChecksumMismatch, "the object on NVMe is damaged");
    if (!decode_record_head(bytes.first(head_bytes()), &head, &total) ||
        head.kind != RecordKind::kObject || head.seq != seq ||
        head.identity.version != entry.version || head.identity.length != entry.length ||
        head.identity.hash.hi != request.hash.hi ||
        record_head_bytes(head.key.size()) != head_bytes()) {
        return wrong;
    }
    if (!(head.identity.hash == request.hash) || head.identity.ns != request.ns ||
        (!key.empty() && head.key != key)) {
        return {Code::kNotFound, "another key with the same hash is on NVMe"};
    }
    if (head.expires_at_ms != 0 && head.expires_at_ms <= log.now_ms()) {
        return {Code::kNotFound, "expired"};
    }
    key.assign(head.key);
    head.key = {};
    return {};
}

Status NvmeLog::ReadTask::take(uint64_t at, std::span<const uint8_t> bytes) {
    if (!has_head) {
        if (at != 0 || bytes.size() < head_bytes()) {
            return {};
        }
        if (Status status = check_head(bytes); !status.ok()) {
            return status;
        }
        has_head = true;
    }
    const uint64_t wanted = head_bytes() + copied;
    if (at > wanted || at + bytes.size() <= wanted) {
        return {};
    }
    const auto skip = static_cast<size_t>(wanted - at);
    const auto part =
        static_cast<size_t>(std::min<uint64_t>(bytes.size() - skip, entry.length - copied));
    crc = copy_crc32c(request.to + copied, bytes.data() + skip, part, crc);
    copied += part;
    return {};
}

Status NvmeLog::ReadTask::verify() {
    if (seal_checksum(crc, head.identity) == head.sealed_crc) {
        return {};
    }
    return {Code::kChecksumMismatch, "the object's data on NVMe is damaged"};
}

NvmeReadResult NvmeLog::ReadTask::result(const Status& status) const {
    NvmeReadResult answer;
    answer.status = status;
    if (!status.ok()) {
        return answer;
    }
    answer.identity = head.identity;
    answer.sealed_crc = head.sealed_crc;
    answer.expires_at_ms = head.expires_at_ms;
    answer.put_wall_ms = head.put_wall_ms;
    answer.pin = head.pin;
    answer.parent = head.parent;
    answer.key = key;
    return answer;
}

void NvmeLog::ReadTask::complete(int64_t got) {
    Status status;
    const uint64_t before = copied;
    const bool had_head = has_head;
    if (got < 0) {
        status = io_status("read", log.path_of(file), got);
    } else {
        const uint64_t start = std::max(first, place);
        const uint64_t end = first + filled + static_cast<uint64_t>(got);
        if (end > start) {
            status = take(start - place,
                          {bounce.data() + (start - first), static_cast<size_t>(end - start)});
        }
        if (status.ok() && !complete_record()) {
            if (go_on(static_cast<uint64_t>(got), copied != before || has_head != had_head)) {
                log.engine_->submit(this);
                return;
            }
            status = {Code::kIoError, "read(" + log.path_of(file) + "): the file ends early"};
        }
    }
    if (status.ok()) {
        status = verify();
    }
    log.finish_read(this, result(status));
}

// Ok: the task knows its place.
Status NvmeLog::prepare_read(const NvmeRead& read, ReadTask* task) {
    if (stopping_) {
        return {Code::kClosed, "the NVMe tier is closing"};
    }
    if (state_ == NvmeState::kOff) {
        return error_;
    }
    const std::optional<NvmeEntry> entry = index_->find(read.hash);
    if (!entry || !visible(*entry, read.ns) ||
        (read.version != 0 && read.version != entry->version)) {
        return {Code::kNotFound, "not on NVMe"};
    }
    if (entry->length > read.capacity) {
        return {Code::kBufferTooSmall, std::to_string(entry->length) + " bytes are needed"};
    }
    index_->touch(read.hash);
    task->entry = *entry;
    task->file = file_of(entry->unit);
    task->seq = files_[task->file].seq();
    task->place = offset_of(entry->unit);
    return {};
}

// Takes a reference to the task's file. Ok: its bytes are `*in_memory`, or it waits for the disk
// and
// `*task` is null.
Status NvmeLog::admit_read(const NvmeRead& read, std::unique_ptr<ReadTask>* task,
                           std::vector<std::shared_ptr<WriteBuffer>>* in_memory) {
    ReadTask& one = **task;
    if (Status status = prepare_read(read, &one); !status.ok()) {
        return status;
    }
    *in_memory =
        buffers_->find(one.seq, one.place, one.entry.head_units * kRecordAlign + one.entry.length);
    std::deque<std::unique_ptr<ReadTask>>& queue = read.ahead ? waiting_ahead_ : waiting_reads_;
    if (in_memory->empty() && queue.size() >= options_.max_queued_reads) {
        ++counters_.overloaded;
        return {Code::kOverloaded, "too many reads wait for NVMe"};
    }
    ++files_[one.file].readers;
    if (in_memory->empty()) {
        queue.push_back(std::move(*task));
    }
    return {};
}

void NvmeLog::read(std::span<const NvmeRead> reads, const NvmeReadDone& done) {
    for (const NvmeRead& read : reads) {
        auto task = std::make_unique<ReadTask>(*this, read, done);
        std::vector<std::shared_ptr<WriteBuffer>> in_memory;
        Status status;
        {
            const MutexLock lock(mutex_);
            status = admit_read(read, &task, &in_memory);
        }
        if (!status.ok()) {
            done(read.tag, task->result(status));
        } else if (task != nullptr) {
            read_from_memory(std::move(task), in_memory);
        }
    }
    start_reads();
}

void NvmeLog::read_from_memory(std::unique_ptr<ReadTask> task,
                               std::vector<std::shared_ptr<WriteBuffer>>& buffers) {
    Status status;
    for (const auto& buffer : buffers) {
        const uint64_t end =
            std::min(buffer->start + buffer->capacity,
                     task->place + task->entry.head_units * kRecordAlign + task->entry.length);
        const uint64_t start = std::max(buffer->start, task->place);
        if (!status.ok() || end <= start) {
            continue;
        }
        // A head may lie across two buffers.
        if (!task->has_head && end - start < task->entry.head_units * kRecordAlign) {
            status = take_split_head(*task, buffers);
            if (!status.ok()) {
                continue;
            }
        }
        status = task->take(start - task->place, {buffer->data + (start - buffer->start),
                                                  static_cast<size_t>(end - start)});
    }
    if (status.ok()) {
        status = task->complete_record() ? task->verify()
                                         : Status(Code::kInternal, "a write buffer has a gap");
    }
    {
        const MutexLock lock(mutex_);
        buffers.clear();
    }
    ReadTask* raw = task.release();
    finish_read(raw, raw->result(status));
}

Status NvmeLog::take_split_head(ReadTask& task,
                                const std::vector<std::shared_ptr<WriteBuffer>>& buffers) {
    std::array<uint8_t, kMaxRecordHeadBytes> bytes;
    const size_t size = task.entry.head_units * kRecordAlign;
    WriteBuffers::copy_out(buffers, task.place, bytes.data(), size);
    return task.take(0, std::span(bytes).first(size));
}

void NvmeLog::hurry(std::span<const Hash128> hashes) {
    {
        const MutexLock lock(mutex_);
        const auto stays = [&](const std::unique_ptr<ReadTask>& task) {
            return std::ranges::find(hashes, task->request.hash) == hashes.end();
        };
        const auto hurried =
            std::stable_partition(waiting_ahead_.begin(), waiting_ahead_.end(), stays);
        for (auto task = hurried; task != waiting_ahead_.end(); ++task) {
            (*task)->request.ahead = false;
            waiting_reads_.push_back(std::move(*task));
        }
        waiting_ahead_.erase(hurried, waiting_ahead_.end());
    }
    start_reads();
}

bool NvmeLog::may_read_ahead(const ReadTask& task) const {
    return ahead_under_way_ < kAheadAtOnce && (reads_under_way_ == ahead_under_way_ ||
                                               boottime_us() - task.asked_us > kAheadPatienceUs);
}

// Null: none waits, or the disk has as many as it should.
NvmeLog::ReadTask* NvmeLog::next_read() {
    if (reads_under_way_ >= std::max<size_t>(options_.reads.depth, 1)) {
        return nullptr;
    }
    const bool ahead = waiting_reads_.empty();
    std::deque<std::unique_ptr<ReadTask>>& queue = ahead ? waiting_ahead_ : waiting_reads_;
    if (queue.empty() || (ahead && !may_read_ahead(*queue.front()))) {
        return nullptr;
    }
    ReadTask* task = queue.front().release();
    queue.pop_front();
    task->under_way = true;
    ++reads_under_way_;
    ahead_under_way_ += ahead ? 1 : 0;
    return task;
}

// Starts as many waiting reads as the depth allows.
void NvmeLog::start_reads() {
    while (true) {
        ReadTask* task = nullptr;
        {
            const MutexLock lock(mutex_);
            task = next_read();
            if (task == nullptr) {
                return;
            }
            if (!bounce_buffers_.empty()) {
                task->bounce = std::move(bounce_buffers_.back());
                bounce_buffers_.pop_back();
            }
        }
        if (task->bounce.size() == 0) {
            task->bounce = AlignedBuffer(ReadTask::kBounceBytes);
        }
        if (task->bounce.size() == 0) {
            finish_read(task, task->result(Status(Code::kOverloaded, "no memory to read NVMe")));
            continue;
        }
        task->aim();
        engine_->submit(task);
    }
}

void NvmeLog::count_read(const ReadTask& task, const NvmeReadResult& result, bool* drop) {
    switch (result.status.code()) {
        case Code::kOk:
            ++counters_.reads;
            counters_.bytes_read += task.entry.length;
            failed_reads_in_a_row_ = 0;
            return;
        case Code::kChecksumMismatch:
            ++counters_.checksum_errors;
            break;
        case Code::kIoError:
            ++counters_.io_errors;
            if (++failed_reads_in_a_row_ >= kFailuresToOff) {
                fail(NvmeState::kOff,
                     {Code::kIoError, "reads from NVMe fail, last: " + result.status.message()});
            }
            break;
        default:
            return;
    }
    // What is dropped here must not let an older version of it come back.
    const std::optional<NvmeEntry> entry = index_->find(task.request.hash);
    *drop = entry && entry->unit == task.entry.unit && entry->version == task.entry.version;
    if (!*drop) {
        return;
    }
    erase(task.request.hash, *entry);
    journal_->remove(task.request.hash, entry->version, files_.newest_seq());
    ++counters_.dropped_objects;
}

// Ends a task that was released from its owner.
void NvmeLog::finish_read(ReadTask* raw, const NvmeReadResult& result) {
    std::unique_ptr<ReadTask> task(raw);
    bool drop = false;
    {
        const MutexLock lock(mutex_);
        count_read(*task, result, &drop);
        if (--files_[task->file].readers == 0) {
            changed_.notify_all();
        }
    }
    if (drop) {
        report(
            {{.ns = task->request.ns,
              .hash = task->request.hash,
              .version = task->entry.version,
              .key = task->key,
              .reason = result.status.code() == Code::kIoError ? NvmeDropped::Reason::kIoError
                                                               : NvmeDropped::Reason::kChecksum}});
    }
    task->done(task->request.tag, result);
    bool more = false;
    {
        const MutexLock lock(mutex_);
        if (task->under_way) {
            --reads_under_way_;
            ahead_under_way_ -= task->request.ahead ? 1 : 0;
        }
        more = task->bounce.size() != 0;
        if (more) {
            bounce_buffers_.push_back(std::move(task->bounce));
        }
        changed_.notify_all();
    }
    if (more) {
        start_reads();  // without memory, start_reads() is what called this
    }
}

}  // namespace kvstore
