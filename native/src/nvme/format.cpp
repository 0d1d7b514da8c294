// Encoding and checking of log file headers and record heads.
#include "nvme/format.h"

#include <algorithm>
#include <cstring>

#include "base/checksum.h"
#include "base/limits.h"
#include "base/little_endian.h"

namespace kvstore {
namespace {

constexpr char kLogFileMagic[8] = "KVNVSEG";
constexpr uint32_t kRecordMagic = 0x4352564b;  // "KVRC"
constexpr size_t kHeaderFixedBytes = 42;

// The crc of `size` bytes with the four at `hole` taken for zero.
uint32_t crc_around(const uint8_t* bytes, size_t size, size_t hole) {
    constexpr uint8_t kZeros[4] = {};
    uint32_t crc = crc32c(bytes, hole);
    crc = crc32c(kZeros, 4, crc);
    return crc32c(bytes + hole + 4, size - hole - 4, crc);
}

bool within_limits(const RecordHead& head, uint64_t length, size_t key_bytes) {
    switch (head.kind) {
        case RecordKind::kPad:
            return key_bytes == 0 && length >= kPadHeadBytes && length % kRecordAlign == 0 &&
                   length <= limits::kMaxObjectBytes;
        case RecordKind::kObject:
            return key_bytes >= 1 && key_bytes <= limits::kMaxKeyBytes &&
                   head.identity.version != 0 && length <= UINT32_MAX && head.pin <= Pin::kHard;
        case RecordKind::kNamespace:
            return length <= key_bytes && length <= limits::kMaxNameBytes &&
                   key_bytes - length <= limits::kMaxNameBytes &&
                   head.identity.version <= kMaxEpoch;
    }
    return false;
}

}  // namespace

void encode_log_file_header(const LogFileHeader& header, std::span<uint8_t> block) {
    KV_ASSERT(block.size() == kLogFileHeaderBytes &&
              header.node_id.size() <= limits::kMaxNameBytes);
    std::fill(block.begin(), block.end(), uint8_t{0});
    uint8_t* out = block.data();
    std::memcpy(out, kLogFileMagic, 8);
    store_word(out + 8, kNvmeFormat);
    store_word(out + 16, header.seq);
    store_word(out + 24, header.log_file_bytes);
    store_word(out + 32, header.cluster_check);
    store_word(out + 40, static_cast<uint16_t>(header.node_id.size()));
    std::memcpy(out + kHeaderFixedBytes, header.node_id.data(), header.node_id.size());
    store_word(out + 12, crc_around(out, block.size(), 12));
}

Result<LogFileHeader> decode_log_file_header(std::span<const uint8_t> block,
                                             const std::string& name) {
    if (std::all_of(block.begin(), block.end(), [](uint8_t byte) { return byte == 0; })) {
        return {Code::kNotFound, name + ": never used"};
    }
    const uint8_t* in = block.data();
    const Status damaged(Code::kChecksumMismatch, name + ": the header is damaged");
    if (block.size() < kLogFileHeaderBytes || std::memcmp(in, kLogFileMagic, 8) != 0 ||
        load_word<uint32_t>(in + 12) != crc_around(in, kLogFileHeaderBytes, 12)) {
        return damaged;
    }
    if (const auto format = load_word<uint32_t>(in + 8); format != kNvmeFormat) {
        return {Code::kVersionMismatch,
                name + " has NVMe format " + std::to_string(format) + ", this kvstore knows " +
                    std::to_string(kNvmeFormat) +
                    ": start the version that wrote it, give another nvme_dir, or let it be "
                    "discarded"};
    }
    LogFileHeader header;
    header.seq = load_word<uint64_t>(in + 16);
    header.log_file_bytes = load_word<uint64_t>(in + 24);
    header.cluster_check = load_word<uint64_t>(in + 32);
    const auto id_bytes = load_word<uint16_t>(in + 40);
    if (id_bytes > limits::kMaxNameBytes || header.seq == 0) {
        return damaged;
    }
    header.node_id.assign(reinterpret_cast<const char*>(in + kHeaderFixedBytes), id_bytes);
    return header;
}

void encode_record_head(const RecordHead& head, uint8_t* out) {
    const bool pad = head.kind == RecordKind::kPad;
    const size_t size = pad ? kPadHeadBytes : record_head_bytes(head.key.size());
    std::memset(out, 0, size);
    store_word(out, kRecordMagic);
    store_word(out + 8, head.kind);
    store_word(out + 9, head.pin);
    store_word(out + 10, static_cast<uint16_t>(head.key.size()));
    store_word(out + 12, head.sealed_crc);
    store_word(out + 16, head.identity.length);
    store_word(out + 24, head.seq);
    store_word(out + 32, head.session);
    store_word(out + 40, head.identity.version);
    store_word(out + 48, head.expires_at_ms);
    store_word(out + 56, head.put_wall_ms);
    if (!pad) {
        store_word(out + 64, head.identity.tenant);
        store_word(out + 72, head.identity.ns);
        store_word(out + 80, head.identity.hash.lo);
        store_word(out + 88, head.identity.hash.hi);
        store_word(out + 96, head.parent.lo);
        store_word(out + 104, head.parent.hi);
        std::memcpy(out + kRecordFixedBytes, head.key.data(), head.key.size());
    }
    store_word(out + 4, crc_around(out, size, 4));
}

bool decode_record_head(std::span<const uint8_t> bytes, RecordHead* head, uint64_t* total) {
    const uint8_t* in = bytes.data();
    if (bytes.size() < kPadHeadBytes || load_word<uint32_t>(in) != kRecordMagic) {
        return false;
    }
    head->kind = static_cast<RecordKind>(in[8]);
    head->pin = static_cast<Pin>(in[9]);
    const size_t key_bytes = load_word<uint16_t>(in + 10);
    const bool pad = head->kind == RecordKind::kPad;
    const size_t size = pad ? kPadHeadBytes : record_head_bytes(key_bytes);
    if (bytes.size() < size || load_word<uint32_t>(in + 4) != crc_around(in, size, 4)) {
        return false;
    }
    head->sealed_crc = load_word<uint32_t>(in + 12);
    head->identity = {};
    head->identity.length = load_word<uint64_t>(in + 16);
    head->seq = load_word<uint64_t>(in + 24);
    head->session = load_word<uint64_t>(in + 32);
    head->identity.version = load_word<uint64_t>(in + 40);
    head->expires_at_ms = load_word<uint64_t>(in + 48);
    head->put_wall_ms = load_word<uint64_t>(in + 56);
    if (!within_limits(*head, head->identity.length, key_bytes)) {
        return false;
    }
    if (pad) {
        *total = head->identity.length;
        return true;
    }
    head->identity.tenant = load_word<uint64_t>(in + 64);
    head->identity.ns = load_word<uint64_t>(in + 72);
    head->identity.hash = {load_word<uint64_t>(in + 80), load_word<uint64_t>(in + 88)};
    head->parent = {load_word<uint64_t>(in + 96), load_word<uint64_t>(in + 104)};
    head->key = {reinterpret_cast<const char*>(in + kRecordFixedBytes), key_bytes};
    *total = record_bytes(key_bytes, head->kind == RecordKind::kObject ? head->identity.length : 0);
    return true;
}

}  // namespace kvstore
