// Puts whose bytes the node fetches from this process's registered memory.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "client/put_item.h"
#include "client/ucx_lane.h"

namespace kvstore {

class UcxPuts {
  public:
    UcxPuts(ClientContext& context, const PutOptions& options, Deadline deadline, CallTally* tally)
        : context_(context), options_(options), deadline_(deadline), tally_(*tally) {}

    // Sets the results of what the node has answered. Returns the others, which go by socket:
    // everything where UCX is off or cannot be used now. `patience_ms`: as in PutRequest.
    std::vector<PutItem*> run(PeerNode& peer, std::span<PutItem*> items, uint64_t patience_ms);

  private:
    class Sources;
    // The first items, as many as there is room for: their number. What was not fetched is added
    // to `left`. 0: UCX is of no use now.
    size_t send(PeerNode& peer, UcxLane& lane, std::span<PutItem*> items, uint64_t patience_ms,
                std::vector<PutItem*>* left);

    ClientContext& context_;
    const PutOptions& options_;
    const Deadline deadline_;
    CallTally& tally_;
    DirectMemory* direct_ = nullptr;  // where the items lie in a GPU's memory, while it runs
};

}  // namespace kvstore
