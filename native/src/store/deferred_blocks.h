// Withdrawn blocks that somebody may still read, until nobody does: the proof that memory may be
// reused (native/README.md, rules 1 and 2).
//
// A block comes here once the generation of its entry was invalidated. settle() scans the hazards
// of all live clients: blocks that no hold and no hazard names are free, the others are deferred
// until recheck() finds them free. Private to the node and not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/types.h"
#include "index/ledger.h"
#include "memory/chunk_allocator.h"

namespace kvstore {

class DeferredBlocks {
  public:
    static constexpr size_t kMaxUnsettled = 4096;  // their records are few at any moment
    struct Block {
        uint64_t offset = 0;
        uint64_t length = 0;
        uint32_t holds = 0;  // tokens and holds by socket
        Ledger::Line line = Ledger::kNoLine;
    };
    // Replaces `*out` with every generation that a hazard names now, sorted.
    using ScanHazards = std::function<void(std::vector<Generation>* out)>;

    // All three must live as long as this.
    DeferredBlocks(Ledger& ledger, ChunkAllocator& allocator, ScanHazards scan);

    // Its entry was just invalidated; nothing is known of hazards yet.
    void withdraw(Generation generation, const Block& block);
    // Somebody is known to hold it.
    void defer(Generation generation, const Block& block);
    // Decides about all blocks that were withdrawn since the last call.
    void settle();
    // Frees the deferred blocks that nobody holds any more.
    void recheck();

    bool add_hold(Generation generation);  // false when no such block is deferred
    void release_hold(Generation generation);

    // A snapshot for the choice of victims, not for proof: settle() and recheck() renew it too.
    void scan_hazards() { scan_(&hazards_); }
    bool has_hazard(Generation generation) const;

    bool contains(Generation generation) const { return deferred_.contains(generation); }
    size_t size() const { return deferred_.size(); }
    uint64_t bytes() const;
    const std::unordered_map<Generation, Block>& all() const { return deferred_; }

  private:
    void free(const Block& block);

    Ledger& ledger_;
    ChunkAllocator& allocator_;
    ScanHazards scan_;
    std::vector<Generation> hazards_;
    std::vector<std::pair<Generation, Block>> unsettled_;  // neither proved free nor deferred yet
    std::unordered_map<Generation, Block> deferred_;
};

}  // namespace kvstore
