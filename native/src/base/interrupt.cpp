// What this thread's waits ask, and whether they hold locks.
#include "base/interrupt.h"

#include <algorithm>

namespace kvstore {
namespace {

// A signal also ends poll(2) itself. The slice is for one that came just before.
constexpr int kSliceMs = 100;

// In the static part of thread-local storage, also of a library that was loaded later: every call
// of a main thread touches it.
[[gnu::tls_model("initial-exec")]] thread_local Interruptible* current = nullptr;
[[gnu::tls_model("initial-exec")]] thread_local int locked_depth = 0;

}  // namespace

Interruptible::Interruptible() : outer_(current) { current = this; }

Interruptible::~Interruptible() { end(); }

void Interruptible::end() {
    if (is_current_) {
        current = outer_;
        is_current_ = false;
    }
}

int wait_slice_ms(int left_ms) {
    if (current == nullptr) {
        return left_ms;
    }
    if (is_interrupted()) {
        return 0;
    }
    return left_ms < 0 ? kSliceMs : std::min(left_ms, kSliceMs);
}

bool check_interrupt() {
    Interruptible* const call = current;
    if (call == nullptr) {
        return false;
    }
    call->interrupted_ = call->interrupted_ || call->asked(locked_depth > 0);
    return call->interrupted_;
}

bool is_interrupted() { return current != nullptr && current->interrupted_; }

Uninterrupted::Uninterrupted() : outer_(current) { current = nullptr; }

Uninterrupted::~Uninterrupted() { current = outer_; }

WaitsLocked::WaitsLocked() { ++locked_depth; }

WaitsLocked::~WaitsLocked() { --locked_depth; }

}  // namespace kvstore
