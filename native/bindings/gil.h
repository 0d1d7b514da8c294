// Scopes with and without the GIL, and calls that Ctrl-C ends.
#pragma once

#include <nanobind/nanobind.h>

#include <optional>

#include "base/interrupt.h"

namespace kvstore {

// Without the GIL for a scope. Once the interpreter ends, Python would end this thread as it comes
// back, which cannot pass through C++: a daemon thread stays here until the process ends.
class GilReleased {
  public:
    GilReleased() : state_(PyEval_SaveThread()) {}
    ~GilReleased();
    GilReleased(const GilReleased&) = delete;
    GilReleased& operator=(const GilReleased&) = delete;

  private:
    PyThreadState* const state_;
};

// With the GIL for a scope, in any thread; it too stays here once the interpreter ends.
class GilHeld {
  public:
    GilHeld();
    ~GilHeld() { PyGILState_Release(state_); }
    GilHeld(const GilHeld&) = delete;
    GilHeld& operator=(const GilHeld&) = delete;

  private:
    PyGILState_STATE state_;
};

template <class F>
auto without_gil(F f) {
    const GilReleased released;
    return f();
}

// Whether Python runs signal handlers in this thread.
bool handles_signals();

// Waits ask it whether a handler has raised. What it raised is kept until raise().
class SignalCheck final : public Interruptible {
  public:
    void raise();

  private:
    bool asked(bool is_locked) override;
    std::optional<nanobind::python_error> raised_;
};

// Calls `f` without the GIL. In the thread that handles signals, one whose handler raises ends the
// waits of `f`; its result is then dropped, and the exception raised.
template <class F>
auto interruptible(F f) {
    if (!handles_signals()) {
        return without_gil(f);
    }
    SignalCheck check;
    auto result = without_gil(f);
    check.raise();
    return result;
}

}  // namespace kvstore
