// One thread of the process that asks whether events have fired, and ends what waits for them.
#pragma once

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "gpu/device_copies.h"

namespace kvstore {

// Thread-safe. The thread starts with the first event and stops with the last owner of the poller;
// one whose events do not fire by then goes on alone, so that nothing they protect is given back
// early.
class EventPoller {
  public:
    // Called once, on the poller's thread: Ok when the event has fired, else why it never will.
    using Done = std::function<void(const Status&)>;

    static std::shared_ptr<EventPoller> shared();
    ~EventPoller();
    EventPoller(const EventPoller&) = delete;
    EventPoller& operator=(const EventPoller&) = delete;

    void add(std::unique_ptr<CudaEvent> event, Done done);

  private:
    struct Entry {
        std::unique_ptr<CudaEvent> event;
        Done done;
    };
    // Shared with the thread, which may outlive the poller.
    struct State {
        Mutex mutex;
        CondVar changed;  // something was added, or the last one is done, or the thread has to stop
        std::vector<Entry> added KV_GUARDED_BY(mutex);
        size_t pending KV_GUARDED_BY(mutex) = 0;
        bool is_stopping KV_GUARDED_BY(mutex) = false;
    };
    EventPoller() : state_(std::make_shared<State>()) {}
    static void run(const std::shared_ptr<State>& state);
    static size_t poll(std::vector<Entry>* entries);

    const std::shared_ptr<State> state_;
    Mutex thread_mutex_;  // taken before that of the state
    std::thread thread_ KV_GUARDED_BY(thread_mutex_);
};

}  // namespace kvstore
