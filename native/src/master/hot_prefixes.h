// Which prefixes are read most: the chains of keys that nodes report, with their rates.
//
// Only nodes see every read (a host reads its own memory without asking anybody), so they count,
// each by the first key of the chain that it holds (store/store_prefixes.cpp), and tell the most
// used chains with each heartbeat. Here they are added up and age. Memory is bounded, whatever
// names come: kMaxPrefixes of them, and kMaxNameBytes for all.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/frequent_items.h"
#include "base/mutex.h"
#include "base/status.h"

namespace kvstore {

// Thread-safe.
class HotPrefixes {
  public:
    static constexpr size_t kMaxPrefixes = 384;
    static constexpr size_t kMaxNameBytes = 160u << 10;

    struct Name {
        std::string tenant;
        std::string ns;
        std::string key;
        bool operator==(const Name&) const = default;
        size_t bytes() const { return tenant.capacity() + ns.capacity() + key.capacity(); }
    };
    struct Use {
        Name name;
        uint64_t uses = 0;
        uint64_t bytes = 0;
    };
    struct Row {
        Name name;
        double uses_per_s = 0;
        double bytes_per_s = 0;
    };
    struct Summary {
        std::vector<Row> rows;  // the most used first
        uint64_t memory_bytes = 0;
        uint64_t busy_us = 0;  // processor time since the start
    };

    // A use of this age counts half.
    explicit HotPrefixes(uint64_t half_life_ms);

    // What a node has seen since its last report. kInvalidArgument, and nothing is noted: too many,
    // or names that cannot be.
    Status note(std::span<const Use> report, uint64_t now_ms);
    Summary summary(uint64_t now_ms) const;

  private:
    struct NameHash {
        size_t operator()(const Name& name) const;
    };

    void add(const Use& use) KV_REQUIRES(mutex_);
    void age(uint64_t now_ms) KV_REQUIRES(mutex_);
    void limit_names(size_t before) KV_REQUIRES(mutex_);
    void count_names() KV_REQUIRES(mutex_);

    const uint64_t half_life_ms_;
    mutable Mutex mutex_;
    FrequentItems<Name, NameHash> items_ KV_GUARDED_BY(mutex_){kMaxPrefixes};
    size_t name_bytes_ KV_GUARDED_BY(mutex_) = 0;
    uint64_t began_ms_ KV_GUARDED_BY(mutex_) = 0;  // 0: no report yet
    uint64_t aged_ms_ KV_GUARDED_BY(mutex_) = 0;
    uint64_t busy_ns_ KV_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvstore
