// Puts the checksums of changed NVMe files right, because hardly a mutation would pass them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "base/checksum.h"
#include "base/little_endian.h"
#include "nvme/format.h"

namespace kvstore::fuzz {

inline constexpr size_t kCrcAtOfHeader = 12;    // also in a manifest
inline constexpr size_t kCrcAtOfRecord = 4;     // also in the removal journal
inline constexpr size_t kSealedCrcAt = 12;      // of a record's data
inline constexpr size_t kRemovalBytes = 64;     // of a record of the removal journal
inline constexpr size_t kRemovalHeadBytes = 8;  // in front of what its crc covers

inline void put_crc(std::span<uint8_t> bytes, size_t at) {
    store_word(bytes.data() + at, uint32_t{0});
    store_word(bytes.data() + at, crc32c(bytes.data(), bytes.size()));
}

inline Identity identity_in(const uint8_t* head) {
    return {.tenant = load_word<uint64_t>(head + 64),
            .ns = load_word<uint64_t>(head + 72),
            .hash = {load_word<uint64_t>(head + 80), load_word<uint64_t>(head + 88)},
            .version = load_word<uint64_t>(head + 40),
            .length = load_word<uint64_t>(head + 16)};
}

// Those of all records from the beginning on, as far as one follows another; with `data` also those
// of objects' data.
inline void put_record_crcs(std::span<uint8_t> records, bool data) {
    while (records.size() >= kRecordFixedBytes) {
        uint8_t* head = records.data();
        const uint64_t length = load_word<uint64_t>(head + 16);
        const auto kind = static_cast<RecordKind>(head[8]);
        const bool is_pad = kind == RecordKind::kPad;
        const uint64_t head_bytes =
            is_pad ? kPadHeadBytes : record_head_bytes(load_word<uint16_t>(head + 10));
        if (head_bytes > records.size()) {
            return;
        }
        if (data && kind == RecordKind::kObject && length <= records.size() - head_bytes) {
            store_word(head + kSealedCrcAt,
                       seal_checksum(crc32c(head + head_bytes, length), identity_in(head)));
        }
        put_crc(records.first(head_bytes), kCrcAtOfRecord);
        const uint64_t all = is_pad ? length
                                    : record_bytes(load_word<uint16_t>(head + 10),
                                                   kind == RecordKind::kObject ? length : 0);
        // What is not within the limits ends the walk; the head is whole all the same.
        records = records.subspan(std::min<uint64_t>(std::max(all, head_bytes), records.size()));
    }
}

}  // namespace kvstore::fuzz
