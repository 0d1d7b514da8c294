// The master's operations log: removes, flushes and pins, numbered, durable before they are pushed,
// kept until every known node has applied them. Not thread-safe: the master's mutex guards it.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/status.h"
#include "wire/link_types.h"

namespace kvstore {

class OpsLog {
  public:
    // Where a previous life's trimmed log ended: its last number and the highest version removed.
    OpsLog(uint64_t trimmed_seq, Version version_floor);

    uint64_t append(Op op);  // returns its number
    // A record of a previous life, in order; durable already.
    Status load(std::span<const uint8_t> record);
    // Numbers below `seq` were used by a life that this log does not know; go on above.
    void skip_to(uint64_t seq);

    // Records not handed out yet, at most `max`; the first is the oldest.
    std::vector<std::pair<uint64_t, std::vector<uint8_t>>> take_records(size_t max);
    bool has_records() const { return handed_seq_ < last_seq_; }
    // Up to `seq`; `each` is called for those that were not before.
    void make_durable(uint64_t seq, const std::function<void(const Op&)>& each = {});
    uint64_t last_seq() const { return last_seq_; }
    uint64_t durable_seq() const { return durable_seq_; }
    uint64_t trimmed_seq() const { return trimmed_seq_; }
    Version version_floor() const { return version_floor_; }
    size_t size() const { return ops_.size(); }

    // The last remove of a key or flush of its namespace that is still kept, so that not everybody
    // is known to have applied it; 0: none.
    uint64_t last_ending(std::string_view tenant, std::string_view ns, std::string_view key) const;

    // Durable operations above `after`, a run of consecutive numbers of at most `max`.
    std::vector<Op> run_after(uint64_t after, size_t max) const;
    // Drops durable operations up to `seq` and returns them.
    std::vector<Op> trim(uint64_t seq);

    // What a record takes on disk, with its number.
    static uint64_t record_bytes(std::string_view tenant, std::string_view ns,
                                 std::string_view key);
    static std::vector<uint8_t> encode(const Op& op);
    static Result<Op> decode(std::span<const uint8_t> record);

  private:
    void index_ending(const Op& op);
    std::deque<Op>::const_iterator first_after(uint64_t seq) const;

    std::deque<Op> ops_;  // ascending numbers
    // Tenant, namespace and key (of a flush: none) → last number.
    std::unordered_map<std::string, uint64_t> endings_;
    uint64_t last_seq_;
    uint64_t handed_seq_;
    uint64_t durable_seq_;
    uint64_t trimmed_seq_;
    Version version_floor_;
};

}  // namespace kvstore
