// Fuzzes the scan of a log file that has no manifest, and the decoding of its header. The first
// byte of an input has flags: 1 puts the records' checksums right, 2 those of the data too, 4
// makes the file longer than what it holds, 8 says that the others are a header, not records.
// Whatever the file says, what is found lies within it, and makes a manifest.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "fuzz/nvme_checksums.h"
#include "nvme/scan.h"

namespace kvstore {
namespace {

constexpr uint64_t kSeq = 7;
constexpr uint64_t kMoreBytes = 3 << 20;  // more than a window

// A file in memory.
class MemoryIo final : public FileIo {
  public:
    explicit MemoryIo(std::span<const uint8_t> bytes) : bytes_(bytes) {}
    int64_t read(int, void* to, size_t size, uint64_t offset) override {
        const size_t at = std::min<uint64_t>(offset, bytes_.size());
        const size_t part = std::min(size, bytes_.size() - at);
        std::memcpy(to, bytes_.data() + at, part);
        return static_cast<int64_t>(part);
    }

  private:
    std::span<const uint8_t> bytes_;
};

void check(const LogFileScan& scan, std::span<const uint8_t> file, uint64_t file_bytes) {
    KV_ASSERT(scan.status.ok() && scan.end <= file_bytes && scan.end % kRecordAlign == 0);
    uint64_t at = 0;
    uint64_t end = kLogFileHeaderBytes;  // of the record before
    ManifestRow row;
    while (scan.manifest.next(&at, &row)) {
        KV_ASSERT(row.offset >= end);
        end = row.offset + record_bytes(row.key.size(), row.length);
        KV_ASSERT(end <= scan.end);
        RecordHead head;
        uint64_t total = 0;
        KV_ASSERT(decode_record_head(file.subspan(row.offset), &head, &total));
        KV_ASSERT(head.key == row.key && head.identity.version == row.version);
    }
    const auto again = Manifest::decode(scan.manifest.encode());
    KV_ASSERT(again.ok() && again->objects() == scan.manifest.objects());
}

void scan_records(uint8_t flags, std::span<const uint8_t> records) {
    std::vector<uint8_t> file(kLogFileHeaderBytes);
    file.insert(file.end(), records.begin(), records.end());
    const bool is_cut = (flags & 4) != 0;
    // Not a whole number of blocks when a disk has lost the file's end.
    file.resize(is_cut ? file.size() : align_up(file.size(), kIoAlign));
    const uint64_t file_bytes = align_up(file.size(), kIoAlign) + (is_cut ? kMoreBytes : 0);
    if ((flags & 3) != 0) {
        fuzz::put_record_crcs(std::span(file).subspan(kLogFileHeaderBytes), (flags & 2) != 0);
    }
    MemoryIo io(file);
    const LogFileScan trusting = scan_log_file(io, 0, "fuzz", kSeq, file_bytes, false);
    const LogFileScan verified = scan_log_file(io, 0, "fuzz", kSeq, file_bytes, true);
    check(trusting, file, file_bytes);
    check(verified, file, file_bytes);
    KV_ASSERT(verified.manifest.objects() <= trusting.manifest.objects());
    KV_ASSERT(verified.damaged >= trusting.damaged);
}

void read_header(bool is_repaired, std::span<const uint8_t> bytes) {
    std::vector<uint8_t> block(bytes.begin(), bytes.end());
    block.resize(kLogFileHeaderBytes);
    if (is_repaired) {
        fuzz::put_crc(block, fuzz::kCrcAtOfHeader);
    }
    const auto header = decode_log_file_header(block, "fuzz");
    if (!header.ok()) {
        return;
    }
    std::vector<uint8_t> encoded(kLogFileHeaderBytes);
    encode_log_file_header(*header, encoded);
    const auto again = decode_log_file_header(encoded, "fuzz");
    KV_ASSERT(again.ok() && again->seq == header->seq && again->node_id == header->node_id &&
              again->cluster_check == header->cluster_check &&
              again->log_file_bytes == header->log_file_bytes);
}

}  // namespace
}  // namespace kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) {
        return 0;
    }
    const std::span<const uint8_t> bytes(data + 1, size - 1);
    if ((data[0] & 8) != 0) {
        kvstore::read_header((data[0] & 1) != 0, bytes);
    } else {
        kvstore::scan_records(data[0], bytes);
    }
    return 0;
}
