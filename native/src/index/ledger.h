// The node's side of the ledger: what it writes down so that a later life of it can take its memory
// over again. It lies behind the entries in the index file, so that both are of one incarnation.
//
// The rule: every block that is not free is named in shared memory, by a valid entry or by a record
// here, at every moment. A record goes in before the block is handed out or its entry invalidated,
// and out only when the block is free or an entry has taken over. The store's lock guards it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/types.h"
#include "index/shared_layout.h"

namespace kvstore {

// One stamp an entry, for the evictor: those of the first entries lie in the ledger, those of the
// entries that the index grew by in its file's last part.
struct Recency {
    std::span<uint64_t> first;
    std::span<uint64_t> more;
    uint64_t& operator[](uint64_t entry) const {
        return entry < first.size() ? first[entry] : more[entry - first.size()];
    }
    size_t size() const { return first.size() + more.size(); }
};

class Ledger {
  public:
    using Line = uint32_t;  // the number of a block's record
    static constexpr Line kNoLine = UINT32_MAX;

    // The bytes that create() takes.
    static uint64_t first_bytes(const IndexGeometry& geometry);
    // Over a file of geometry.file_bytes(); takes the memory of its fixed parts at once.
    static Result<std::unique_ptr<Ledger>> create(int fd, const IndexGeometry& geometry);

    // Of the index's first entries. Written by the owner of the store's lock alone.
    std::span<uint64_t> recency() { return {recency_, entry_count_}; }

    // kNoLine when there is no memory for a further record. `slot` -1: the node itself.
    Line add_block(BlockUse use, Generation generation, uint64_t offset, uint64_t length, int slot);
    void drop_block(Line line);  // kNoLine: nothing to do
    // Whether so many more records fit: writers leave room for blocks that are given up.
    bool has_room_for_writes() const { return lines_in_use() < kLedgerBlocks / 2; }
    // Why the last attempt to grow failed; Ok when it did not.
    const Status& growth_status() const { return growth_; }
    uint64_t lines_in_use() const { return used_ - free_.size(); }
    bool torn() const { return mapping_.torn(); }

    // This incarnation of a namespace is in use here; older ones have ended. kNoSpace: too many.
    Status note_namespace(std::string_view tenant, std::string_view name, uint32_t epoch,
                          TenantId tenant_id, NamespaceId id);
    void note_ready(uint64_t ready_bytes);
    void note_applied(uint64_t seq);

  private:
    Ledger() = default;
    Status reserve(uint64_t begin, uint64_t end);  // of the ledger's bytes
    bool more_lines();
    Status more_names(uint64_t until);

    int fd_ = -1;
    Status growth_;
    uint64_t begin_ = 0;  // of the ledger in the file
    Mapping mapping_;
    LedgerHeader* header_ = nullptr;
    uint64_t* recency_ = nullptr;
    uint64_t entry_count_ = 0;
    LedgerBlock* blocks_ = nullptr;
    uint64_t used_ = 0;    // records ever written
    uint64_t backed_ = 0;  // records that have memory
    std::vector<Line> free_;
    uint64_t names_offset_ = 0;
    uint64_t names_used_ = 0;
    uint64_t names_backed_ = 0;
};

// The bytes of one namespace record, and back: `bytes` begins with the record, and `record_bytes`
// says how long it is. Nothing when it is damaged.
struct LedgerName {
    uint32_t epoch = 0;
    TenantId tenant_id = 0;
    NamespaceId id = 0;
    std::string_view tenant;
    std::string_view name;
};
std::vector<uint8_t> encode_ledger_name(const LedgerName& name);
std::optional<LedgerName> decode_ledger_name(std::span<const uint8_t> bytes, size_t* record_bytes);

}  // namespace kvstore
