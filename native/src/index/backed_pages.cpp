// Pages of the index's file that get their memory when they are first needed.
#include "index/backed_pages.h"

#include "base/file.h"

namespace kvstore {

Status BackedPages::back(uint64_t begin, uint64_t end) {
    const uint64_t first = (begin - begin_) / kPageBytes;
    const uint64_t last = (end - 1 - begin_) / kPageBytes;
    bool whole = true;
    for (uint64_t page = first; page <= last && whole; ++page) {
        whole = pages_[page];
    }
    if (whole) {
        return {};
    }
    const Status reserved =
        reserve_bytes(fd_, begin_ + first * kPageBytes, begin_ + (last + 1) * kPageBytes, "index");
    for (uint64_t page = first; page <= last && reserved.ok(); ++page) {
        pages_[page] = true;
    }
    return reserved;
}

}  // namespace kvstore
