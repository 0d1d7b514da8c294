// Events lie packed in a byte ring: u32 bytes of the event, a fixed head, then the three strings.
#include "directory/watch_ring.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <tuple>

#include "base/clock.h"
#include "base/mutex.h"

namespace kvstore {
namespace {

constexpr uint64_t kMarkEvery = 256;

struct Head {
    uint32_t event_bytes;  // head and strings
    WatchKind kind;
    uint8_t tenant_bytes;  // names are at most 255 bytes
    uint8_t ns_bytes;
    uint8_t unused;
    uint16_t key_bytes;
    NodeNumber node;
    uint32_t unused_too;
    Version version;
    uint64_t size;
};
static_assert(sizeof(Head) == 32 && limits::kMaxNameBytes <= UINT8_MAX);

void copy_in(std::vector<uint8_t>& ring, size_t& at, const void* data, size_t size) {
    if (size == 0) {
        return;
    }
    const size_t first = std::min(size, ring.size() - at);
    std::memcpy(ring.data() + at, data, first);
    std::memcpy(ring.data(), static_cast<const uint8_t*>(data) + first, size - first);
    at = (at + size) % ring.size();
}

void copy_out(const std::vector<uint8_t>& ring, size_t& at, void* data, size_t size) {
    if (size == 0) {
        return;
    }
    const size_t first = std::min(size, ring.size() - at);
    std::memcpy(data, ring.data() + at, first);
    std::memcpy(static_cast<uint8_t*>(data) + first, ring.data(), size - first);
    at = (at + size) % ring.size();
}

}  // namespace

WatchRing::WatchRing(size_t capacity_bytes)
    : capacity_bytes_(std::max<size_t>(capacity_bytes, 8192)) {}

void WatchRing::record(WatchKind kind, std::string_view tenant, std::string_view ns,
                       std::string_view key, Version version, uint64_t size, NodeNumber node) {
    if (!active()) {
        return;
    }
    const MutexLock lock(mutex_);
    if (ring_.empty()) {
        return;  // the last watcher left just now
    }
    Head head{};
    head.event_bytes = static_cast<uint32_t>(sizeof(Head) + tenant.size() + ns.size() + key.size());
    head.kind = kind;
    head.tenant_bytes = static_cast<uint8_t>(tenant.size());
    head.ns_bytes = static_cast<uint8_t>(ns.size());
    head.key_bytes = static_cast<uint16_t>(key.size());
    head.node = node;
    head.version = version;
    head.size = size;
    while (used_ + head.event_bytes > ring_.size()) {
        drop_oldest();
    }
    if (next_ % kMarkEvery == 0) {
        marks_.emplace_back(next_, head_);
    }
    copy_in(ring_, head_, &head, sizeof(head));
    for (const std::string_view text : {tenant, ns, key}) {
        copy_in(ring_, head_, text.data(), text.size());
    }
    used_ += head.event_bytes;
    ++next_;
    if (waiting_ != 0) {
        changed_.notify_all();
    }
}

void WatchRing::drop_oldest() {
    uint32_t bytes = 0;
    size_t at = tail_;
    copy_out(ring_, at, &bytes, sizeof(bytes));
    tail_ = (tail_ + bytes) % ring_.size();
    used_ -= bytes;
    ++first_;
    while (!marks_.empty() && marks_.front().first < first_) {
        marks_.pop_front();
    }
}

WatchRing::Batch WatchRing::poll(uint64_t cursor, size_t max, uint64_t now_ms) {
    const MutexLock lock(mutex_);
    last_poll_ms_ = now_ms;
    if (ring_.empty()) {
        ring_.resize(capacity_bytes_);
        active_.store(true);
    }
    Batch batch;
    // Cursor n: the events up to number n - 1 are known.
    if (cursor < first_ || cursor > next_) {
        batch.resync = true;
        batch.next_cursor = next_;
        return batch;
    }
    size_t at = tail_;
    uint64_t number = first_;
    const auto after =
        std::upper_bound(marks_.begin(), marks_.end(), cursor,
                         [](uint64_t wanted, const std::pair<uint64_t, size_t>& mark) {
                             return wanted < mark.first;
                         });
    if (after != marks_.begin()) {
        std::tie(number, at) = *std::prev(after);
    }
    for (; number < next_ && batch.events.size() < max; ++number) {
        Head head;
        size_t next = at;
        copy_out(ring_, next, &head, sizeof(head));
        if (number >= cursor) {
            WatchEvent& event = batch.events.emplace_back();
            event.number = number;
            event.kind = head.kind;
            event.node = head.node;
            event.version = head.version;
            event.size = head.size;
            event.tenant.resize(head.tenant_bytes);
            event.ns.resize(head.ns_bytes);
            event.key.resize(head.key_bytes);
            for (std::string* text : {&event.tenant, &event.ns, &event.key}) {
                copy_out(ring_, next, text->data(), text->size());
            }
        }
        at = (at + head.event_bytes) % ring_.size();
    }
    batch.next_cursor = std::max(number, cursor);
    return batch;
}

bool WatchRing::wait(uint64_t cursor, uint32_t timeout_ms) {
    const MutexLock lock(mutex_);
    const auto changed = [&]() KV_REQUIRES(mutex_) { return next_ > cursor || interrupted_; };
    last_poll_ms_ = std::max(last_poll_ms_, boottime_ms());
    ++waiting_;
    (void)changed_.wait_for(mutex_, std::chrono::milliseconds(timeout_ms), changed);
    --waiting_;
    last_poll_ms_ = std::max(last_poll_ms_, boottime_ms());
    return next_ > cursor;
}

void WatchRing::interrupt() {
    const MutexLock lock(mutex_);
    interrupted_ = true;
    changed_.notify_all();
}

void WatchRing::expire(uint64_t now_ms) {
    if (!active()) {
        return;
    }
    const MutexLock lock(mutex_);
    if (now_ms > last_poll_ms_ + kIdleMs) {
        active_.store(false);
        ring_ = {};
        marks_.clear();
        head_ = tail_ = used_ = 0;
        first_ = ++next_;  // an old cursor must not look current when recording starts again
    }
}

}  // namespace kvstore
