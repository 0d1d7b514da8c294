// Fuzzes the decoding of manifests: a damaged one is refused or read within its bounds, and what
// was accepted encodes to a manifest that says the same. Inputs are tried as they are and with
// their checksum put right, because hardly a mutation would pass it.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "base/checksum.h"
#include "base/little_endian.h"
#include "nvme/manifest.h"

namespace {

using namespace kvstore;

constexpr size_t kCrcAt = 12;

void require(bool holds) {
    if (!holds) {
        std::abort();
    }
}

void check(std::span<const uint8_t> bytes) {
    const Result<Manifest> manifest = Manifest::decode(bytes);
    if (!manifest.ok()) {
        return;
    }
    uint32_t objects = 0;
    uint64_t at = 0;
    uint64_t key_bytes = 0;
    for (ManifestRow row; manifest->next(&at, &row); ++objects) {
        require(row.ns_index < manifest->namespaces().size() && row.pin <= Pin::kHard);
        for (const char byte : row.key) {
            key_bytes += static_cast<uint8_t>(byte) != 0 ? 1 : 0;  // reads all of it
        }
    }
    require(objects == manifest->objects() && key_bytes <= bytes.size());
    const std::vector<uint8_t> encoded = manifest->encode();
    const Result<Manifest> again = Manifest::decode(encoded);
    require(again.ok() && again->seq() == manifest->seq() && again->objects() == objects &&
            again->encode() == encoded);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    check({data, size});
    if (size < kCrcAt + sizeof(uint32_t)) {
        return 0;
    }
    std::vector<uint8_t> repaired(data, data + size);
    store_word(repaired.data() + kCrcAt, uint32_t{0});
    store_word(repaired.data() + kCrcAt, crc32c(repaired.data(), repaired.size()));
    check(repaired);
    return 0;
}
