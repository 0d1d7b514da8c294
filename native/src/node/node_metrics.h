// What a node counts, in numbers that any thread may add to.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/histogram.h"
#include "base/status.h"
#include "wire/attach_cause.h"

namespace kvstore {

class Counter {
  public:
    void add(uint64_t amount = 1) { value_.fetch_add(amount, std::memory_order_relaxed); }
    uint64_t get() const { return value_.load(std::memory_order_relaxed); }

  private:
    std::atomic<uint64_t> value_{0};
};

struct NodeMetrics {
    Counter hits_dram;
    Counter hits_nvme;
    std::array<Counter, kMissReasonCount> misses;
    std::array<Counter, kAttachCauseCount> attaches_refused;
    Counter puts_ok;
    Counter puts_exist;
    Counter puts_failed;
    Counter put_bytes_shm;
    Counter put_bytes_socket;
    Counter put_bytes_ucx;
    Counter get_bytes_socket;
    Counter get_bytes_ucx;
    Counter hot_asks;  // for another replica of an object that many read
    Counter copies_in;
    Counter copies_out;
    Counter copies_failed;
    Counter copy_bytes_in;
    Counter copy_bytes_out;
    Histogram put_us;
    Histogram get_us;
    Histogram claim_us;
    Histogram announce_us;
};

}  // namespace kvstore
