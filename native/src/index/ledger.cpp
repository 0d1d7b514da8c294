// Records of the ledger: taken from the front, reused, and backed by memory before they are
// touched.
#include "index/ledger.h"

#include <algorithm>
#include <cstring>

#include "base/checksum.h"
#include "base/little_endian.h"

namespace kvstore {
namespace {

constexpr auto kRelease = std::memory_order_release;
constexpr uint64_t kStepBytes = 64u << 10;  // how much of a growing part is reserved at a time
constexpr size_t kNameHeadBytes = 28;

size_t padded(size_t bytes) { return (bytes + 7) / 8 * 8; }

}  // namespace

std::vector<uint8_t> encode_ledger_name(const LedgerName& name) {
    std::vector<uint8_t> out;
    append_word(out, uint32_t{0});
    append_word(out, name.epoch);
    append_word(out, name.tenant_id);
    append_word(out, name.id);
    append_word(out, static_cast<uint16_t>(name.tenant.size()));
    append_word(out, static_cast<uint16_t>(name.name.size()));
    out.insert(out.end(), name.tenant.begin(), name.tenant.end());
    out.insert(out.end(), name.name.begin(), name.name.end());
    out.resize(padded(out.size()));
    const uint32_t crc = crc32c(out.data() + sizeof crc, out.size() - sizeof crc);
    store_word(out.data(), crc);
    return out;
}

std::optional<LedgerName> decode_ledger_name(std::span<const uint8_t> bytes, size_t* record_bytes) {
    if (bytes.size() < kNameHeadBytes) {
        return std::nullopt;
    }
    const size_t tenant_bytes = load_word<uint16_t>(bytes.data() + 24);
    const size_t name_bytes = load_word<uint16_t>(bytes.data() + 26);
    *record_bytes = padded(kNameHeadBytes + tenant_bytes + name_bytes);
    if (*record_bytes > bytes.size()) {
        return std::nullopt;
    }
    const uint32_t crc = crc32c(bytes.data() + sizeof crc, *record_bytes - sizeof crc);
    if (crc != load_word<uint32_t>(bytes.data())) {
        return std::nullopt;
    }
    const auto* text = reinterpret_cast<const char*>(bytes.data()) + kNameHeadBytes;
    return LedgerName{load_word<uint32_t>(bytes.data() + 4),
                      load_word<uint64_t>(bytes.data() + 8),
                      load_word<uint64_t>(bytes.data() + 16),
                      {text, tenant_bytes},
                      {text + tenant_bytes, name_bytes}};
}

uint64_t Ledger::first_bytes(const IndexGeometry& geometry) {
    return geometry.ledger_blocks_offset() + 2 * kStepBytes;
}

Result<std::unique_ptr<Ledger>> Ledger::create(int fd, const IndexGeometry& geometry) {
    std::unique_ptr<Ledger> ledger(new Ledger);
    ledger->fd_ = fd;
    ledger->begin_ = geometry.total_bytes;
    const uint64_t blocks = geometry.ledger_blocks_offset();
    if (Status status = ledger->reserve(0, blocks); !status.ok()) {
        return status;
    }
    auto mapping = Mapping::map(fd, geometry.ledger_bytes(), true, geometry.total_bytes);
    if (!mapping.ok()) {
        return mapping.status();
    }
    ledger->mapping_ = std::move(*mapping);
    uint8_t* base = ledger->mapping_.data();
    ledger->header_ = reinterpret_cast<LedgerHeader*>(base);
    ledger->recency_ = reinterpret_cast<uint64_t*>(base + kLedgerHeaderBytes);
    ledger->entry_count_ = geometry.first_entries();
    ledger->blocks_ = reinterpret_cast<LedgerBlock*>(base + blocks);
    ledger->names_offset_ = geometry.ledger_names_offset();
    // What the first puts need is there from the start, whoever fills the file system later.
    if (!ledger->more_lines() || !ledger->more_names(1).ok()) {
        return ledger->growth_;
    }
    return ledger;
}

Status Ledger::reserve(uint64_t begin, uint64_t end) {
    return reserve_bytes(fd_, begin_ + begin, begin_ + end, "index");
}

bool Ledger::more_lines() {
    constexpr uint64_t kStep = kStepBytes / sizeof(LedgerBlock);
    if (backed_ == kLedgerBlocks) {
        return false;
    }
    const auto at = static_cast<uint64_t>(reinterpret_cast<uint8_t*>(blocks_) - mapping_.data());
    const uint64_t end = std::min(kLedgerBlocks, backed_ + kStep);
    growth_ = reserve(at + backed_ * sizeof(LedgerBlock), at + end * sizeof(LedgerBlock));
    if (!growth_.ok()) {
        return false;
    }
    backed_ = end;
    return true;
}

Status Ledger::more_names(uint64_t until) {
    while (until > names_backed_) {
        const uint64_t end = std::min(kLedgerNames, names_backed_ + kStepBytes);
        growth_ = reserve(names_offset_ + names_backed_, names_offset_ + end);
        if (!growth_.ok()) {
            return growth_;
        }
        names_backed_ = end;
    }
    return {};
}

Ledger::Line Ledger::add_block(BlockUse use, Generation generation, uint64_t offset,
                               uint64_t length, int slot) {
    Line line = 0;
    if (!free_.empty()) {
        line = free_.back();
        free_.pop_back();
    } else {
        if (used_ == backed_ && !more_lines()) {
            return kNoLine;
        }
        line = static_cast<Line>(used_++);
        header_->blocks_used.store(used_, kRelease);
    }
    LedgerBlock& block = blocks_[line];
    block.offset.store(offset, kRelaxed);
    block.length.store(length, kRelaxed);
    block.slot_use.store(
        static_cast<uint32_t>(slot + 1) | uint64_t{static_cast<uint32_t>(use)} << 32, kRelaxed);
    // A life that ends in the middle leaves no record, and the block was not handed out yet.
    block.gen.store(generation, kRelease);
    return line;
}

void Ledger::drop_block(Line line) {
    if (line == kNoLine) {
        return;
    }
    KV_ASSERT(line < used_ && blocks_[line].gen.load(kRelaxed) != 0);
    blocks_[line].gen.store(0, kRelease);
    free_.push_back(line);
}

Status Ledger::note_namespace(std::string_view tenant, std::string_view name, uint32_t epoch,
                              TenantId tenant_id, NamespaceId id) {
    const std::vector<uint8_t> bytes = encode_ledger_name({epoch, tenant_id, id, tenant, name});
    if (names_used_ + bytes.size() > kLedgerNames) {
        return {Code::kNoSpace, "the node has seen too many namespaces: restart it"};
    }
    if (Status grown = more_names(names_used_ + bytes.size()); !grown.ok()) {
        return grown;
    }
    std::memcpy(mapping_.data() + names_offset_ + names_used_, bytes.data(), bytes.size());
    names_used_ += bytes.size();
    header_->names_used.store(names_used_, kRelease);
    return {};
}

void Ledger::note_ready(uint64_t ready_bytes) { header_->ready_bytes.store(ready_bytes, kRelease); }

void Ledger::note_applied(uint64_t seq) {
    if (seq > header_->applied_seq.load(kRelaxed)) {
        header_->applied_seq.store(seq, kRelease);
    }
}

}  // namespace kvstore
