// A simulated shared-memory machine on which the protocol's steps run one access at a time.
//
// Each thread is a fiber; before every access it hands control to a seeded scheduler. Stores go
// into the thread's store buffer and reach memory later, chosen by the seed:
//   tso      in order (x86), except that non-temporal stores drift until an sfence
//   relaxed  in any order that release stores and fences permit (ARM, and what compilers may do)
// On the relaxed machine a load may moreover be satisfied early: it returns what memory held at
// some moment between the thread's last acquire and now. A full fence drains the buffer and forgets
// the past.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "index/protocol_steps.h"

namespace kvstore::model {

using steps::Guard;

class Machine;
struct Cell {  // one shared word
    uint32_t id = 0;
};

// A seeded sequence (splitmix64): small state, good enough, the same everywhere.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t next() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    uint64_t below(uint64_t n) { return next() % n; }
    bool one_in(uint64_t n) { return below(n) == 0; }

  private:
    uint64_t state_;
};

// The memory policy of one simulated thread: what protocol_steps.h is instantiated with.
class Memory {
  public:
    Memory(Machine* machine, uint32_t thread) : machine_(machine), thread_(thread) {}
    bool enabled(Guard guard) const;
    uint64_t load(const Cell& cell, std::memory_order order);
    void store(const Cell& cell, uint64_t value, std::memory_order order);
    void store_nontemporal(const Cell& cell, uint64_t value);
    bool exchange(const Cell& cell, uint64_t expected, uint64_t desired);
    void full_fence();
    void acquire_fence();
    void store_fence();

    // System calls order like a lock: what was stored before a send is visible to who received it.
    // Non-temporal stores are not promised that.
    void before_send();
    void after_receive();
    void pause();  // lets others run
    void wait_until(bool (*ready)(void*), void* argument);
    template <class Condition>
    void wait_for(Condition condition) {
        wait_until([](void* c) { return (*static_cast<Condition*>(c))(); }, &condition);
        after_receive();
    }
    uint32_t thread() const { return thread_; }

  private:
    Machine* machine_;
    uint32_t thread_;
};

class Machine {
  public:
    static constexpr uint32_t kMaxThreads = 6;
    static constexpr uint32_t kMaxCells = 64;
    static constexpr uint32_t kMaxSteps = 4000;
    static constexpr size_t kStackBytes = 256 * 1024;

    // `removed` is Guard::kCount when all guards are in place.
    Machine(uint64_t seed, Guard removed) : random_(seed), removed_(removed) {
        relaxed_ = !random_.one_in(4);
        keep_running_ = std::array<uint64_t, 4>{1, 2, 4, 12}[random_.below(4)];
        drain_one_in_ = std::array<uint64_t, 3>{1, 3, 12}[random_.below(3)];
        stale_one_in_ = std::array<uint64_t, 3>{2, 4, 8}[random_.below(3)];
    }
    Machine(const Machine&) = delete;
    Machine& operator=(const Machine&) = delete;

    Cell cell(uint64_t initial) {
        cells_[cell_count_].assign(1, {0, initial});
        return Cell{cell_count_++};
    }
    // The body must hold nothing that needs destruction: a killed thread just stops.
    uint32_t spawn(std::function<void(Memory&)> body) {
        threads_[thread_count_].body = std::move(body);
        return thread_count_++;
    }
    // Runs until every thread is done or stuck, or an invariant is violated.
    void run();
    // kill -9: the stores that were executed reach memory, nothing more is executed.
    void kill(uint32_t thread);
    void on_death(std::function<void(uint32_t)> fn) { on_death_ = std::move(fn); }
    void violated(const char* invariant);  // ends the run when called by a thread
    const char* violation() const { return violation_; }
    bool relaxed() const { return relaxed_; }
    bool dead(uint32_t thread) const { return threads_[thread].done && threads_[thread].killed; }
    uint64_t final_value(const Cell& cell) const { return cells_[cell.id].back().value; }
    Random& random() { return random_; }

  private:
    friend class Memory;
    struct Committed {
        uint64_t time;
        uint64_t value;
    };
    struct Pending {
        uint32_t cell;
        uint64_t value;
        bool nontemporal;
        bool release;
        uint32_t fences;  // store fences that precede it
    };
    struct Thread {
        std::function<void(Memory&)> body;
        ucontext_t context{};
        std::vector<Pending> buffer;
        std::array<uint64_t, kMaxCells> seen{};  // per cell: nothing older may be read (coherence)
        uint64_t floor = 0;      // no later load may be satisfied before this moment
        uint64_t last_load = 0;  // latest moment at which a load was satisfied
        uint32_t fences = 0;
        bool done = false;
        bool killed = false;
        bool (*ready)(void*) = nullptr;
        void* ready_argument = nullptr;
    };

    static void enter(uint32_t high, uint32_t low);
    static uint8_t* stack(uint32_t thread);
    void prepare(uint32_t thread);
    void yield();
    void leave(uint32_t next);
    bool runnable(const Thread& t) const {
        return !t.done && (t.ready == nullptr || t.ready(t.ready_argument));
    }
    uint32_t pick() const;
    bool may_commit(const Thread& t, size_t i) const;
    void commit(uint32_t thread, size_t i);
    void drain_some();
    void drain(uint32_t thread, bool nontemporal_too);

    mutable Random random_;
    Guard removed_;
    bool relaxed_;
    uint64_t keep_running_;
    uint64_t drain_one_in_;
    uint64_t stale_one_in_;
    std::array<std::vector<Committed>, kMaxCells> cells_;
    uint32_t cell_count_ = 0;
    std::array<Thread, kMaxThreads> threads_;
    uint32_t thread_count_ = 0;
    uint32_t current_ = kMaxThreads;
    uint64_t now_ = 0;  // counts commits
    uint32_t steps_ = 0;
    ucontext_t main_{};
    std::function<void(uint32_t)> on_death_;
    const char* violation_ = nullptr;
};

// ---- fibers ----------------------------------------------------------------------------------

inline uint8_t* Machine::stack(uint32_t thread) {
    static std::array<std::unique_ptr<uint8_t[]>, kMaxThreads> stacks;
    if (!stacks[thread]) {
        stacks[thread] = std::make_unique<uint8_t[]>(kStackBytes);
    }
    return stacks[thread].get();
}

inline void Machine::enter(uint32_t high, uint32_t low) {
    auto* machine = reinterpret_cast<Machine*>(uint64_t{high} << 32 | low);
    const uint32_t self = machine->current_;
    Memory memory(machine, self);
    machine->threads_[self].body(memory);
    machine->threads_[self].done = true;
    machine->leave(machine->pick());
}

inline void Machine::prepare(uint32_t thread) {
    const auto address = reinterpret_cast<uint64_t>(this);
    ucontext_t& context = threads_[thread].context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack(thread);
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, reinterpret_cast<void (*)()>(&Machine::enter), 2,
                static_cast<uint32_t>(address >> 32), static_cast<uint32_t>(address));
}

inline void Machine::run() {
    for (uint32_t i = 0; i < thread_count_; ++i) {
        prepare(i);
    }
    current_ = pick();
    if (current_ != kMaxThreads) {
        swapcontext(&main_, &threads_[current_].context);
    }
    current_ = kMaxThreads;
    for (uint32_t i = 0; i < thread_count_; ++i) {
        drain(i, true);
    }
}

// Switches away from the current fiber for good or for now; kMaxThreads is the end of the run.
inline void Machine::leave(uint32_t next) {
    const uint32_t self = current_;
    current_ = next;
    swapcontext(&threads_[self].context, next == kMaxThreads ? &main_ : &threads_[next].context);
}

inline uint32_t Machine::pick() const {
    std::array<uint32_t, kMaxThreads> ready{};
    uint32_t count = 0;
    for (uint32_t i = 0; i < thread_count_; ++i) {
        if (runnable(threads_[i])) {
            ready[count++] = i;
        }
    }
    return count == 0 ? kMaxThreads : ready[random_.below(count)];
}

inline void Machine::yield() {
    drain_some();
    if (++steps_ > kMaxSteps) {
        leave(kMaxThreads);
    }
    if (runnable(threads_[current_]) && !random_.one_in(keep_running_)) {
        return;
    }
    const uint32_t next = pick();
    if (next != current_) {
        leave(next);
    }
}

inline void Machine::violated(const char* invariant) {
    if (violation_ == nullptr) {
        violation_ = invariant;
    }
    if (current_ != kMaxThreads) {
        leave(kMaxThreads);
    }
}

inline void Machine::kill(uint32_t thread) {
    Thread& t = threads_[thread];
    if (t.killed) {
        return;
    }
    drain(thread, true);
    t.done = true;
    t.killed = true;
    if (on_death_) {
        on_death_(thread);
    }
}

// ---- store buffers ---------------------------------------------------------------------------

inline bool Machine::may_commit(const Thread& t, size_t i) const {
    const Pending& p = t.buffer[i];
    for (size_t j = 0; j < i; ++j) {
        const Pending& earlier = t.buffer[j];
        if (earlier.cell == p.cell || earlier.fences != p.fences) {
            return false;
        }
        if (earlier.nontemporal) {
            continue;  // nothing but a fence waits for it
        }
        if (p.release || (!relaxed_ && !p.nontemporal)) {
            return false;
        }
    }
    return true;
}

inline void Machine::commit(uint32_t thread, size_t i) {
    Thread& t = threads_[thread];
    const Pending p = t.buffer[i];
    t.buffer.erase(t.buffer.begin() + static_cast<std::ptrdiff_t>(i));
    cells_[p.cell].push_back({++now_, p.value});
    t.seen[p.cell] = now_;
}

inline void Machine::drain_some() {
    for (uint32_t i = 0; i < thread_count_; ++i) {
        const std::vector<Pending>& buffer = threads_[i].buffer;
        if (buffer.empty() || !random_.one_in(drain_one_in_)) {
            continue;
        }
        const size_t at = random_.below(buffer.size());
        if (may_commit(threads_[i], at)) {
            commit(i, at);
        }
    }
}

inline void Machine::drain(uint32_t thread, bool nontemporal_too) {
    std::vector<Pending>& buffer = threads_[thread].buffer;
    for (size_t i = 0; i < buffer.size();) {
        if (nontemporal_too || !buffer[i].nontemporal) {
            commit(thread, i);
        } else {
            ++i;
        }
    }
}

// ---- one thread's accesses -------------------------------------------------------------------

inline bool Memory::enabled(Guard guard) const { return machine_->removed_ != guard; }

inline uint64_t Memory::load(const Cell& cell, std::memory_order order) {
    machine_->yield();
    Machine::Thread& t = machine_->threads_[thread_];
    for (size_t i = t.buffer.size(); i-- > 0;) {
        if (t.buffer[i].cell == cell.id) {
            return t.buffer[i].value;
        }
    }
    const auto& history = machine_->cells_[cell.id];
    const uint64_t earliest = std::max(t.floor, t.seen[cell.id]);
    size_t chosen = history.size() - 1;
    if (machine_->relaxed_ && machine_->random_.one_in(machine_->stale_one_in_)) {
        size_t first = chosen;
        while (history[first].time > earliest) {
            --first;
        }
        chosen = first + machine_->random_.below(chosen - first + 1);
    }
    const uint64_t moment =
        machine_->relaxed_ ? std::max(earliest, history[chosen].time) : machine_->now_;
    t.seen[cell.id] = std::max(t.seen[cell.id], moment);
    t.last_load = std::max(t.last_load, moment);
    if (order != std::memory_order_relaxed || !machine_->relaxed_) {
        t.floor = std::max(t.floor, moment);
    }
    return history[chosen].value;
}

inline void Memory::store(const Cell& cell, uint64_t value, std::memory_order order) {
    machine_->yield();
    Machine::Thread& t = machine_->threads_[thread_];
    const bool release = order != std::memory_order_relaxed;
    t.buffer.push_back({cell.id, value, false, release, t.fences});
}

inline void Memory::store_nontemporal(const Cell& cell, uint64_t value) {
    machine_->yield();
    Machine::Thread& t = machine_->threads_[thread_];
    t.buffer.push_back({cell.id, value, true, false, t.fences});
}

// One step on memory itself, with the order of an acquire and a release; non-temporal stores wait
// for it as little as for any store.
inline bool Memory::exchange(const Cell& cell, uint64_t expected, uint64_t desired) {
    before_send();
    Machine::Thread& t = machine_->threads_[thread_];
    t.floor = machine_->now_;
    auto& history = machine_->cells_[cell.id];
    t.seen[cell.id] = machine_->now_;
    if (history.back().value != expected) {
        return false;
    }
    history.push_back({++machine_->now_, desired});
    t.seen[cell.id] = machine_->now_;
    return true;
}

inline void Memory::full_fence() {
    machine_->yield();
    machine_->drain(thread_, true);
    machine_->threads_[thread_].floor = machine_->now_;
}

inline void Memory::acquire_fence() {
    Machine::Thread& t = machine_->threads_[thread_];
    t.floor = std::max(t.floor, t.last_load);
}

inline void Memory::store_fence() { ++machine_->threads_[thread_].fences; }

inline void Memory::before_send() {
    machine_->yield();
    // In the order of a release: also what a store fence puts before it.
    Machine::Thread& t = machine_->threads_[thread_];
    const uint32_t fences = t.fences;
    for (size_t i = 0; i < t.buffer.size();) {
        if (!t.buffer[i].nontemporal || t.buffer[i].fences < fences) {
            machine_->commit(thread_, i);
        } else {
            ++i;
        }
    }
}

inline void Memory::after_receive() { machine_->threads_[thread_].floor = machine_->now_; }

inline void Memory::pause() { machine_->yield(); }

inline void Memory::wait_until(bool (*ready)(void*), void* argument) {
    Machine::Thread& t = machine_->threads_[thread_];
    t.ready = ready;
    t.ready_argument = argument;
    machine_->yield();
    t.ready = nullptr;
}

}  // namespace kvstore::model
