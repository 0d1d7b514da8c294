// Choosing memory; posting reads; their checksums.
#include "client/ucx_transfer.h"

#include <algorithm>

#include "base/checksum.h"

namespace kvstore {
namespace {

// From this size on, registering the caller's memory for one call costs less than a copy.
constexpr uint64_t kRegisterFrom = 1u << 20;
constexpr uint64_t kUcxPatienceMs = 10'000;
constexpr uint64_t kSlowUcxBytesPerMs = 10'000;

}  // namespace

uint64_t ucx_patience_ms(Deadline deadline, uint64_t bytes) {
    const auto left_ms = static_cast<uint64_t>(std::max(deadline.left_ms(), 0));
    return std::min(left_ms / 2, kUcxPatienceMs + bytes / kSlowUcxBytesPerMs);
}

UcxTarget choose_target(ClientUcx& ucx, UcxLane& lane, const Pieces& pieces, uint64_t bytes,
                        bool one_place) {
    UcxTarget target;
    const bool may_register = pieces.list().size() == 1 && bytes >= kRegisterFrom;
    uint64_t left = bytes;
    for (const iovec& piece : pieces.list()) {
        const uint64_t count = std::min<uint64_t>(piece.iov_len, left);
        if (count == 0) {
            continue;
        }
        std::shared_ptr<const UcxMemory> memory = ucx.find(piece.iov_base, count);
        if (memory == nullptr && may_register) {
            memory = ucx.register_briefly(piece.iov_base, count);
        }
        if (memory == nullptr) {
            break;
        }
        target.pieces.push_back({static_cast<uint8_t*>(piece.iov_base), count, std::move(memory)});
        left -= count;
    }
    if (left == 0 && !target.pieces.empty() && (!one_place || target.pieces.size() == 1)) {
        return target;
    }
    target.pieces.clear();
    target.is_bounce = true;
    if (uint8_t* const data = lane.take_bounce(bytes); data != nullptr) {
        target.pieces.push_back({data, bytes, nullptr});
    }
    return target;
}

void UcxTransfer::read(const Pieces& into, uint64_t offset, uint64_t bytes, Deadline deadline) {
    deadline_ = deadline;
    One& one = rows_.emplace_back();
    one.into = into;
    one.bytes = bytes;
    if (!region_->covers(offset, bytes)) {
        one.state = Row::kFailed;
        return;
    }
    const Result<UcxEndpoint*> endpoint =
        failed_ ? Code::kUnavailable : lane_.endpoint(node_id_, *region_, deadline);
    if (!endpoint.ok()) {
        failed_ = true;
        one.state = Row::kFailed;
        return;
    }
    one.target = choose_target(ucx_, lane_, into, bytes, false);
    if (one.target.pieces.empty()) {
        one.state = Row::kNoRoom;
        return;
    }
    ++reading_;
    for (const UcxTarget::Piece& piece : one.target.pieces) {
        const UcxMemory& memory = piece.memory == nullptr ? lane_.bounce() : *piece.memory;
        for (uint64_t done = 0; done < piece.bytes;) {
            const UcxRegion::Slice& slice = region_->slice_of(offset);
            const uint64_t within = offset - slice.offset;
            const uint64_t count = std::min(piece.bytes - done, slice.size - within);
            UcxRead& part = one.parts.emplace_back();
            lane_.worker().read(**endpoint, slice.key, slice.address + within, piece.data + done,
                                count, memory, &part);
            done += count;
            offset += count;
        }
    }
}

bool UcxTransfer::advance() {
    if (reading_ != 0) {
        lane_.worker().progress_all();
        for (One& one : rows_) {
            const auto is_done = [](const UcxRead& part) { return part.done; };
            if (one.state == Row::kReading && std::ranges::all_of(one.parts, is_done)) {
                finish(one);
            }
        }
        if (reading_ != 0 && deadline_.expired()) {
            cancel();
        }
    }
    return reading_ == 0;
}

// Of the bytes as they arrived.
uint32_t UcxTransfer::crc_of(const One& one) {
    if (one.target.is_bounce) {
        return scatter_crc32c(one.into, one.target.pieces.front().data, one.bytes);
    }
    uint32_t crc = 0;
    for (const UcxTarget::Piece& piece : one.target.pieces) {
        crc = crc32c(piece.data, piece.bytes, crc);
    }
    return crc;
}

void UcxTransfer::finish(One& one) {
    --reading_;
    const auto is_right = [](const UcxRead& part) { return part.status == ucp::kOk; };
    if (!std::ranges::all_of(one.parts, is_right)) {
        one.state = Row::kFailed;
        failed_ = true;
    } else {
        one.state = Row::kRead;
        one.crc = crc_of(one);
    }
    one.target.pieces.clear();
}

void UcxTransfer::cancel() {
    if (reading_ == 0) {
        return;
    }
    failed_ = true;
    lane_.drop(node_id_);  // every read is done when it returns
    for (One& one : rows_) {
        if (one.state == Row::kReading) {
            --reading_;
            one.state = Row::kFailed;
            one.target.pieces.clear();
        }
    }
}

}  // namespace kvstore
