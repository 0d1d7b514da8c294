// The poller's thread: asks all events in turn, in ever longer intervals while none fires.
#include "gpu/event_poller.h"

#include <algorithm>
#include <chrono>

#include "base/signals_blocked.h"

namespace kvstore {
namespace {

constexpr std::chrono::microseconds kLeastPause{20};
constexpr std::chrono::microseconds kMostPause{500};
constexpr std::chrono::seconds kDrain{2};  // that the last owner waits for copies in progress

}  // namespace

std::shared_ptr<EventPoller> EventPoller::shared() {
    static Mutex* const mutex = new Mutex();  // threads may outlive static objects
    static auto* const current = new std::weak_ptr<EventPoller>();
    const MutexLock lock(*mutex);
    std::shared_ptr<EventPoller> poller = current->lock();
    if (poller == nullptr) {
        poller.reset(new EventPoller());
        *current = poller;
    }
    return poller;
}

void EventPoller::add(std::unique_ptr<CudaEvent> event, Done done) {
    const MutexLock starting(thread_mutex_);
    if (!thread_.joinable()) {
        const SignalsBlocked blocked;
        thread_ = std::thread([state = state_] { run(state); });
    }
    const MutexLock lock(state_->mutex);
    state_->added.push_back({std::move(event), std::move(done)});
    ++state_->pending;
    state_->changed.notify_all();
}

EventPoller::~EventPoller() {
    const MutexLock starting(thread_mutex_);
    if (!thread_.joinable()) {
        return;
    }
    bool is_drained = false;
    {
        State& state = *state_;
        const MutexLock lock(state.mutex);
        state.is_stopping = true;
        state.changed.notify_all();
        is_drained = state.changed.wait_for(
            state.mutex, kDrain, [&]() KV_REQUIRES(state.mutex) { return state.pending == 0; });
    }
    // The last owner may be what an event protected: then this is the thread itself.
    if (is_drained && thread_.get_id() != std::this_thread::get_id()) {
        thread_.join();
    } else {
        thread_.detach();
    }
}

void EventPoller::run(const std::shared_ptr<State>& shared) {
    State& state = *shared;
    std::vector<Entry> entries;
    std::chrono::microseconds pause = kLeastPause;
    for (;;) {
        {
            const MutexLock lock(state.mutex);
            if (entries.empty()) {
                state.changed.wait(state.mutex, [&]() KV_REQUIRES(state.mutex) {
                    return !state.added.empty() || state.is_stopping;
                });
                pause = kLeastPause;
            } else {
                (void)state.changed.wait_for(state.mutex, pause);
                pause = std::min(2 * pause, kMostPause);
            }
            std::move(state.added.begin(), state.added.end(), std::back_inserter(entries));
            state.added.clear();
            if (entries.empty() && state.is_stopping) {
                return;
            }
        }
        const size_t done = poll(&entries);
        if (done > 0) {
            pause = kLeastPause;
            const MutexLock lock(state.mutex);
            state.pending -= done;
            state.changed.notify_all();
        }
    }
}

size_t EventPoller::poll(std::vector<Entry>* entries) {
    const auto is_done = [](Entry& entry) {
        const Result<bool> fired = entry.event->fired();
        if (fired.ok() && !*fired) {
            return false;
        }
        entry.done(fired.status());
        return true;
    };
    return std::erase_if(*entries, is_done);
}

}  // namespace kvstore
