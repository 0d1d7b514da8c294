// How a client takes an object's bytes out of shared memory: by a checked copy, or by a hold.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/pieces.h"
#include "base/types.h"
#include "index/index.h"
#include "index/slot_registry.h"

namespace kvstore {

enum class CopyResult : uint8_t {
    kOk,        // dst has exactly the bytes that were put
    kStale,     // replaced, evicted or index retired while copying: probe again
    kChecksum,  // the entry stood still, but the bytes are not the ones that were put
    kNotFound,  // read_object: no such object here (any more); use the socket
    kTooSmall,  // read_object: `dst` is below the object's length (see `found`)
};
inline constexpr int kCopyTries = 4;

// One checked copy of found.length bytes to dst: copy with the CRC folded in, acquire fence, reload
// of generation and `retired`, comparison of the sealed CRC. `identity` carries tenant, namespace
// and hash; version and length are taken from `found`. dst's contents are garbage unless kOk.
CopyResult copy_object(const IndexReader& reader, const uint8_t* segment,
                       const IndexReader::Found& found, const Pieces& dst,
                       const Identity& identity);

// probe() and copy_object(), at most kCopyTries times: a generation never comes back, so only a new
// probe can succeed after kStale. `found` tells what was read last.
CopyResult read_object(const IndexReader& reader, const uint8_t* segment, const Identity& identity,
                       std::string_view key, uint64_t now_ms, const Pieces& dst,
                       IndexReader::Found* found);

enum class HoldResult : uint8_t {
    kHeld,
    kStale,  // replaced, evicted or retired meanwhile: probe again
    kFull,   // no free hazard, slot not confirmed, or a forked child: hold by socket
};

// Holds the block: hazard, full fence, re-check. While held, the block's bytes do not change, also
// when the object is removed or evicted. Release with slot.clear_hazard(*handle).
HoldResult hold_object(const IndexReader& reader, ClientSlot& slot, const IndexReader::Found& found,
                       ClientSlot::Handle* handle);

// CRC of held bytes against the sealed one; for views, once, before they are handed out.
bool verify_object(const uint8_t* segment, const IndexReader::Found& found,
                   const Identity& identity);

}  // namespace kvstore
