// The index file that an earlier life of the node has left behind, with its ledger. Nothing in it
// is believed before it was checked: a flipped byte costs an object, never a wrong one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/namespace_epoch.h"
#include "base/types.h"
#include "index/shared_layout.h"

namespace kvstore {

// An entry with its cold record. `key` lies in the file's mapping.
struct KeptObject {
    Identity identity;
    Generation gen = 0;
    uint64_t offset = 0;
    uint32_t crc = 0;            // sealed
    uint64_t expires_at_ms = 0;  // CLOCK_BOOTTIME; 0: never
    uint64_t recency = 0;
    uint64_t put_wall_ms = 0;
    Hash128 parent;
    Pin pin = Pin::kNone;
    std::string_view key;
    bool whole = false;  // false: only gen, offset and length can be believed
};

struct KeptBlock {
    BlockUse use{};
    Generation gen = 0;
    uint64_t offset = 0;
    uint64_t length = 0;
    int slot = -1;
};

class KeptIndex {
  public:
    // kNotFound: nothing there. kVersionMismatch: of another format. kIoError: it cannot be read,
    // or its header is damaged.
    static Result<std::unique_ptr<KeptIndex>> open(const std::string& directory,
                                                   const std::string& name);

    uint32_t node_epoch() const { return header_.node_epoch; }
    std::string_view node_id() const { return {header_.node_id, header_.node_id_bytes}; }
    uint64_t cluster_check() const { return header_.cluster_check; }
    uint64_t segment_bytes() const { return header_.segment_bytes; }
    // Blocks lie below this part of the segment, which was backed by memory.
    uint64_t ready_bytes() const { return ready_bytes_; }
    void cut(uint64_t ready_bytes) { ready_bytes_ = std::min(ready_bytes_, ready_bytes); }
    uint64_t applied_seq() const { return ledger_->applied_seq.load(); }

    // Every entry that names a block inside the segment, in no order, and every record; `damaged`
    // is raised by those whose numbers are impossible.
    std::vector<KeptObject> objects(uint64_t* damaged) const;
    std::vector<KeptBlock> blocks(uint64_t* damaged) const;
    // In the order in which they were written, up to the first that is damaged.
    std::vector<NamespaceEpoch> namespaces() const;

    // Readers trust nothing any more that they read through this file; then a full fence.
    SharedHalf& retired_flag() { return view_.header->retired; }

  private:
    KeptIndex() = default;
    class Entries;
    bool in_segment(uint64_t offset, uint64_t length) const;

    Fd fd_;
    IndexHeader header_{};  // a copy: it does not change any more
    IndexGeometry geometry_;
    Mapping mapping_;  // of the whole file
    IndexView view_;
    const LedgerHeader* ledger_ = nullptr;
    uint64_t ready_bytes_ = 0;
};

}  // namespace kvstore
