// The checked copy and the hold, built from the protocol's steps.
#include "index/object_reader.h"

#include "base/checksum.h"
#include "base/mutation.h"
#include "index/protocol_steps.h"

namespace kvstore {
namespace {

uint32_t seal(uint32_t data_crc, const IndexReader::Found& found, Identity identity) {
    identity.version = found.version;
    identity.length = found.length;
    return seal_checksum(data_crc, identity);
}

}  // namespace

CopyResult copy_object(const IndexReader& reader, const uint8_t* segment,
                       const IndexReader::Found& found, const Pieces& dst,
                       const Identity& identity) {
    if (!reader.well_formed(found)) {
        return CopyResult::kStale;
    }
    const IndexView& view = reader.view();
    uint32_t data_crc = 0;
    Generation seen = 0;
    const bool stable = steps::read_stable(
        steps::RealMemory{}, view.entry(found.ref).gen, view.header->retired, found.gen, &seen,
        [&] { data_crc = scatter_crc32c(dst, segment + found.offset, found.length); });
    if (KV_GUARD("generation", !stable)) {
        return CopyResult::kStale;
    }
    const bool is_sealed = seal(data_crc, found, identity) == found.crc;
    return KV_GUARD("checksum", !is_sealed) ? CopyResult::kChecksum : CopyResult::kOk;
}

CopyResult read_object(const IndexReader& reader, const uint8_t* segment, const Identity& identity,
                       std::string_view key, uint64_t now_ms, const Pieces& dst,
                       IndexReader::Found* found) {
    CopyResult result = CopyResult::kNotFound;
    for (int attempt = 0; attempt < kCopyTries; ++attempt) {
        const auto probed = reader.probe(identity.ns, identity.hash, key, now_ms);
        if (!probed) {
            return CopyResult::kNotFound;
        }
        *found = *probed;
        if (found->length > dst.size()) {
            return CopyResult::kTooSmall;
        }
        result = copy_object(reader, segment, *found, dst, identity);
        if (result != CopyResult::kStale) {
            break;
        }
    }
    return result;
}

HoldResult hold_object(const IndexReader& reader, ClientSlot& slot, const IndexReader::Found& found,
                       ClientSlot::Handle* handle) {
    if (!reader.well_formed(found)) {
        return HoldResult::kStale;
    }
    const auto hazard = slot.publish_hazard(found.offset, found.gen);
    if (!hazard) {
        return HoldResult::kFull;
    }
    const IndexView& view = reader.view();
    if (!steps::confirm_hold(steps::RealMemory{}, view.entry(found.ref).gen, view.header->retired,
                             found.gen)) {
        slot.clear_hazard(*hazard);
        return HoldResult::kStale;
    }
    *handle = *hazard;
    return HoldResult::kHeld;
}

bool verify_object(const uint8_t* segment, const IndexReader::Found& found,
                   const Identity& identity) {
    return seal(crc32c(segment + found.offset, found.length), found, identity) == found.crc;
}

}  // namespace kvstore
