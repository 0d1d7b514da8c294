// Spans: their ids, their times, and the ring.
#include "node/spans.h"

#include <algorithm>
#include <span>
#include <utility>

#include "base/clock.h"
#include "base/hmac.h"

namespace kvstore {

void SpanRing::push(const FinishedSpan& span) {
    const MutexLock lock(mutex_);
    if (spans_.size() >= kMost) {
        ++dropped_;
        return;
    }
    spans_.push_back(span);
}

std::vector<FinishedSpan> SpanRing::take() {
    const MutexLock lock(mutex_);
    return std::exchange(spans_, {});
}

uint64_t SpanRing::dropped() const {
    const MutexLock lock(mutex_);
    return dropped_;
}

OpenSpan::OpenSpan(std::shared_ptr<SpanRing> ring, SpanKind kind, const TraceContext& context,
                   uint64_t keys)
    : ring_(std::move(ring)), began_at_us_(boottime_us()) {
    span_.parent = context;
    random_bytes(span_.id);
    span_.kind = kind;
    span_.began_us = wall_us();
    span_.keys = keys;
}

std::unique_ptr<OpenSpan> OpenSpan::begin(const std::shared_ptr<SpanRing>& ring, SpanKind kind,
                                          const TraceContext& context, uint64_t keys) {
    if (ring == nullptr || context == TraceContext{}) {
        return nullptr;
    }
    // Half a context is none: a collector may refuse every span that comes along with one.
    const std::span parts(context);
    const auto is_zero = [](std::span<const uint8_t> part) {
        return std::ranges::all_of(part, [](uint8_t byte) { return byte == 0; });
    };
    if (is_zero(parts.first(kTraceIdBytes)) || is_zero(parts.subspan(kTraceIdBytes))) {
        return nullptr;
    }
    return std::unique_ptr<OpenSpan>(new OpenSpan(ring, kind, context, keys));
}

std::unique_ptr<OpenSpan> OpenSpan::child(SpanKind kind, uint64_t keys) const {
    TraceContext context = span_.parent;
    std::copy(span_.id.begin(), span_.id.end(), context.begin() + kTraceIdBytes);
    return begin(ring_, kind, context, keys);
}

void OpenSpan::end(uint64_t found, uint64_t bytes) {
    span_.lasted_us = boottime_us() - began_at_us_;
    span_.found = found;
    span_.bytes = bytes;
    ring_->push(span_);
}

}  // namespace kvstore
