// Finding a slice.
#include "ucx/ucx_region.h"

#include <algorithm>

namespace kvstore {

const UcxRegion::Slice& UcxRegion::slice_of(uint64_t offset) const {
    const auto behind =
        std::upper_bound(slices.begin(), slices.end(), offset,
                         [](uint64_t wanted, const Slice& slice) { return wanted < slice.offset; });
    return *std::prev(behind);
}

}  // namespace kvstore
