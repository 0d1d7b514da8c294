// One read of several objects from NVMe: their places in one buffer, and who waits for them. Also
// what the tier counts.
#pragma once

#include <atomic>

#include "kvstore/node_metrics.h"
#include "kvstore/nvme_tier.h"

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
    Counter snapshots;
    Counter snapshot_objects;
    std::atomic<uint64_t> snapshot_left{0};
    std::atomic<uint64_t> snapshot_at_ms{0};
    Histogram read_us;
};

class NvmeTier::Reading {
  public:
    struct Row {
        std::string key;
        NvmeReadResult what;
        bool asked = false;    // of the log
        bool promote = false;  // whatever comes of it is worth a place in DRAM
    };

    NamespaceRef ns;
    std::vector<Row> rows;
    std::vector<Object> objects;
    std::atomic<size_t> left{0};
    ReadDone done;
    std::shared_ptr<void> waiting;  // for the promotions of a promote()
    uint64_t started_us = 0;
};

}  // namespace kvstore
