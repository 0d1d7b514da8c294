// Binding what the GPU has summed to the identity of the object.
#include "client/device_proof.h"

#include "base/checksum.h"
#include "base/mutation.h"

namespace kvstore {

bool DeviceProof::expect(size_t row, const Identity& identity, uint32_t header_crc) {
    Row& of = rows_[row];
    of.identity = identity;
    of.header_crc = header_crc;
    of.is_expected = of.kind == Kind::kPage || (of.kind == Kind::kSum && sums_ != nullptr);
    return of.is_expected;
}

bool DeviceProof::holds(const HeldBlocks::Block& block) {
    const Row& row = rows_[block.row];
    const uint32_t crc =
        row.kind == Kind::kPage ? moves_->crc(row.number) : sums_->crc(row.number, row.header_crc);
    Identity identity = row.identity;
    identity.version = block.found.version;
    identity.length = block.found.length;
    return !KV_GUARD("gpu-sum", seal_checksum(crc, identity) != block.found.crc);
}

}  // namespace kvstore
