// A domain's UCX process as its node knows it. The process maps the domain's segment and nothing
// else, and it alone speaks UCX: a peer on the fabric that breaks or takes over the process has
// what a key of the segment gives anyway.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "net/event_server.h"
#include "ucx/ucx_region.h"
#include "wire/ucx_places.h"

namespace kvstore {

// Thread-safe.
class UcxPort {
  public:
    struct Block {
        uint64_t offset = 0;
        uint64_t size = 0;
        std::span<const UcxPiece> pieces{};  // where the client has the bytes
    };
    struct Pulled {
        Code code = Code::kUnavailable;
        uint32_t data_crc = 0;
    };
    class Puller {
      public:
        virtual ~Puller() = default;
        // A row for each block. Nobody writes into them any more.
        virtual void pulled(std::span<const Pulled> rows) = 0;
        // The process does not answer in time. It may still write; pulled() follows.
        virtual void late() = 0;
    };

    // The process's socket is served from now on.
    void connected(std::shared_ptr<ConnectionRef> ref);
    void ready(const UcxReady& message);
    void slice(const UcxSlice& message);
    void pulled(uint64_t request, const UcxPulled& message);
    void disconnected();
    // The process is no more: what it was writing into is whole now, or never will be.
    void ended();
    void forget_pulls();  // the node goes: nobody is told any more
    // Tells the process how much of the segment it may register.
    void grow(uint64_t ready_bytes);

    // Null: it cannot be reached now.
    std::shared_ptr<const UcxRegion> region() const;
    // False: there is no process, and the puller hears nothing.
    bool pull(std::span<const Block> blocks, std::string_view worker, const KeyList& memory_keys,
              uint32_t timeout_ms, std::shared_ptr<Puller> puller);

    // Keeps `what` for a reader until it says that it is done, or has closed, or the time is over.
    // False: it keeps too many.
    bool hold(uint64_t connection, uint64_t request, std::shared_ptr<void> what,
              uint32_t timeout_ms);
    void release(uint64_t connection, const U64Column& requests);
    void release_all(uint64_t connection);
    void tick();  // every 100 ms or so

    struct Stats {
        bool reachable = false;
        uint64_t registered_bytes = 0;
        std::string library;
        std::string error;  // why no more is registered
    };
    Stats stats() const;

  private:
    struct Held {
        std::shared_ptr<void> what;
        uint64_t until_ms = 0;
    };

    mutable Mutex mutex_;
    std::shared_ptr<ConnectionRef> ref_ KV_GUARDED_BY(mutex_);
    std::shared_ptr<const UcxRegion> region_ KV_GUARDED_BY(mutex_);
    uint64_t lives_ KV_GUARDED_BY(mutex_) = 0;
    uint64_t told_bytes_ KV_GUARDED_BY(mutex_) = 0;
    std::string library_ KV_GUARDED_BY(mutex_);
    std::string error_ KV_GUARDED_BY(mutex_);
    uint64_t last_pull_ KV_GUARDED_BY(mutex_) = 0;
    struct Pull {
        size_t rows = 0;
        std::shared_ptr<Puller> puller;
        uint64_t late_ms = 0;  // 0: it was told
    };
    std::unordered_map<uint64_t, Pull> pulls_ KV_GUARDED_BY(mutex_);
    // By connection and request.
    std::map<std::pair<uint64_t, uint64_t>, Held> held_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
