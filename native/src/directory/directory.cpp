// The shards and what happens to one object; whole-directory passes are in directory_scan.cpp.
#include "directory/directory.h"

#include <algorithm>
#include <ctime>
#include <numeric>
#include <utility>

#include "base/clock.h"
#include "base/mutation.h"
#include "base/mutex.h"
#include "directory/shard_hash.h"

namespace kvstore {
namespace {

// Keys whose shards are locked together: enough to overlap the cache misses and to take each lock
// once for several keys (beside a writer, waiting for locks is most of a lookup's time), few enough
// that a writer is kept waiting for some 15 us at most.
constexpr size_t kGroup = 128;
// Announcements of one shard that share a lock: readers wait for it.
constexpr size_t kWriteGroup = 32;

}  // namespace

Directory::Directory(const HashSecret& secret, uint32_t master_epoch)
    : secret_(secret),
      epoch_(master_epoch),
      namespaces_(secret),
      shards_(std::make_unique<std::array<Shard, kShards>>()) {
    KV_ASSERT(master_epoch != 0 && master_epoch <= kMaxEpoch);
    for (Shard& shard : *shards_) {
        const WriterLock lock(shard.lock);
        shard.objects.set_memory(&memory_);
    }
}

Directory::~Directory() = default;

void Directory::set_readable(NodeNumber node, bool readable) {
    readable_[node].store(readable, std::memory_order_relaxed);
}

KeyHash Directory::place(const DirectoryEpoch& ns, std::string_view key) const {
    return ShardHash(secret_)(ns.id, key);
}

void Directory::set_restarting(NodeNumber node, bool restarting) {
    restarting_[node].store(restarting, std::memory_order_relaxed);
}

uint8_t Directory::count_readable(const ObjectEntry& entry) const {
    uint8_t count = 0;
    for (const Replica replica : entry.replicas) {
        count =
            static_cast<uint8_t>(count + (!replica.empty() && readable(replica.node()) ? 1 : 0));
    }
    return count;
}

void Directory::answer(const Shard& shard, uint32_t number, uint32_t hash, const DirectoryEpoch& ns,
                       std::string_view key, uint64_t now_ms, ObjectPlace& out) const {
    answer_from(readable_, shard, number, hash, ns, key, now_ms, out);
}

void Directory::answer_from(const NodeFlags& nodes, const Shard& shard, uint32_t number,
                            uint32_t hash, const DirectoryEpoch& ns, std::string_view key,
                            uint64_t now_ms, ObjectPlace& out) const {
    out = ObjectPlace();
    if (number == ObjectTable::kNone) {
        out.reason = rebuilding() ? MissReason::kRebuilding : shard.why_absent(hash, ns.ref, key);
        return;
    }
    const ObjectEntry& entry = shard.objects.at(number);
    if (entry.expires_at_ms != 0 && entry.expires_at_ms <= now_ms) {
        out.reason = MissReason::kExpired;
        return;
    }
    for (const Replica replica : entry.replicas) {
        if (replica.empty()) {
            break;
        }
        if (nodes[replica.node()].load(std::memory_order_relaxed)) {
            out.nodes[out.replica_count++] = replica.node();
        }
    }
    if (out.replica_count == 0) {
        out.reason = MissReason::kNodeDown;
        return;
    }
    out.code = Code::kOk;
    out.reason = MissReason::kNone;
    out.version = entry.version;
    out.size = entry.size;
}

// Unanalyzed: which shards it locks is known only at run time; the loops that lock and unlock run
// over the same bits.
void Directory::lookup(const Namespace& ns, std::span<const std::string_view> keys,
                       std::span<ObjectPlace> out) {
    find(ns, keys, out);
    count(&ns, out.first(keys.size()));
}

void Directory::find(const Namespace& ns, std::span<const std::string_view> keys,
                     std::span<ObjectPlace> out) const KV_NO_THREAD_SAFETY_ANALYSIS {
    KV_ASSERT(out.size() >= keys.size());
    const DirectoryEpoch& epoch = *ns.current.load(std::memory_order_acquire);
    const uint64_t now_ms = boottime_ms();
    for (size_t begin = 0; begin < keys.size(); begin += kGroup) {
        const size_t count = std::min(kGroup, keys.size() - begin);
        std::array<KeyHash, kGroup> places;
        uint64_t used = 0;
        for (size_t i = 0; i < count; ++i) {
            places[i] = place(epoch, keys[begin + i]);
            used |= uint64_t{1} << places[i].shard;
        }
        // Ascending order: two lookups and the writers (one lock at a time) cannot deadlock.
        for (uint64_t left = used; left != 0; left &= left - 1) {
            (*shards_)[static_cast<size_t>(__builtin_ctzll(left))].lock.lock_shared();
        }
        for (size_t i = 0; i < count; ++i) {
            (*shards_)[places[i].shard].objects.prefetch_index(places[i].index);
        }
        std::array<uint32_t, kGroup> hints;
        for (size_t i = 0; i < count; ++i) {
            hints[i] = (*shards_)[places[i].shard].objects.prefetch_entry(places[i].index);
        }
        for (size_t i = 0; i < count; ++i) {
            const Shard& shard = (*shards_)[places[i].shard];
            const std::string_view key = keys[begin + i];
            answer(shard, shard.objects.find_hinted(hints[i], places[i], epoch.ref, key),
                   places[i].index, epoch, key, now_ms, out[begin + i]);
        }
        for (uint64_t left = used; left != 0; left &= left - 1) {
            (*shards_)[static_cast<size_t>(__builtin_ctzll(left))].lock.unlock_shared();
        }
    }
}

void Directory::count(const Namespace* ns, std::span<const ObjectPlace> answered) {
    std::array<uint64_t, kMissReasonCount> reasons{};
    for (const ObjectPlace& one : answered) {
        ++reasons[static_cast<size_t>(one.reason)];
    }
    for (size_t i = 0; i < reasons.size(); ++i) {
        if (reasons[i] != 0) {
            lookups_[i].fetch_add(reasons[i], std::memory_order_relaxed);
        }
    }
    if (ns != nullptr) {
        ns->keys_looked_up.fetch_add(answered.size(), std::memory_order_relaxed);
        ns->keys_found.fetch_add(reasons[0], std::memory_order_relaxed);
    }
}

void Directory::find_nowhere(std::span<ObjectPlace> out) const {
    const MissReason reason = rebuilding() ? MissReason::kRebuilding : MissReason::kAbsent;
    std::ranges::fill(out, ObjectPlace{.reason = reason});
}

ObjectPlace Directory::lookup_one(const DirectoryEpoch& ns, std::string_view key) const {
    const KeyHash at = place(ns, key);
    const Shard& shard = (*shards_)[at.shard];
    ObjectPlace out;
    const ReaderLock lock(shard.lock);
    answer(shard, shard.objects.find(at.index, ns.ref, key), at.index, ns, key, boottime_ms(), out);
    return out;
}

ObjectPlace Directory::lookup_restarting(const DirectoryEpoch& ns, std::string_view key) const {
    const KeyHash at = place(ns, key);
    const Shard& shard = (*shards_)[at.shard];
    ObjectPlace out;
    const ReaderLock lock(shard.lock);
    answer_from(restarting_, shard, shard.objects.find(at.index, ns.ref, key), at.index, ns, key,
                boottime_ms(), out);
    return out;
}

void Directory::emit(WatchKind kind, const ObjectEntry& entry, NodeNumber node) {
    if (watch_.active()) {
        const Namespace& ns = *namespaces_.at(entry.ns)->owner;
        watch_.record(kind, ns.tenant, ns.name, entry.key(), entry.version,
                      kind == WatchKind::kPublish ? entry.size : 0, node);
    }
}

void Directory::add_replica(Shard& shard, ObjectEntry& entry, Replica replica) {
    entry.replicas[entry.replica_count()] = replica;
    ++shard.replicas;
    marked(replica.node(), replica.mark()).fetch_add(1, std::memory_order_relaxed);
    emit(WatchKind::kPublish, entry, replica.node());
}

void Directory::drop_replica(Shard& shard, ObjectEntry& entry, size_t position) {
    const Replica gone = entry.replicas[position];
    entry.erase_replica(position);
    --shard.replicas;
    marked(gone.node(), gone.mark()).fetch_sub(1, std::memory_order_relaxed);
}

void Directory::remark(ObjectEntry& entry, size_t position, Replica replica) {
    const Replica before = std::exchange(entry.replicas[position], replica);
    if (before.mark() != replica.mark()) {
        marked(replica.node(), before.mark()).fetch_sub(1, std::memory_order_relaxed);
        marked(replica.node(), replica.mark()).fetch_add(1, std::memory_order_relaxed);
    }
}

void Directory::drop_object(Shard& shard, uint32_t number) {
    ObjectEntry& entry = shard.objects.at(number);
    while (!entry.replicas[0].empty()) {
        drop_replica(shard, entry, 0);
    }
    shard.bytes -= entry.size;
    const DirectoryEpoch& ns = *namespaces_.at(entry.ns);
    ns.bytes.fetch_sub(entry.size, std::memory_order_relaxed);
    shard.objects.erase(number);
    ns.objects.fetch_sub(1, std::memory_order_release);  // last: its namespace may go now
}

AnnounceOutcome Directory::announce(const DirectoryEpoch& ns, NodeNumber node,
                                    const AnnouncedObject& item, Version floor) {
    const KeyHash at = place(ns, item.key);
    Shard& shard = (*shards_)[at.shard];
    const WriterLock lock(shard.lock);
    return announce_in(shard, at, ns, node, item, floor);
}

void Directory::announce(const DirectoryEpoch& ns, NodeNumber node,
                         std::span<const AnnouncedObject> items, Version floor,
                         std::span<AnnounceOutcome> out) {
    KV_ASSERT(out.size() >= items.size());
    struct Row {
        KeyHash place;
        uint32_t item;
    };
    std::vector<Row> rows(items.size());
    std::array<uint32_t, kShards + 1> begins{};  // of each shard's rows; counts at first
    std::vector<KeyHash> places(items.size());
    for (size_t i = 0; i < items.size(); ++i) {
        places[i] = place(ns, items[i].key);
        ++begins[places[i].shard + 1];
    }
    std::partial_sum(begins.begin(), begins.end(), begins.begin());
    std::array<uint32_t, kShards + 1> next = begins;
    for (size_t i = 0; i < items.size(); ++i) {
        rows[next[places[i].shard]++] = {places[i], static_cast<uint32_t>(i)};
    }
    for (size_t number = 0; number < kShards; ++number) {
        const std::span<const Row> mine(rows.data() + begins[number],
                                        rows.data() + begins[number + 1]);
        Shard& shard = (*shards_)[number];
        for (size_t first = 0; first < mine.size(); first += kWriteGroup) {
            const auto group = mine.subspan(first, std::min(kWriteGroup, mine.size() - first));
            const WriterLock lock(shard.lock);
            for (const Row& row : group) {
                shard.objects.prefetch_index(row.place.index);
            }
            for (const Row& row : group) {
                shard.objects.prefetch_entry(row.place.index);
            }
            for (const Row& row : group) {
                out[row.item] = announce_in(shard, row.place, ns, node, items[row.item], floor);
            }
        }
    }
}

AnnounceOutcome Directory::announce_in(Shard& shard, const KeyHash& hash, const DirectoryEpoch& ns,
                                       NodeNumber node, const AnnouncedObject& item,
                                       Version floor) {
    if (!is_valid_key(item.key)) {
        return {.code = Code::kInvalidArgument};
    }
    AnnounceOutcome outcome{.code = Code::kRemoved};
    // Looked at under the lock: a flush is followed by a sweep that takes every lock. A version
    // that this master never drew would outlast everything that it will draw.
    if (!ns.is_current() || item.version == 0 || item.version > last_version() ||
        KV_GUARD("tombstone", shard.tombstone(ns.ref, item.key) >= item.version)) {
        return outcome;
    }
    uint32_t number = shard.objects.find(hash.index, ns.ref, item.key);
    const bool known = number != ObjectTable::kNone;
    const Version current = known ? shard.objects.at(number).version : 0;
    if (item.version < current || (item.version != current && item.version <= floor)) {
        return outcome;
    }
    if (!known) {
        number = shard.objects.insert(hash, ns.ref, item.key);
        ns.objects.fetch_add(1, std::memory_order_relaxed);
    }
    ObjectEntry& entry = shard.objects.at(number);
    if (item.version != current) {
        while (!entry.replicas[0].empty()) {
            const NodeNumber old = entry.replicas[0].node();
            if (old != node) {
                outcome.superseded.push_back(old);
            }
            emit(WatchKind::kWithdraw, entry, old);
            drop_replica(shard, entry, 0);
        }
        shard.bytes += item.size - entry.size;
        ns.bytes.fetch_add(item.size - entry.size, std::memory_order_relaxed);
        entry.version = item.version;
        entry.set_size(item.size);
        entry.pin = item.pin;
        entry.replicas_wanted = std::max<uint8_t>(item.replicas_wanted, 1);
        entry.set_expiry(item.ttl_ms == 0 ? 0 : boottime_ms() + item.ttl_ms);
        entry.created_s = static_cast<uint32_t>(std::time(nullptr));
    }
    outcome.is_newer = item.version != current;
    outcome.code = record_replica(shard, entry, Replica(node, 0, mark_[node].load()), item.size);
    outcome.readable = count_readable(entry);
    outcome.wanted = entry.replicas_wanted;
    return outcome;
}

Code Directory::record_replica(Shard& shard, ObjectEntry& entry, Replica replica, uint64_t size) {
    if (entry.size != size) {
        return Code::kInvalidArgument;  // a version has one size
    }
    const int position = entry.find_replica(replica.node());
    if (position >= 0) {
        remark(entry, static_cast<size_t>(position), replica);
        return Code::kOk;
    }
    for (size_t i = 0; entry.replica_count() == entry.replicas.size(); ++i) {
        if (i == entry.replicas.size()) {
            return Code::kNoSpace;
        }
        if (!readable(entry.replicas[i].node())) {
            drop_replica(shard, entry, i);
        }
    }
    add_replica(shard, entry, replica);
    return Code::kOk;
}

bool Directory::withdraw(const DirectoryEpoch& ns, NodeNumber node, std::string_view key,
                         Version version, MissReason reason) {
    const KeyHash at = place(ns, key);
    Shard& shard = (*shards_)[at.shard];
    const WriterLock lock(shard.lock);
    const uint32_t number = shard.objects.find(at.index, ns.ref, key);
    if (number == ObjectTable::kNone || shard.objects.at(number).version != version) {
        return false;
    }
    ObjectEntry& entry = shard.objects.at(number);
    const int position = entry.find_replica(node);
    if (position < 0) {
        return false;
    }
    emit(WatchKind::kWithdraw, entry, node);
    drop_replica(shard, entry, static_cast<size_t>(position));
    if (entry.replicas[0].empty()) {
        shard.remember(at.index, reason);
        drop_object(shard, number);
    } else {
        // An evicted copy is not made again: repair answers deaths and drains only.
        entry.replicas_wanted =
            std::min(entry.replicas_wanted, static_cast<uint8_t>(entry.replica_count()));
    }
    return true;
}

RemoveOutcome Directory::remove(const DirectoryEpoch& ns, std::string_view key, bool force) {
    const KeyHash at = place(ns, key);
    Shard& shard = (*shards_)[at.shard];
    const WriterLock lock(shard.lock);
    const uint32_t number = shard.objects.find(at.index, ns.ref, key);
    RemoveOutcome outcome;
    if (number == ObjectTable::kNone) {
        outcome.code = Code::kNotFound;
        if (!force) {
            return outcome;
        }
    } else {
        const ObjectEntry& entry = shard.objects.at(number);
        for (size_t i = 0; i < entry.replica_count(); ++i) {
            outcome.holders.push_back(entry.replicas[i].node());
        }
        emit(WatchKind::kRemove, entry, kNoNode);
        drop_object(shard, number);
    }
    outcome.tombstone = next_version();
    shard.set_tombstone(ns, key, outcome.tombstone);
    return outcome;
}

void Directory::set_tombstone(const DirectoryEpoch& ns, std::string_view key, Version version) {
    const KeyHash at = place(ns, key);
    Shard& shard = (*shards_)[at.shard];
    const WriterLock lock(shard.lock);
    shard.set_tombstone(ns, key, version);
}

void Directory::drop_tombstone(const DirectoryEpoch& ns, std::string_view key, Version version) {
    const KeyHash at = place(ns, key);
    Shard& shard = (*shards_)[at.shard];
    const WriterLock lock(shard.lock);
    const auto found = shard.tombstones.find(NsKey(ns.ref, key).view());
    if (found != shard.tombstones.end() && found->second <= version) {
        shard.tombstones.erase(found);
        ns.tombstones.fetch_sub(1);
    }
}

Version Directory::set_pin(const DirectoryEpoch& ns, std::string_view key, Pin pin,
                           std::vector<NodeNumber>& holders) {
    const KeyHash at = place(ns, key);
    Shard& shard = (*shards_)[at.shard];
    const WriterLock lock(shard.lock);
    const uint32_t number = shard.objects.find(at.index, ns.ref, key);
    if (number == ObjectTable::kNone) {
        return 0;
    }
    ObjectEntry& entry = shard.objects.at(number);
    entry.pin = pin;
    for (size_t i = 0; i < entry.replica_count(); ++i) {
        holders.push_back(entry.replicas[i].node());
    }
    return entry.version;
}

const DirectoryEpoch* Directory::flush(Namespace& ns) {
    const DirectoryEpoch* next = namespaces_.advance(ns, ns.current.load()->epoch + 1);
    watch_.record(WatchKind::kFlush, ns.tenant, ns.name, {}, 0, 0, kNoNode);
    flushes_.fetch_add(1);
    return next;
}

bool Directory::inspect(const DirectoryEpoch& ns, std::string_view key, ObjectInfo& out) const {
    const KeyHash at = place(ns, key);
    const Shard& shard = (*shards_)[at.shard];
    const ReaderLock lock(shard.lock);
    const uint32_t number = shard.objects.find(at.index, ns.ref, key);
    if (number == ObjectTable::kNone) {
        return false;
    }
    const ObjectEntry& entry = shard.objects.at(number);
    const uint64_t now_ms = boottime_ms();
    if (entry.expires_at_ms != 0 && entry.expires_at_ms <= now_ms) {
        return false;
    }
    out.key = key;
    out.version = entry.version;
    out.size = entry.size;
    out.pin = entry.pin;
    out.replicas_wanted = entry.replicas_wanted;
    out.created_ms = uint64_t{entry.created_s} * 1000;
    out.ttl_ms = entry.expires_at_ms == 0 ? 0 : entry.expires_at_ms - now_ms;
    out.ns = &ns;
    out.replicas.assign(
        entry.replicas.begin(),
        entry.replicas.begin() + static_cast<std::ptrdiff_t>(entry.replica_count()));
    return true;
}

}  // namespace kvstore
