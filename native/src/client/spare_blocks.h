// Blocks of a node that this process may fill before it says what with.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/mutex.h"
#include "base/types.h"

namespace kvstore {

// A spare saves its writer the wait for a reservation: it copies first and names its key meanwhile.
// Thread-safe. Few and for the sizes written last: what lies here is lost to everybody else.
class SpareBlocks {
  public:
    static constexpr size_t kMax = 8;
    static constexpr uint64_t kMinBytes = 64u << 10;  // below, the copy is shorter than the wait
    static constexpr uint64_t kMaxBytes = 8u << 20;

    struct Block {
        uint64_t size_bytes = 0;
        Generation generation = 0;
        uint64_t offset = 0;
        uint64_t until_ms = 0;  // boottime; not used any more after that
    };

    std::optional<Block> take(uint64_t size_bytes, uint64_t now_ms);
    // Whether one more of this size may be asked for.
    bool wants(uint64_t size_bytes) const;
    // Keeps it; returns what has to be given back to the node for it.
    std::vector<Generation> put(const Block& block, uint64_t now_ms);

  private:
    mutable Mutex mutex_;
    std::vector<Block> blocks_ KV_GUARDED_BY(mutex_);  // the one kept last is at the end
};

}  // namespace kvstore
