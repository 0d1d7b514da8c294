// Deferred blocks by generation; hazards are scanned once for all that are decided together.
#include "store/deferred_blocks.h"

#include <algorithm>

#include "base/mutation.h"
#include "base/status.h"

namespace kvstore {

DeferredBlocks::DeferredBlocks(Ledger& ledger, ChunkAllocator& allocator, ScanHazards scan)
    : ledger_(ledger), allocator_(allocator), scan_(std::move(scan)) {}

void DeferredBlocks::withdraw(Generation generation, const Block& block) {
    unsettled_.emplace_back(generation, block);
    if (unsettled_.size() >= kMaxUnsettled) {
        settle();
    }
}

void DeferredBlocks::defer(Generation generation, const Block& block) {
    deferred_.emplace(generation, block);
}

// The generations were invalidated, with a full fence after each: a scan of the hazards of all live
// slots sees every hold that was confirmed before.
void DeferredBlocks::settle() {
    if (unsettled_.empty()) {
        return;
    }
    scan_hazards();
    for (const auto& [generation, block] : unsettled_) {
        if (KV_GUARD("hold", block.holds > 0) || has_hazard(generation)) {
            deferred_.emplace(generation, block);
        } else {
            free(block);
        }
    }
    unsettled_.clear();
}

void DeferredBlocks::recheck() {
    if (deferred_.empty()) {
        return;
    }
    scan_hazards();
    std::erase_if(deferred_, [&](const auto& item) {
        const auto& [generation, block] = item;
        if (block.holds > 0 || has_hazard(generation)) {
            return false;
        }
        free(block);
        return true;
    });
}

bool DeferredBlocks::add_hold(Generation generation) {
    const auto it = deferred_.find(generation);
    if (it == deferred_.end()) {
        return false;
    }
    ++it->second.holds;
    return true;
}

void DeferredBlocks::release_hold(Generation generation) {
    settle();  // a block whose withdrawal is in progress is among the deferred ones after this
    const auto it = deferred_.find(generation);
    if (!KV_GUARD("hold", true)) {
        return;
    }
    KV_ASSERT(it != deferred_.end() && it->second.holds > 0);
    if (--it->second.holds > 0) {
        return;
    }
    unsettled_.emplace_back(generation, it->second);
    deferred_.erase(it);
}

bool DeferredBlocks::has_hazard(Generation generation) const {
    return std::ranges::binary_search(hazards_, generation);
}

uint64_t DeferredBlocks::bytes() const {
    uint64_t sum = 0;
    for (const auto& [generation, block] : deferred_) {
        sum += block.length;
    }
    return sum;
}

void DeferredBlocks::free(const Block& block) {
    ledger_.drop_block(block.line);
    allocator_.free(block.offset);
}

}  // namespace kvstore
