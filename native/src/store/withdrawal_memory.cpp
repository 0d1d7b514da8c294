// Tombstones by hash, dropped in the order of their times.
#include "store/withdrawal_memory.h"

#include <algorithm>

namespace kvstore {

void TombstoneTable::note(const Hash128& hash, Version version, uint64_t now_ms) {
    Tombstone& tombstone = by_hash_[hash];
    tombstone.version = std::max(tombstone.version, version);
    tombstone.until_ms = now_ms + keep_ms_;
    order_.emplace_back(tombstone.until_ms, hash);
    // The order holds one line a note, so renewing one key forever must not let it grow either.
    while (by_hash_.size() > max_ || order_.size() > 2 * max_) {
        drop_front();
    }
}

void TombstoneTable::drop_front() {
    const auto [until_ms, hash] = order_.front();
    order_.pop_front();
    const auto it = by_hash_.find(hash);
    if (it == by_hash_.end() || it->second.until_ms != until_ms) {
        return;  // renewed since
    }
    floor_ = std::max(floor_, it->second.version);
    by_hash_.erase(it);
}

Version TombstoneTable::removed_upto(const Hash128& hash) const {
    const auto it = by_hash_.find(hash);
    return it == by_hash_.end() ? floor_ : std::max(floor_, it->second.version);
}

void TombstoneTable::forget_old(uint64_t now_ms) {
    while (!order_.empty() && order_.front().first <= now_ms) {
        const auto [until_ms, hash] = order_.front();
        order_.pop_front();
        const auto it = by_hash_.find(hash);
        if (it != by_hash_.end() && it->second.until_ms == until_ms) {
            by_hash_.erase(it);
        }
    }
}

}  // namespace kvstore
