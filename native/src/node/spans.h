// Spans of requests whose clients trace them: begun and ended here, exported by Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/mutex.h"
#include "base/trace_context.h"

namespace kvstore {

enum class SpanKind : uint8_t { kGet = 0, kNvmeRead = 1, kPut = 2, kCommit = 3 };

struct FinishedSpan {
    TraceContext parent{};  // trace, and the span above
    SpanId id{};
    SpanKind kind = SpanKind::kGet;
    uint64_t began_us = 0;  // of the calendar
    uint64_t lasted_us = 0;
    uint64_t keys = 0;
    uint64_t found = 0;  // or published
    uint64_t bytes = 0;
};

// Finished spans until they are taken. Clients decide what is traced, so it is bounded: what does
// not fit is counted and dropped, and nothing waits.
class SpanRing {
  public:
    static constexpr size_t kMost = 2048;

    void push(const FinishedSpan& span) KV_EXCLUDES(mutex_);
    std::vector<FinishedSpan> take() KV_EXCLUDES(mutex_);
    uint64_t dropped() const KV_EXCLUDES(mutex_);

  private:
    mutable Mutex mutex_;
    std::vector<FinishedSpan> spans_ KV_GUARDED_BY(mutex_);
    uint64_t dropped_ KV_GUARDED_BY(mutex_) = 0;
};

// A span in progress. Used by one thread at a time.
class OpenSpan {
  public:
    // Null where `ring` is null (the node exports no spans) or `context` is of no trace: an
    // untraced request allocates nothing.
    static std::unique_ptr<OpenSpan> begin(const std::shared_ptr<SpanRing>& ring, SpanKind kind,
                                           const TraceContext& context, uint64_t keys);
    std::unique_ptr<OpenSpan> child(SpanKind kind, uint64_t keys) const;
    void end(uint64_t found, uint64_t bytes);

  private:
    OpenSpan(std::shared_ptr<SpanRing> ring, SpanKind kind, const TraceContext& context,
             uint64_t keys);

    const std::shared_ptr<SpanRing> ring_;  // outlives the node's service, as replies may
    FinishedSpan span_;
    const uint64_t began_at_us_;  // of the clock that does not jump
};

}  // namespace kvstore
