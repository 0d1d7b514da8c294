// When the logical clock of the evictor stood where: so that a stamp tells a time, about.
// Private to the node and not thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace kvstore {

class UseTimes {
  public:
    // Call it now and then: times are as exact as its calls, and coarser the older they are.
    void note(uint64_t clock, uint64_t wall_ms) {
        if (!times_.empty() &&
            (clock == times_.back().first || wall_ms < times_.back().second + kEveryMs)) {
            return;
        }
        if (times_.size() == kMax) {
            for (size_t i = 0; i < kMax / 2; ++i) {
                times_[i] = times_[2 * i + 1];
            }
            times_.resize(kMax / 2);
        }
        times_.emplace_back(clock, wall_ms);
    }
    // By when the clock had passed `stamp`; 0: it is older than what is known, or of just now.
    uint64_t time_ms(uint64_t stamp) const {
        const auto at =
            std::ranges::lower_bound(times_, stamp, {}, &std::pair<uint64_t, uint64_t>::first);
        if (times_.empty() || stamp < times_.front().first) {
            return 0;
        }
        return at == times_.end() ? times_.back().second : at->second;
    }

  private:
    static constexpr uint64_t kEveryMs = 1000;
    static constexpr size_t kMax = 4096;
    std::vector<std::pair<uint64_t, uint64_t>> times_;
};

}  // namespace kvstore
