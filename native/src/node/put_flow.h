// The writes in progress on a node: from the reserved block to the answer of the commit.
//
//   begin()   reserve blocks and claim the keys at the master, in one message
//   commit()  the bytes are there: as soon as the claim is granted, too, the object is published
//             (readable here), announced, and the commit answered: when the announce is on its way
//             if this is the first object of its key, else when the master has acknowledged
//   refused   AlreadyExists and the like free the block when the writer has committed or aborted
//
// Whatever ends first wins: the deadline, the link, the session or the reservation's time; then
// what is not published never becomes readable, and what is published but not acknowledged is
// withdrawn. A generation is also the claim's id and the announce's ticket. Thread-safe.
#pragma once

#include <atomic>
#include <memory>
#include <queue>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "net/event_server.h"
#include "node/master_link.h"
#include "node/node_metrics.h"
#include "node/nvme_tier.h"
#include "node/put_stage.h"
#include "node/replica_wishes.h"
#include "node/spans.h"
#include "store/block_store.h"

namespace kvstore {

// In the session number of an owner: its blocks are written by a UCX process.
inline constexpr uint64_t kPulledSession = uint64_t{1} << 63;

class PutFlow;

// A block granted ahead of its key, to go with an answer.
struct GrantedSpare {
    PutFlow* flow = nullptr;  // of its domain; null: none was granted
    Owner owner;
    Generation generation = 0;
    uint64_t offset = 0;
    uint32_t valid_ms = 0;
};

// The answer to one commit (or put by socket): sent when every row has its code.
class PutReply {
  public:
    PutReply(std::shared_ptr<ConnectionRef> to, uint64_t request_id, size_t rows)
        : to_(std::move(to)), request_id_(request_id), status_(rows, 0), left_(rows) {}
    void finish(size_t row, Code code);  // once per row, from any thread
    void send_if_empty();                // a message without rows
    // Ends with the reply; before the first row is finished. Null: the request is not traced.
    void trace(std::unique_ptr<OpenSpan> span) { span_ = std::move(span); }
    // Goes with the answer; before the first row is finished. Who has gone gets none.
    void grant(const GrantedSpare& spare) { spare_ = spare; }

  private:
    void send();
    const std::shared_ptr<ConnectionRef> to_;
    const uint64_t request_id_;
    std::vector<int32_t> status_;
    std::atomic<size_t> left_;
    std::unique_ptr<OpenSpan> span_;
    GrantedSpare spare_;
};

class PutFlow {
  public:
    struct Options {
        HashSecret hash_secret{};
        uint32_t reservation_ms = 0;
        uint32_t max_wait_ms = 0;  // when a message names no time-out
    };
    struct Row {
        std::string_view key;
        uint64_t size_bytes = 0;
        Pin pin = Pin::kNone;
        uint8_t replicas = 1;
        uint32_t ttl_ms = 0;
        bool upsert = false;
        std::string_view parent;
        Generation spare = 0;  // the block to write into; 0: a new one
    };
    struct Begun {
        Code code = Code::kUnavailable;
        Generation generation = 0;
        uint64_t offset = 0;
        uint8_t* data = nullptr;
    };
    struct Committed {
        size_t row = 0;  // of the reply
        Generation generation = 0;
        uint32_t data_crc = 0;
    };

    // `tier` may be null.
    PutFlow(const Options& options, BlockStore& store, NvmeTier* tier, MasterLink& link,
            NodeMetrics& metrics, ReplicaWishes& wishes);

    // For the puts that begin from now on.
    void set_reservation_ms(uint32_t ms) { reservation_ms_.store(ms); }

    // kUnavailable in every row, at once, unless the link is up.
    std::vector<Begun> begin(const Owner& owner, const NamespaceRef& ns, std::span<const Row> rows,
                             uint32_t timeout_ms);
    // A replica of a published version: no claim. kAlreadyExists: this version is here.
    Begun begin_copy(const Owner& owner, const NamespaceRef& ns, const Row& row, Version version);
    // Finishes every row of `reply` that is named, now or later.
    void commit(const Owner& owner, std::span<const Committed> rows, uint32_t timeout_ms,
                const std::shared_ptr<PutReply>& reply);
    Code abort(const Owner& owner, Generation generation);
    // Gives the keys to the next writer, but not the blocks to anybody: this one has not stopped.
    void disown(const Owner& owner, std::span<const Generation> generations);

    void on_claims(uint64_t link, std::span<const ClaimAnswer> results);
    void on_announced(std::span<const AnnounceResult> results);
    void on_link_down(uint64_t link);
    // Before the store is told: what is committed of this session is not quarantined but freed.
    void on_session_closed(uint64_t session);
    void tick();
    size_t under_way() const;

  private:
    struct Entry {
        Owner owner;
        NamespaceRef ns;
        std::string key;
        Hash128 hash;
        uint64_t size_bytes = 0;
        Pin pin = Pin::kNone;
        uint8_t replicas = 1;
        uint32_t ttl_ms = 0;
        uint64_t link = 0;
        PutStage stage = PutStage::kClaiming;
        Code refusal = Code::kOk;  // at kRefused: what the writer will be told
        Version version = 0;
        bool is_first = false;  // of its key, as the master says
        bool is_copy = false;
        uint32_t data_crc = 0;
        std::shared_ptr<PutReply> reply;  // null until the writer has committed
        size_t row = 0;
        uint64_t deadline_ms = 0;
        uint64_t started_us = 0;
        uint64_t announced_us = 0;
    };
    using Entries = std::unordered_map<Generation, Entry>;
    struct Ending {
        Generation generation = 0;
        Entry entry;
        Code reason{};  // what the writer is told, if it has committed
    };
    struct Ready {
        Generation generation = 0;
        Owner owner;
        uint32_t data_crc = 0;
        Version version = 0;
    };

    uint32_t wait_ms(uint32_t timeout_ms) const;
    bool is_being_published(const Hash128& hash) const;
    bool send_claims(uint64_t link, const NamespaceRef& ns, std::span<const Row> rows,
                     uint32_t timeout_ms, std::span<Begun> begun);
    BlockStore::ReserveItem reserve_item(const NamespaceRef& ns, const Row& row) const;
    void add_entry(const Owner& owner, const NamespaceRef& ns, const Row& row, const Begun& begun,
                   const Hash128& hash, Entry entry);
    // What follows from an event is added to `ready` or `endings`, to be done without the mutex.
    void advance(Entries::iterator at, PutEvent event, std::vector<Ready>* ready,
                 std::vector<Ending>* endings) KV_REQUIRES(mutex_);
    Ending take(Entries::iterator at, Code reason) KV_REQUIRES(mutex_);

    // Without the mutex, since they call the store and the link.
    void publish(std::span<const Ready> ready);
    void announce(std::span<const Ready> ready, std::span<const BlockStore::Published> results);
    // Their announces are on the way: answers those that need not wait for more.
    void answer_first(std::span<const Generation> generations);
    // Leaves nothing of a write that did not succeed, at whatever stage it was.
    void end(std::span<const Ending> endings);
    void release(const Ending& ending);
    void abandon(std::span<const Ending> endings);
    void count(const Entry& entry, Code code);  // in the metrics
    Counter& put_bytes(const Owner& owner) const;

    const Options options_;  // but for the next one
    std::atomic<uint32_t> reservation_ms_;
    BlockStore& store_;
    NvmeTier* const tier_;
    MasterLink& link_;
    NodeMetrics& metrics_;
    ReplicaWishes& wishes_;

    mutable Mutex mutex_;
    Entries entries_ KV_GUARDED_BY(mutex_);
    std::unordered_map<Hash128, uint32_t, Hash128Hasher> publishing_ KV_GUARDED_BY(mutex_);
    using Timeout = std::pair<uint64_t, Generation>;
    std::priority_queue<Timeout, std::vector<Timeout>, std::greater<>> timeouts_
        KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
