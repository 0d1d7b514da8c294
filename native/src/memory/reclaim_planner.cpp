// Weighing and choosing of windows.
#include "memory/reclaim_planner.h"

#include <algorithm>

namespace kvstore {
namespace {

constexpr uint64_t kNotEvictable = UINT64_MAX;
constexpr uint64_t kExhaustiveExtents = 2048;  // up to here every window is weighed
constexpr uint32_t kStretches = 96;            // beyond: random places that are looked at
constexpr size_t kSampledItems = 4096;         // bounds the extents of all stretches together
constexpr uint32_t kBlockSamples = 8;          // of one chunk
constexpr int kRejectedWindows = 64;           // given up after so many with a block that must stay
constexpr uint64_t kSingleVictimHeats = 65'536;
constexpr uint64_t kSingleVictimChoices = 64;
// What evicting the coldest byte costs, relative to the hottest: more packs tighter, less follows
// recency closer. With this value and the squared rank, simulated Zipf loads on mixed page sizes
// hit as often as byte-exact LRU, at a utilisation of 0.97 and more.
constexpr double kColdCost = 0.1;

}  // namespace

std::vector<uint64_t> ReclaimPlanner::plan(uint64_t size_bytes) {
    const uint64_t block_bytes = table_.rounded(size_bytes);
    if (size_bytes > table_.space().capacity_bytes()) {
        return {};
    }
    // Somewhat less than a whole chunk will do: chunks of other classes are seldom exactly as long.
    const uint64_t wanted = table_.wanted_chunk_bytes(block_bytes);
    const uint64_t needed = std::max(wanted - wanted / 8, table_.least_chunk_bytes(block_bytes));
    const bool sampled = table_.space().extent_count() > kExhaustiveExtents;
    if (sampled) {
        gather_samples(needed);
    } else {
        gather_all();
    }
    std::vector<uint64_t> victims = coldest_window(needed);
    if (victims.empty()) {
        victims = single_victim(block_bytes);
    }
    if (victims.empty() && sampled) {
        gather_all();
        victims = coldest_window(needed);
    }
    return victims;
}

void ReclaimPlanner::gather_all() {
    items_.clear();
    heats_.clear();
    for (Id id = table_.space().first(); id != ChunkTable::kNone; id = table_.space().at(id).next) {
        add_item(id);
    }
    stretch_ends_.assign(1, items_.size());
}

void ReclaimPlanner::gather_samples(uint64_t needed_bytes) {
    const ExtentSpace& space = table_.space();
    for (uint32_t n = 0; n < kStretches && items_.size() < kSampledItems; ++n) {
        auto id = static_cast<Id>(next_random() % space.id_limit());
        while (space.at(id).bytes == 0) {
            id = id + 1 == space.id_limit() ? 0 : id + 1;
        }
        // Twice the needed length offers a choice of windows.
        for (uint64_t bytes = 0; id != ChunkTable::kNone && bytes < 2 * needed_bytes;) {
            const bool enough = bytes >= needed_bytes && items_.size() >= kSampledItems;
            if (enough) {
                break;
            }
            bytes += space.at(id).bytes;
            add_item(id);
            id = space.at(id).next;
        }
        stretch_ends_.push_back(items_.size());
    }
}

void ReclaimPlanner::add_item(Id id) {
    Item item{.id = id, .bytes = table_.space().at(id).bytes, .first_heat = heats_.size()};
    if (table_.space().at(id).used) {
        const ChunkTable::Chunk& chunk = table_.chunk(id);
        item.live_bytes = (chunk.blocks - chunk.free_blocks) * table_.block_bytes(id);
        const uint32_t step = std::max(chunk.blocks / kBlockSamples, 1u);
        for (uint32_t block = 0; block < chunk.blocks && item.evictable; block += step) {
            if (!table_.is_live(id, block)) {
                continue;
            }
            const uint64_t heat = heat_(table_.offset_of(id, block));
            item.evictable = heat != kNotEvictable;
            if (item.evictable) {
                heats_.push_back(heat);
            }
        }
    }
    item.heat_count = heats_.size() - item.first_heat;
    items_.push_back(item);
}

// A heat says only which of two blocks is colder, so it is weighed by its rank among the samples.
void ReclaimPlanner::weigh_items() {
    std::vector<uint64_t> sorted = heats_;
    std::sort(sorted.begin(), sorted.end());
    const auto count = static_cast<double>(std::max<size_t>(sorted.size(), 1));
    for (Item& item : items_) {
        double rank = 0;
        for (size_t i = item.first_heat; i < item.first_heat + item.heat_count; ++i) {
            const auto at = std::lower_bound(sorted.begin(), sorted.end(), heats_[i]);
            rank += static_cast<double>(at - sorted.begin()) / count;
        }
        // A chunk of which no sample was live holds little: it counts as cold.
        if (item.heat_count > 0) {
            rank /= static_cast<double>(item.heat_count);
        }
        item.cost = static_cast<double>(item.live_bytes) * (kColdCost + rank * rank);
    }
}

// For each place the shortest run of evictable extents with the needed length, cheapest first.
std::vector<ReclaimPlanner::Window> ReclaimPlanner::find_windows(uint64_t needed_bytes) const {
    std::vector<Window> windows;
    size_t begin = 0;
    for (const size_t stretch_end : stretch_ends_) {
        uint64_t bytes = 0;
        double cost = 0;
        for (size_t end = begin; end < stretch_end; ++end) {
            if (!items_[end].evictable) {
                begin = end + 1;
                bytes = 0;
                cost = 0;
                continue;
            }
            bytes += items_[end].bytes;
            cost += items_[end].cost;
            while (bytes - items_[begin].bytes >= needed_bytes) {
                bytes -= items_[begin].bytes;
                cost -= items_[begin++].cost;
            }
            if (bytes >= needed_bytes) {
                windows.push_back({begin, end + 1, cost});
            }
        }
        begin = stretch_end;
    }
    std::sort(windows.begin(), windows.end(),
              [](const Window& a, const Window& b) { return a.cost < b.cost; });
    return windows;
}

std::vector<uint64_t> ReclaimPlanner::coldest_window(uint64_t needed_bytes) {
    weigh_items();
    int rejected = 0;
    for (const Window& window : find_windows(needed_bytes)) {
        std::vector<uint64_t> victims = blocks_in(window);
        if (!victims.empty()) {
            return victims;
        }
        if (++rejected == kRejectedWindows) {
            break;
        }
    }
    return {};
}

// All live blocks of the window; empty when one of them must stay (samples may have missed it).
std::vector<uint64_t> ReclaimPlanner::blocks_in(const Window& window) const {
    std::vector<uint64_t> victims;
    for (size_t i = window.begin; i < window.end; ++i) {
        const Id id = items_[i].id;
        if (!table_.space().at(id).used) {
            continue;
        }
        for (uint32_t block = 0; block < table_.chunk(id).blocks; ++block) {
            if (!table_.is_live(id, block)) {
                continue;
            }
            const uint64_t offset = table_.offset_of(id, block);
            if (heat_(offset) == kNotEvictable) {
                return {};
            }
            victims.push_back(offset);
        }
    }
    return victims;
}

// When no window can be emptied, one block of the same class makes room as well.
std::vector<uint64_t> ReclaimPlanner::single_victim(uint64_t block_bytes) {
    const ExtentSpace& space = table_.space();
    uint64_t coldest = kNotEvictable;
    uint64_t victim = 0;
    uint64_t asked = 0;
    uint64_t choices = 0;
    const auto start = static_cast<Id>(next_random() % std::max<Id>(space.id_limit(), 1));
    for (Id n = 0; n < space.id_limit(); ++n) {
        const auto id = static_cast<Id>((uint64_t{start} + n) % space.id_limit());
        if (!space.at(id).used || table_.block_bytes(id) != block_bytes) {
            continue;
        }
        for (uint32_t block = 0; block < table_.chunk(id).blocks; ++block) {
            if (!table_.is_live(id, block)) {
                continue;
            }
            const uint64_t offset = table_.offset_of(id, block);
            const uint64_t heat = heat_(offset);
            choices += heat != kNotEvictable ? 1 : 0;
            if (heat < coldest) {
                coldest = heat;
                victim = offset;
            }
            if (++asked == kSingleVictimHeats || choices == kSingleVictimChoices) {
                break;
            }
        }
        if (asked == kSingleVictimHeats || choices == kSingleVictimChoices) {
            break;
        }
    }
    return coldest == kNotEvictable ? std::vector<uint64_t>{} : std::vector<uint64_t>{victim};
}

// SplitMix64 (Steele, Lea and Flood, 2014): the sample needs spread, not secrecy.
uint64_t ReclaimPlanner::next_random() {
    uint64_t z = (random_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

}  // namespace kvstore
