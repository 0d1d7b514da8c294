// Cutting objects into spans, and adding up what the warps made of them.
#include "gpu/device_checksums.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>

namespace kvstore {

size_t DeviceChecksums::add_object() {
    objects_.push_back({pieces_.size(), 0, 0, 0});
    return objects_.size() - 1;
}

void DeviceChecksums::add(cuda::DevicePtr data, uint64_t bytes) {
    if (bytes > 0) {
        pieces_.push_back({data, bytes});
        objects_.back().bytes += bytes;
        objects_.back().spans += (bytes + kSpanBytes - 1) / kSpanBytes;
    }
}

Status DeviceChecksums::launch(cuda::Stream stream) {
    size_t count = 0;
    for (Object& object : objects_) {
        object.first_span = count;
        count += object.spans;
    }
    if (!kernels_->loaded() || count > UINT32_MAX) {
        return {Code::kUnsupported, "no kernel computes checksums"};
    }
    const uint64_t span_bytes = count * sizeof(KernelSpan);
    Result<std::unique_ptr<PinnedBuffers::Buffer>> taken =
        tables_->take(span_bytes + count * sizeof(uint32_t), Deadline::after_ms(0));
    if (!taken.ok()) {
        return taken.status();
    }
    const cuda::DevicePtr on_device = (*taken)->on_device();
    if (on_device == 0) {
        return {Code::kUnsupported, "kernels do not reach host memory"};
    }
    write_spans(reinterpret_cast<KernelSpan*>((*taken)->data()));
    uint8_t* const sums = (*taken)->data() + span_bytes;
    std::memset(sums, 0, count * sizeof(uint32_t));
    Status status = kernels_->sum_spans(on_device, on_device + span_bytes,
                                        static_cast<uint32_t>(count), stream);
    if (status.ok()) {
        table_ = std::move(*taken);
        sums_ = reinterpret_cast<const uint32_t*>(sums);
    }
    return status;
}

void DeviceChecksums::write_spans(KernelSpan* spans) const {
    for (size_t row = 0; row < objects_.size(); ++row) {
        const Object& object = objects_[row];
        const size_t end_piece =
            row + 1 < objects_.size() ? objects_[row + 1].first_piece : pieces_.size();
        uint64_t behind = object.bytes;
        for (size_t i = object.first_piece; i < end_piece; ++i) {
            const Piece& piece = pieces_[i];
            for (uint64_t at = 0; at < piece.bytes; at += kSpanBytes) {
                const uint64_t bytes = std::min<uint64_t>(kSpanBytes, piece.bytes - at);
                behind -= bytes;
                *spans++ = {piece.data + at, static_cast<uint32_t>(bytes),
                            exponent_of_bytes(behind)};
            }
        }
    }
}

uint32_t DeviceChecksums::crc(size_t object, uint32_t crc) {
    const Object& of = objects_[object];
    const uint32_t* const first = sums_ + of.first_span;
    return join_.append(
        crc, std::accumulate(first, first + of.spans, uint32_t{0}, std::bit_xor<>()), of.bytes);
}

}  // namespace kvstore
