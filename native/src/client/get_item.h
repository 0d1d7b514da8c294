// One object to be read, and where memory for it comes from.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/pieces.h"
#include "base/status.h"

namespace kvstore {

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

// The code of an item that was not found for this reason.
Code code_of_miss(MissReason reason);

}  // namespace kvstore
