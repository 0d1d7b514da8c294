// Choosing memory; posting reads; their checksums.
#include "client/ucx_transfer.h"

#include <algorithm>

#include "base/checksum.h"

namespace kvstore {
namespace {

constexpr uint64_t kUcxPatienceMs = 10'000;
constexpr uint64_t kSlowUcxBytesPerMs = 10'000;

}  // namespace

uint64_t ucx_patience_ms(Deadline deadline, uint64_t bytes) {
    const auto left_ms = static_cast<uint64_t>(std::max(deadline.left_ms(), 0));
    return std::min(left_ms / 2, kUcxPatienceMs + bytes / kSlowUcxBytesPerMs);
}

UcxTarget choose_target(ClientUcx& ucx, UcxLane& lane, const Pieces& memory, uint64_t bytes,
                        const DirectMemory* direct) {
    UcxTarget target;
    const std::span<const iovec> list = memory.list();
    uint64_t left = bytes;
    uint64_t unregistered = 0;
    for (size_t at = 0; at < list.size() && left != 0; ++at) {
        const uint64_t count = std::min<uint64_t>(list[at].iov_len, left);
        if (count == 0) {
            continue;
        }
        const bool on_device = direct != nullptr && !direct->on_host(at);
        UcxTarget::Piece piece{static_cast<uint8_t*>(list[at].iov_base), count, nullptr, nullptr};
        piece.memory = ucx.find(piece.data, count);
        if (piece.memory == nullptr && count >= UcxLane::kRegisterFrom) {
            piece.memory = ucx.register_briefly(
                piece.data, count, on_device ? ucp::MemoryType::kCuda : ucp::MemoryType::kHost);
        }
        if (piece.memory == nullptr) {
            piece.home = piece.data;
            unregistered += count;
            target.is_reachable =
                target.is_reachable && !on_device && unregistered <= UcxLane::kMostBounced;
        }
        target.pieces.push_back(std::move(piece));
        left -= count;
    }
    const bool needs_room = target.is_reachable && unregistered != 0;
    uint8_t* own = needs_room ? lane.take_bounce(unregistered) : nullptr;
    target.has_room = !needs_room || own != nullptr;
    for (UcxTarget::Piece& piece : target.pieces) {
        if (piece.home != nullptr && own != nullptr) {
            piece.data = own;
            own += piece.bytes;
        }
    }
    return target;
}

uint32_t copy_lane(const UcxTarget& target, LaneCopy direction) {
    uint32_t crc = 0;
    for (const UcxTarget::Piece& piece : target.pieces) {
        if (piece.home != nullptr) {
            const bool is_home = direction == LaneCopy::kHome;
            uint8_t* const to = is_home ? piece.home : piece.data;
            crc = copy_crc32c(to, is_home ? piece.data : piece.home, piece.bytes, crc);
        } else if (piece.memory->type() == ucp::MemoryType::kHost) {
            crc = crc32c(piece.data, piece.bytes, crc);
        }
    }
    return crc;
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
    one.target = choose_target(ucx_, lane_, into, bytes, direct_);
    const bool may_write =
        one.target.is_reachable && (direct_ == nullptr || direct_->wait_for_stream(deadline).ok());
    if (!may_write || !one.target.has_room) {
        one.state = may_write ? Row::kNoRoom : Row::kFailed;
        return;
    }
    ++reading_;
    post(one, **endpoint, offset);
}

void UcxTransfer::post(One& one, UcxEndpoint& endpoint, uint64_t offset) {
    for_each_place(one.target, lane_, [&](uint8_t* data, uint64_t bytes, const UcxMemory& memory) {
        for (uint64_t done = 0; done < bytes;) {
            const UcxRegion::Slice& slice = region_->slice_of(offset);
            const uint64_t within = offset - slice.offset;
            const uint64_t count = std::min(bytes - done, slice.size - within);
            UcxRead& part = one.parts.emplace_back();
            lane_.worker().read(endpoint, slice.key, slice.address + within, data + done, count,
                                memory, &part);
            done += count;
            offset += count;
        }
    });
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
    if (reading_ == 0 && direct_ != nullptr) {
        sum_on_device();
    }
    return reading_ == 0;
}

void UcxTransfer::finish(One& one) {
    --reading_;
    const auto is_right = [](const UcxRead& part) { return part.status == ucp::kOk; };
    if (!std::ranges::all_of(one.parts, is_right)) {
        one.state = Row::kFailed;
        failed_ = true;
    } else {
        one.crc = copy_lane(one.target, LaneCopy::kHome);
        one.state = direct_ == nullptr ? Row::kRead : Row::kArrived;
    }
    one.target.pieces.clear();
}

// Of all of them at once.
void UcxTransfer::sum_on_device() {
    std::vector<DirectMemory::Object> objects;
    for (const One& one : rows_) {
        if (one.state == Row::kArrived) {
            objects.push_back({&one.into, one.bytes, one.crc});
        }
    }
    if (objects.empty()) {
        return;
    }
    const Status status = direct_->sum(objects, deadline_);
    size_t next = 0;
    for (One& one : rows_) {
        if (one.state == Row::kArrived) {
            one.crc = objects[next++].crc;
            one.state = status.ok() ? Row::kRead : Row::kFailed;
        }
    }
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
