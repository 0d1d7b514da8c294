// The master's directory: which version of which key lies on which nodes. Soft state, rebuilt from
// the nodes' announcements; 64 shards, each under its own lock.
//
// The highest version of a key wins; a tombstone refuses everything at or below its version. A
// replica on a node that is down stays recorded but is not returned. Every function is thread-safe,
// takes at most one shard's lock at a time (a lookup: shared ones in ascending order) and calls
// nothing but the watch ring while it holds it.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "base/mutex.h"
#include "base/status.h"
#include "base/types.h"
#include "directory/directory_shard.h"
#include "directory/namespace_table.h"
#include "directory/object_table.h"
#include "directory/watch_ring.h"

namespace kvstore {

struct ObjectPlace {
    Code code = Code::kNotFound;
    MissReason reason = MissReason::kAbsent;
    uint8_t replica_count = 0;  // readable ones, in `nodes`
    Version version = 0;
    uint64_t size = 0;
    std::array<NodeNumber, limits::kMaxReplicas> nodes{};
};

struct AnnouncedObject {
    std::string_view key{};
    Version version = 0;
    uint64_t size = 0;
    Pin pin = Pin::kNone;
    uint8_t replicas_wanted = 1;
    uint64_t ttl_ms = 0;  // remaining; 0 never
};

struct AnnounceOutcome {
    Code code = Code::kOk;  // kRemoved: unpublish it (tombstone, flush or a higher version)
    uint8_t readable = 0;   // replicas of this version that can be read now …
    uint8_t wanted = 1;     // … and how many there should be
    bool is_newer = false;  // than what was recorded, if anything
    std::vector<NodeNumber> superseded{};  // an older version lay there: these nodes must be told
};

struct RemoveOutcome {
    Code code = Code::kOk;  // kNotFound: nothing recorded (the tombstone is set when it was forced)
    Version tombstone = 0;
    std::vector<NodeNumber> holders;
};

struct ObjectInfo {
    std::string key{};
    Version version = 0;
    uint64_t size = 0;
    Pin pin = Pin::kNone;
    uint8_t replicas_wanted = 1;
    uint64_t created_ms = 0;  // wall clock
    uint64_t ttl_ms = 0;
    const DirectoryEpoch* ns = nullptr;
    std::vector<Replica> replicas;  // those on nodes that are down too
};

class Directory {
  public:
    static constexpr size_t kShards = 64;

    Directory(const HashSecret& secret, uint32_t master_epoch);
    ~Directory();

    NamespaceTable& namespaces() { return namespaces_; }
    const NamespaceTable& namespaces() const { return namespaces_; }
    WatchRing& watch() { return watch_; }
    Version next_version() { return pack_epoch(epoch_, counter_.fetch_add(1) + 1); }
    Version last_version() const { return pack_epoch(epoch_, counter_.load()); }

    // Whether replicas on this node are returned by lookups.
    void set_readable(NodeNumber node, bool readable);
    bool readable(NodeNumber node) const { return readable_[node].load(std::memory_order_relaxed); }
    // Whether what this node holds is not readable for a moment only.
    void set_restarting(NodeNumber node, bool restarting);
    void set_rebuilding(bool rebuilding) { rebuilding_.store(rebuilding); }
    bool rebuilding() const { return rebuilding_.load(); }

    // out.size() >= keys.size(). The keys are looked up in the namespace's current epoch.
    void lookup(const Namespace& ns, std::span<const std::string_view> keys,
                std::span<ObjectPlace> out);
    // The two parts of it, for who may ask again before it answers; and in a namespace that does
    // not exist (null).
    void find(const Namespace& ns, std::span<const std::string_view> keys,
              std::span<ObjectPlace> out) const
        KV_NO_THREAD_SAFETY_ANALYSIS;  // locks several shards at once, by a bit mask
    void find_nowhere(std::span<ObjectPlace> out) const;
    void count(const Namespace* ns, std::span<const ObjectPlace> answered);
    ObjectPlace lookup_one(const DirectoryEpoch& ns, std::string_view key) const;  // not counted
    // The same of an object that no node serves now: `nodes` are those that restart. Not found
    // where none of its nodes does.
    ObjectPlace lookup_restarting(const DirectoryEpoch& ns, std::string_view key) const;

    // `floor`: versions at or below it are taken only when recorded already (a node that missed
    // operations which the log no longer has).
    AnnounceOutcome announce(const DirectoryEpoch& ns, NodeNumber node, const AnnouncedObject& item,
                             Version floor = 0);
    // The same of many, in their order where they are of one key; out.size() >= items.size(). Those
    // of a shard follow each other, so that one lock serves them all and their cache misses
    // overlap.
    void announce(const DirectoryEpoch& ns, NodeNumber node, std::span<const AnnouncedObject> items,
                  Version floor, std::span<AnnounceOutcome> out);
    // False when this version was not recorded there.
    bool withdraw(const DirectoryEpoch& ns, NodeNumber node, std::string_view key, Version version,
                  MissReason reason);
    // Draws the tombstone's version. `force` sets it even when nothing is recorded.
    RemoveOutcome remove(const DirectoryEpoch& ns, std::string_view key, bool force);
    // A tombstone from the log of a previous life, or of an upsert (version below the new one).
    void set_tombstone(const DirectoryEpoch& ns, std::string_view key, Version version);
    void drop_tombstone(const DirectoryEpoch& ns, std::string_view key, Version version);
    // The version whose pin was set, or 0; `holders` are its nodes.
    Version set_pin(const DirectoryEpoch& ns, std::string_view key, Pin pin,
                    std::vector<NodeNumber>& holders);
    const DirectoryEpoch* flush(Namespace& ns);

    // A full announce: what the node does not announce between begin and end is dropped at the end.
    void begin_full(NodeNumber node);
    size_t end_full(NodeNumber node);
    size_t drop_node(NodeNumber node);  // all its replicas
    // Looks at up to `budget` entries for those of flushed epochs; true when nothing is left to do.
    // One thread at a time.
    bool sweep(size_t budget);

    bool inspect(const DirectoryEpoch& ns, std::string_view key, ObjectInfo& out) const;
    // Appends up to `limit` readable keys with the prefix; cursor 0 starts. Returns the next
    // cursor, 0 at the end. A page may be short or empty before the end: one call scans a bounded
    // part.
    uint64_t list(const DirectoryEpoch& ns, std::string_view prefix, uint64_t cursor, size_t limit,
                  std::vector<std::string>& out) const;
    // Calls `fn` for up to `budget` entries from the cursor (0 starts) under the shard's shared
    // lock; returns the next cursor, 0 at the end.
    uint64_t scan(uint64_t cursor, size_t budget,
                  const std::function<void(const ObjectEntry&)>& fn) const;

    struct Stats {
        uint64_t objects = 0;
        uint64_t bytes = 0;  // sizes of recorded objects, each once
        // Of these: those whose every holder is down.
        uint64_t unreachable_objects = 0;
        uint64_t unreachable_bytes = 0;
        uint64_t replicas = 0;
        uint64_t tombstones = 0;
        uint64_t memory_bytes = 0;
        std::array<uint64_t, kMissReasonCount> lookups{};  // by reason; [0] are hits
    };
    Stats stats() const;
    struct NamespaceUse {
        NamespacePtr ns{};
        uint32_t epoch = 0;    // the current one, whose objects these are
        uint64_t objects = 0;  // recorded ones, those of nodes that are down too
        uint64_t bytes = 0;    // each object once
    };
    std::vector<NamespaceUse> uses() const;  // of every namespace
    uint64_t replicas_of(NodeNumber node) const {
        return replicas_[node][0].load() + replicas_[node][1].load();
    }

  private:
    using Shard = DirectoryShard;
    using NodeFlags = std::array<std::atomic<bool>, limits::kMaxNodes>;

    KeyHash place(const DirectoryEpoch& ns, std::string_view key) const;
    void answer(const Shard& shard, uint32_t number, uint32_t hash, const DirectoryEpoch& ns,
                std::string_view key, uint64_t now_ms, ObjectPlace& out) const
        KV_REQUIRES_SHARED(shard.lock);
    void answer_from(const NodeFlags& nodes, const Shard& shard, uint32_t number, uint32_t hash,
                     const DirectoryEpoch& ns, std::string_view key, uint64_t now_ms,
                     ObjectPlace& out) const KV_REQUIRES_SHARED(shard.lock);
    AnnounceOutcome announce_in(Shard& shard, const KeyHash& hash, const DirectoryEpoch& ns,
                                NodeNumber node, const AnnouncedObject& item, Version floor)
        KV_REQUIRES(shard.lock);
    Code record_replica(Shard& shard, ObjectEntry& entry, Replica replica, uint64_t size)
        KV_REQUIRES(shard.lock);
    void add_replica(Shard& shard, ObjectEntry& entry, Replica replica) KV_REQUIRES(shard.lock);
    void drop_replica(Shard& shard, ObjectEntry& entry, size_t position) KV_REQUIRES(shard.lock);
    void drop_object(Shard& shard, uint32_t number) KV_REQUIRES(shard.lock);

    void emit(WatchKind kind, const ObjectEntry& entry, NodeNumber node);
    uint8_t count_readable(const ObjectEntry& entry) const;
    std::atomic<uint64_t>& marked(NodeNumber node, bool mark) {
        return replicas_[node][mark ? 1 : 0];
    }
    void remark(ObjectEntry& entry, size_t position, Replica replica);
    size_t sweep_node(NodeNumber node, bool all);
    void count_unreachable(Stats& stats) const KV_EXCLUDES(unreachable_mutex_);

    const HashSecret secret_;
    const uint32_t epoch_;
    std::atomic<uint64_t> counter_{0};
    std::atomic<bool> rebuilding_{false};
    NamespaceTable namespaces_;
    WatchRing watch_;
    TableMemory memory_;  // of the objects of all shards
    std::unique_ptr<std::array<Shard, kShards>> shards_;
    NodeFlags readable_{};
    NodeFlags restarting_{};
    // By node and mark. So a full announce that leaves nothing behind is known to, and no entry has
    // to be looked at: otherwise a thousand nodes that announce would each cost a pass over all.
    std::array<std::array<std::atomic<uint64_t>, 2>, limits::kMaxNodes> replicas_{};
    NodeFlags mark_{};
    NodeFlags announcing_{};
    std::atomic<uint32_t> flushes_{0};  // sweeps have something to look for
    uint64_t sweep_cursor_ = 0;         // the sweep's own, one thread
    uint32_t sweep_target_ = 0;
    uint32_t swept_flushes_ = 0;
    std::array<std::atomic<uint64_t>, kMissReasonCount> lookups_{};

    // What was counted last: a pass over all entries takes long where there are many.
    struct Unreachable {
        uint64_t objects = 0;
        uint64_t bytes = 0;
        uint64_t counted_ms = 0;
        uint64_t took_ms = 0;
    };
    mutable Mutex unreachable_mutex_;
    mutable Unreachable unreachable_ KV_GUARDED_BY(unreachable_mutex_);
};

}  // namespace kvstore
