// The chain of write buffers: reserving, closing, releasing, and reading from it.
#include "nvme/write_buffers.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/checksum.h"
#include "base/status.h"

namespace kvstore {

// The longest run of the reservation's memory from at_ on, at most `size`.
std::span<uint8_t> Reservation::room(size_t size) {
    for (const auto& buffer : buffers_) {
        const uint64_t end = buffer->start + buffer->capacity;
        if (at_ < buffer->start || at_ >= end) {
            continue;
        }
        KV_ASSERT(buffer->memory != nullptr);
        return {buffer->data + (at_ - buffer->start),
                static_cast<size_t>(std::min<uint64_t>(size, end - at_))};
    }
    invariant_failed("a write stays within its reservation", __FILE__, __LINE__);
}

void Reservation::write(const void* bytes, size_t size, uint32_t* crc) {
    const auto* from = static_cast<const uint8_t*>(bytes);
    KV_ASSERT(at_ + size <= offset_ + size_);
    while (size > 0) {
        const std::span<uint8_t> to = room(size);
        if (crc != nullptr) {
            *crc = copy_crc32c(to.data(), from, to.size(), *crc);
        } else {
            std::memcpy(to.data(), from, to.size());
        }
        at_ += to.size();
        from += to.size();
        size -= to.size();
    }
}

void Reservation::zero(size_t size) {
    KV_ASSERT(at_ + size <= offset_ + size_);
    while (size > 0) {
        const std::span<uint8_t> to = room(size);
        std::fill(to.begin(), to.end(), uint8_t{0});
        at_ += to.size();
        size -= to.size();
    }
}

void Reservation::skip_lent() {
    for (const auto& buffer : buffers_) {
        if (buffer->lender != nullptr && buffer->start == at_) {
            at_ += buffer->used;
        }
    }
}

void Reservation::make_pad(uint64_t session) {
    RecordHead pad;
    pad.seq = buffers_.front()->seq;
    pad.session = session;
    pad.identity.length = size_;
    std::array<uint8_t, kPadHeadBytes> bytes{};
    encode_record_head(pad, bytes.data());
    at_ = offset_;
    write(bytes.data(), bytes.size());
}

WriteBuffers::WriteBuffers(size_t buffer_bytes, size_t count)
    : buffer_bytes_(buffer_bytes), count_(count) {
    for (size_t i = 0; i < count; ++i) {
        memory_.push_back(std::make_shared<AlignedBuffer>(buffer_bytes));
        has_memory_ = has_memory_ && memory_.back()->size() == buffer_bytes;
    }
}

size_t WriteBuffers::free_count() {
    // What nobody reads any more is free again.
    std::erase_if(retired_,
                  [](const auto& one) { return one->memory != nullptr && one.use_count() == 1; });
    return static_cast<size_t>(
        std::ranges::count_if(memory_, [](const Memory& one) { return one.use_count() == 1; }));
}

std::vector<std::shared_ptr<const void>> WriteBuffers::take_returned() {
    std::vector<std::shared_ptr<const void>> returned;
    std::erase_if(retired_, [&](const auto& one) {
        if (one.use_count() > 1) {
            return false;
        }
        if (one->lender != nullptr) {
            returned.push_back(std::move(one->lender));
        }
        return true;
    });
    return returned;
}

// Bytes behind the last record for which no further buffer's memory is needed.
uint64_t WriteBuffers::open_room() const {
    if (open_ != nullptr) {
        return open_->capacity - open_->used;
    }
    return begun_ == nullptr ? 0 : buffer_bytes_ - begun_used_;
}

void WriteBuffers::add_buffer(uint64_t start, uint64_t now_ms) {
    if (begun_ == nullptr) {
        const auto free =
            std::ranges::find_if(memory_, [](const Memory& one) { return one.use_count() == 1; });
        KV_ASSERT(free != memory_.end());
        begun_ = *free;
        begun_used_ = 0;
    }
    auto buffer = std::make_shared<WriteBuffer>();
    buffer->data = begun_->data() + begun_used_;
    buffer->file = file_;
    buffer->seq = seq_;
    buffer->start = start;
    buffer->capacity = std::min<uint64_t>(buffer_bytes_ - begun_used_, log_file_bytes_ - start);
    buffer->opened_ms = now_ms;
    buffer->memory = std::move(begun_);
    open_ = buffer;
    chain_.push_back(std::move(buffer));
}

bool WriteBuffers::begin_file(uint32_t file, uint64_t seq, uint64_t position,
                              uint64_t log_file_bytes, uint64_t session,
                              std::span<const uint8_t> head, uint64_t now_ms) {
    KV_ASSERT(!has_file() && position % kRecordAlign == 0 && position <= log_file_bytes);
    if (free_count() == 0) {
        return false;
    }
    file_ = file;
    seq_ = seq;
    session_ = session;
    position_ = position;
    log_file_bytes_ = log_file_bytes;
    if (head.empty()) {
        return true;
    }
    KV_ASSERT(align_down(position, kIoAlign) + head.size() == position);
    add_buffer(position - head.size(), now_ms);
    std::memcpy(open_->data, head.data(), head.size());
    open_->used = head.size();
    return true;
}

bool WriteBuffers::has_room(uint64_t size) {
    const uint64_t room = open_room();
    return size <= room || free_count() > (size - room - 1) / buffer_bytes_;
}

bool WriteBuffers::may_lend(std::span<const uint8_t> data) {
    return data.size() >= kMinLentBytes && reinterpret_cast<uintptr_t>(data.data()) % kIoAlign == 0;
}

bool WriteBuffers::has_room_to_lend(uint64_t size) const {
    return lent_bytes_ == 0 || lent_bytes_ + size <= kLentBuffers * buffer_bytes_;
}

std::unique_ptr<Reservation> WriteBuffers::reserve(uint64_t size, uint64_t now_ms) {
    KV_ASSERT(has_file() && size % kRecordAlign == 0 && fits(size));
    if (!has_room(size)) {
        return nullptr;
    }
    auto reservation = std::make_unique<Reservation>();
    reservation->offset_ = reservation->at_ = position_;
    reservation->size_ = size;
    take_room(size, position_ + size, now_ms, reservation.get());
    return reservation;
}

std::unique_ptr<Reservation> WriteBuffers::reserve_lent(uint64_t head_bytes,
                                                        std::span<const uint8_t> data,
                                                        std::shared_ptr<const void> lender,
                                                        uint64_t now_ms) {
    const uint64_t pad = align_up(position_ + head_bytes, kIoAlign) - position_ - head_bytes;
    const uint64_t lent = align_down(data.size(), kIoAlign);
    const uint64_t tail = align_up(data.size() - lent, kRecordAlign);
    const uint64_t end = position_ + pad + head_bytes + lent + tail;
    KV_ASSERT(has_file() && fits(end - position_));
    if (!has_room_to_lend(lent) || !has_room(pad + head_bytes + tail)) {
        return nullptr;
    }
    if (pad > 0) {
        std::unique_ptr<Reservation> front = reserve(pad, now_ms);
        front->make_pad(session_);
        finish(std::move(front));
    }
    auto reservation = std::make_unique<Reservation>();
    reservation->offset_ = reservation->at_ = position_;
    reservation->size_ = end - position_;
    take_room(head_bytes, end, now_ms, reservation.get());
    add_lent(data.first(lent), std::move(lender), end, now_ms, reservation.get());
    take_room(tail, end, now_ms, reservation.get());
    return reservation;
}

// Of the chain's own memory, for a part of a record that ends at `record_end`. There must be room.
void WriteBuffers::take_room(uint64_t size, uint64_t record_end, uint64_t now_ms,
                             Reservation* reservation) {
    const uint64_t end = position_ + size;
    while (position_ < end) {
        if (open_ == nullptr) {
            add_buffer(position_, now_ms);
        }
        const uint64_t part = std::min(end - position_, open_->capacity - open_->used);
        if (part > 0) {
            ++open_->copying;
            open_->needed_until = record_end;
            reservation->buffers_.push_back(open_);
        }
        open_->used += part;
        position_ += part;
        if (open_->used == open_->capacity) {
            open_->state = WriteBuffer::State::kClosed;
            open_ = nullptr;
        }
    }
}

// The open buffer ends here; the next one goes on behind it in the same memory.
void WriteBuffers::add_lent(std::span<const uint8_t> data, std::shared_ptr<const void> lender,
                            uint64_t record_end, uint64_t now_ms, Reservation* reservation) {
    KV_ASSERT(position_ % kIoAlign == 0);
    if (open_ != nullptr) {
        begun_used_ = static_cast<uint64_t>(open_->data - open_->memory->data()) + open_->used;
        begun_ = begun_used_ < buffer_bytes_ ? open_->memory : nullptr;
        open_->capacity = open_->used;
        open_->state = WriteBuffer::State::kClosed;
        open_ = nullptr;
    }
    auto buffer = std::make_shared<WriteBuffer>();
    buffer->data = const_cast<uint8_t*>(data.data());
    buffer->lender = std::move(lender);
    buffer->file = file_;
    buffer->seq = seq_;
    buffer->start = position_;
    buffer->capacity = buffer->used = data.size();
    buffer->needed_until = record_end;
    buffer->copying = 1;
    buffer->state = WriteBuffer::State::kClosed;
    buffer->opened_ms = now_ms;
    position_ += data.size();
    lent_bytes_ += data.size();
    reservation->buffers_.push_back(buffer);
    chain_.push_back(std::move(buffer));
}

void WriteBuffers::finish(std::unique_ptr<Reservation> reservation) {
    for (const auto& buffer : reservation->buffers_) {
        --buffer->copying;
    }
}

bool WriteBuffers::close_buffer() {
    if (open_ == nullptr || open_->needed_until == 0) {
        return false;
    }
    const uint64_t end = align_up(open_->used, kIoAlign);
    if (end > open_->used) {
        // A pad's head lies within the first 64 bytes of what is left of the block.
        RecordHead pad;
        pad.seq = seq_;
        pad.session = session_;
        pad.identity.length = end - open_->used;
        uint8_t* at = open_->data + open_->used;
        std::memset(at, 0, end - open_->used);
        encode_record_head(pad, at);
        position_ += end - open_->used;
        open_->used = end;
    }
    open_->state = WriteBuffer::State::kClosed;
    open_ = nullptr;
    return true;
}

void WriteBuffers::end_file() {
    if (!close_buffer() && open_ != nullptr) {
        // Only the repeated head of a block: nothing new to write.
        KV_ASSERT(chain_.back() == open_);
        chain_.pop_back();
        open_ = nullptr;
    }
    begun_ = nullptr;
    seq_ = 0;
}

uint64_t WriteBuffers::open_since_ms() const {
    return open_ == nullptr || open_->needed_until == 0 ? UINT64_MAX : open_->opened_ms;
}

std::vector<std::shared_ptr<WriteBuffer>> WriteBuffers::next_to_write() {
    std::vector<std::shared_ptr<WriteBuffer>> run;
    uint64_t bytes = 0;
    for (const auto& buffer : chain_) {
        const bool ready = buffer->state == WriteBuffer::State::kClosed && buffer->copying == 0;
        if (run.empty() && !ready) {
            continue;
        }
        const bool follows = run.empty() || (buffer->seq == run.back()->seq &&
                                             buffer->start == run.back()->start + run.back()->used);
        if (!ready || !follows || run.size() == kMaxWriteParts || bytes >= buffer_bytes_) {
            break;
        }
        buffer->state = WriteBuffer::State::kWriting;
        bytes += buffer->used;
        run.push_back(buffer);
    }
    return run;
}

void WriteBuffers::written(const std::shared_ptr<WriteBuffer>& buffer, bool ok) {
    buffer->state = ok ? WriteBuffer::State::kWritten : WriteBuffer::State::kFailed;
    release_written();
}

void WriteBuffers::release_written() {
    const auto on_disk = [](const WriteBuffer& buffer) {
        return buffer.state == WriteBuffer::State::kWritten ||
               buffer.state == WriteBuffer::State::kFailed;
    };
    while (!chain_.empty()) {
        const WriteBuffer& front = *chain_.front();
        for (const auto& buffer : chain_) {
            if (buffer->seq != front.seq || buffer->start >= front.needed_until) {
                break;
            }
            if (!on_disk(*buffer)) {
                return;
            }
        }
        if (!on_disk(front)) {
            return;
        }
        lent_bytes_ -= front.lender != nullptr ? front.used : 0;
        retired_.push_back(std::move(chain_.front()));
        chain_.pop_front();
    }
}

bool WriteBuffers::idle() const {
    return std::all_of(chain_.begin(), chain_.end(), [this](const auto& buffer) {
        return buffer->state == WriteBuffer::State::kWritten ||
               buffer->state == WriteBuffer::State::kFailed ||
               (buffer == open_ && buffer->copying == 0);
    });
}

bool WriteBuffers::unwritten(uint64_t seq) const {
    return std::any_of(chain_.begin(), chain_.end(), [seq](const auto& buffer) {
        return buffer->seq == seq && buffer->state != WriteBuffer::State::kWritten &&
               buffer->state != WriteBuffer::State::kFailed;
    });
}

std::vector<std::shared_ptr<WriteBuffer>> WriteBuffers::unwritten_buffers() const {
    std::vector<std::shared_ptr<WriteBuffer>> found;
    for (const auto& buffer : chain_) {
        if (buffer->state == WriteBuffer::State::kClosed ||
            buffer->state == WriteBuffer::State::kWriting) {
            found.push_back(buffer);
        }
    }
    return found;
}

std::vector<std::shared_ptr<WriteBuffer>> WriteBuffers::find(uint64_t seq, uint64_t offset,
                                                             uint64_t size) const {
    std::vector<std::shared_ptr<WriteBuffer>> found;
    uint64_t covered = 0;
    for (const auto& buffer : chain_) {
        const uint64_t end = buffer->start + buffer->used;
        if (buffer->seq != seq || buffer->start >= offset + size || end <= offset) {
            continue;
        }
        covered += std::min(end, offset + size) - std::max(buffer->start, offset);
        found.push_back(buffer);
    }
    // The block that an earlier life began is in memory from its start: older records end in it.
    if (covered < size) {
        found.clear();
    }
    return found;
}

void WriteBuffers::copy_out(const std::vector<std::shared_ptr<WriteBuffer>>& buffers,
                            uint64_t offset, uint8_t* to, size_t size) {
    for (const auto& buffer : buffers) {
        // Not `used`, which appends change: find() has seen that the record is there.
        const uint64_t end = buffer->start + buffer->capacity;
        if (size == 0 || offset < buffer->start || offset >= end) {
            continue;
        }
        const auto part = static_cast<size_t>(std::min<uint64_t>(size, end - offset));
        std::memcpy(to, buffer->data + (offset - buffer->start), part);
        offset += part;
        to += part;
        size -= part;
    }
}

}  // namespace kvstore
