// Fuzzes the decoding of every message. Input: a frame (24 bytes of header, then the body). What is
// accepted must encode to a body that is accepted and encodes to itself.
#include <cstdlib>
#include <vector>

#include "tests/wire/message_samples.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace kvstore;
    if (size < kFrameHeaderBytes) {
        return 0;
    }
    FrameHeader header;
    const std::span<const uint8_t> input(data, size);
    (void)decode_header(input.first<kFrameHeaderBytes>(), &header);
    std::vector<uint8_t> once;
    if (samples::reencode(header.type, input.subspan(kFrameHeaderBytes), &once)) {
        std::vector<uint8_t> twice;
        if (!samples::reencode(header.type, once, &twice) || once != twice) {
            std::abort();
        }
    }
    return 0;
}
