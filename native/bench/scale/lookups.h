// The clients of a generated cluster: sessions that look up random objects in batches, as fast as
// the master answers, or at a rate that does not wait for it.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/histogram.h"
#include "base/mutex.h"
#include "net/event_server.h"
#include "node/connection_state.h"
#include "scale/nodes.h"

namespace kvstore::scale {

inline constexpr size_t kBatch = 128;

class Clients {
  public:
    Clients(Nodes& nodes, std::string master, EventServer& server);
    ~Clients();

    // Connects as many as are missing.
    Status connect(size_t count);
    size_t connected() const { return open_.load(); }
    // Batches a second over all clients; 0: each asks again once it is answered.
    void start(double batches_per_s);
    std::string stop();  // JSON of what came since start()
    // Since when these nodes are dead: until when they are named is measured from here.
    void note_dead() { dead_since_ns_ = now_ns(); }
    std::string last_named() const;  // JSON

    // The server's calls.
    void on_frame(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body);
    void on_close(Connection& connection);

  private:
    struct Asked {
        uint16_t node = 0;
        Version version = 0;
    };
    struct Client final : ConnectionState {
        std::shared_ptr<ConnectionRef> ref;
        std::atomic<uint64_t> due_ns = 0;  // of the request in progress; 0: none
        std::array<Asked, kBatch> asked;
        std::mt19937_64 random;
    };

    static uint64_t now_ns();
    void ask(Client& client, uint64_t due_ns);
    void count(const Client& client, const LookupReply& reply, uint64_t now);
    void pace(double batches_per_s);
    void finished(Client& client, uint64_t now);

    Nodes& nodes_;
    const std::string master_;
    EventServer& server_;
    std::vector<std::shared_ptr<Client>> clients_;  // the commanding thread only
    std::atomic<size_t> open_{0};
    std::atomic<bool> running_{false};
    std::atomic<bool> paced_{false};
    std::thread pacer_;
    Mutex mutex_;
    std::vector<Client*> idle_ KV_GUARDED_BY(mutex_);  // while it is paced

    uint64_t started_ns_ = 0;
    std::unique_ptr<Histogram> latency_us_ = std::make_unique<Histogram>();
    std::atomic<uint64_t> batches_{0};
    std::atomic<uint64_t> found_{0};
    std::atomic<uint64_t> missing_{0};  // of nodes that live
    std::atomic<uint64_t> down_{0};     // of nodes that are dead
    std::atomic<uint64_t> wrong_{0};    // another version than was announced
    std::atomic<uint64_t> failed_{0};   // errors in place of a reply
    std::atomic<uint64_t> dead_since_ns_{0};
    std::atomic<uint64_t> named_ns_{0};  // when a dead node was last named
};

}  // namespace kvstore::scale
