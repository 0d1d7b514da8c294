// One-sided reads of several objects of one node, into the caller's memory.
#pragma once

#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/pieces.h"
#include "client/ucx_lane.h"

namespace kvstore {

// Memory that a peer reads from or a read writes to: the caller's where all of it is registered, or
// in one large piece; else a part of the lane's.
struct UcxTarget {
    struct Piece {
        uint8_t* data = nullptr;
        uint64_t bytes = 0;
        std::shared_ptr<const UcxMemory> memory{};  // null: the lane's
    };
    std::vector<Piece> pieces;  // none: there is no room now
    bool is_bounce = false;
};
// For `bytes` of these pieces. A peer can be told of one place only.
UcxTarget choose_target(ClientUcx& ucx, UcxLane& lane, const Pieces& pieces, uint64_t bytes,
                        bool one_place);

// How long so many bytes may take by UCX: a slow network gets its time, and the socket half of what
// is left where nothing comes this way.
uint64_t ucx_patience_ms(Deadline deadline, uint64_t bytes);

class UcxTransfer {
  public:
    enum class Row : uint8_t { kReading, kRead, kFailed, kNoRoom };

    UcxTransfer(ClientUcx& ucx, UcxLane& lane, std::string node_id,
                std::shared_ptr<const UcxRegion> region)
        : ucx_(ucx), lane_(lane), node_id_(std::move(node_id)), region_(std::move(region)) {}
    ~UcxTransfer() { cancel(); }

    // Reads `bytes` at `offset` of the segment into `into`; its row is the number of calls before.
    void read(const Pieces& into, uint64_t offset, uint64_t bytes, Deadline deadline);
    // Without waiting. True: no row is in progress.
    bool advance();
    // Ends what is in progress: it has failed.
    void cancel();

    Row row(size_t number) const { return rows_[number].state; }
    uint32_t data_crc(size_t number) const { return rows_[number].crc; }
    bool failed() const { return failed_; }
    UcxLane& lane() { return lane_; }
    const UcxRegion& region() const { return *region_; }

  private:
    struct One {
        Row state = Row::kReading;
        Pieces into;
        uint64_t bytes = 0;
        UcxTarget target;
        std::deque<UcxRead> parts;
        uint32_t crc = 0;
    };
    static uint32_t crc_of(const One& one);
    void finish(One& one);

    ClientUcx& ucx_;
    UcxLane& lane_;
    const std::string node_id_;
    const std::shared_ptr<const UcxRegion> region_;
    std::deque<One> rows_;
    size_t reading_ = 0;
    bool failed_ = false;
    Deadline deadline_ = Deadline::never();
};

}  // namespace kvstore
