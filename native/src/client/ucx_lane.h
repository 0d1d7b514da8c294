// A client's UCX: lanes that calls take in turns, and the memory that the engine has registered.
#pragma once

#include <sys/uio.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "ucx/ucx_region.h"
#include "ucx/ucx_worker.h"

namespace kvstore {

// A worker with its connections, and memory for bytes that come from or go to memory which is not
// registered. Used by one thread at a time.
class UcxLane {
  public:
    static constexpr size_t kBounceBytes = 8u << 20;
    static constexpr size_t kTrialBytes = 64;
    static constexpr size_t kMostBounced = kBounceBytes - kTrialBytes;  // of one object
    // From this size on, registering the caller's memory for one call costs less than a copy.
    static constexpr size_t kRegisterFrom = 1u << 20;

    static Result<std::unique_ptr<UcxLane>> create(std::shared_ptr<UcxContext> context);
    ~UcxLane();

    UcxWorker& worker() { return *worker_; }
    // The connection to a node's UCX process, made where there is none that works: it has brought a
    // byte by then. One that does not come about in time spoils the lane.
    Result<UcxEndpoint*> endpoint(const std::string& node_id, const UcxRegion& region,
                                  Deadline deadline);
    // UCX aborts the process when a connection is closed while it is being made, so such a lane is
    // neither used any more nor destroyed.
    bool spoiled() const { return spoiled_; }
    // Ends it, and every read in progress over it.
    void drop(const std::string& node_id);

    const UcxMemory& bounce() const { return *bounce_; }
    // The next bytes of it; null: it is used up.
    uint8_t* take_bounce(size_t bytes);
    void reset_bounce() { bounce_used_ = kTrialBytes; }

  private:
    UcxLane() = default;
    bool try_out(UcxEndpoint& endpoint, const UcxRegion& region, Deadline deadline);
    struct Peer {
        uint64_t life = 0;
        std::string worker;
        std::unique_ptr<UcxEndpoint> endpoint;
    };
    std::unique_ptr<UcxMemory> bounce_;
    void* bounce_data_ = nullptr;
    size_t bounce_used_ = kTrialBytes;
    bool spoiled_ = false;
    UcxRead trial_;  // into the first byte of the bounce memory
    std::unique_ptr<UcxWorker> worker_;
    std::map<std::string, Peer> peers_;  // by node id
};

// Thread-safe. UCX is loaded by the first call that could use it.
class ClientUcx {
  public:
    // In use by a call; given back when destroyed.
    class Lease {
      public:
        Lease() = default;
        Lease(ClientUcx* owner, std::unique_ptr<UcxLane> lane)
            : owner_(owner), lane_(std::move(lane)) {}
        Lease(Lease&& other) noexcept = default;
        Lease& operator=(Lease&& other) noexcept;
        ~Lease() { give_back(); }
        explicit operator bool() const { return lane_ != nullptr; }
        UcxLane& operator*() const { return *lane_; }
        UcxLane* operator->() const { return lane_.get(); }

      private:
        void give_back();
        ClientUcx* owner_ = nullptr;
        std::unique_ptr<UcxLane> lane_;
    };

    explicit ClientUcx(UcxOptions options) : options_(std::move(options)) {}

    bool wanted() const { return !options_.libraries.empty(); }
    // Empty: UCX is off, cannot be used, or as many calls as it serves use it now.
    Lease take();
    // Why it cannot be used: kUnavailable with a sentence. Ok when it can, or was not tried yet.
    Status status() const;

    // Memory of the caller's, until it is forgotten; tens of gigabytes are registered in slices.
    // Whoever gets its key may read and write it: the nodes that are put to. Registering the same
    // memory again counts. kInvalidArgument where it overlaps other registered memory in part.
    // A GPU's memory that UCX does not move is noted and not used.
    Status register_memory(void* data, size_t bytes, ucp::MemoryType type);
    bool forget_memory(void* data);
    // That holds all of it; null: none does.
    std::shared_ptr<const UcxMemory> find(const void* data, size_t bytes) const;
    // Registered for one call.
    std::shared_ptr<const UcxMemory> register_briefly(const void* data, size_t bytes,
                                                      ucp::MemoryType type);
    // Whether it is registered, or can be for one call.
    bool may_reach(const iovec& device_memory) const;
    size_t registered_bytes() const;
    bool moves_cuda() const;  // false before it was loaded, too

  private:
    struct Registration {
        size_t bytes = 0;
        size_t count = 0;
        std::vector<std::shared_ptr<const UcxMemory>> slices;
    };
    Result<std::shared_ptr<UcxContext>> context() KV_REQUIRES(mutex_);
    std::shared_ptr<UcxContext> opened() const;
    void give_back(std::unique_ptr<UcxLane> lane);

    const UcxOptions options_;
    mutable Mutex mutex_;
    std::shared_ptr<UcxContext> context_ KV_GUARDED_BY(mutex_);
    Status status_ KV_GUARDED_BY(mutex_);
    std::vector<std::unique_ptr<UcxLane>> idle_ KV_GUARDED_BY(mutex_);
    size_t busy_ KV_GUARDED_BY(mutex_) = 0;
    size_t spoiled_ KV_GUARDED_BY(mutex_) = 0;
    std::map<uintptr_t, Registration> registered_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
