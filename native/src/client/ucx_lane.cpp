// Lanes and registered memory.
#include "client/ucx_lane.h"

#include <poll.h>
#include <sys/mman.h>

#include <algorithm>

#include "base/interrupt.h"

namespace kvstore {
namespace {

constexpr int kTryMs = 50;
constexpr size_t kMostSpoiled = 8;  // lanes that are kept until the process ends
constexpr size_t kMostLanes = 8;    // workers take memory and queue pairs; other calls use TCP
constexpr size_t kRegisteredSlice = size_t{1} << 30;

}  // namespace

// ---- a lane ----------------------------------------------------------------------------------

Result<std::unique_ptr<UcxLane>> UcxLane::create(std::shared_ptr<UcxContext> context) {
    std::unique_ptr<UcxLane> lane(new UcxLane());
    void* const data =
        mmap(nullptr, kBounceBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        return {Code::kNoSpace, "no memory for transfers by UCX"};
    }
    (void)madvise(data, kBounceBytes, MADV_DONTFORK);
    lane->bounce_data_ = data;
    Result<std::unique_ptr<UcxMemory>> bounce = context->register_memory(data, kBounceBytes);
    if (!bounce.ok()) {
        return bounce.status();
    }
    lane->bounce_ = std::move(*bounce);
    Result<std::unique_ptr<UcxWorker>> worker = UcxWorker::create(std::move(context));
    if (!worker.ok()) {
        return worker.status();
    }
    lane->worker_ = std::move(*worker);
    return lane;
}

UcxLane::~UcxLane() {
    for (auto& [node_id, peer] : peers_) {
        worker_->close(std::move(peer.endpoint));
    }
    worker_ = nullptr;
    bounce_ = nullptr;
    if (bounce_data_ != nullptr) {
        munmap(bounce_data_, kBounceBytes);
    }
}

Result<UcxEndpoint*> UcxLane::endpoint(const std::string& node_id, const UcxRegion& region,
                                       Deadline deadline) {
    const auto at = peers_.find(node_id);
    if (at != peers_.end()) {
        const Peer& peer = at->second;
        if (peer.life == region.life && peer.worker == region.worker && !peer.endpoint->failed()) {
            return peer.endpoint.get();
        }
        drop(node_id);
    }
    if (spoiled_) {
        return {Code::kUnavailable, "the lane is spoiled"};
    }
    Result<std::unique_ptr<UcxEndpoint>> endpoint = worker_->connect(region.worker);
    if (!endpoint.ok()) {
        return endpoint.status();
    }
    Peer& peer = peers_[node_id];
    peer = {region.life, region.worker, std::move(*endpoint)};
    if (!try_out(*peer.endpoint, region, deadline)) {
        return {Code::kUnavailable, "no connection by UCX within the time"};
    }
    return peer.endpoint.get();
}

// Reads a byte.
bool UcxLane::try_out(UcxEndpoint& endpoint, const UcxRegion& region, Deadline deadline) {
    const UcxRegion::Slice& slice = region.slices.front();
    worker_->read(endpoint, slice.key, slice.address, bounce_data_, 1, *bounce_, &trial_);
    while (!trial_.done && !deadline.expired() && !is_interrupted()) {
        if (!worker_->progress() && worker_->arm()) {
            pollfd entry{worker_->event_fd(), POLLIN, 0};
            if (poll(&entry, 1, wait_slice_ms(std::min(deadline.left_ms(), kTryMs))) <= 0) {
                (void)check_interrupt();
            }
        }
    }
    spoiled_ = !trial_.done;
    return trial_.done && trial_.status == ucp::kOk;
}

void UcxLane::drop(const std::string& node_id) {
    const auto at = peers_.find(node_id);
    if (at != peers_.end()) {
        worker_->close(std::move(at->second.endpoint));
        peers_.erase(at);
    }
}

uint8_t* UcxLane::take_bounce(size_t bytes) {
    if (bytes > kBounceBytes - bounce_used_) {
        return nullptr;
    }
    uint8_t* const taken = static_cast<uint8_t*>(bounce_data_) + bounce_used_;
    bounce_used_ += (bytes + 63) / 64 * 64;
    bounce_used_ = std::min(bounce_used_, kBounceBytes);
    return taken;
}

// ---- lanes in turns --------------------------------------------------------------------------

ClientUcx::Lease& ClientUcx::Lease::operator=(Lease&& other) noexcept {
    give_back();
    owner_ = other.owner_;
    lane_ = std::move(other.lane_);
    return *this;
}

void ClientUcx::Lease::give_back() {
    if (lane_ != nullptr) {
        owner_->give_back(std::move(lane_));
    }
}

Result<std::shared_ptr<UcxContext>> ClientUcx::context() {
    if (context_ == nullptr && status_.ok()) {
        Result<std::shared_ptr<UcxContext>> opened = UcxContext::open(options_);
        if (opened.ok()) {
            context_ = std::move(*opened);
        } else {
            status_ = opened.status();
        }
    }
    if (!status_.ok()) {
        return status_;
    }
    return context_;
}

ClientUcx::Lease ClientUcx::take() {
    if (!wanted()) {
        return {};
    }
    const MutexLock lock(mutex_);
    if (!idle_.empty()) {
        std::unique_ptr<UcxLane> lane = std::move(idle_.back());
        idle_.pop_back();
        ++busy_;
        lane->reset_bounce();
        return {this, std::move(lane)};
    }
    const Result<std::shared_ptr<UcxContext>> opened = context();
    if (busy_ >= kMostLanes || !opened.ok()) {
        return {};
    }
    Result<std::unique_ptr<UcxLane>> lane = UcxLane::create(*opened);
    if (!lane.ok()) {
        status_ = lane.status();
        return {};
    }
    ++busy_;
    return {this, std::move(*lane)};
}

void ClientUcx::give_back(std::unique_ptr<UcxLane> lane) {
    const MutexLock lock(mutex_);
    --busy_;
    if (!lane->spoiled()) {
        idle_.push_back(std::move(lane));
        return;
    }
    (void)lane.release();
    if (++spoiled_ == kMostSpoiled) {
        status_ = {Code::kUnavailable, "connections by UCX do not come about"};
    }
}

Status ClientUcx::status() const {
    const MutexLock lock(mutex_);
    return status_;
}

// ---- registered memory -----------------------------------------------------------------------

Status ClientUcx::register_memory(void* data, size_t bytes, ucp::MemoryType type) {
    const auto begin = reinterpret_cast<uintptr_t>(data);
    if (data == nullptr || bytes == 0 || bytes > UINTPTR_MAX - begin) {
        return {Code::kInvalidArgument, "no memory to register"};
    }
    const MutexLock lock(mutex_);
    const auto next = registered_.upper_bound(begin);
    const auto same = registered_.find(begin);
    if (same != registered_.end() && same->second.bytes == bytes) {
        ++same->second.count;
        return {};
    }
    const bool overlaps_next = next != registered_.end() && next->first < begin + bytes;
    const bool overlaps_before = next != registered_.begin() &&
                                 std::prev(next)->first + std::prev(next)->second.bytes > begin;
    if (overlaps_next || overlaps_before) {
        return {Code::kInvalidArgument, "other registered memory overlaps this in part"};
    }
    Registration made{bytes, 1, {}};
    if (wanted()) {
        const Result<std::shared_ptr<UcxContext>> opened = context();
        const bool used = opened.ok() && (*opened)->moves(type);
        for (size_t at = 0; used && at < bytes; at += kRegisteredSlice) {
            Result<std::unique_ptr<UcxMemory>> slice = (*opened)->register_memory(
                static_cast<uint8_t*>(data) + at, std::min(kRegisteredSlice, bytes - at), type);
            if (!slice.ok()) {
                return slice.status();
            }
            made.slices.push_back(std::move(*slice));
        }
    }
    registered_[begin] = std::move(made);
    return {};
}

bool ClientUcx::forget_memory(void* data) {
    Registration over;  // unregistered without the mutex, which takes its time
    {
        const MutexLock lock(mutex_);
        const auto at = registered_.find(reinterpret_cast<uintptr_t>(data));
        if (at == registered_.end()) {
            return false;
        }
        if (--at->second.count == 0) {
            over = std::move(at->second);
            registered_.erase(at);
        }
    }
    return true;
}

std::shared_ptr<const UcxMemory> ClientUcx::find(const void* data, size_t bytes) const {
    const auto begin = reinterpret_cast<uintptr_t>(data);
    const MutexLock lock(mutex_);
    const auto next = registered_.upper_bound(begin);
    if (next == registered_.begin()) {
        return nullptr;
    }
    const auto& [first, registration] = *std::prev(next);
    const size_t slice = (begin - first) / kRegisteredSlice;
    if (slice >= registration.slices.size() || !registration.slices[slice]->holds(data, bytes)) {
        return nullptr;
    }
    return registration.slices[slice];
}

std::shared_ptr<UcxContext> ClientUcx::opened() const {
    const MutexLock lock(mutex_);
    return context_;
}

std::shared_ptr<const UcxMemory> ClientUcx::register_briefly(const void* data, size_t bytes,
                                                             ucp::MemoryType type) {
    const std::shared_ptr<UcxContext> context = opened();
    if (context == nullptr) {
        return nullptr;
    }
    Result<std::unique_ptr<UcxMemory>> memory =
        context->register_memory(const_cast<void*>(data), bytes, type);
    return memory.ok() ? std::shared_ptr<const UcxMemory>(std::move(*memory)) : nullptr;
}

bool ClientUcx::may_reach(const iovec& device_memory) const {
    return find(device_memory.iov_base, device_memory.iov_len) != nullptr ||
           (device_memory.iov_len >= UcxLane::kRegisterFrom && moves_cuda());
}

bool ClientUcx::moves_cuda() const {
    const std::shared_ptr<UcxContext> context = opened();
    return context != nullptr && context->moves(ucp::MemoryType::kCuda);
}

size_t ClientUcx::registered_bytes() const {
    const MutexLock lock(mutex_);
    size_t sum = 0;
    for (const auto& [begin, registration] : registered_) {
        sum += registration.bytes;
    }
    return sum;
}

}  // namespace kvstore
