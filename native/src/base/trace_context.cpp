// The thread's trace.
#include "base/trace_context.h"

namespace kvstore {
namespace {

thread_local TraceContext trace_of_thread{};

}  // namespace

const TraceContext& current_trace() { return trace_of_thread; }

void set_current_trace(const TraceContext& context) { trace_of_thread = context; }

}  // namespace kvstore
