// Reading a list of objects: first from the memory of this host's nodes, the others by
// remote_reads.h.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "client/client_context.h"
#include "client/get_item.h"
#include "client/local_probe.h"

namespace kvstore {

class GetPath {
  public:
    // `memory` may be null: then every item has its own.
    GetPath(ClientContext& context, GetMemory* memory) : context_(context), memory_(memory) {}
    // Fills every item's result and reason. Not an error: misses of every kind.
    void run(std::span<GetItem> items, Deadline deadline);

  private:
    void provide_memory(std::span<GetItem> items);
    bool copy(GetItem& item, LocalProbe::Row& probe, uint64_t now_ms);
    void touch();

    ClientContext& context_;
    GetMemory* memory_;
    LocalProbe probe_;
    std::vector<GetMemory::Want> wants_;
    std::vector<size_t> pending_;
    CallTally tally_;
};

}  // namespace kvstore
