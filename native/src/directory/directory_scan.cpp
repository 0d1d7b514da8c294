// The directory's passes over all its objects: full announces, dead nodes, flushed epochs,
// listings.

#include "base/clock.h"
#include "base/mutex.h"
#include "directory/directory.h"

namespace kvstore {
namespace {

constexpr size_t kListScan = 1u << 16;  // entries that one listing call looks at
// A pass over many entries for numbers alone is made 1/50 of the time.
constexpr uint64_t kPassPauses = 50;
constexpr uint64_t kManyObjects = 1'000'000;

uint64_t cursor_of(size_t shard, uint32_t number) { return uint64_t{shard} << 32 | number; }

}  // namespace

void Directory::begin_full(NodeNumber node) {
    const bool interrupted = announcing_[node].exchange(true);
    if (!interrupted) {
        mark_[node].store(!mark_[node].load());
        return;
    }
    // The round before was cut off: what it marked counts as not announced.
    const bool mark = mark_[node].load();
    for (Shard& shard : *shards_) {
        if (marked(node, mark).load() == 0) {
            return;
        }
        const WriterLock lock(shard.lock);
        for (uint32_t number = 0; number < shard.objects.end(); ++number) {
            ObjectEntry& entry = shard.objects.at(number);
            const int position = entry.key_data == nullptr ? -1 : entry.find_replica(node);
            if (position >= 0) {
                const auto at = static_cast<size_t>(position);
                remark(entry, at, Replica(node, entry.replicas[at].tier(), !mark));
            }
        }
    }
}

size_t Directory::end_full(NodeNumber node) {
    announcing_[node].store(false);
    return sweep_node(node, false);
}

size_t Directory::drop_node(NodeNumber node) {
    announcing_[node].store(false);
    const size_t dropped = sweep_node(node, true);
    watch_.record(WatchKind::kNode, {}, {}, {}, 0, 0, node);
    return dropped;
}

size_t Directory::sweep_node(NodeNumber node, bool all) {
    const bool mark = mark_[node].load();
    size_t dropped = 0;
    for (Shard& shard : *shards_) {
        if (marked(node, !mark).load() == 0 && (!all || marked(node, mark).load() == 0)) {
            break;  // mostly before the first one
        }
        const WriterLock lock(shard.lock);
        for (uint32_t number = 0; number < shard.objects.end(); ++number) {
            ObjectEntry& entry = shard.objects.at(number);
            const int position = entry.key_data == nullptr ? -1 : entry.find_replica(node);
            if (position < 0 ||
                (!all && entry.replicas[static_cast<size_t>(position)].mark() == mark)) {
                continue;
            }
            emit(WatchKind::kWithdraw, entry, node);
            drop_replica(shard, entry, static_cast<size_t>(position));
            ++dropped;
            if (entry.replicas[0].empty()) {
                shard.remember(entry.hash, all ? MissReason::kNodeDown : MissReason::kEvicted);
                drop_object(shard, number);
            }
        }
    }
    return dropped;
}

bool Directory::sweep(size_t budget) {
    const uint32_t flushes = flushes_.load();
    if (flushes == swept_flushes_) {
        return true;
    }
    if (sweep_cursor_ == 0) {
        sweep_target_ = flushes;
    }
    auto shard_number = static_cast<size_t>(sweep_cursor_ >> 32);
    auto number = static_cast<uint32_t>(sweep_cursor_);
    for (; shard_number < kShards; ++shard_number, number = 0) {
        Shard& shard = (*shards_)[shard_number];
        const WriterLock lock(shard.lock);
        if (number == 0) {
            std::erase_if(shard.tombstones, [this](const auto& one) {
                const DirectoryEpoch& ns = *namespaces_.at(NsKey::ns_of(one.first));
                const bool ended = !ns.is_current();
                ns.tombstones.fetch_sub(ended ? 1 : 0);
                return ended;
            });
        }
        for (; number < shard.objects.end(); ++number, --budget) {
            if (budget == 0) {
                sweep_cursor_ = cursor_of(shard_number, number);
                return false;
            }
            const ObjectEntry& entry = shard.objects.at(number);
            if (entry.key_data != nullptr && !namespaces_.at(entry.ns)->is_current()) {
                drop_object(shard, number);
            }
        }
    }
    sweep_cursor_ = 0;
    swept_flushes_ = sweep_target_;
    return swept_flushes_ == flushes_.load();
}

uint64_t Directory::scan(uint64_t cursor, size_t budget,
                         const std::function<void(const ObjectEntry&)>& fn) const {
    auto shard_number = static_cast<size_t>(cursor >> 32);
    auto number = static_cast<uint32_t>(cursor);
    for (; shard_number < kShards; ++shard_number, number = 0) {
        const Shard& shard = (*shards_)[shard_number];
        const ReaderLock lock(shard.lock);
        for (; number < shard.objects.end(); ++number, --budget) {
            if (budget == 0) {
                return cursor_of(shard_number, number);
            }
            const ObjectEntry& entry = shard.objects.at(number);
            if (entry.key_data != nullptr) {
                fn(entry);
            }
        }
    }
    return 0;
}

uint64_t Directory::list(const DirectoryEpoch& ns, std::string_view prefix, uint64_t cursor,
                         size_t limit, std::vector<std::string>& out) const {
    const uint64_t now_ms = boottime_ms();
    auto shard_number = static_cast<size_t>(cursor >> 32);
    auto number = static_cast<uint32_t>(cursor);
    size_t budget = kListScan;
    for (; shard_number < kShards; ++shard_number, number = 0) {
        const Shard& shard = (*shards_)[shard_number];
        const ReaderLock lock(shard.lock);
        for (; number < shard.objects.end(); ++number, --budget) {
            if (budget == 0 || out.size() >= limit) {
                return cursor_of(shard_number, number);
            }
            const ObjectEntry& entry = shard.objects.at(number);
            if (entry.key_data != nullptr && entry.ns == ns.ref &&
                entry.key().starts_with(prefix) && count_readable(entry) != 0 &&
                (entry.expires_at_ms == 0 || entry.expires_at_ms > now_ms)) {
                out.emplace_back(entry.key());
            }
        }
    }
    return 0;
}

std::vector<Directory::NamespaceUse> Directory::uses() const {
    std::vector<NamespaceUse> out;
    for (const auto& [ns, epoch] : namespaces_.all()) {
        const DirectoryEpoch& now = *ns->current.load(std::memory_order_acquire);
        out.push_back({.ns = ns,
                       .epoch = now.epoch,
                       .objects = now.objects.load(std::memory_order_relaxed),
                       .bytes = now.bytes.load(std::memory_order_relaxed)});
    }
    return out;
}

Directory::Stats Directory::stats() const {
    Stats stats;
    stats.memory_bytes = memory_.bytes();
    for (const Shard& shard : *shards_) {
        const ReaderLock lock(shard.lock);
        stats.objects += shard.objects.size();
        stats.bytes += shard.bytes;
        stats.replicas += shard.replicas;
        stats.tombstones += shard.tombstones.size();
        stats.memory_bytes += sizeof(Shard) - sizeof(ObjectTable) + shard.objects.memory_bytes() +
                              shard.history.size() * sizeof(Shard::Memory);
    }
    for (size_t i = 0; i < stats.lookups.size(); ++i) {
        stats.lookups[i] = lookups_[i].load(std::memory_order_relaxed);
    }
    count_unreachable(stats);
    return stats;
}

// Every entry is looked at only while a node that holds any is down, and for a small share of the
// time.
void Directory::count_unreachable(Stats& stats) const {
    bool any = false;
    for (size_t node = 0; node < readable_.size(); ++node) {
        any = any || (!readable_[node].load() && replicas_of(static_cast<NodeNumber>(node)) != 0);
    }
    if (!any) {
        return;
    }
    const MutexLock lock(unreachable_mutex_);
    const uint64_t now_ms = boottime_ms();
    if (stats.objects < kManyObjects ||
        now_ms >= unreachable_.counted_ms + unreachable_.took_ms * kPassPauses) {
        unreachable_ = {};
        for (const Shard& shard : *shards_) {
            const ReaderLock shared(shard.lock);
            for (uint32_t at = 0; at < shard.objects.end(); ++at) {
                const ObjectEntry& entry = shard.objects.at(at);
                if (entry.key_data != nullptr && count_readable(entry) == 0) {
                    ++unreachable_.objects;
                    unreachable_.bytes += entry.size;
                }
            }
        }
        unreachable_.counted_ms = boottime_ms();
        unreachable_.took_ms = unreachable_.counted_ms - now_ms;
    }
    stats.unreachable_objects = unreachable_.objects;
    stats.unreachable_bytes = unreachable_.bytes;
}

}  // namespace kvstore
