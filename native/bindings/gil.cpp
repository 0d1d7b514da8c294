// Coming back to Python: when the interpreter has ended, and when a signal has arrived.
#include "gil.h"

#include <unistd.h>

#include <csignal>

#include "base/fork_guard.h"

namespace nb = nanobind;

namespace kvstore {
namespace {

// For a daemon thread that comes back while the interpreter ends: before 3.14 Python calls
// pthread_exit(), whose unwinding must not reach nanobind's frames or a destructor's end.
[[noreturn]] void stay() {
    for (;;) {
        (void)pause();
    }
}

// Whether a signal may run more than Python's own handler, which only raises KeyboardInterrupt.
bool has_own_handlers() {
    const nb::module_ signals = nb::module_::import_("_signal");
    const nb::object get = signals.attr("getsignal");
    const nb::object raises = signals.attr("default_int_handler");
    for (int number = 1; number < SIGRTMIN; ++number) {
        const nb::object handler = get(number);
        if (!handler.is_none() && !handler.is(raises) && !PyLong_Check(handler.ptr())) {
            return true;
        }
    }
    return false;
}

}  // namespace

GilReleased::~GilReleased() {
    try {
        PyEval_RestoreThread(state_);
    } catch (...) {
        stay();
    }
}

GilHeld::GilHeld() {
    try {
        state_ = PyGILState_Ensure();
    } catch (...) {
        stay();
    }
}

bool handles_signals() {
    struct Known {
        uint64_t forks = UINT64_MAX;
        bool is_main = false;
    };
    [[gnu::tls_model("initial-exec")]] thread_local Known known;
    if (const uint64_t forks = fork_generation(); known.forks != forks) {
        known = {forks, gettid() == getpid()};  // a fork makes its thread the main one
    }
    return known.is_main;
}

bool SignalCheck::asked(bool is_locked) {
    const GilHeld held;
    try {
        if (is_locked && has_own_handlers()) {
            return false;  // it might use the store, which waits for the locks that we hold
        }
        if (PyErr_CheckSignals() == 0) {
            return false;
        }
        throw nb::python_error();
    } catch (nb::python_error& error) {
        raised_.emplace(std::move(error));
        return true;
    }
}

void SignalCheck::raise() {
    end();
    if (raised_) {
        raised_->restore();
        throw nb::python_error();
    }
}

}  // namespace kvstore
