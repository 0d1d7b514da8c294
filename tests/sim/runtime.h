// The simulated machine room: one operating-system thread, a fake clock, and fibers in place of
// threads.
//
// The product's own threads run here unchanged: libc_threads.cpp puts the pthread functions that
// they are made of on top of these fibers, libc_files.cpp the sockets and the clocks. Which fiber
// runs next, and whether one is interrupted where it takes a mutex, is drawn from the seed; time
// moves only when nobody can run. A run is a pure function of its seed.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <queue>
#include <string>
#include <unordered_map>
#include <vector>

namespace kvstore::sim {

inline constexpr uint64_t kNever = UINT64_MAX;
inline constexpr uint64_t kMs = 1'000'000;  // nanoseconds
inline constexpr uint64_t kSecond = 1'000 * kMs;

// A simulated process; the harness itself is 0. A restarted process has a new number.
using Process = uint32_t;

class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t next();
    uint64_t below(uint64_t bound) { return bound == 0 ? 0 : next() % bound; }
    uint64_t between(uint64_t low, uint64_t high) { return low + below(high - low + 1); }
    bool chance(uint64_t permille) { return below(1000) < permille; }
    template <class List>
    auto& pick(List& list) {
        return list[below(list.size())];
    }

  private:
    uint64_t state_;
};

struct Fiber {
    uint32_t id = 0;
    Process process = 0;
    std::string name;
    ucontext_t context{};
    std::function<void()> body;
    std::vector<uint8_t> locals;  // its thread_local variables while it does not run
    bool runnable = false;
    bool finished = false;
    bool detached = false;
    const void* waits_on = nullptr;
    uint64_t block_number = 0;  // tells a stale timer from the current one
    uint64_t woken_ns = 0;
};

class Runtime {
  public:
    explicit Runtime(uint64_t seed);
    // The run in progress; null outside of one.
    static Runtime* active() { return active_; }

    uint64_t now_ns() const { return now_ns_; }
    uint64_t now_ms() const { return now_ns_ / kMs; }
    Random& random() { return random_; }
    uint64_t seed() const { return seed_; }
    uint64_t steps() const { return steps_; }
    // How often a fiber is interrupted where it takes a mutex.
    void set_preempt_permille(uint64_t permille) { preempt_permille_ = permille; }

    Fiber* spawn(Process process, std::string name, std::function<void()> body);
    Fiber* current() const { return current_; }  // null on the scheduler's own stack
    Process process() const { return current_ == nullptr ? 0 : current_->process; }

    // For fibers. A blocked fiber may wake without cause: callers look again.
    void yield();
    void block(const void* on, uint64_t until_ns = kNever);
    void sleep_ns(uint64_t duration_ns);
    void sleep_ms(uint64_t duration_ms) { sleep_ns(duration_ms * kMs); }
    void maybe_preempt();
    // Every call that looks at the outside world without waiting: too many in one go are a spin.
    void count_call() {
        if (++calls_in_turn_ > kMaxCallsInTurn) {
            fail("progress", current_->name + " spins: it looks again and again without waiting");
        }
    }
    // Runs `fn` on the scheduler's stack, which is the process's own (the interpreter needs that).
    void on_main_stack(const std::function<void()>& fn);
    // From anywhere.
    void wake(const void* on, size_t count = SIZE_MAX);
    void wake_fiber(Fiber* fiber);
    bool has_waiters(const void* on) const { return waiters_.contains(on); }
    // Calls `fn` on the scheduler's stack at that time; it must not block.
    void at(uint64_t time_ns, std::function<void()> fn);

    // Runs until `*done`; ends the run as failed when nothing can happen any more before that.
    void run(const bool* done);

    // The event log: hashed as a whole, the last lines kept.
    void log(const char* format, ...) __attribute__((format(printf, 2, 3)));
    void set_trace(bool trace) { trace_ = trace; }
    uint64_t log_hash() const { return log_hash_; }
    // Reports seed, step and the last events and ends the process: for invariants.
    [[noreturn]] void fail(const std::string& invariant, const std::string& what);
    void print_last_events() const;
    int report_fd = -1;  // where fail() writes its result line

  private:
    struct Timer {
        uint64_t at_ns;
        uint64_t number;
        std::function<void()> fn;  // or
        Fiber* fiber = nullptr;
        uint64_t block_number = 0;
        bool operator>(const Timer& other) const {
            return at_ns != other.at_ns ? at_ns > other.at_ns : number > other.number;
        }
    };
    static void enter();
    void resume(Fiber* fiber);
    void leave();  // the current fiber gives the processor back
    void fire_next_timer();

    static Runtime* active_;
    const uint64_t seed_;
    Random random_;
    uint64_t now_ns_;
    static constexpr uint64_t kMaxCallsInTurn = 20'000;
    uint64_t steps_ = 0;
    uint64_t calls_in_turn_ = 0;
    uint64_t preempt_permille_ = 0;
    std::vector<std::unique_ptr<Fiber>> fibers_;
    std::vector<uint8_t*> free_stacks_;
    std::vector<Fiber*> runnable_;
    std::unordered_map<const void*, std::vector<Fiber*>> waiters_;
    std::priority_queue<Timer, std::vector<Timer>, std::greater<>> timers_;
    uint64_t next_timer_ = 1;
    Fiber* current_ = nullptr;
    ucontext_t main_context_{};
    std::vector<uint8_t> main_locals_;
    const std::function<void()>* main_work_ = nullptr;

    bool trace_ = false;
    uint64_t log_hash_ = 0xcbf29ce484222325;
    std::deque<std::string> last_events_;
};

}  // namespace kvstore::sim
