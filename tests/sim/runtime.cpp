// Fibers, timers and the event log.
#include "runtime.h"

#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace kvstore::sim {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kKeptEvents = 400;
constexpr size_t kPrintedEvents = 80;
constexpr uint64_t kStepNs = 1'000;  // so that a loop that asks the time comes to its end
constexpr uint64_t kMaxSteps = 20'000'000;

// The executable's thread_local variables, which every fiber has for itself.
struct LocalsArea {
    uint8_t* begin = nullptr;
    size_t size = 0;
    const uint8_t* image = nullptr;
    size_t image_size = 0;
};

int find_locals(dl_phdr_info* info, size_t, void* out) {
    auto& area = *static_cast<LocalsArea*>(out);
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        const ElfW(Phdr) & header = info->dlpi_phdr[i];
        if (header.p_type != PT_TLS) {
            continue;
        }
        const auto align = std::max<uintptr_t>(header.p_align, 1);
        const auto base = reinterpret_cast<uintptr_t>(__builtin_thread_pointer());
#if defined(__x86_64__)
        area.begin = reinterpret_cast<uint8_t*>((base - header.p_memsz) & ~(align - 1));
#elif defined(__aarch64__)
        area.begin = reinterpret_cast<uint8_t*>(base + std::max<uintptr_t>(16, align));
#else
#error "where do this processor's thread_local variables lie?"
#endif
        area.size = header.p_memsz;
        area.image = reinterpret_cast<const uint8_t*>(info->dlpi_addr + header.p_vaddr);
        area.image_size = header.p_filesz;
    }
    return 1;  // the executable comes first, and only it matters
}

const LocalsArea& locals_area() {
    static const LocalsArea area = [] {
        LocalsArea found;
        dl_iterate_phdr(find_locals, &found);
        return found;
    }();
    return area;
}

}  // namespace

uint64_t Random::next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15;  // splitmix64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
}

Runtime* Runtime::active_ = nullptr;

Runtime::Runtime(uint64_t seed)
    : seed_(seed), random_(seed * 0x2545F4914F6CDD1D + 1), now_ns_(1000 * kSecond) {
    main_locals_.resize(locals_area().size);
    active_ = this;
}

// ---- fibers ----------------------------------------------------------------------------------

void Runtime::enter() {
    Runtime& runtime = *active_;
    runtime.current_->body();
    runtime.current_->body = nullptr;
    runtime.current_->finished = true;
    runtime.wake(runtime.current_);
    runtime.leave();
    std::abort();  // a finished fiber runs again
}

Fiber* Runtime::spawn(Process process, std::string name, std::function<void()> body) {
    auto fiber = std::make_unique<Fiber>();
    fiber->id = static_cast<uint32_t>(fibers_.size()) + 1;
    fiber->process = process;
    fiber->name = std::move(name);
    fiber->body = std::move(body);
    uint8_t* stack = nullptr;
    if (free_stacks_.empty()) {
        stack = static_cast<uint8_t*>(mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0));
        if (stack == MAP_FAILED || mprotect(stack, 4096, PROT_NONE) != 0) {
            fail("harness", "no memory for a stack");
        }
    } else {
        stack = free_stacks_.back();
        free_stacks_.pop_back();
    }
    const LocalsArea& area = locals_area();
    fiber->locals.assign(area.size, 0);
    std::copy_n(area.image, area.image_size, fiber->locals.begin());
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = stack;
    fiber->context.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber->context, &Runtime::enter, 0);
    fiber->runnable = true;
    runnable_.push_back(fiber.get());
    fibers_.push_back(std::move(fiber));
    return fibers_.back().get();
}

void Runtime::resume(Fiber* fiber) {
    const LocalsArea& area = locals_area();
    std::copy_n(area.begin, area.size, main_locals_.begin());
    std::copy_n(fiber->locals.begin(), area.size, area.begin);
    current_ = fiber;
    calls_in_turn_ = 0;
    swapcontext(&main_context_, &fiber->context);
    current_ = nullptr;
    std::copy_n(area.begin, area.size, fiber->locals.begin());
    std::copy_n(main_locals_.begin(), area.size, area.begin);
    if (fiber->finished) {
        free_stacks_.push_back(static_cast<uint8_t*>(fiber->context.uc_stack.ss_sp));
        fiber->locals.clear();
    }
}

void Runtime::leave() { swapcontext(&current_->context, &main_context_); }

void Runtime::yield() {
    current_->runnable = true;
    runnable_.push_back(current_);
    leave();
}

void Runtime::maybe_preempt() {
    if (preempt_permille_ != 0 && current_ != nullptr && random_.chance(preempt_permille_)) {
        yield();
    }
}

void Runtime::block(const void* on, uint64_t until_ns) {
    Fiber* const fiber = current_;
    if (until_ns <= now_ns_) {
        return yield();
    }
    fiber->waits_on = on;
    ++fiber->block_number;
    if (on != nullptr) {
        waiters_[on].push_back(fiber);
    }
    if (until_ns != kNever) {
        timers_.push({until_ns, next_timer_++, nullptr, fiber, fiber->block_number});
    }
    leave();
}

void Runtime::sleep_ns(uint64_t duration_ns) {
    const uint64_t until_ns = now_ns_ + duration_ns;
    do {
        block(nullptr, until_ns);
    } while (now_ns_ < until_ns);
}

void Runtime::wake_fiber(Fiber* fiber) {
    if (fiber->runnable || fiber->finished || fiber == current_) {
        return;
    }
    if (fiber->waits_on != nullptr) {
        const auto at = waiters_.find(fiber->waits_on);
        if (at != waiters_.end()) {
            std::erase(at->second, fiber);
            if (at->second.empty()) {
                waiters_.erase(at);
            }
        }
        fiber->waits_on = nullptr;
    }
    ++fiber->block_number;
    fiber->runnable = true;
    runnable_.push_back(fiber);
}

void Runtime::wake(const void* on, size_t count) {
    while (count-- != 0) {
        const auto at = waiters_.find(on);
        if (at == waiters_.end()) {
            return;
        }
        wake_fiber(at->second[random_.below(at->second.size())]);
    }
}

void Runtime::on_main_stack(const std::function<void()>& fn) {
    if (current_ == nullptr) {
        return fn();
    }
    main_work_ = &fn;
    leave();  // run() does the work and resumes this very fiber
}

// ---- time ------------------------------------------------------------------------------------

void Runtime::at(uint64_t time_ns, std::function<void()> fn) {
    timers_.push({std::max(time_ns, now_ns_), next_timer_++, std::move(fn)});
}

void Runtime::fire_next_timer() {
    const Timer timer = timers_.top();
    timers_.pop();
    now_ns_ = std::max(now_ns_, timer.at_ns);
    if (timer.fiber == nullptr) {
        timer.fn();
    } else if (!timer.fiber->finished && timer.fiber->block_number == timer.block_number) {
        wake_fiber(timer.fiber);
    }
}

void Runtime::run(const bool* done) {
    while (!*done) {
        while (!timers_.empty() && timers_.top().at_ns <= now_ns_) {
            fire_next_timer();
        }
        if (runnable_.empty()) {
            if (timers_.empty()) {
                fail("progress", "every thread waits and no timer is set");
            }
            fire_next_timer();
            continue;
        }
        if (++steps_ > kMaxSteps) {
            fail("progress", "too many steps: somebody spins");
        }
        now_ns_ += kStepNs;
        std::swap(runnable_[random_.below(runnable_.size())], runnable_.back());
        Fiber* fiber = runnable_.back();
        runnable_.pop_back();
        fiber->runnable = false;
        resume(fiber);
        while (main_work_ != nullptr) {
            (*std::exchange(main_work_, nullptr))();
            resume(fiber);
        }
    }
}

// ---- the event log ---------------------------------------------------------------------------

void Runtime::log(const char* format, ...) {
    char line[512];
    int used = snprintf(line, sizeof line, "%10.3f %7llu ",
                        static_cast<double>(now_ns_ - 1000 * kSecond) / 1e6,
                        static_cast<unsigned long long>(steps_));
    va_list arguments;
    va_start(arguments, format);
    used += vsnprintf(line + used, sizeof line - static_cast<size_t>(used), format, arguments);
    va_end(arguments);
    const auto length = std::min<size_t>(static_cast<size_t>(used), sizeof line - 1);
    for (size_t i = 0; i < length; ++i) {
        log_hash_ = (log_hash_ ^ static_cast<uint8_t>(line[i])) * 0x100000001b3;
    }
    if (trace_) {
        printf("%s\n", line);
    }
    last_events_.emplace_back(line, length);
    if (last_events_.size() > kKeptEvents) {
        last_events_.pop_front();
    }
}

void Runtime::print_last_events() const {
    if (trace_) {
        return;
    }
    const size_t first = last_events_.size() - std::min(last_events_.size(), kPrintedEvents);
    for (size_t i = first; i < last_events_.size(); ++i) {
        fprintf(stderr, "  %s\n", last_events_[i].c_str());
    }
}

void Runtime::fail(const std::string& invariant, const std::string& what) {
    fflush(stdout);
    if (report_fd >= 0) {
        const std::string line = "FAIL " + invariant + ": " + what;
        (void)!::write(report_fd, line.data(), line.size());
    }
    if (getenv("KVSTORE_SIM_QUIET") == nullptr) {
        fprintf(stderr, "seed %llu, step %llu: %s\n  the last events (ms, step, event):\n",
                static_cast<unsigned long long>(seed_), static_cast<unsigned long long>(steps_),
                (invariant + ": " + what).c_str());
        print_last_events();
        fprintf(stderr, "seed %llu, step %llu: %s\n  replay: sim --seed %llu --trace\n",
                static_cast<unsigned long long>(seed_), static_cast<unsigned long long>(steps_),
                (invariant + ": " + what).c_str(), static_cast<unsigned long long>(seed_));
    }
    fflush(stderr);
    _exit(1);
}

}  // namespace kvstore::sim
