// Exact LRU over numbers, the yardstick for sampled eviction. For tests.
#pragma once

#include <cstdint>
#include <list>
#include <unordered_map>

namespace kvstore {

class ExactLru {
  public:
    explicit ExactLru(size_t capacity) : capacity_(capacity) {}
    bool touch(uint64_t id) {  // false when it is not here
        const auto it = places_.find(id);
        if (it == places_.end()) {
            return false;
        }
        order_.splice(order_.begin(), order_, it->second);
        return true;
    }
    void insert(uint64_t id) {
        if (places_.size() == capacity_) {
            places_.erase(order_.back());
            order_.pop_back();
        }
        order_.push_front(id);
        places_[id] = order_.begin();
    }

  private:
    size_t capacity_;
    std::list<uint64_t> order_;
    std::unordered_map<uint64_t, std::list<uint64_t>::iterator> places_;
};

}  // namespace kvstore
