// The nodes of a generated cluster: each has the real link to the master (node/master_link.h) and
// announces, claims and withdraws as a node does. Only the memory behind it is missing.
#pragma once

#include <atomic>
#include <deque>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "net/event_server.h"
#include "node/master_link.h"

namespace kvstore::scale {

struct NodeCounts {
    std::atomic<uint64_t> announced{0};
    std::atomic<uint64_t> refused{0};  // announcements and claims
    std::atomic<uint64_t> claimed{0};
    std::atomic<uint64_t> withdrawn{0};
};

class Node final : public MasterLink::Handler {
  public:
    Node(uint32_t index, uint64_t objects, const std::string& master, EventServer& server,
         NodeCounts& counts);

    // Begins the link, or goes on with another session.
    void enter(uint64_t session_id, uint32_t epoch);
    void stop();
    // None before it has entered.
    MasterLink* link() const { return linked_.load(std::memory_order_acquire); }
    const std::string& id() const { return id_; }
    // By who gives the generator its commands: sends a heartbeat, and its answer as JSON.
    void heartbeat(const std::string& hex);
    std::string heard() const;
    // From here on the master's frames are not looked at, and nothing is sent: a host without
    // power.
    void mute() { muted_ = true; }
    bool muted() const { return muted_; }
    // Withdraws its oldest objects and writes as many new ones.
    void churn(uint64_t objects);
    // A number of an object that it had from the beginning; none: all of these are gone.
    std::optional<uint64_t> pick(uint64_t random) const;
    Version version_of(uint64_t number) const;  // of one that pick() returns

    void on_link_down(uint64_t link) override;
    void on_claims(uint64_t link, std::span<const ClaimAnswer> results) override;
    void on_announced(uint64_t link, const NamespaceRef& ns,
                      std::span<const AnnounceResult> results) override;
    void on_ops(std::span<const OpView>) override {}
    void on_applied(uint64_t seq) override { link_->acknowledge(seq); }
    void on_copy(CopyOrder job) override {
        link_->copy_done(job.link, job.copy_id, Code::kNoSpace);
    }
    uint32_t list_objects(uint32_t cursor, size_t limit, std::vector<AnnounceGroup>& out) override;

  private:
    // Of a number, 0: it is not there.
    Version recorded(uint64_t number) const KV_REQUIRES(mutex_);

    const uint32_t index_;
    const uint64_t first_objects_;
    const std::string id_;
    const std::string master_;
    const NamespaceRef ns_;
    EventServer& server_;
    NodeCounts& counts_;
    std::atomic<bool> muted_{false};
    std::atomic<uint64_t> begin_{0};  // numbers below it are withdrawn
    mutable Mutex mutex_;
    // Of the objects behind the first ones; 0: claimed, or lost with a link.
    std::deque<Version> written_ KV_GUARDED_BY(mutex_);
    std::shared_future<Result<std::string>> heard_;
    uint64_t listed_from_ = 0;  // the connection's loop only
    std::unique_ptr<MasterLink> link_;
    std::atomic<MasterLink*> linked_{nullptr};
};

class Nodes {
  public:
    Nodes(uint32_t count, uint64_t objects, const std::string& master, EventServer& server);
    void stop();

    size_t size() const { return nodes_.size(); }
    Node& at(size_t index) { return *nodes_[index]; }
    NodeCounts& counts() { return counts_; }
    void prepared(size_t index, uint32_t epoch);
    void enter(size_t index, uint64_t session_id);
    // Of a node by its id, for who calls its endpoint; 0: unknown.
    uint32_t epoch_of(std::string_view node_id) const;
    Node* of_session(uint64_t session_id) const;
    void silence(size_t first, size_t count, bool close);
    std::string states() const;  // JSON
    void tick();                 // the links'
    // As many objects a second, over all nodes; 0: none.
    void set_churn(double objects_per_s) { churn_per_s_ = objects_per_s; }

  private:
    void churn(uint64_t now_ms);

    NodeCounts counts_;
    std::vector<std::unique_ptr<Node>> nodes_;
    mutable RwLock mutex_;
    std::unordered_map<uint64_t, Node*> sessions_ KV_GUARDED_BY(mutex_);
    std::unordered_map<std::string, uint32_t> epochs_ KV_GUARDED_BY(mutex_);
    std::atomic<double> churn_per_s_{0};
    uint64_t churned_ms_ = 0;  // the ticking thread only, as the two below
    double churn_due_ = 0;
    size_t churn_next_ = 0;
};

}  // namespace kvstore::scale
