// Encoding, decoding and iteration of manifests; the catalog in memory.
#include "nvme/manifest.h"

#include <algorithm>
#include <cstring>

#include "base/checksum.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/little_endian.h"

namespace kvstore {
namespace {

constexpr char kManifestMagic[8] = "KVNVMAN";
constexpr size_t kHeadBytes = 48;
constexpr size_t kCrcAt = 12;
// ns, unit, hash, version, length, crc, expiry, put, parent, pin, key length
constexpr size_t kRowBytes = 4 + 4 + 16 + 8 + 4 + 4 + 8 + 8 + 16 + 1 + 2;
constexpr size_t kNamespaceBytes = 8 + 8 + 4 + 1 + 1;

uint32_t crc_of(std::span<const uint8_t> bytes) {
    constexpr uint8_t kZeros[4] = {};
    uint32_t crc = crc32c(bytes.data(), kCrcAt);
    crc = crc32c(kZeros, 4, crc);
    return crc32c(bytes.data() + kCrcAt + 4, bytes.size() - kCrcAt - 4, crc);
}

std::string take_text(std::span<const uint8_t>& in, size_t size) {
    const std::string text(reinterpret_cast<const char*>(in.data()), size);
    in = in.subspan(size);
    return text;
}

bool decode_namespace(std::span<const uint8_t>& in, NamespaceEpoch* ns) {
    if (in.size() < kNamespaceBytes) {
        return false;
    }
    ns->id = take_word<uint64_t>(in);
    ns->tenant_id = take_word<uint64_t>(in);
    ns->epoch = take_word<uint32_t>(in);
    const size_t tenant_bytes = take_word<uint8_t>(in);
    const size_t name_bytes = take_word<uint8_t>(in);
    if (in.size() < tenant_bytes + name_bytes) {
        return false;
    }
    ns->tenant = take_text(in, tenant_bytes);
    ns->name = take_text(in, name_bytes);
    return is_valid_name(ns->tenant) && is_valid_name(ns->name) && ns->epoch <= kMaxEpoch;
}

}  // namespace

uint32_t Manifest::add_namespace(const NamespaceEpoch& ns) {
    const auto [found, is_new] =
        indices_.try_emplace(ns.id, static_cast<uint32_t>(namespaces_.size()));
    if (is_new) {
        namespaces_.push_back(ns);
    }
    return found->second;
}

void Manifest::add(const ManifestRow& row) {
    append_word(rows_, row.ns_index);
    append_word(rows_, static_cast<uint32_t>(row.offset / kRecordAlign));
    append_word(rows_, row.hash.lo);
    append_word(rows_, row.hash.hi);
    append_word(rows_, row.version);
    append_word(rows_, row.length);
    append_word(rows_, row.sealed_crc);
    append_word(rows_, row.expires_at_ms);
    append_word(rows_, row.put_wall_ms);
    append_word(rows_, row.parent.lo);
    append_word(rows_, row.parent.hi);
    append_word(rows_, row.pin);
    append_word(rows_, static_cast<uint16_t>(row.key.size()));
    rows_.insert(rows_.end(), row.key.begin(), row.key.end());
    ++objects_;
}

bool Manifest::next(uint64_t* at, ManifestRow* row) const {
    if (*at > rows_.size() || rows_.size() - *at < kRowBytes) {
        return false;
    }
    std::span<const uint8_t> in(rows_.data() + *at, rows_.size() - *at);
    row->ns_index = take_word<uint32_t>(in);
    row->offset = uint64_t{take_word<uint32_t>(in)} * kRecordAlign;
    row->hash.lo = take_word<uint64_t>(in);
    row->hash.hi = take_word<uint64_t>(in);
    row->version = take_word<uint64_t>(in);
    row->length = take_word<uint32_t>(in);
    row->sealed_crc = take_word<uint32_t>(in);
    row->expires_at_ms = take_word<uint64_t>(in);
    row->put_wall_ms = take_word<uint64_t>(in);
    row->parent.lo = take_word<uint64_t>(in);
    row->parent.hi = take_word<uint64_t>(in);
    row->pin = take_word<Pin>(in);
    const size_t key_bytes = take_word<uint16_t>(in);
    if (in.size() < key_bytes) {
        return false;
    }
    row->key = {reinterpret_cast<const char*>(in.data()), key_bytes};
    *at += kRowBytes + key_bytes;
    return true;
}

std::vector<uint8_t> Manifest::encode() const {
    std::vector<uint8_t> names;
    for (const NamespaceEpoch& ns : namespaces_) {
        append_word(names, ns.id);
        append_word(names, ns.tenant_id);
        append_word(names, ns.epoch);
        append_word(names, static_cast<uint8_t>(ns.tenant.size()));
        append_word(names, static_cast<uint8_t>(ns.name.size()));
        names.insert(names.end(), ns.tenant.begin(), ns.tenant.end());
        names.insert(names.end(), ns.name.begin(), ns.name.end());
    }
    std::vector<uint8_t> out(sizeof(kManifestMagic));
    std::memcpy(out.data(), kManifestMagic, sizeof(kManifestMagic));
    out.reserve(kHeadBytes + names.size() + rows_.size());
    append_word(out, kNvmeFormat);
    append_word(out, uint32_t{0});
    append_word(out, seq_);
    append_word(out, static_cast<uint32_t>(namespaces_.size()));
    append_word(out, objects_);
    append_word(out, uint64_t{names.size()});
    append_word(out, uint64_t{rows_.size()});
    out.insert(out.end(), names.begin(), names.end());
    out.insert(out.end(), rows_.begin(), rows_.end());
    store_word(out.data() + kCrcAt, crc_of(out));
    return out;
}

Result<Manifest> Manifest::decode(std::span<const uint8_t> bytes) {
    const Status damaged(Code::kChecksumMismatch, "damaged log file manifest");
    if (bytes.size() < kHeadBytes ||
        std::memcmp(bytes.data(), kManifestMagic, sizeof(kManifestMagic)) != 0) {
        return damaged;
    }
    std::span<const uint8_t> in = bytes.subspan(sizeof(kManifestMagic));
    const auto format = take_word<uint32_t>(in);
    if (take_word<uint32_t>(in) != crc_of(bytes)) {
        return damaged;
    }
    if (format != kNvmeFormat) {
        return {Code::kVersionMismatch, "manifest of another format"};
    }
    Manifest manifest(take_word<uint64_t>(in));
    const auto namespaces = take_word<uint32_t>(in);
    const auto objects = take_word<uint32_t>(in);
    const auto name_bytes = take_word<uint64_t>(in);
    const auto row_bytes = take_word<uint64_t>(in);
    const size_t body = bytes.size() - kHeadBytes;
    if (name_bytes > body || row_bytes != body - name_bytes) {
        return damaged;
    }
    std::span<const uint8_t> names = bytes.subspan(kHeadBytes, name_bytes);
    for (uint32_t i = 0; i < namespaces; ++i) {
        NamespaceEpoch ns;
        if (!decode_namespace(names, &ns) || manifest.add_namespace(ns) != i) {
            return damaged;
        }
    }
    const auto rows = bytes.subspan(kHeadBytes + name_bytes);
    manifest.rows_.assign(rows.begin(), rows.end());
    uint64_t at = 0;
    ManifestRow row;
    while (manifest.next(&at, &row)) {
        if (row.ns_index >= namespaces || row.version == 0 || row.pin > Pin::kHard ||
            row.key.empty() || row.key.size() > limits::kMaxKeyBytes) {
            return damaged;
        }
        ++manifest.objects_;
    }
    if (at != row_bytes || manifest.objects_ != objects) {
        return damaged;
    }
    return manifest;
}

Status MemoryCatalog::save(uint64_t seq, std::span<const uint8_t> manifest) {
    const MutexLock lock(mutex_);
    rows_[seq].assign(manifest.begin(), manifest.end());
    return {};
}

Result<std::vector<uint8_t>> MemoryCatalog::load(uint64_t seq) {
    const MutexLock lock(mutex_);
    const auto found = rows_.find(seq);
    if (found == rows_.end()) {
        return {Code::kNotFound, "no manifest"};
    }
    return found->second;
}

Status MemoryCatalog::drop(uint64_t seq) {
    const MutexLock lock(mutex_);
    rows_.erase(seq);
    return {};
}

Result<std::vector<uint64_t>> MemoryCatalog::list() {
    const MutexLock lock(mutex_);
    std::vector<uint64_t> seqs;
    for (const auto& row : rows_) {
        seqs.push_back(row.first);
    }
    return seqs;
}

}  // namespace kvstore
