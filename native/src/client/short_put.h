// Writing little to a node of this host: one message and its answer.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "client/local_node.h"
#include "client/put_item.h"
#include "client/put_request.h"

namespace kvstore {

// The bytes of a single object go into a spare block, where one of its size is at hand, before the
// message names it, all others with the message. With the answer comes a spare for the next put.
// More bytes than this are worth two messages: while they are copied, the key is claimed.
class ShortPut {
  public:
    static constexpr uint64_t kMaxBytes = 64u << 10;

    // `patience_ms`: how long the node may give no sign of life.
    ShortPut(LocalNode& node, const PutOptions& options, Deadline deadline, uint64_t patience_ms,
             CallTally* tally)
        : node_(node),
          options_(options),
          deadline_(deadline),
          patience_ms_(patience_ms),
          tally_(*tally) {}
    // Whether this is the way for them; it may have taken a spare then, and run() has to follow.
    bool takes(std::span<PutItem* const> items);
    // While the slot says that its process writes. What has to be tried again stays kPutOpen; an
    // error says that the node did not answer.
    Status run(Channel& channel, std::span<PutItem* const> items);

  private:
    Status fill_spare(PutItem& item, Put* request);
    Status send(Channel& channel, std::span<PutItem* const> items, Put& request);
    void take_answer(std::span<PutItem* const> items, const PutAnswer& answer);

    LocalNode& node_;
    const PutOptions& options_;
    const Deadline deadline_;
    const uint64_t patience_ms_;
    CallTally& tally_;
    std::optional<SpareBlocks::Block> spare_;
    uint32_t crc_ = 0;  // of what the spare holds
};

}  // namespace kvstore
