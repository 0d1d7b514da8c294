// Which sampled trace the call of this thread belongs to, as its requests tell nodes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvstore {

inline constexpr size_t kTraceIdBytes = 16;
using SpanId = std::array<uint8_t, 8>;
// Trace id (16 bytes) and the span's id, as of W3C's traceparent; all zero: not traced.
using TraceContext = std::array<uint8_t, kTraceIdBytes + sizeof(SpanId)>;

// Of the calling thread. Thread-local: a call does its own I/O, so nothing has to be handed through
// layers that do not care, and an untraced call costs a copy of zeros for each request.
const TraceContext& current_trace();
void set_current_trace(const TraceContext& context);

}  // namespace kvstore
