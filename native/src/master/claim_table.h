// Who may write a key now: granted claims, and those that wait for another one's outcome.
//
// A claim is granted with a fresh version when the key has no readable object and nobody else's
// claim; otherwise it waits within its deadline. When the other write is published the waiters hear
// AlreadyExists (an upsert is granted instead), when it is abandoned, removed or its node died, the
// first waiter inherits the key with a new version. The claims of a lost link stay in limbo until
// that node has announced everything again or was declared dead.
//
// Where nothing of the key is recorded, the grant says so, and the node may answer its writer when
// the announce is on its way. Until that is recorded, such a claim is *unannounced*, and who asks
// for the key has to wait for what the node has sent (announce_fences.h). Thread-safe; calls the
// directory, and only while it holds its own mutex.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <queue>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/mutex.h"
#include "directory/directory.h"
#include "directory/ns_key.h"
#include "wire/link_types.h"

namespace kvstore {

struct ClaimRequest {
    LinkId link = 0;
    NodeNumber node = kNoNode;
    uint64_t claim_id = 0;
    std::string_view key{};
    bool upsert = false;
};

class ClaimTable {
  public:
    static constexpr size_t kMaxWaiting = 1u << 20;  // of all keys; more are kOverloaded

    explicit ClaimTable(Directory& directory) : directory_(directory) {}

    // Appends an answer for every request that need not wait.
    void claim(const DirectoryEpoch& ns, std::span<const ClaimRequest> requests,
               uint64_t deadline_ms, std::vector<ClaimAnswer>& out);
    // The announcement of (key, version) was accepted (`published`) or refused. True: it was, and
    // an upsert's.
    bool settle(const DirectoryEpoch& ns, std::string_view key, Version version, bool published,
                std::vector<ClaimAnswer>& out);
    void abandon(LinkId link, std::span<const uint64_t> claim_ids, std::vector<ClaimAnswer>& out);
    // A tombstone cancels a granted claim below it. Returns the claim's node, or kNoNode.
    NodeNumber removed(const DirectoryEpoch& ns, std::string_view key, Version tombstone,
                       std::vector<ClaimAnswer>& out);
    // Whether the node's link was lost with claims on it, so that it may have published what it has
    // not announced.
    bool has_limbo(NodeNumber node) const;
    // Nothing: nobody claims it. kNoNode: some wait for it, and none was granted.
    std::optional<NodeNumber> claimed_by(const DirectoryEpoch& ns, std::string_view key) const;
    // The links whose nodes may have answered a put of one of these keys (none: of any key of this
    // epoch) that is not recorded yet. The first is a hint that costs no lock.
    bool has_unannounced() const { return unannounced_.load(std::memory_order_acquire) != 0; }
    // Grows when one is recorded: who has looked at the directory before looks again.
    uint64_t settled() const { return settled_.load(std::memory_order_acquire); }
    std::vector<LinkId> unannounced(const DirectoryEpoch& ns,
                                    std::span<const std::string_view> keys) const;
    void add_refs(std::unordered_set<uint32_t>& refs) const;  // of the epochs of all claims
    void flushed(const DirectoryEpoch& old_epoch, std::vector<ClaimAnswer>& out);

    void link_lost(LinkId link);  // its waiters are dropped, its granted claims fall into limbo
    // Ends every limbo claim of the node (it has resynced, or is dead).
    void end_limbo(NodeNumber node, std::vector<ClaimAnswer>& out);
    void finish_rebuild(std::vector<ClaimAnswer>& out);
    void expire(uint64_t now_ms, std::vector<ClaimAnswer>& out);

    struct Stats {
        uint64_t granted = 0;  // now
        uint64_t waiting = 0;
        uint64_t limbo = 0;
        uint64_t parked = 0;  // until the rebuild has finished
        uint64_t total_granted = 0;
        uint64_t total_exists = 0;
        uint64_t total_inherited = 0;
        uint64_t total_expired = 0;
    };
    Stats stats() const;

  private:
    struct Waiter {
        LinkId link;
        NodeNumber node;
        uint64_t claim_id;
        uint64_t deadline_ms;
        bool upsert;
    };
    struct Entry {
        const DirectoryEpoch* ns = nullptr;
        Waiter holder{};
        Version version = 0;  // 0: nobody holds it yet (parked until the rebuild has finished)
        bool limbo = false;
        bool first = false;  // granted as the first of its key, and counted in `unannounced_`
        std::vector<Waiter> waiters;  // in order; nearly always none
    };
    using Entries = std::unordered_map<std::string, Entry, NsKey::Hash, std::equal_to<>>;
    using Links = std::unordered_map<LinkId, std::unordered_map<uint64_t, const std::string*>>;

    void claim_one(const DirectoryEpoch& ns, const ClaimRequest& request, uint64_t deadline_ms,
                   std::vector<ClaimAnswer>& out) KV_REQUIRES(mutex_);
    void grant(Entries::iterator at, const Waiter& to, bool first, std::vector<ClaimAnswer>& out)
        KV_REQUIRES(mutex_);
    void set_first(Entry& entry, bool first) KV_REQUIRES(mutex_);
    Entries::iterator erase(Entries::iterator at) KV_REQUIRES(mutex_);
    // The holder is gone without publishing: the first waiter inherits, or the entry goes.
    void pass_on(Entries::iterator at, std::vector<ClaimAnswer>& out) KV_REQUIRES(mutex_);
    // The key has a published version: only an upsert may go on.
    void published(Entries::iterator at, Version version, std::vector<ClaimAnswer>& out)
        KV_REQUIRES(mutex_);
    void wait(Entries::iterator at, const Waiter& waiter) KV_REQUIRES(mutex_);
    // Takes the waiter out of its entry; false when it is that entry's holder.
    bool drop_waiter(Entries::iterator at, LinkId link, uint64_t claim_id) KV_REQUIRES(mutex_);
    void end_wait(const Waiter& waiter, Code code, Version version, std::vector<ClaimAnswer>& out)
        KV_REQUIRES(mutex_);
    void forget(LinkId link, uint64_t claim_id) KV_REQUIRES(mutex_);
    Entries::iterator entry_of(LinkId link, uint64_t claim_id) KV_REQUIRES(mutex_);

    struct Timeout {
        uint64_t deadline_ms;
        LinkId link;
        uint64_t claim_id;
        bool operator>(const Timeout& other) const { return deadline_ms > other.deadline_ms; }
    };

    Directory& directory_;
    std::atomic<uint64_t> unannounced_{0};  // entries with `first`; changed with the mutex held
    std::atomic<uint64_t> settled_{0};      // before an entry goes
    mutable Mutex mutex_;
    Entries entries_ KV_GUARDED_BY(mutex_);
    Links links_ KV_GUARDED_BY(
        mutex_);  // every unanswered or granted claim of a live link, to find its entry
    std::unordered_map<NodeNumber, std::vector<std::string>> limbo_ KV_GUARDED_BY(mutex_);
    std::priority_queue<Timeout, std::vector<Timeout>, std::greater<>> timeouts_
        KV_GUARDED_BY(mutex_);
    uint64_t waiting_ KV_GUARDED_BY(mutex_) = 0;
    Stats stats_ KV_GUARDED_BY(mutex_);  // the totals
};

}  // namespace kvstore
