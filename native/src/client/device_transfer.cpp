// The end of a transfer: generations are read after the event, then the holds end.
#include "client/device_transfer.h"

#include <algorithm>
#include <chrono>

#include "base/interrupt.h"
#include "base/mutation.h"

namespace kvstore {
namespace {

constexpr DeviceTransfer::Row kFailed{static_cast<int64_t>(Code::kIoError), MissReason::kIoError};
constexpr DeviceTransfer::Row kChanged{static_cast<int64_t>(Code::kNotFound), MissReason::kVersion};

}  // namespace

std::vector<DeviceTransfer::Row> DeviceTransfer::rows() const {
    const MutexLock lock(mutex_);
    return rows_;
}

bool DeviceTransfer::done() const {
    const MutexLock lock(mutex_);
    return events_ == 0;
}

bool DeviceTransfer::wait(Deadline deadline) {
    const MutexLock lock(mutex_);
    while (events_ != 0) {
        if (deadline.expired() || is_interrupted()) {
            return false;
        }
        const WaitsLocked waits;
        (void)ended_.wait_for(mutex_, std::chrono::milliseconds(wait_slice_ms(deadline.left_ms())));
        (void)check_interrupt();
    }
    return true;
}

Status DeviceTransfer::status() const {
    const MutexLock lock(mutex_);
    return status_;
}

void DeviceTransfer::set(size_t row, const Row& value) {
    const MutexLock lock(mutex_);
    rows_[row] = value;
    is_direct_[row] = false;
}

void DeviceTransfer::set_direct(size_t row, const Row& value) {
    const MutexLock lock(mutex_);
    rows_[row] = value;
    is_direct_[row] = true;
}

void DeviceTransfer::expect(size_t events) {
    const MutexLock lock(mutex_);
    events_ += events;
}

std::vector<size_t> DeviceTransfer::unproven() const {
    const MutexLock lock(mutex_);
    return unproven_;
}

void DeviceTransfer::end_event(const Status& status, std::vector<std::unique_ptr<HeldBlocks>> held,
                               const Judge& judge) {
    {
        const MutexLock lock(mutex_);
        for (const std::unique_ptr<HeldBlocks>& blocks : held) {
            for (const HeldBlocks::Block& block : blocks->blocks()) {
                if (!is_direct_[block.row]) {
                    continue;
                }
                Row& row = rows_[block.row];
                if (KV_GUARD("gpu-generation", !blocks->unchanged(block))) {
                    row = kChanged;
                } else if (judge != nullptr && status.ok()) {
                    row = judge(block);
                }
                if (row.result < 0) {
                    unproven_.push_back(block.row);
                }
            }
        }
        if (!status.ok()) {
            status_ = status;
            for (Row& row : rows_) {
                row = row.result >= 0 ? kFailed : row;
            }
        }
        --events_;
        ended_.notify_all();
    }
    held.clear();  // may send a message: nobody has to wait for that
}

}  // namespace kvstore
