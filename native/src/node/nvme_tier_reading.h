// One read of several objects from NVMe: their places in one buffer, and who waits for them. Also
// what the tier counts.
#pragma once

#include <atomic>

#include "node/node_metrics.h"
#include "node/nvme_tier.h"

namespace kvstore {

struct NvmeTier::Counts {
    Counter demoted_objects;
    Counter demoted_bytes;
    Counter demote_failures;
    Counter hits;
    Counter hit_bytes;
    Counter promoted_objects;
    Counter promoted_bytes;
    Counter promotions_skipped;
    Counter prefetched_objects;
    Counter prefetched_bytes;
    Counter snapshots;
    Counter snapshot_objects;
    std::atomic<uint64_t> snapshot_left{0};
    std::atomic<uint64_t> snapshot_at_ms{0};
    Histogram read_us;
};

class NvmeTier::Reading {
  public:
    enum class Purpose : uint8_t { kGet, kPromote, kAhead };
    struct Row {
        std::string key;
        Hash128 hash;
        bool asked = false;    // of a log
        bool joined = false;   // waits for the same object's read ahead instead
        bool promote = false;  // whatever comes of it is worth a place in DRAM
    };

    explicit Reading(NamespaceRef of, Purpose why) : ns(std::move(of)), purpose(why) {}

    const NamespaceRef ns;
    const Purpose purpose;
    std::vector<Row> rows;
    std::vector<Object> objects;
    std::atomic<size_t> left{0};  // rows without an answer, and start_reading() while it runs
    ReadDone done;
    std::shared_ptr<void> waiting;  // for the promotions of all rows
    uint64_t started_us = 0;
    bool under_way = false;  // counted as such
};

}  // namespace kvstore
