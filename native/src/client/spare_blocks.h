// Blocks of a node that this process may fill before it says what with.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/mutex.h"
#include "base/types.h"
#include "index/slot_registry.h"

namespace kvstore {

// A spare saves its writer the wait for a reservation: it copies first and names its key meanwhile.
// Thread-safe. Few and for the sizes written last; while one lies here, the process's slot shows it
// to the node, which takes it back when it needs the memory or the spare is old.
class SpareBlocks {
  public:
    static constexpr size_t kMax = 8;
    static constexpr uint64_t kMinBytes = 2u << 10;  // pages of KV caches are larger
    static constexpr uint64_t kMaxBytes = 8u << 20;

    struct Block {
        uint64_t size_bytes = 0;
        Generation generation = 0;
        uint64_t offset = 0;
        uint64_t until_ms = 0;  // boottime; not used any more after that
        uint32_t place = 0;     // in the slot; set by put()
    };

    // The caller may write into it, and puts it back, names it to the node, or gives it back.
    std::optional<Block> take(ClientSlot& slot, uint64_t size_bytes, uint64_t now_ms);
    // Whether one more of this size may be asked for.
    bool wants(const ClientSlot& slot, uint64_t size_bytes, uint64_t now_ms) const;
    // Keeps a block into which nobody writes; returns what has to be given back to the node for it.
    std::vector<Generation> put(ClientSlot& slot, Block block, uint64_t now_ms);

  private:
    mutable Mutex mutex_;
    std::vector<Block> blocks_ KV_GUARDED_BY(mutex_);  // the one kept last is at the end
};

}  // namespace kvstore
