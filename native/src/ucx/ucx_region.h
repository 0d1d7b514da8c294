// Where a node's segment can be read by UCX: its UCX process, and what that has registered.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvstore {

struct UcxRegion {
    struct Slice {
        uint64_t offset = 0;  // in the segment
        uint64_t size = 0;
        uint64_t address = 0;  // in the process
        std::string key;
    };
    uint64_t life = 0;          // of the process: all of this ends with it
    std::string worker;         // its address
    std::vector<Slice> slices;  // adjoining, from the segment's beginning

    bool covers(uint64_t offset, uint64_t size) const {
        const uint64_t end = slices.empty() ? 0 : slices.back().offset + slices.back().size;
        return offset <= end && size <= end - offset;
    }
    // That holds the offset, which is covered.
    const Slice& slice_of(uint64_t offset) const;
};

}  // namespace kvstore
