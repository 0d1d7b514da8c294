// Reading a list of objects: first from the memory of this host's nodes, the others by
// remote_reads.h.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "client/client_context.h"
#include "client/get_item.h"

namespace kvstore {

class GetPath {
  public:
    // `memory` may be null: then every item has its own.
    GetPath(ClientContext& context, GetMemory* memory) : context_(context), memory_(memory) {}
    // Fills every item's result and reason. Not an error: misses of every kind.
    void run(std::span<GetItem> items, Deadline deadline);

  private:
    static constexpr int8_t kNowhere = -1;
    struct Probe {
        HashedKey key;
        IndexReader::Found found;
        int8_t local = kNowhere;  // position in locals_
    };

    void probe_all(std::span<GetItem> items, Deadline deadline);
    void provide_memory(std::span<GetItem> items);
    bool copy(GetItem& item, Probe& probe, uint64_t now_ms);
    void touch();

    ClientContext& context_;
    GetMemory* memory_;
    std::vector<LocalPeer> locals_;
    std::vector<NamespaceId> namespaces_;  // of each of locals_
    std::vector<Probe> probes_;
    std::vector<GetMemory::Want> wants_;
    std::vector<size_t> pending_;
    CallTally tally_;
};

}  // namespace kvstore
