// Fuzzes the decoding of frame headers: what is accepted encodes to the same bytes.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "wire/frame.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace kvstore;
    FrameHeaderBytes bytes{};
    std::memcpy(bytes.data(), data, size < bytes.size() ? size : bytes.size());
    FrameHeader header;
    if (decode_header(bytes, &header).ok() && encode_header(header) != bytes) {
        std::abort();
    }
    (void)decode_handshake_header(bytes, &header);
    return 0;
}
