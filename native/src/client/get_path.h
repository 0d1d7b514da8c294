// Reading a list of objects: first from the memory of this host's nodes, the rest by
// remote_reads.h.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/pieces.h"
#include "client/client_context.h"

namespace kvstore {

// One object to be read.
struct GetItem {
    std::string_view key;
    Pieces data;  // written also when the read fails
    // After the call: the size, or a negative Code. A miss is kNotFound, or a code that says more
    // (kUnavailable, kChecksumMismatch); `reason` tells why.
    int64_t result = static_cast<int64_t>(Code::kNotFound);
    MissReason reason = MissReason::kAbsent;
};

// Gives memory to items whose size is known only now. Called by the thread that reads.
class GetMemory {
  public:
    struct Want {
        size_t item;
        uint64_t size;
    };
    virtual ~GetMemory() = default;
    // Sets the data of each wanted item; one left below its size fails as too small.
    virtual void provide(std::span<const Want> wants, std::span<GetItem> items) = 0;
};

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

// The code that an item with this reason ends with.
Code code_of_miss(MissReason reason);

}  // namespace kvstore
