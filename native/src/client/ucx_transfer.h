// One-sided reads of several objects of one node, into the caller's memory.
#pragma once

#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/pieces.h"
#include "client/direct_memory.h"
#include "client/ucx_lane.h"

namespace kvstore {

// Memory that a peer reads from or a read writes to, piece by piece: the caller's where it is
// registered, or large enough to be; else a part of the lane's.
struct UcxTarget {
    struct Piece {
        uint8_t* data = nullptr;
        uint64_t bytes = 0;
        std::shared_ptr<const UcxMemory> memory{};  // null: the lane's
        uint8_t* home = nullptr;                    // of the lane's: where the caller's bytes are
    };
    std::vector<Piece> pieces;
    bool has_room = true;      // of the lane's memory, now
    bool is_reachable = true;  // false: a GPU's that is not registered, or more than a lane has
};
// For the first `bytes` of an object's memory. `direct`: it is a GPU's; else the host's.
UcxTarget choose_target(ClientUcx& ucx, UcxLane& lane, const Pieces& memory, uint64_t bytes,
                        const DirectMemory* direct);
// Calls each(data, bytes, memory) for what lies in one piece there.
template <class Each>
void for_each_place(const UcxTarget& target, const UcxLane& lane, Each each) {
    for (size_t first = 0; first < target.pieces.size();) {
        const UcxTarget::Piece& piece = target.pieces[first];
        uint64_t bytes = piece.bytes;
        size_t next = first + 1;
        while (next < target.pieces.size() && target.pieces[next].memory == piece.memory &&
               target.pieces[next].data == piece.data + bytes) {
            bytes += target.pieces[next++].bytes;
        }
        each(piece.data, bytes, piece.memory == nullptr ? lane.bounce() : *piece.memory);
        first = next;
    }
}

// Copies what passes through the lane's memory, home or from there. The CRC of all that lies on the
// host.
enum class LaneCopy : uint8_t { kHome, kFromHome };
uint32_t copy_lane(const UcxTarget& target, LaneCopy direction);

// How long so many bytes may take by UCX: a slow network gets its time, and the socket half of what
// is left where nothing comes this way.
uint64_t ucx_patience_ms(Deadline deadline, uint64_t bytes);

class UcxTransfer {
  public:
    enum class Row : uint8_t { kReading, kArrived, kRead, kFailed, kNoRoom };

    // `direct`: all destinations are a GPU's memory; null: the host's.
    UcxTransfer(ClientUcx& ucx, UcxLane& lane, std::string node_id,
                std::shared_ptr<const UcxRegion> region, DirectMemory* direct)
        : ucx_(ucx),
          lane_(lane),
          node_id_(std::move(node_id)),
          region_(std::move(region)),
          direct_(direct) {}
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
    void post(One& one, UcxEndpoint& endpoint, uint64_t offset);
    void finish(One& one);
    void sum_on_device();

    ClientUcx& ucx_;
    UcxLane& lane_;
    const std::string node_id_;
    const std::shared_ptr<const UcxRegion> region_;
    DirectMemory* const direct_;
    std::deque<One> rows_;
    size_t reading_ = 0;
    bool failed_ = false;
    Deadline deadline_ = Deadline::never();
};

}  // namespace kvstore
