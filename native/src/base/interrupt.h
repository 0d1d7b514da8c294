// Ends the waits of a call before their time: for Ctrl-C while Python's main thread waits here.
//
// A call that may be interrupted has an Interruptible on the stack of its thread. Waits go in
// slices and ask it in between. Once it has said yes, the call's waits fail as if their deadline
// had passed, nobody is blamed for that, and the call soon returns. Calls without one wait as ever.
#pragma once

namespace kvstore {

class Interruptible {
  public:
    Interruptible();  // from here on, this thread's waits ask it
    virtual ~Interruptible();
    Interruptible(const Interruptible&) = delete;
    Interruptible& operator=(const Interruptible&) = delete;

    // Waits no longer ask it; they wait as ever.
    void end();

  protected:
    // Whether the call is to end. `is_locked`: the caller holds locks, so that nothing may run now
    // that calls back into what waits.
    virtual bool asked(bool is_locked) = 0;

  private:
    friend bool check_interrupt();
    friend bool is_interrupted();

    Interruptible* const outer_;
    bool interrupted_ = false;
    bool is_current_ = true;
};

// How long a wait may take before it asks: `left_ms`, as poll(2) takes it, or a slice of that.
int wait_slice_ms(int left_ms);
// To be called after a slice, or EINTR: whether to stop waiting.
bool check_interrupt();
// Whether this thread's call was told to end; asks nobody.
bool is_interrupted();

// Lies on the stack around short waits whose failure would cost others more than they take.
class Uninterrupted {
  public:
    Uninterrupted();
    ~Uninterrupted();
    Uninterrupted(const Uninterrupted&) = delete;
    Uninterrupted& operator=(const Uninterrupted&) = delete;

  private:
    Interruptible* const outer_;
};

// Lies on the stack while this thread waits with locks held.
class WaitsLocked {
  public:
    WaitsLocked();
    ~WaitsLocked();
    WaitsLocked(const WaitsLocked&) = delete;
    WaitsLocked& operator=(const WaitsLocked&) = delete;
};

}  // namespace kvstore
