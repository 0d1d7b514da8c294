// What a log file holds, as one row for the catalog: its namespaces and one entry per object.
//
// It is kept encoded from the first object on, so that an open log file costs no more than its row.
//   magic "KVNVMAN" NUL | format u32 | crc u32 (of all, this word zero) | seq u64 |
//   namespaces u32 | objects u32 | (size u64 | body) of each of the two
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/mutex.h"
#include "base/namespace_epoch.h"
#include "base/status.h"
#include "base/types.h"
#include "nvme/format.h"

namespace kvstore {

struct ManifestRow {
    uint32_t ns_index = 0;  // into the manifest's namespaces
    uint64_t offset = 0;    // of the record in the log file
    Hash128 hash;
    Version version = 0;
    uint32_t length = 0;
    uint32_t sealed_crc = 0;
    uint64_t expires_at_ms = 0;
    uint64_t put_wall_ms = 0;
    Hash128 parent;
    Pin pin = Pin::kNone;
    std::string_view key;  // into the manifest: valid until it changes
};

class Manifest {
  public:
    explicit Manifest(uint64_t seq = 0) : seq_(seq) {}
    uint64_t seq() const { return seq_; }
    uint32_t objects() const { return objects_; }
    const std::vector<NamespaceEpoch>& namespaces() const { return namespaces_; }

    // The namespace's index; it is added when it is new.
    uint32_t add_namespace(const NamespaceEpoch& ns);
    bool has_namespace(NamespaceId ns) const { return indices_.contains(ns); }
    std::optional<uint32_t> index_of(NamespaceId ns) const {
        const auto found = indices_.find(ns);
        return found == indices_.end() ? std::nullopt : std::optional(found->second);
    }
    void add(const ManifestRow& row);

    // Iteration: `*at` starts at 0 and is where the next row begins. False at the end.
    bool next(uint64_t* at, ManifestRow* row) const;

    std::vector<uint8_t> encode() const;
    // Checks everything but what only the log file knows (offsets within it).
    static Result<Manifest> decode(std::span<const uint8_t> bytes);

  private:
    uint64_t seq_;
    uint32_t objects_ = 0;
    std::vector<NamespaceEpoch> namespaces_;
    std::map<NamespaceId, uint32_t> indices_;
    std::vector<uint8_t> rows_;
};

// Where manifests of sealed log files are kept: the owner's database. It is a cache of what the
// log files say themselves: when it fails, recovery scans. Called from the log's own threads and
// from list(), never under its mutex, one call at a time or several.
class NvmeCatalog {
  public:
    virtual ~NvmeCatalog() = default;
    virtual Status save(uint64_t seq, std::span<const uint8_t> manifest) = 0;
    virtual Result<std::vector<uint8_t>> load(uint64_t seq) = 0;  // NotFound when there is none
    virtual Status drop(uint64_t seq) = 0;                        // Ok when there is none
    virtual Result<std::vector<uint64_t>> list() = 0;
};

// A catalog that lives as long as its owner: embedded use without a database, and tests.
class MemoryCatalog : public NvmeCatalog {
  public:
    Status save(uint64_t seq, std::span<const uint8_t> manifest) override;
    Result<std::vector<uint8_t>> load(uint64_t seq) override;
    Status drop(uint64_t seq) override;
    Result<std::vector<uint64_t>> list() override;

  private:
    Mutex mutex_;
    std::map<uint64_t, std::vector<uint8_t>> rows_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
