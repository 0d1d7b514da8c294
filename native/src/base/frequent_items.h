// The items that make up most of a stream, in bounded memory.
//
// Above `most` items, the median of their counts is taken from each, and those that have none left
// go (Source: Anderson et al., "A High-Performance Algorithm for Identifying Frequent Items in Data
// Streams", IMC 2017). So a count is never too high, and too low by at most 2 / `most` of all that
// was counted; an addition costs O(1), amortized. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <unordered_map>
#include <vector>

#include "base/status.h"

namespace kvstore {

template <typename Item, typename Hash = std::hash<Item>>
class FrequentItems {
  public:
    struct Count {
        double uses = 0;
        double bytes = 0;
    };
    using Items = std::unordered_map<Item, Count, Hash>;

    explicit FrequentItems(size_t most) : most_(most) {
        KV_ASSERT(most > 1);
        items_.reserve(most + 1);
    }

    // True: it was not there before.
    bool add(const Item& item, double uses, double bytes) {
        if (last_ == nullptr || last_->first != item) {
            const auto [at, is_new] = items_.try_emplace(item);
            last_ = &*at;
            count(uses, bytes);
            if (items_.size() > most_) {
                thin();
            }
            return is_new;
        }
        count(uses, bytes);
        return false;
    }
    // Takes the median from every count: at least half of them are left with nothing, and go.
    void thin() {
        std::vector<double> counts;
        counts.reserve(items_.size());
        for (const auto& [item, count] : items_) {
            counts.push_back(count.uses);
        }
        if (counts.empty()) {
            return;
        }
        const auto median = counts.begin() + static_cast<std::ptrdiff_t>(counts.size() / 2);
        std::ranges::nth_element(counts, median);
        take(*median);
    }
    // Ages all counts; those that are below `least` then go.
    void scale(double by, double least) {
        for (auto& [item, count] : items_) {
            count.uses *= by;
            count.bytes *= by;
        }
        erase_if([least](const Count& count) { return count.uses < least; });
    }
    void clear() {
        items_.clear();
        last_ = nullptr;
    }
    const Items& items() const { return items_; }

  private:
    void count(double uses, double bytes) {
        last_->second.uses += uses;
        last_->second.bytes += bytes;
    }
    void take(double uses) {
        for (auto& [item, count] : items_) {
            const double left = std::max(0.0, count.uses - uses);
            count.bytes *= count.uses > 0 ? left / count.uses : 0;
            count.uses = left;
        }
        erase_if([](const Count& count) { return count.uses <= 0; });
    }
    void erase_if(const std::function<bool(const Count&)>& goes) {
        std::erase_if(items_, [&goes](const auto& one) { return goes(one.second); });
        last_ = nullptr;
    }

    const size_t most_;
    Items items_;
    // The item of the last call: a chain is read in a row.
    typename Items::value_type* last_ = nullptr;
};

}  // namespace kvstore
