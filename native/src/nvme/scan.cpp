// The moving window and the walk over a log file's records.
#include "nvme/scan.h"

#include <algorithm>
#include <cstring>

#include "base/checksum.h"
#include "base/hash.h"

namespace kvstore {
namespace {

bool data_matches(FileWindow& window, uint64_t offset, const RecordHead& head) {
    uint32_t crc = 0;
    uint64_t left = head.identity.length;
    while (left > 0) {
        const std::span<const uint8_t> bytes = window.at(offset, 1);
        if (bytes.empty()) {
            return false;
        }
        const auto part = static_cast<size_t>(std::min<uint64_t>(left, bytes.size()));
        crc = crc32c(bytes.data(), part, crc);
        offset += part;
        left -= part;
    }
    return seal_checksum(crc, head.identity) == head.sealed_crc;
}

bool add_namespace(Manifest& manifest, const RecordHead& head) {
    const std::string_view tenant = head.key.substr(0, head.identity.length);
    const std::string_view name = head.key.substr(head.identity.length);
    if (!is_valid_name(tenant) || !is_valid_name(name)) {
        return false;
    }
    manifest.add_namespace({.tenant = std::string(tenant),
                            .name = std::string(name),
                            .epoch = static_cast<uint32_t>(head.identity.version),
                            .tenant_id = head.identity.tenant,
                            .id = head.identity.ns});
    return true;
}

void add_object(Manifest& manifest, const RecordHead& head, const std::string& key,
                uint32_t ns_index, uint64_t offset) {
    manifest.add({.ns_index = ns_index,
                  .offset = offset,
                  .hash = head.identity.hash,
                  .version = head.identity.version,
                  .length = static_cast<uint32_t>(head.identity.length),
                  .sealed_crc = head.sealed_crc,
                  .expires_at_ms = head.expires_at_ms,
                  .put_wall_ms = head.put_wall_ms,
                  .parent = head.parent,
                  .pin = head.pin,
                  .key = key});
}

}  // namespace

FileWindow::FileWindow(FileIo& io, int fd, std::string path, uint64_t file_bytes)
    : io_(io), fd_(fd), path_(std::move(path)), file_bytes_(file_bytes), buffer_(kBytes) {
    if (!has_memory()) {
        status_ = Status(Code::kNoSpace, "no memory to read " + path_);
    }
}

std::span<const uint8_t> FileWindow::at(uint64_t offset, size_t least) {
    least =
        static_cast<size_t>(std::min<uint64_t>(least, file_bytes_ - std::min(offset, file_bytes_)));
    const bool inside = offset >= start_ && offset + least <= start_ + filled_;
    if (least > 0 && !inside && status_.ok()) {
        start_ = align_down(offset, kIoAlign);
        filled_ = 0;
        const auto wanted = static_cast<size_t>(std::min<uint64_t>(kBytes, file_bytes_ - start_));
        const Result<size_t> got = read_fully(io_, fd_, buffer_.data(), wanted, start_, path_);
        if (got.ok()) {
            filled_ = *got;
        } else {
            status_ = got.status();
        }
    }
    if (!status_.ok() || offset < start_ || offset >= start_ + filled_) {
        return {};
    }
    const auto skip = static_cast<size_t>(offset - start_);
    return {buffer_.data() + skip, static_cast<size_t>(filled_) - skip};
}

bool FileWindow::copy(uint64_t offset, uint8_t* to, size_t size) {
    while (size > 0) {
        const std::span<const uint8_t> bytes = at(offset, 1);
        if (bytes.empty()) {
            return false;
        }
        const size_t part = std::min(size, bytes.size());
        std::memcpy(to, bytes.data(), part);
        offset += part;
        to += part;
        size -= part;
    }
    return true;
}

LogFileScan scan_log_file(FileIo& io, int fd, const std::string& path, uint64_t seq,
                          uint64_t log_file_bytes, bool verify) {
    LogFileScan scan;
    scan.manifest = Manifest(seq);
    FileWindow window(io, fd, path, log_file_bytes);
    uint64_t at = kLogFileHeaderBytes;
    while (at < log_file_bytes) {
        const std::span<const uint8_t> bytes = window.at(at, kMaxRecordHeadBytes);
        RecordHead head;
        uint64_t total = 0;
        if (bytes.empty() || !decode_record_head(bytes, &head, &total) || head.seq != seq ||
            head.session < scan.session || total > log_file_bytes - at) {
            scan.torn = std::any_of(
                bytes.begin(),
                bytes.begin() + static_cast<ptrdiff_t>(std::min(bytes.size(), kPadHeadBytes)),
                [](uint8_t byte) { return byte != 0; });
            break;
        }
        bool whole = true;
        if (head.kind == RecordKind::kNamespace) {
            whole = add_namespace(scan.manifest, head);
        } else if (head.kind == RecordKind::kObject) {
            const std::string key(head.key);  // the window moves
            whole = scan.manifest.has_namespace(head.identity.ns) &&
                    (!verify || data_matches(window, at + record_head_bytes(key.size()), head));
            if (whole) {
                const uint32_t ns_index = *scan.manifest.index_of(head.identity.ns);
                add_object(scan.manifest, head, key, ns_index, at);
            } else {
                ++scan.damaged;
            }
        }
        at += total;
        if (whole) {
            scan.end = at;
            scan.session = head.session;
        }
    }
    scan.status = window.status();
    return scan;
}

}  // namespace kvstore
