// How many of a node's bytes may be on their way to readers by socket.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace kvstore {

// A reply holds its blocks until its last byte is sent, so readers that do not read could hold a
// whole segment and leave puts no room. Above the bound a read is refused, which its client takes
// for a miss: the node goes on serving instead of filling up. A reply that is alone is let through,
// however large. Thread-safe; the shares may outlive the node.
class SendBudget : public std::enable_shared_from_this<SendBudget> {
  public:
    explicit SendBudget(uint64_t bound_bytes) : bound_(bound_bytes) {}

    // Counts until it is destroyed. Null: refused.
    std::shared_ptr<void> take(uint64_t bytes) {
        const uint64_t before = used_.fetch_add(bytes, std::memory_order_relaxed);
        if (before != 0 && before + bytes > bound_) {
            give_back(bytes);
            refusals_.fetch_add(1, std::memory_order_relaxed);
            return nullptr;
        }
        const auto self = shared_from_this();
        return std::shared_ptr<void>(this, [self, bytes](void*) { self->give_back(bytes); });
    }
    uint64_t refusals() const { return refusals_.load(std::memory_order_relaxed); }

  private:
    void give_back(uint64_t bytes) { used_.fetch_sub(bytes, std::memory_order_relaxed); }

    const uint64_t bound_;
    std::atomic<uint64_t> used_{0};
    std::atomic<uint64_t> refusals_{0};
};

}  // namespace kvstore
