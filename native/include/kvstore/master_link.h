// A node's connection to its master: keeps it alive with backoff, carries claims, the numbered
// stream of announces and withdraws, the master's ops in order, and its copy orders.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvstore/hash.h"
#include "kvstore/status.h"
#include "kvstore/types.h"

namespace kvstore {

class EventServer;
enum class LinkState : uint8_t;

// The namespace part of a message to the master.
struct LinkNamespace {
    std::string tenant;
    std::string ns;
    uint32_t epoch = 0;
    friend bool operator==(const LinkNamespace&, const LinkNamespace&) = default;
};

struct ClaimItem {
    uint64_t claim_id = 0;  // drawn by the node; unique in this incarnation
    std::string key;
    uint64_t size_bytes = 0;
    Pin pin = Pin::kNone;
    uint8_t replicas = 1;
    bool upsert = false;
};

// One published object, as the master shall know it.
struct AnnounceItem {
    uint64_t ticket = 0;  // given back with the answer; 0: nobody waits
    std::string key;
    Version version = 0;
    uint64_t size_bytes = 0;
    Pin pin = Pin::kNone;
    uint8_t replicas = 1;
    uint64_t expiry_ms = 0;  // remaining; 0: none
};

struct WithdrawItem {
    LinkNamespace ns;
    std::string key;
    Version version = 0;
    MissReason reason = MissReason::kNone;
};

struct MasterOp {
    enum class Kind : uint8_t { kRemove = 1, kFlush = 2, kPin = 3 };
    uint64_t seq = 0;
    Kind kind = Kind::kRemove;
    LinkNamespace ns;  // kFlush: the epoch that is valid from now on
    std::string key;
    Version version = 0;
    uint64_t arg = 0;  // kPin: the level
};

struct CopyOrder {
    uint64_t copy_id = 0;
    LinkNamespace ns;
    std::string key;
    Version version = 0;
    std::string target_endpoint;
    std::string target_node;
};

class MasterLink {
  public:
    // What the link tells the node. Called from the server's threads, never under the link's lock,
    // never two at once for one connection.
    class Handler {
      public:
        virtual ~Handler() = default;
        virtual void on_link_up() = 0;
        virtual void on_link_down() = 0;  // every claim and announce in flight is void
        virtual void on_claim_reply(uint64_t claim_id, Code code, Version version) = 0;
        virtual void on_announced(uint64_t ticket, Code code, const LinkNamespace& ns,
                                  const std::string& key, Version version) = 0;
        virtual void on_op(const MasterOp& op) = 0;
        virtual void on_copy(const CopyOrder& order) = 0;
        // The next at most `limit` objects behind `cursor` (0 at the start), all of one namespace;
        // moves the cursor; an empty answer ends the full announce.
        virtual std::vector<AnnounceItem> next_objects(uint64_t& cursor, LinkNamespace& ns,
                                                       size_t limit) = 0;
    };
    struct Options {
        std::string cluster_id;
        std::string node_id;
        uint32_t node_epoch = 0;
        uint64_t session_id = 0;
        HashSecret hash_secret{};
        std::vector<std::string> endpoints;
        std::string principal;
        std::string token;
        uint32_t backoff_max_ms = 1'000;
    };
    MasterLink(Options options, EventServer& server, Handler& handler);
    ~MasterLink();

    void start();
    void stop();
    void set_session(uint64_t session_id, std::vector<std::string> endpoints);
    LinkState state() const;
    bool wait_state(LinkState state, uint32_t timeout_ms);
    uint64_t losses() const;
    uint64_t applied_seq() const;

    // From any thread. False: the link is not up and nothing was sent.
    bool claim(const LinkNamespace& ns, std::span<const ClaimItem> items, uint32_t timeout_ms);
    void abandon(std::span<const uint64_t> claim_ids);
    bool announce(const LinkNamespace& ns, std::vector<AnnounceItem> items);
    void withdraw(std::vector<WithdrawItem> items);  // dropped while down: the full announce tells
    void copy_done(uint64_t copy_id, Code code);

  private:
    struct Impl;
    std::shared_ptr<Impl> impl_;
};

}  // namespace kvstore
