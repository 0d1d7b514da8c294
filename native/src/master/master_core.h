// The master without its policy: directory, claims, operations log, copy orders and the nodes'
// links.
//
// Python decides (which nodes exist and live, weights, rates, when a rebuild has finished, what is
// durable) and calls the functions under "Policy"; the block port (master_block_port.h) calls those
// under "Links" and "Clients". Thread-safe. Lock order: a link's work, master's mutex, claims or
// copy planner, shard, watch ring. The waits of lookups have a mutex of their own, taken with no
// other.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "directory/directory.h"
#include "master/ack_waits.h"
#include "master/announce_fences.h"
#include "master/announce_turns.h"
#include "master/claim_table.h"
#include "master/copy_planner.h"
#include "master/heartbeats.h"
#include "master/journal_room.h"
#include "master/lookup_waits.h"
#include "master/node_table.h"
#include "master/ops_log.h"
#include "master/shares.h"

namespace kvstore {

class MasterCore {
  public:
    struct Options {
        HashSecret secret{};
        uint32_t epoch = 1;
        bool rebuilding = false;
        bool journal_auto_ack = false;  // operations are durable at once (embedded)
        uint64_t trimmed_seq = 0;       // what journal_trimmed() said last
        Version version_floor = 0;
        uint32_t maintenance_ms = 10;  // 0: no thread, the owner calls maintain()
    };
    explicit MasterCore(const Options& options);
    ~MasterCore();
    void stop();  // ends waits (Partial; lookups: what is there) and the maintenance thread

    Directory& directory() { return directory_; }
    LookupWaits& lookup_waits() { return lookup_waits_; }
    // A client's remove, flush or change of pins holds one while it waits.
    Shares& waiting_changes() { return waiting_changes_; }
    // The largest share of what waits here that one principal may have.
    void set_principal_share(double share);
    const Options& options() const { return options_; }

    // Policy: nodes.
    // Before start() with `known`: a node of a previous life. A new session ends the old one's
    // link.
    Result<NodeNumber> register_node(const NodeInfo& info, bool known);
    Status set_node(const std::string& node_id, NodeState state, uint32_t weight,
                    uint64_t free_bytes, uint64_t capacity_bytes);
    // A heartbeat of a node whose link is down: it lives, and what it holds counts again.
    void heard(const std::string& node_id);
    Status set_endpoints(const std::string& node_id, const std::string& tcp,
                         const std::string& unix_endpoint, const std::string& host,
                         const Locality& locality = {});
    Status remove_node(const std::string& node_id);
    struct NodeView {
        NodeNumber slot = kNoNode;
        NodeInfo info;
        bool connected = false;
        bool synced = false;
        uint64_t applied_seq = 0;
        uint64_t replicas = 0;
    };
    std::vector<NodeView> nodes() const;
    uint64_t nodes_id() const { return nodes_id_.load(std::memory_order_acquire); }
    // `connected` and `synced` of one node; of an unknown one, neither.
    std::pair<bool, bool> link_of(const std::string& node_id) const;
    // Changes whenever `connected` or `synced` of a node does.
    uint64_t links_id() const { return links_id_.load(std::memory_order_acquire); }
    // Links that bring nothing for that time are ended; 0: never.
    void set_link_silence(uint32_t silence_ms) { link_silence_ms_ = silence_ms; }
    void finish_rebuild();
    bool rebuilding() const { return directory_.rebuilding(); }
    void set_copy_policy(const CopyPolicy& policy) { planner_.set_policy(policy); }
    CopyPolicy copy_policy() const { return planner_.policy(); }
    struct Left {
        uint64_t objects = 0;
        uint64_t bytes = 0;
    };
    // Readable objects on this node that no other living, not draining node has. Of a draining one:
    // none means drained.
    Left drain_left(const std::string& node_id) const;
    uint64_t under_replicated() const;  // readable objects with fewer living replicas than wanted

    // Policy: heartbeats that came over links.
    std::vector<NodeHeartbeat> take_heartbeats(uint32_t timeout_ms);
    // `text`: the reply's bytes, or what is wrong.
    void answer_heartbeat(LinkId link, uint64_t request_id, Code code, std::string_view text);

    // Policy: the journal.
    Status load_ops(const std::vector<std::vector<uint8_t>>& records);
    Status set_namespace_epoch(const std::string& tenant, const std::string& ns, uint32_t epoch);
    // Blocks until there are records (or the time has passed: empty).
    std::vector<std::pair<uint64_t, std::vector<uint8_t>>> wait_journal(uint32_t timeout_ms);
    void journal_done(uint64_t seq);
    // Bytes of operations that may be waiting for the disk; removes, flushes, pins and upserts
    // beyond that are answered with `refusal`, and have no effect.
    void set_journal_room(uint64_t bytes, Code refusal = Code::kNoSpace) {
        journal_room_.set_room(bytes, refusal);
    }
    // (trimmed_seq, version_floor): records up to trimmed_seq may be deleted once both are durable.
    std::pair<uint64_t, Version> journal_trimmed() const;

    // Clients. What a node has answered may not be recorded yet: whoever asks for these keys (none:
    // for any of the namespace) waits first until the links below have passed a fence.
    bool has_unannounced() const { return claims_.has_unannounced(); }
    uint64_t settled() const { return claims_.settled(); }
    std::vector<LinkId> unannounced(const Namespace& ns,
                                    std::span<const std::string_view> keys) const;
    // False: too much waits already. `then` only posts (announce_fences.h).
    bool fence(std::span<const LinkId> links, size_t request_bytes, AnnounceFences::Then then);

    // `done` is called exactly once, from any thread, without locks held.
    using RemoveDone = std::function<void(std::vector<Code>, std::vector<std::string> unreached)>;
    void remove(Namespace& ns, const std::vector<std::string_view>& keys, uint32_t timeout_ms,
                RemoveDone done);
    void set_pins(Namespace& ns, const std::vector<std::string_view>& keys,
                  const std::vector<Pin>& levels, uint32_t timeout_ms, RemoveDone done);
    using FlushDone =
        std::function<void(Code, std::vector<std::string> unreached, uint32_t ns_epoch)>;
    void flush(Namespace& ns, uint32_t timeout_ms, FlushDone done);
    // The namespace of a client that changes something, created if it has to be: when its keys may
    // lie somewhere though nothing of it is recorded. Null: nothing of it exists.
    Result<NamespacePtr> space_to_change(std::string_view tenant, std::string_view ns);
    // For each node, how long a prefix of `keys` it holds; longest first. And the prefix of keys
    // that are readable anywhere.
    std::pair<std::vector<std::pair<std::string, uint32_t>>, uint32_t> locate(
        const Namespace& ns, const std::vector<std::string_view>& keys);

    // Links. Frames of one link come from one thread at a time.
    struct LinkHello {
        std::string node_id{};
        uint64_t session_id = 0;
        uint32_t node_epoch = 0;
        uint64_t applied_seq = 0;
    };
    // The last operation that the node has to apply before it announces; kExpired: register first.
    Result<uint64_t> check_link(const LinkHello& hello);
    // Operations and orders are pushed from here on, those that it missed first. Ends the node's
    // older link.
    Result<LinkId> open_link(const LinkHello& hello, std::shared_ptr<NodeLink> to);
    void close_link(LinkId link);
    // Why nothing can be written into the namespace, if so; each row has its answer all the same.
    Status claim(LinkId link, const Claim& message, std::vector<ClaimAnswer>& out);
    void abandon(LinkId link, const Abandon& message);
    // A status other than Ok (a gap, an unknown namespace epoch …) ends the link: the node starts
    // over with a full announce.
    // `answer` is called with the codes if it is Ok: at once, or when a newer version of an object
    // has overtaken those of other nodes only after these do not show them any more.
    using Announced = std::function<void(const std::vector<int32_t>& codes)>;
    Status announce(LinkId link, const Announce& message, std::vector<int32_t>& codes,
                    const Announced& answer = {});
    Status withdraw(LinkId link, const Withdraw& message);
    void ops_ack(LinkId link, uint64_t seq);
    void pong(LinkId link, uint64_t token) { fences_.passed(link, token); }
    void copy_done(LinkId link, uint64_t copy_id, Code code);
    // Answered with kOverloaded when it is not taken (heartbeats.h).
    void heartbeat(NodeHeartbeat heartbeat);

    // Time: claims, waits, copies, sweeps. Called by the maintenance thread.
    void maintain(uint64_t now_ms);

    struct Stats {
        Directory::Stats directory;
        ClaimTable::Stats claims;
        CopyPlanner::Stats copies;
        uint64_t last_seq = 0;
        uint64_t durable_seq = 0;
        uint64_t trimmed_seq = 0;
        uint64_t log_ops = 0;
        uint64_t pending_waits = 0;
        uint64_t waiting_lookups = 0;
        uint64_t nodes = 0;
        uint64_t connected = 0;
        uint64_t announced = 0;
        uint64_t refused_announces = 0;
        uint64_t withdrawn = 0;
        uint64_t removes = 0;
        uint64_t flushes = 0;
        uint64_t namespaces = 0;
    };
    Stats stats() const;

  private:
    // What a link's own thread needs; found by id under a shared lock.
    struct LinkRecord {
        LinkId id = 0;
        NodeNumber node = kNoNode;
        std::atomic<Version> floor{0};
        std::shared_ptr<NodeLink> to;
        // The link's thread only: the namespace of its last frame, and those (Namespace::uid) in
        // which it is known to have claimed or announced.
        NamespacePtr space;
        std::unordered_set<uint64_t> served;
        uint64_t served_last = 0;
        Mutex work;  // held while it changes the directory; taken before the master's mutex
        uint64_t next_seq KV_GUARDED_BY(work) = 0;  // 0: any (the first frame of the link)
        bool closed KV_GUARDED_BY(work) = false;    // nothing of it is recorded any more
    };
    using Links = std::unordered_map<LinkId, std::shared_ptr<LinkRecord>>;
    // A row of a remove, flush or pin, and its operation if there is one.
    struct Pending {
        AckRow row;
        std::optional<Op> op;
    };

    // What a change makes due outside of the locks: filled while they are held, run after.
    struct Effects {
        std::vector<ClaimAnswer> answers{};       // claims that are decided: their nodes are told
        std::vector<AckWaits::Ready> ready{};     // removes, flushes and pins that are answered
        bool became_readable = false;             // replicas of a node: waiting lookups look again
        const Namespace* announced_in = nullptr;  // lookups that wait for its keys look again
        const KeyList* announced_keys = nullptr;
    };

    // Nodes and the journal (master_core.cpp).
    void change_state(NodeNumber slot, NodeRecord& record, NodeState state, Effects& effects)
        KV_REQUIRES(mutex_);
    void nodes_changed() KV_REQUIRES(mutex_) { nodes_id_.fetch_add(1, std::memory_order_release); }
    void make_durable(uint64_t seq) KV_REQUIRES(mutex_);
    void push_ops() KV_REQUIRES(mutex_);
    void trim() KV_REQUIRES(mutex_);
    // The waits that have ended.
    void collect_ready(uint64_t now_ms, Effects& effects) KV_REQUIRES(mutex_);
    void collect_all(Effects& effects) KV_REQUIRES(mutex_);  // when the master stops
    AckNode look(NodeNumber slot) const KV_REQUIRES(mutex_);
    void run(Effects& effects) KV_EXCLUDES(mutex_);

    // Links (node_links.cpp).
    std::shared_ptr<LinkRecord> find_link(LinkId link) const KV_EXCLUDES(links_mutex_);
    std::shared_ptr<LinkRecord> lose_link(NodeRecord& record, const std::string& reason)
        KV_REQUIRES(mutex_);
    void push_ops(NodeRecord& record) KV_REQUIRES(mutex_);
    void deliver(const std::vector<ClaimAnswer>& answers);
    static Status check_seq(LinkRecord& link, uint64_t seq) KV_REQUIRES(link.work);
    // The link's thread only.
    Result<const DirectoryEpoch*> epoch_of(LinkRecord& link, std::string_view tenant,
                                           std::string_view ns, uint32_t epoch, bool is_claim);
    // The part of announce() that runs with the link's work held.
    Status record_announce(LinkRecord& link, const Announce& message, std::vector<int32_t>& codes,
                           Effects& effects, std::vector<Pending>& overtaken) KV_REQUIRES(link.work)
        KV_EXCLUDES(mutex_);
    void record_objects(LinkRecord& link, const DirectoryEpoch& ns, const Announce& message,
                        std::vector<int32_t>& codes, Effects& effects,
                        std::vector<Pending>& overtaken) KV_REQUIRES(link.work);
    // Answers an announce; when a put waits for it, only after `overtaken` are gone elsewhere.
    void answer_announce(LinkId link, AnnouncePhase phase, const std::vector<int32_t>& codes,
                         const Announced& answer, std::vector<Pending> overtaken);
    void lost_while_claiming(const LinkRecord& link) KV_EXCLUDES(mutex_);
    // From here on removes and flushes of this namespace wait for the link's node.
    void note_served(LinkRecord& link, const Namespace& ns) KV_EXCLUDES(mutex_);
    void end_announce(LinkRecord& link, Effects& effects) KV_REQUIRES(link.work)
        KV_EXCLUDES(mutex_);

    // What clients ask (client_calls.cpp).
    // Nodes that may hold any key, as they have not announced everything yet.
    std::vector<NodeNumber> unheard() const KV_EXCLUDES(mutex_);
    // Sets a remove's row to wait for those who have not applied an earlier remove of the key, or
    // flush of its namespace: what that one covered may still lie there.
    void add_behind(const Namespace& ns, std::string_view key, AckRow& row) const
        KV_REQUIRES(mutex_);
    std::vector<std::string> names(const std::vector<NodeNumber>& slots) const KV_EXCLUDES(mutex_);
    void submit(std::vector<Pending> rows, uint32_t timeout_ms, RemoveDone done)
        KV_EXCLUDES(mutex_);

    // Maintenance (maintenance.cpp).
    void end_silent_links(uint64_t now_ms) KV_EXCLUDES(mutex_);
    void drop_tombstones(uint64_t now_ms) KV_REQUIRES(mutex_);
    void forget_namespaces(uint64_t now_ms);
    std::vector<CopyNode> copy_nodes(uint64_t now_ms, bool* all_alive) const;
    void run_copies(uint64_t now_ms);
    void scan_for_copies(uint64_t now_ms);
    Left count_objects(const std::function<bool(const ObjectEntry&)>& counts) const;
    std::vector<bool> living() const;  // by slot: alive, not draining
    void maintenance_loop();

    const Options options_;
    Directory directory_;
    ClaimTable claims_;
    CopyPlanner planner_;
    LookupWaits lookup_waits_;
    AnnounceFences fences_;
    AnnounceTurns turns_;
    Heartbeats heartbeats_;
    Shares waiting_changes_{"removes, flushes and changes of pins", limits::kMaxWaitingChanges};

    Mutex flush_mutex_;  // orders the flushes of a namespace in the log
    mutable Mutex mutex_ KV_ACQUIRED_AFTER(flush_mutex_);
    NodeTable nodes_ KV_GUARDED_BY(mutex_);
    OpsLog log_ KV_GUARDED_BY(mutex_);
    AckWaits waits_ KV_GUARDED_BY(mutex_);
    // Removes that everybody applied, and until when their tombstones stay.
    std::deque<std::pair<uint64_t, Op>> retired_ KV_GUARDED_BY(mutex_);
    bool stopping_ KV_GUARDED_BY(mutex_) = false;
    JournalRoom journal_room_;
    CondVar journal_ready_;
    CondVar wake_;
    std::atomic<uint64_t> nodes_id_;  // no other life of the master has the same
    std::atomic<uint64_t> links_id_{0};
    std::atomic<uint64_t> next_link_{1};
    std::atomic<uint32_t> link_silence_ms_{0};
    // The maintenance thread's own: when it last looked for silent links, and since when it has not
    // missed a look.
    uint64_t looked_ms_ = 0;
    uint64_t looking_since_ms_ = 0;

    mutable RwLock links_mutex_ KV_ACQUIRED_AFTER(mutex_);
    Links links_ KV_GUARDED_BY(links_mutex_);

    // The scan for missing copies, the maintenance thread's own but for the requests.
    std::atomic<uint64_t> scan_requests_{0};
    uint64_t scanned_requests_ = 0;
    uint64_t scan_target_ = 0;
    uint64_t scan_cursor_ = 0;
    uint64_t scanned_ms_ = 0;
    uint64_t forgot_ms_ = 0;  // namespaces, the maintenance thread's own

    std::atomic<uint64_t> announced_{0};
    std::atomic<uint64_t> refused_announces_{0};
    std::atomic<uint64_t> withdrawn_{0};
    std::atomic<uint64_t> removes_{0};
    std::atomic<uint64_t> flushes_{0};
    std::thread maintenance_;
};

}  // namespace kvstore
