// The client: everything a Store does, without Python. Thread-safe; the calling thread does its own
// I/O, and no call outlives its time-out.
//
// A method's Status tells what the caller has to fix (closed, bad argument); what became of each
// key stands in the items. After close(), and in a forked child, every call answers kClosed.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "client/client_context.h"
#include "client/device_get.h"
#include "client/get_path.h"
#include "client/lease_keeper.h"
#include "client/locate_path.h"
#include "client/object_view.h"
#include "client/put_path.h"

namespace kvstore {

// Leases on the leading keys of a list, until release() or the store is closed.
class LeasedPrefix {
  public:
    LeasedPrefix(std::shared_ptr<LeaseKeeper> keeper, size_t length, MissReason reason,
                 std::vector<LeaseKeeper::Grant> grants)
        : keeper_(std::move(keeper)),
          length_(length),
          reason_(reason),
          grants_(std::move(grants)) {}
    ~LeasedPrefix() { release(); }
    LeasedPrefix(const LeasedPrefix&) = delete;
    LeasedPrefix& operator=(const LeasedPrefix&) = delete;

    size_t length() const { return length_; }
    MissReason reason() const { return reason_; }  // why it ends there; kNone: it is the whole list
    // Whether every node still keeps its part.
    bool alive() KV_EXCLUDES(mutex_);
    void release() KV_EXCLUDES(mutex_);

  private:
    ForkGuard fork_guard_;
    Mutex mutex_;  // taken before those of the keeper
    std::shared_ptr<LeaseKeeper> keeper_ KV_GUARDED_BY(mutex_);
    const size_t length_;
    const MissReason reason_;
    std::vector<LeaseKeeper::Grant> grants_ KV_GUARDED_BY(mutex_);
};

class ClientCore {
  public:
    // Connects to the master and attaches to the nodes of this host.
    static Result<std::unique_ptr<ClientCore>> connect(ClientOptions options);
    ~ClientCore();  // close(); must not run in a forked child: leak it there
    void close();
    bool in_forked_child() const { return context_->in_forked_child(); }
    bool closed() const { return context_->closed(); }
    ClientContext& context() { return *context_; }

    Status get(std::span<GetItem> items, GetMemory* memory);
    Status put(std::span<PutItem> items, const PutOptions& options);
    // The same for memory of a GPU. Queued: returns once the copies are on the stream; else when
    // they are done, and `*transfer` is final.
    Status get(std::span<const GetItem> items, const DeviceCall& call,
               const DeviceGet::Options& options, const std::shared_ptr<DeviceTransfer>& transfer);
    // Reads behind what the stream does now; returns when the objects are published.
    Status put(std::span<PutItem> items, const PutOptions& options, const DeviceCall& call);
    // Sizes (or negative codes) of all keys. `local`, here and below: what is not in the memory of
    // this host's nodes is absent, and nobody is asked.
    Status sizes(std::span<const std::string_view> keys, std::vector<int64_t>* out,
                 bool local = false);
    // Both wait up to `wait_ms` for the whole list to be present; a call then has the longer of
    // this and the store's time-out.
    // `*reason`, if asked for: why the prefix ends where it does.
    Result<size_t> prefix_length(std::span<const std::string_view> keys, size_t stride,
                                 uint32_t wait_ms = 0, MissReason* reason = nullptr,
                                 bool local = false);
    Result<std::unique_ptr<LeasedPrefix>> lease_prefix(std::span<const std::string_view> keys,
                                                       size_t stride, uint32_t lease_ms,
                                                       uint32_t wait_ms = 0, bool local = false);
    // The view is null on a miss.
    Result<std::unique_ptr<ObjectView>> view(std::string_view key);

    // kOk, kNotFound, kPartial, kUnavailable …, one per key; `unreached` names the nodes behind
    // kPartial.
    Status remove(std::span<const std::string_view> keys, std::vector<Code>* out,
                  std::vector<std::string>* unreached);
    Status set_pin(std::span<const std::string_view> keys, Pin level, std::vector<Code>* out);
    Status flush();  // of this store's namespace: kOk, kPartial, …
    struct KeyPage {
        std::vector<std::string> keys;
        std::string cursor;  // empty: that was all
    };
    Result<KeyPage> list(std::string_view prefix, std::string_view cursor, uint32_t limit);
    struct Inspection {
        bool found = false;
        uint64_t size = 0;
        Version version = 0;
        Pin pin = Pin::kNone;
        uint64_t create_ms = 0;
        uint32_t replicas_wanted = 0;
        std::vector<std::pair<std::string, uint8_t>> replicas;  // node id, tier
    };
    Result<Inspection> inspect(std::string_view key);

    // Asks the nodes that hold these to have them in memory soon; waits for nothing else. The
    // number of keys that a node has.
    Result<size_t> prefetch(std::span<const std::string_view> keys);
    // What each node that answers knows of a key.
    struct Explanation {
        std::string node;
        bool in_dram = false;
        bool on_nvme = false;
        Version version = 0;
        uint64_t size = 0;
        uint64_t put_ms = 0;   // these three: wall clock; 0: not known
        uint64_t used_ms = 0;  // about
        uint64_t gone_ms = 0;
        MissReason reason = MissReason::kNone;  // when it is in neither
    };
    Result<std::vector<Explanation>> explain(std::string_view key);

    struct NodeSummary {
        PeerInfo info;
        NodePath path;
        bool ucx = false;        // it is known how to reach it so
        std::string ucx_detail;  // why not, as far as that is known
        bool apart = false;      // no RDMA fabric leads to it
        Nearness near{};
    };
    std::vector<NodeSummary> nodes() const;
    // The same, after asking the nodes of which it is not known yet.
    std::vector<NodeSummary> peers();
    // What each node that answers has counted since it started, by node id.
    using Counters = std::vector<std::pair<std::string, uint64_t>>;
    std::vector<std::pair<std::string, Counters>> node_counters();

  private:
    ClientCore() = default;
    Deadline waiting_deadline(uint32_t wait_ms) const;
    size_t lease_at_nodes(LocatePath& located, size_t length, uint32_t lease_ms,
                          std::vector<LeaseKeeper::Grant>* grants, Deadline deadline);
    std::string why_unattached() const;
    void ask_nodes(const std::function<bool(PeerNode&, Deadline)>& ask);
    template <class Request, class Reply>
    Status ask_master(Request& request, Reply* reply, ChannelPool::Lease* lease);

    std::unique_ptr<ClientContext> context_;
    std::shared_ptr<LeaseKeeper> keeper_;
    std::once_flag close_once_;
};

}  // namespace kvstore
