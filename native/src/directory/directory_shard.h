// One shard of the directory: a part of its objects, tombstones and history, under a lock.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "base/types.h"
#include "directory/namespace_table.h"
#include "directory/ns_key.h"
#include "directory/object_table.h"

namespace kvstore {

struct alignas(64) DirectoryShard {
    static constexpr size_t kHistory = 4096;  // remembered withdrawals, lossy

    mutable RwLock lock;
    ObjectTable objects KV_GUARDED_BY(lock);
    std::unordered_map<std::string, Version, NsKey::Hash, std::equal_to<>> tombstones
        KV_GUARDED_BY(lock);
    uint64_t bytes KV_GUARDED_BY(lock) = 0;
    uint64_t replicas KV_GUARDED_BY(lock) = 0;

    struct Memory {
        uint32_t hash = 0;
        MissReason reason = MissReason::kNone;
    };
    std::vector<Memory> history KV_GUARDED_BY(lock) =
        std::vector<Memory>(kHistory);  // lossy: by hash, the last wins

    Version tombstone(uint32_t ns, std::string_view key) const KV_REQUIRES_SHARED(lock) {
        if (tombstones.empty()) {
            return 0;
        }
        const auto at = tombstones.find(NsKey(ns, key).view());
        return at == tombstones.end() ? 0 : at->second;
    }
    void set_tombstone(const DirectoryEpoch& ns, std::string_view key, Version version)
        KV_REQUIRES(lock) {
        const auto at = tombstones.find(NsKey(ns.ref, key).view());
        if (at == tombstones.end()) {
            ns.tombstones.fetch_add(1);
            tombstones.emplace(NsKey(ns.ref, key).view(), version);
        } else {
            at->second = std::max(at->second, version);
        }
    }
    void remember(uint32_t hash, MissReason reason) KV_REQUIRES(lock) {
        history[(hash >> 8) % kHistory] = {hash, reason};
    }
    MissReason why_absent(uint32_t hash, uint32_t ns, std::string_view key) const
        KV_REQUIRES_SHARED(lock) {
        if (tombstone(ns, key) != 0) {
            return MissReason::kRemoved;
        }
        const Memory& memory = history[(hash >> 8) % kHistory];
        return memory.hash == hash && memory.reason != MissReason::kNone ? memory.reason
                                                                         : MissReason::kAbsent;
    }
};

}  // namespace kvstore
