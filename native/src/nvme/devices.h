// The logs of several NVMe devices as one. An object is written to one of them, which its hash
// chooses, or to the next one that still works; it is looked for in all. So a device more, a device
// less or another order loses nothing of the others.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "nvme/log.h"

namespace kvstore {

class NvmeDevices {
  public:
    // Where a listing goes on; starts empty.
    struct Cursor {
        size_t device = 0;
        NvmeCursor at;
        bool done = false;
    };

    // As NvmeLog::open() for each.
    static Result<std::unique_ptr<NvmeDevices>> open(std::span<const NvmeOptions> devices);

    // --- as the methods of NvmeLog ---
    Status register_namespace(const NamespaceEpoch& ns);
    Status append(const NvmeObject& object, std::span<const uint8_t> data,
                  const std::shared_ptr<const void>& lender = nullptr);
    bool await_space(const Hash128& hash, uint64_t data_bytes, uint32_t timeout_ms);
    // The highest version.
    std::optional<NvmeFound> find(NamespaceId ns, const Hash128& hash);
    void read(std::span<const NvmeRead> reads, const NvmeReadDone& done);
    void hurry(std::span<const Hash128> hashes);
    bool remove(NamespaceId ns, const Hash128& hash, Version version);
    void flush_namespace(NamespaceId ns);
    Status sync_removals();
    void note_applied(uint64_t applied_seq);
    uint64_t recovered_applied() const;
    Status sync();
    void set_pin(NamespaceId ns, const Hash128& hash, Pin pin);  // where there is room for it
    void set_policy(const NvmePolicy& policy);
    Status list(Cursor* cursor, size_t max, std::vector<NvmeListed>* out);
    std::vector<NamespaceEpoch> namespaces() const;

    // Whether one of them still takes objects.
    bool is_active() const;
    NvmeState state() const;  // of the one that is worst off
    Status error() const;     // of the first that has one
    NvmeCounters counters() const;
    const char* read_way() const { return logs_.front()->read_way(); }

  private:
    // Where an object with this hash is to be written now.
    NvmeLog& home(const Hash128& hash) const;
    NvmeLog& holder(const NvmeRead& read) const;
    // Takes out, from this row on, what another device has in a higher version: it is listed there.
    void drop_older(size_t first, std::vector<NvmeListed>* listed);

    std::vector<std::unique_ptr<NvmeLog>> logs_;  // one at least
};

}  // namespace kvstore
