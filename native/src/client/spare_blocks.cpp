// A handful of spare blocks, searched from the newest.
#include "client/spare_blocks.h"

#include <algorithm>

#include "base/mutex.h"

namespace kvstore {

std::optional<SpareBlocks::Block> SpareBlocks::take(uint64_t size_bytes, uint64_t now_ms) {
    const MutexLock lock(mutex_);
    for (size_t i = blocks_.size(); i-- > 0;) {
        if (blocks_[i].size_bytes == size_bytes && blocks_[i].until_ms > now_ms) {
            const Block found = blocks_[i];
            blocks_.erase(blocks_.begin() + static_cast<ptrdiff_t>(i));
            return found;
        }
    }
    return std::nullopt;
}

bool SpareBlocks::wants(uint64_t size_bytes) const {
    if (size_bytes < kMinBytes || size_bytes > kMaxBytes) {
        return false;
    }
    const MutexLock lock(mutex_);
    return std::none_of(blocks_.begin(), blocks_.end(),
                        [&](const Block& b) { return b.size_bytes == size_bytes; });
}

std::vector<Generation> SpareBlocks::put(const Block& block, uint64_t now_ms) {
    const MutexLock lock(mutex_);
    std::vector<Generation> back;
    blocks_.push_back(block);
    std::erase_if(blocks_, [&](const Block& b) {
        const bool expired = b.until_ms <= now_ms;
        if (expired) {
            back.push_back(b.generation);
        }
        return expired;
    });
    if (blocks_.size() > kMax) {
        back.push_back(blocks_.front().generation);
        blocks_.erase(blocks_.begin());
    }
    return back;
}

}  // namespace kvstore
