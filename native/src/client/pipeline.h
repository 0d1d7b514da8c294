// Overlaps the cache misses of the rows of a batch.
#pragma once

#include <algorithm>
#include <cstddef>

namespace kvstore {

// Calls stage(k, row) for every row and every k below kStages, in ascending k for each row. A row's
// stages lie a few other rows apart: what one stage prefetches has arrived when the next reads it.
template <size_t kStages, class Stage>
void in_pipeline(size_t rows, Stage&& stage) {
    constexpr size_t kDistance = 6;  // 2 to 40 measured the same within the noise
    const size_t distance = std::min(kDistance, rows);
    for (size_t at = 0; at < rows + (kStages - 1) * distance; ++at) {
        for (size_t k = 0; k < kStages; ++k) {
            const size_t behind = k * distance;
            if (at >= behind && at - behind < rows) {
                stage(k, at - behind);
            }
        }
    }
}

}  // namespace kvstore
