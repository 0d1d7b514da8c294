// Format 1 of a log file: a header block, then records packed in steps of 64 bytes.
//
//   0     log file header, one block of 4,096 bytes:
//           magic "KVNVSEG" NUL | format u32 | crc u32 (of the block, this word zero) | seq u64 |
//           file bytes u64 | cluster check u64 | node id length u16 | node id | zeros
//         Magic, format and crc stand at these places in every format to come.
//   4096  records, each at a multiple of 64:
//           head (112 bytes and the key, rounded up to 64), then the data, rounded up to 64.
//
//   head:  0 magic u32 | 4 crc u32 | 8 kind u8 | 9 pin u8 | 10 key length u16 | 12 sealed crc u32
//          16 length u64 | 24 file seq u64 | 32 session u64 | 40 version u64 | 48 expiry u64
//          56 put u64 | 64 tenant u64 | 72 namespace u64 | 80 hash 16 | 96 parent 16 | 112 key
//
// All little-endian; times are wall clock milliseconds. The crc covers the whole head, padding
// included, with this word zero. A record belongs to its log file's present use only with the
// log file's seq, and sessions never decrease within a log file: what an earlier life left behind
// the place where a later one went on is not taken for a part of it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"
#include "base/types.h"

namespace kvstore {

inline constexpr uint32_t kNvmeFormat = 1;
inline constexpr uint64_t kRecordAlign = 64;
inline constexpr uint64_t kLogFileHeaderBytes = 4096;
inline constexpr size_t kRecordFixedBytes = 112;
inline constexpr size_t kPadHeadBytes = 64;

struct LogFileHeader {
    uint64_t seq = 0;
    uint64_t log_file_bytes = 0;
    uint64_t cluster_check = 0;
    std::string node_id;
};

enum class RecordKind : uint8_t {
    kPad = 1,        // nothing; `length` bytes in all, a head of 64
    kObject = 2,     // key and data
    kNamespace = 3,  // the key is the tenant's name, then the namespace's; `length`: of the first;
                     // `version` is the epoch. Comes before the log file's first object of it.
};

// A record's head. `key` points into what was decoded, or to what is to be encoded.
struct RecordHead {
    RecordKind kind = RecordKind::kPad;
    Pin pin = Pin::kNone;
    uint32_t sealed_crc = 0;
    uint64_t seq = 0;
    uint64_t session = 0;
    uint64_t expires_at_ms = 0;  // 0: never
    uint64_t put_wall_ms = 0;
    Identity identity;
    Hash128 parent;
    std::string_view key;
};

// In steps of kRecordAlign; at most 18.
constexpr uint64_t record_head_bytes(size_t key_bytes) {
    return (kRecordFixedBytes + key_bytes + kRecordAlign - 1) / kRecordAlign * kRecordAlign;
}
constexpr uint64_t record_bytes(size_t key_bytes, uint64_t data_bytes) {
    return record_head_bytes(key_bytes) +
           (data_bytes + kRecordAlign - 1) / kRecordAlign * kRecordAlign;
}
inline constexpr size_t kMaxRecordHeadBytes = record_head_bytes(1024);

// Fills one block.
void encode_log_file_header(const LogFileHeader& header, std::span<uint8_t> block);
// NotFound: a block of zeros, never used. ChecksumMismatch: damaged. VersionMismatch: whole, but of
// a format that this program does not know.
Result<LogFileHeader> decode_log_file_header(std::span<const uint8_t> block,
                                             const std::string& name);

// Fills the head (record_head_bytes; kPadHeadBytes for a pad), padding included.
void encode_record_head(const RecordHead& head, uint8_t* out);
// Whole, of a known kind and within every limit; else empty. `bytes` may be longer than the head.
// The bytes that the record takes in its log file are stored to `total`.
bool decode_record_head(std::span<const uint8_t> bytes, RecordHead* head, uint64_t* total);

}  // namespace kvstore
