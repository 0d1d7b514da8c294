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

UcxTarget choose_target(ClientUcx& ucx, UcxLane& lane, const Pieces& pieces, uint64_t bytes) {
    UcxTarget target;
    if (pieces.list().size() == 1) {
        auto* const data = static_cast<uint8_t*>(pieces.list().front().iov_base);
        target.keep = ucx.find(data, bytes);
        if (target.keep == nullptr && bytes >= kRegisterFrom) {
            target.keep = ucx.register_briefly(data, bytes);
        }
        if (target.keep != nullptr) {
            target.data = data;
            target.memory = target.keep.get();
            return target;
        }
    }
    target.data = lane.take_bounce(bytes);
    target.memory = &lane.bounce();
    target.is_bounce = true;
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
    one.target = choose_target(ucx_, lane_, into, bytes);
    if (one.target.data == nullptr) {
        one.state = Row::kNoRoom;
        return;
    }
    ++reading_;
    for (uint64_t done = 0; done < bytes;) {
        const UcxRegion::Slice& slice = region_->slice_of(offset + done);
        const uint64_t within = offset + done - slice.offset;
        const uint64_t count = std::min(bytes - done, slice.size - within);
        UcxRead& part = one.parts.emplace_back();
        lane_.worker().read(**endpoint, slice.key, slice.address + within, one.target.data + done,
                            count, *one.target.memory, &part);
        done += count;
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

// The checksum is that of the bytes as they arrived.
void UcxTransfer::finish(One& one) {
    --reading_;
    const auto is_right = [](const UcxRead& part) { return part.status == ucp::kOk; };
    if (!std::ranges::all_of(one.parts, is_right)) {
        one.state = Row::kFailed;
        failed_ = true;
    } else {
        one.state = Row::kRead;
        one.crc = one.target.is_bounce ? scatter_crc32c(one.into, one.target.data, one.bytes)
                                       : crc32c(one.target.data, one.bytes);
    }
    one.target.keep = nullptr;
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
            one.target.keep = nullptr;
        }
    }
}

}  // namespace kvstore
