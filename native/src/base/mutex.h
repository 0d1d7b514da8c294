// Mutexes that clang's thread-safety analysis understands: `make lint` proves that what is
// KV_GUARDED_BY a mutex is only touched with it held. Other compilers see plain mutexes.
#pragma once

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>

#if defined(__clang__)
#define KV_THREAD_ANNOTATION(x) __attribute__((x))
#else
#define KV_THREAD_ANNOTATION(x)
#endif

// On data: which mutex guards it (PT: guards what it points to).
#define KV_GUARDED_BY(mutex) KV_THREAD_ANNOTATION(guarded_by(mutex))
#define KV_PT_GUARDED_BY(mutex) KV_THREAD_ANNOTATION(pt_guarded_by(mutex))
// On a mutex: the order in which mutexes are taken.
#define KV_ACQUIRED_AFTER(...) KV_THREAD_ANNOTATION(acquired_after(__VA_ARGS__))
#define KV_ACQUIRED_BEFORE(...) KV_THREAD_ANNOTATION(acquired_before(__VA_ARGS__))
// On functions: the caller holds the mutex, or must not hold it.
#define KV_REQUIRES(...) KV_THREAD_ANNOTATION(requires_capability(__VA_ARGS__))
#define KV_REQUIRES_SHARED(...) KV_THREAD_ANNOTATION(requires_shared_capability(__VA_ARGS__))
#define KV_EXCLUDES(...) KV_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))
#define KV_RETURN_CAPABILITY(mutex) KV_THREAD_ANNOTATION(lock_returned(mutex))
// On functions that take or release it.
#define KV_ACQUIRE(...) KV_THREAD_ANNOTATION(acquire_capability(__VA_ARGS__))
#define KV_ACQUIRE_SHARED(...) KV_THREAD_ANNOTATION(acquire_shared_capability(__VA_ARGS__))
#define KV_RELEASE(...) KV_THREAD_ANNOTATION(release_capability(__VA_ARGS__))
#define KV_RELEASE_SHARED(...) KV_THREAD_ANNOTATION(release_shared_capability(__VA_ARGS__))
#define KV_RELEASE_GENERIC(...) KV_THREAD_ANNOTATION(release_generic_capability(__VA_ARGS__))
#define KV_TRY_ACQUIRE(...) KV_THREAD_ANNOTATION(try_acquire_capability(__VA_ARGS__))
// On functions whose locking the analysis cannot follow; a comment there says why it is right.
#define KV_NO_THREAD_SAFETY_ANALYSIS KV_THREAD_ANNOTATION(no_thread_safety_analysis)

namespace kvstore {

class KV_THREAD_ANNOTATION(capability("mutex")) Mutex {
  public:
    Mutex() = default;
    Mutex(const Mutex&) = delete;
    Mutex& operator=(const Mutex&) = delete;

    void lock() KV_ACQUIRE() { mutex_.lock(); }
    void unlock() KV_RELEASE() { mutex_.unlock(); }
    bool try_lock() KV_TRY_ACQUIRE(true) { return mutex_.try_lock(); }
    // Tells the analysis that the caller holds it, where that cannot be seen: in callbacks.
    void assert_held() const KV_THREAD_ANNOTATION(assert_capability(this)) {}

  private:
    friend class CondVar;
    std::mutex mutex_;
};

// Holds a mutex for a scope. May be unlocked and locked again within it.
class KV_THREAD_ANNOTATION(scoped_lockable) MutexLock {
  public:
    explicit MutexLock(Mutex& mutex) KV_ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
    ~MutexLock() KV_RELEASE() {
        if (is_held_) {
            mutex_.unlock();
        }
    }
    MutexLock(const MutexLock&) = delete;
    MutexLock& operator=(const MutexLock&) = delete;

    void lock() KV_ACQUIRE() {
        mutex_.lock();
        is_held_ = true;
    }
    void unlock() KV_RELEASE() {
        is_held_ = false;
        mutex_.unlock();
    }

  private:
    Mutex& mutex_;
    bool is_held_ = true;
};

// A condition variable for Mutex. A predicate that reads guarded data says so: a lambda
// `[&]() KV_REQUIRES(mutex_) { return …; }`.
class CondVar {
  public:
    void notify_one() { condition_.notify_one(); }
    void notify_all() { condition_.notify_all(); }

    void wait(Mutex& mutex) KV_REQUIRES(mutex) {
        Held held(mutex);
        condition_.wait(held.lock);
    }
    template <class Predicate>
    void wait(Mutex& mutex, Predicate predicate) KV_REQUIRES(mutex) {
        Held held(mutex);
        condition_.wait(held.lock, std::move(predicate));
    }
    template <class Rep, class Period>
    std::cv_status wait_for(Mutex& mutex, std::chrono::duration<Rep, Period> time)
        KV_REQUIRES(mutex) {
        Held held(mutex);
        return condition_.wait_for(held.lock, time);
    }
    // What the predicate says at the end.
    template <class Rep, class Period, class Predicate>
    bool wait_for(Mutex& mutex, std::chrono::duration<Rep, Period> time, Predicate predicate)
        KV_REQUIRES(mutex) {
        Held held(mutex);
        return condition_.wait_for(held.lock, time, std::move(predicate));
    }

  private:
    // Lends the caller's hold to the standard library for the time of a wait.
    struct Held {
        explicit Held(Mutex& mutex) : lock(mutex.mutex_, std::adopt_lock) {}
        ~Held() { lock.release(); }
        std::unique_lock<std::mutex> lock;
    };
    std::condition_variable condition_;
};

// A readers-writer lock in which a waiting writer stops new readers: std::shared_mutex lets a
// steady stream of readers starve its writers. Not recursive in either way.
class KV_THREAD_ANNOTATION(capability("mutex")) RwLock {
  public:
    RwLock() {
        pthread_rwlockattr_t attributes;
        pthread_rwlockattr_init(&attributes);
        pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
        pthread_rwlock_init(&lock_, &attributes);
        pthread_rwlockattr_destroy(&attributes);
    }
    ~RwLock() { pthread_rwlock_destroy(&lock_); }
    RwLock(const RwLock&) = delete;
    RwLock& operator=(const RwLock&) = delete;

    void lock() KV_ACQUIRE() { pthread_rwlock_wrlock(&lock_); }
    void unlock() KV_RELEASE() { pthread_rwlock_unlock(&lock_); }
    void lock_shared() KV_ACQUIRE_SHARED() { pthread_rwlock_rdlock(&lock_); }
    void unlock_shared() KV_RELEASE_SHARED() { pthread_rwlock_unlock(&lock_); }

  private:
    pthread_rwlock_t lock_;
};

class KV_THREAD_ANNOTATION(scoped_lockable) WriterLock {
  public:
    explicit WriterLock(RwLock& lock) KV_ACQUIRE(lock) : lock_(lock) { lock_.lock(); }
    ~WriterLock() KV_RELEASE() { lock_.unlock(); }
    WriterLock(const WriterLock&) = delete;
    WriterLock& operator=(const WriterLock&) = delete;

  private:
    RwLock& lock_;
};

class KV_THREAD_ANNOTATION(scoped_lockable) ReaderLock {
  public:
    explicit ReaderLock(RwLock& lock) KV_ACQUIRE_SHARED(lock) : lock_(lock) { lock_.lock_shared(); }
    ~ReaderLock() KV_RELEASE_GENERIC() { lock_.unlock_shared(); }
    ReaderLock(const ReaderLock&) = delete;
    ReaderLock& operator=(const ReaderLock&) = delete;

  private:
    RwLock& lock_;
};

}  // namespace kvstore
