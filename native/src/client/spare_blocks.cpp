// A handful of spare blocks, searched from the newest.
#include "client/spare_blocks.h"

#include <algorithm>

#include "base/mutex.h"

namespace kvstore {

std::optional<SpareBlocks::Block> SpareBlocks::take(ClientSlot& slot, uint64_t size_bytes,
                                                    uint64_t now_ms) {
    const MutexLock lock(mutex_);
    for (size_t i = blocks_.size(); i-- > 0;) {
        if (blocks_[i].size_bytes != size_bytes || blocks_[i].until_ms <= now_ms) {
            continue;
        }
        const Block found = blocks_[i];
        blocks_.erase(blocks_.begin() + static_cast<ptrdiff_t>(i));
        if (slot.take_spare(found.place, found.generation)) {
            return found;
        }
    }
    return std::nullopt;
}

bool SpareBlocks::wants(const ClientSlot& slot, uint64_t size_bytes, uint64_t now_ms) const {
    if (size_bytes < kMinBytes || size_bytes > kMaxBytes) {
        return false;
    }
    const MutexLock lock(mutex_);
    return std::none_of(blocks_.begin(), blocks_.end(), [&](const Block& b) {
        return b.size_bytes == size_bytes && b.until_ms > now_ms &&
               slot.has_spare(b.place, b.generation);
    });
}

std::vector<Generation> SpareBlocks::put(ClientSlot& slot, Block block, uint64_t now_ms) {
    const std::optional<uint32_t> place = slot.show_spare(block.generation);
    if (!place) {
        return {block.generation};
    }
    block.place = *place;
    const MutexLock lock(mutex_);
    blocks_.push_back(block);
    std::vector<Generation> back;
    const auto give_back = [&](const Block& b) {
        if (slot.take_spare(b.place, b.generation)) {
            back.push_back(b.generation);
        }
    };
    std::erase_if(blocks_, [&](const Block& b) {
        const bool expired = b.until_ms <= now_ms;
        if (expired) {
            give_back(b);
        }
        return expired || !slot.has_spare(b.place, b.generation);
    });
    if (blocks_.size() > kMax) {
        give_back(blocks_.front());
        blocks_.erase(blocks_.begin());
    }
    return back;
}

}  // namespace kvstore
