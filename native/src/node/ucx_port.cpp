// What a UCX process says, what is asked of it, and what is kept for readers meanwhile.
#include "node/ucx_port.h"

#include <algorithm>

#include "base/clock.h"
#include "wire/messages.h"

namespace kvstore {
namespace {

constexpr size_t kHeldRequests = 64;  // of one connection
// A reader that says nothing for so long has its blocks taken; the checksum tells it so.
constexpr uint32_t kHoldMs = 10'000;
constexpr uint32_t kLateMs = 250;  // behind a pull's own time

}  // namespace

// ---- the process -----------------------------------------------------------------------------

void UcxPort::connected(std::shared_ptr<ConnectionRef> ref) {
    const MutexLock lock(mutex_);
    ref_ = std::move(ref);
    told_bytes_ = 0;
    error_.clear();
}

void UcxPort::ready(const UcxReady& message) {
    auto region = std::make_shared<UcxRegion>();
    region->worker = message.worker;
    const MutexLock lock(mutex_);
    region->life = ++lives_;
    library_ = message.library;
    region_ = std::move(region);
}

void UcxPort::slice(const UcxSlice& message) {
    const MutexLock lock(mutex_);
    if (!message.text.empty()) {
        error_ = message.text;
    }
    if (region_ == nullptr || message.size == 0) {
        return;
    }
    auto region = std::make_shared<UcxRegion>(*region_);
    region->slices.push_back(
        {message.offset, message.size, message.address, std::string(message.key)});
    region_ = std::move(region);
}

void UcxPort::disconnected() {
    const MutexLock lock(mutex_);
    ref_ = nullptr;
    region_ = nullptr;
}

void UcxPort::ended() {
    std::unordered_map<uint64_t, Pull> lost;
    {
        const MutexLock lock(mutex_);
        ref_ = nullptr;
        region_ = nullptr;
        lost = std::exchange(pulls_, {});
    }
    for (auto& [request, pull] : lost) {
        pull.puller->pulled(std::vector<Pulled>(pull.rows));
    }
}

void UcxPort::forget_pulls() {
    const MutexLock lock(mutex_);
    pulls_.clear();
}

void UcxPort::grow(uint64_t ready_bytes) {
    const MutexLock lock(mutex_);
    if (ref_ != nullptr && ready_bytes != told_bytes_) {
        told_bytes_ = ready_bytes;
        UcxGrow message;
        message.ready_bytes = ready_bytes;
        ref_->send_message(message, 0);
    }
}

std::shared_ptr<const UcxRegion> UcxPort::region() const {
    const MutexLock lock(mutex_);
    return region_;
}

UcxPort::Stats UcxPort::stats() const {
    const MutexLock lock(mutex_);
    Stats stats;
    stats.library = library_;
    stats.error = error_;
    if (region_ != nullptr) {
        stats.reachable = true;
        for (const UcxRegion::Slice& slice : region_->slices) {
            stats.registered_bytes += slice.size;
        }
    }
    return stats;
}

// ---- pulls -----------------------------------------------------------------------------------

bool UcxPort::pull(std::span<const Block> blocks, std::string_view worker,
                   const KeyList& memory_keys, uint32_t timeout_ms,
                   std::shared_ptr<Puller> puller) {
    std::vector<uint64_t> offsets;
    std::vector<uint64_t> sizes;
    UcxPlaces places;
    for (const Block& block : blocks) {
        offsets.push_back(block.offset);
        sizes.push_back(block.size);
        places.begin_row();
        std::ranges::for_each(block.pieces, [&](const UcxPiece& piece) { places.add(piece); });
    }
    const UcxPlaceColumns columns(places);
    UcxPull message;
    message.offsets = offsets;
    message.sizes = sizes;
    columns.fill(&message);
    message.worker = worker;
    message.memory_keys = memory_keys;
    const MutexLock lock(mutex_);
    if (ref_ == nullptr || region_ == nullptr) {
        return false;
    }
    // Before it is sent: a process that fails from here on may have begun to write.
    const uint64_t request = ++last_pull_;
    pulls_[request] = {blocks.size(), std::move(puller), boottime_ms() + timeout_ms + kLateMs};
    ref_->send_message(message, request);
    return true;
}

void UcxPort::pulled(uint64_t request, const UcxPulled& message) {
    Pull pull;
    {
        const MutexLock lock(mutex_);
        const auto at = pulls_.find(request);
        if (at == pulls_.end()) {
            return;
        }
        pull = std::move(at->second);
        pulls_.erase(at);
    }
    std::vector<Pulled> rows(pull.rows);
    for (size_t row = 0; row < rows.size() && row < message.status.size(); ++row) {
        rows[row] = {static_cast<Code>(message.status[row]), message.crcs[row]};
    }
    pull.puller->pulled(rows);
}

// ---- holds -----------------------------------------------------------------------------------

bool UcxPort::hold(uint64_t connection, uint64_t request, std::shared_ptr<void> what,
                   uint32_t timeout_ms) {
    const uint32_t hold_ms = timeout_ms == 0 ? kHoldMs : std::min(timeout_ms, kHoldMs);
    const MutexLock lock(mutex_);
    const auto first = held_.lower_bound({connection, 0});
    const auto end = held_.lower_bound({connection + 1, 0});
    if (static_cast<size_t>(std::distance(first, end)) >= kHeldRequests) {
        return false;
    }
    held_[{connection, request}] = {std::move(what), boottime_ms() + hold_ms};
    return true;
}

void UcxPort::release(uint64_t connection, const U64Column& requests) {
    std::vector<Held> over;  // let go without the mutex: the store has one of its own
    const MutexLock lock(mutex_);
    for (const uint64_t request : requests) {
        if (const auto at = held_.find({connection, request}); at != held_.end()) {
            over.push_back(std::move(at->second));
            held_.erase(at);
        }
    }
}

void UcxPort::release_all(uint64_t connection) {
    std::vector<Held> over;
    const MutexLock lock(mutex_);
    const auto end = held_.lower_bound({connection + 1, 0});
    for (auto at = held_.lower_bound({connection, 0}); at != end; at = held_.erase(at)) {
        over.push_back(std::move(at->second));
    }
}

void UcxPort::tick() {
    const uint64_t now_ms = boottime_ms();
    std::vector<std::shared_ptr<Puller>> late;
    std::vector<Held> over;
    {
        const MutexLock lock(mutex_);
        for (auto& [request, pull] : pulls_) {
            if (pull.late_ms != 0 && pull.late_ms <= now_ms) {
                pull.late_ms = 0;
                late.push_back(pull.puller);
            }
        }
        for (auto at = held_.begin(); at != held_.end();) {
            if (at->second.until_ms <= now_ms) {
                over.push_back(std::move(at->second));
                at = held_.erase(at);
            } else {
                ++at;
            }
        }
    }
    for (const std::shared_ptr<Puller>& puller : late) {
        puller->late();
    }
}

}  // namespace kvstore
