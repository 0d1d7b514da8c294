// The pthread functions that std::thread, std::mutex, std::condition_variable and RwLock are made
// of, on top of the runtime's fibers. Outside a run everything works as long as nobody waits.
//
// The executable's definitions win over the C library's, so the product's code and libstdc++ come
// here without being changed. State lies in the fields that the C library's own objects have for
// it; all-zero is unlocked in both.
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "runtime.h"

using kvstore::sim::Fiber;
using kvstore::sim::kNever;
using kvstore::sim::Runtime;

namespace {

constexpr int kOutsideId = 0x7fffffff;  // the scheduler's stack, or no run at all

Runtime* fiber_runtime() {
    Runtime* const runtime = Runtime::active();
    return runtime != nullptr && runtime->current() != nullptr ? runtime : nullptr;
}

int self_id(const Runtime* runtime) {
    return runtime == nullptr ? kOutsideId : static_cast<int>(runtime->current()->id);
}

[[noreturn]] void stuck(const char* what) {
    if (Runtime* const runtime = Runtime::active()) {
        runtime->fail("harness", what);
    }
    fprintf(stderr, "sim: %s\n", what);
    abort();
}

template <class Function>
Function real(Function, const char* name) {
    return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

bool is_recursive(const pthread_mutex_t* mutex) {
    return (mutex->__data.__kind & 3) == PTHREAD_MUTEX_RECURSIVE_NP;
}

// `nusers` says that somebody waits for the mutex.
int lock(pthread_mutex_t* mutex, bool wait) {
    auto& data = mutex->__data;
    Runtime* const runtime = fiber_runtime();
    const int self = self_id(runtime);
    while (data.__lock != 0) {
        if (data.__owner == self) {
            if (is_recursive(mutex)) {
                ++data.__count;
                return 0;
            }
            stuck("a thread locks a mutex that it holds");
        }
        if (!wait) {
            return EBUSY;
        }
        if (runtime == nullptr) {
            stuck("the scheduler's stack waits for a mutex");
        }
        data.__nusers = 1;
        runtime->block(mutex);
    }
    data.__lock = 1;
    data.__owner = self;
    data.__count = 1;
    return 0;
}

int unlock(pthread_mutex_t* mutex) {
    auto& data = mutex->__data;
    if (is_recursive(mutex) && --data.__count != 0) {
        return 0;
    }
    data.__lock = 0;
    data.__owner = 0;
    if (data.__nusers != 0) {
        data.__nusers = 0;
        Runtime::active()->wake(mutex);
    }
    return 0;
}

uint64_t to_ns(const timespec& time) {
    return static_cast<uint64_t>(time.tv_sec) * kvstore::sim::kSecond +
           static_cast<uint64_t>(time.tv_nsec);
}

uint64_t clock_ns(clockid_t clock) {
    timespec now{};
    clock_gettime(clock, &now);
    return to_ns(now);
}

int wait_on(pthread_cond_t* condition, pthread_mutex_t* mutex, uint64_t until_ns) {
    Runtime* const runtime = fiber_runtime();
    if (runtime == nullptr) {
        stuck("a wait outside of the simulated threads");
    }
    unlock(mutex);
    runtime->block(condition, until_ns);
    const bool late = runtime->now_ns() >= until_ns;
    lock(mutex, true);
    return late ? ETIMEDOUT : 0;
}

int timed_wait(pthread_cond_t* condition, pthread_mutex_t* mutex, clockid_t clock,
               const timespec* until) {
    Runtime* const runtime = fiber_runtime();
    if (runtime == nullptr) {
        stuck("a wait outside of the simulated threads");
    }
    const uint64_t now = clock_ns(clock);
    const uint64_t end = to_ns(*until);
    return wait_on(condition, mutex, runtime->now_ns() + (end > now ? end - now : 0));
}

int notify(pthread_cond_t* condition, size_t count) {
    if (Runtime* const runtime = Runtime::active()) {
        runtime->wake(condition, count);
    }
    return 0;
}

// The writer's id in `cur_writer`, the number of readers in `readers`, a waiter's mark in
// `writers_futex`.
int lock_shared(pthread_rwlock_t* lock_word, bool exclusive) {
    auto& data = lock_word->__data;
    Runtime* const runtime = fiber_runtime();
    while (data.__cur_writer != 0 || (exclusive && data.__readers != 0)) {
        if (runtime == nullptr) {
            stuck("the scheduler's stack waits for a lock");
        }
        data.__writers_futex = 1;
        runtime->block(lock_word);
    }
    if (exclusive) {
        data.__cur_writer = self_id(runtime);
    } else {
        ++data.__readers;
    }
    return 0;
}

}  // namespace

extern "C" {

int pthread_mutex_lock(pthread_mutex_t* mutex) noexcept {
    if (Runtime* const runtime = fiber_runtime()) {
        runtime->maybe_preempt();
    }
    return lock(mutex, true);
}
int pthread_mutex_trylock(pthread_mutex_t* mutex) noexcept { return lock(mutex, false); }
int pthread_mutex_unlock(pthread_mutex_t* mutex) noexcept { return unlock(mutex); }

int pthread_rwlock_rdlock(pthread_rwlock_t* lock_word) noexcept {
    if (Runtime* const runtime = fiber_runtime()) {
        runtime->maybe_preempt();
    }
    return lock_shared(lock_word, false);
}
int pthread_rwlock_wrlock(pthread_rwlock_t* lock_word) noexcept {
    if (Runtime* const runtime = fiber_runtime()) {
        runtime->maybe_preempt();
    }
    return lock_shared(lock_word, true);
}
int pthread_rwlock_unlock(pthread_rwlock_t* lock_word) noexcept {
    auto& data = lock_word->__data;
    if (data.__cur_writer != 0) {
        data.__cur_writer = 0;
    } else {
        --data.__readers;
    }
    if (data.__readers == 0 && data.__writers_futex != 0) {
        data.__writers_futex = 0;
        Runtime::active()->wake(lock_word);
    }
    return 0;
}

int pthread_cond_wait(pthread_cond_t* condition, pthread_mutex_t* mutex) {
    return wait_on(condition, mutex, kNever);
}
int pthread_cond_timedwait(pthread_cond_t* condition, pthread_mutex_t* mutex,
                           const timespec* until) {
    return timed_wait(condition, mutex, CLOCK_REALTIME, until);
}
int pthread_cond_clockwait(pthread_cond_t* condition, pthread_mutex_t* mutex, clockid_t clock,
                           const timespec* until) {
    return timed_wait(condition, mutex, clock, until);
}
int pthread_cond_signal(pthread_cond_t* condition) noexcept { return notify(condition, 1); }
int pthread_cond_broadcast(pthread_cond_t* condition) noexcept {
    return notify(condition, SIZE_MAX);
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*),
                   void* argument) noexcept {
    Runtime* const runtime = fiber_runtime();
    if (runtime == nullptr) {
        return real(&pthread_create, "pthread_create")(thread, attributes, start, argument);
    }
    Fiber* const fiber =
        runtime->spawn(runtime->process(), "thread", [start, argument] { (void)start(argument); });
    *thread = reinterpret_cast<pthread_t>(fiber);
    return 0;
}
int pthread_join(pthread_t thread, void** result) {
    Runtime* const runtime = fiber_runtime();
    if (runtime == nullptr) {
        return real(&pthread_join, "pthread_join")(thread, result);
    }
    auto* const fiber = reinterpret_cast<Fiber*>(thread);
    while (!fiber->finished) {
        runtime->block(fiber);
    }
    return 0;
}
int pthread_detach(pthread_t thread) noexcept {
    return fiber_runtime() != nullptr ? 0 : real(&pthread_detach, "pthread_detach")(thread);
}
pthread_t pthread_self() noexcept {
    if (Runtime* const runtime = fiber_runtime()) {
        return reinterpret_cast<pthread_t>(runtime->current());
    }
    static const auto real_self = real(&pthread_self, "pthread_self");
    return real_self();
}
int pthread_setname_np(pthread_t thread, const char* name) noexcept {
    if (Runtime* const runtime = fiber_runtime()) {
        reinterpret_cast<Fiber*>(thread)->name = name;
        return 0;
    }
    return real(&pthread_setname_np, "pthread_setname_np")(thread, name);
}
int pthread_sigmask(int how, const sigset_t* set, sigset_t* old) noexcept {
    return fiber_runtime() != nullptr ? 0
                                      : real(&pthread_sigmask, "pthread_sigmask")(how, set, old);
}

int sched_yield() noexcept {
    if (Runtime* const runtime = fiber_runtime()) {
        runtime->yield();
        return 0;
    }
    return static_cast<int>(syscall(SYS_sched_yield));
}

}  // extern "C"
