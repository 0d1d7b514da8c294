// What proves the bytes that copies from held blocks bring into GPU memory: checksums that the GPU
// computes of them.
#pragma once

#include <memory>
#include <vector>

#include "base/types.h"
#include "client/device_call.h"
#include "client/held_blocks.h"

namespace kvstore {

// Filled before the launch, asked after the event.
class DeviceProof {
  public:
    // `sums` is null where only whole pages are summed.
    DeviceProof(size_t rows, std::unique_ptr<PageMoves> moves,
                std::unique_ptr<DeviceChecksums> sums)
        : rows_(rows), moves_(std::move(moves)), sums_(std::move(sums)) {}

    PageMoves* moves() const { return moves_.get(); }
    std::unique_ptr<DeviceChecksums>* sums() { return &sums_; }
    // The row's bytes are those of this page, or of this object.
    void by_page(size_t row, size_t page) { rows_[row] = {.kind = Kind::kPage, .number = page}; }
    void by_sum(size_t row, size_t object) { rows_[row] = {.kind = Kind::kSum, .number = object}; }
    // Whose they are, and the CRC of what lies before them on the host. False: nothing is summed.
    bool expect(size_t row, const Identity& identity, uint32_t header_crc);
    bool is_expected(const HeldBlocks::Block& block) const { return rows_[block.row].is_expected; }
    // Whether the object's bytes have arrived, whole and its own; of those that are expected.
    bool holds(const HeldBlocks::Block& block);

  private:
    enum class Kind : uint8_t { kNone, kPage, kSum };
    struct Row {
        Kind kind = Kind::kNone;
        size_t number = 0;
        bool is_expected = false;
        Identity identity{};
        uint32_t header_crc = 0;
    };
    std::vector<Row> rows_;
    std::unique_ptr<PageMoves> moves_;
    std::unique_ptr<DeviceChecksums> sums_;
};

}  // namespace kvstore
