// For the threads that the library starts in somebody's program: what is sent to the process is for
// the program's own threads.
#pragma once

#include <pthread.h>
#include <signal.h>

namespace kvstore {

// While one lives, threads are started that take no signals but those of their own faults, which
// nobody else can take (bus_guard.h).
class SignalsBlocked {
  public:
    SignalsBlocked() {
        sigset_t sent;
        sigfillset(&sent);
        for (const int fault : {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP}) {
            sigdelset(&sent, fault);
        }
        pthread_sigmask(SIG_SETMASK, &sent, &before_);
    }
    SignalsBlocked(const SignalsBlocked&) = delete;
    SignalsBlocked& operator=(const SignalsBlocked&) = delete;
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

  private:
    sigset_t before_;
};

}  // namespace kvstore
