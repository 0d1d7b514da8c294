// Chooses which blocks to evict so that a chunk can change its size. Private to kv_alloc.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "memory/chunk_table.h"

namespace kvstore {

// Looks at runs of neighbouring extents ("windows") that are long enough, and takes the one whose
// eviction costs least: bytes weighed by how recently they were used. Free neighbours cost nothing,
// so windows also close gaps. In a large segment the windows are a random sample.
class ReclaimPlanner {
  public:
    using Heat = std::function<uint64_t(uint64_t offset)>;

    ReclaimPlanner(const ChunkTable& table, const Heat& heat, uint64_t seed)
        : table_(table), heat_(heat), random_(seed) {}
    std::vector<uint64_t> plan(uint64_t size_bytes);

  private:
    using Id = ChunkTable::Id;
    struct Item {  // an extent
        Id id = ChunkTable::kNone;
        uint64_t bytes = 0;
        uint64_t live_bytes = 0;
        size_t first_heat = 0;  // its samples in heats_
        size_t heat_count = 0;
        bool evictable = true;
        double cost = 0;
    };
    struct Window {
        size_t begin;  // into items_
        size_t end;
        double cost;
    };

    void gather_all();
    void gather_samples(uint64_t needed_bytes);
    void add_item(Id id);
    void weigh_items();
    std::vector<Window> find_windows(uint64_t needed_bytes) const;
    std::vector<uint64_t> coldest_window(uint64_t needed_bytes);
    std::vector<uint64_t> blocks_in(const Window& window) const;
    std::vector<uint64_t> single_victim(uint64_t block_bytes);
    uint64_t next_random();

    const ChunkTable& table_;
    const Heat& heat_;
    uint64_t random_;
    std::vector<Item> items_;
    std::vector<size_t> stretch_ends_;  // items_ is a row of runs of neighbours
    std::vector<uint64_t> heats_;
};

}  // namespace kvstore
