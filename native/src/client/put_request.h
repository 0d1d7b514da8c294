// A put's message at one node, and the wait for its answer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/pieces.h"
#include "base/types.h"
#include "net/channel.h"
#include "ucx/ucx_worker.h"

namespace kvstore {

// The bytes of a Put, one object after the other, and their checksums behind them.
class PutPayload {
  public:
    void add(const Pieces& object) {
        const std::span<const iovec> pieces = object.list();
        parts_.insert(parts_.end(), pieces.begin(), pieces.end());
        crc_of_.resize(parts_.size(), static_cast<uint32_t>(crcs_.size()));
        crcs_.push_back(0);
    }
    Payload payload() { return {parts_, crcs_, crc_of_}; }

  private:
    std::vector<iovec> parts_;
    std::vector<uint32_t> crcs_;
    std::vector<uint32_t> crc_of_;
};

struct PutRequest {
    MessageType type{};
    std::span<const uint8_t> body{};
    Payload payload{};
    Deadline deadline = Deadline::never();
    uint64_t patience_ms = 0;     // without a sign of life of the node
    UcxWorker* worker = nullptr;  // that the node fetches the bytes from; null: none
};

struct PutAnswer {
    std::vector<int32_t> codes{};
    Code code(size_t row) const {
        return row < codes.size() ? static_cast<Code>(codes[row]) : Code::kProtocolError;
    }
    Generation spare_generation = 0;
    uint64_t spare_offset = 0;
    uint32_t spare_ms = 0;
};

// A put may have to wait at its node, for another writer of its key. So one that is not answered
// after a while is followed by a Ping, which a node that lives answers at once.
Status ask(Channel& channel, const PutRequest& request, PutAnswer* answer);

}  // namespace kvstore
