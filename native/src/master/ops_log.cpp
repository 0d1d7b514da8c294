// The log's deque and the journal record: little-endian, self-describing, ended by a CRC32C.
#include "master/ops_log.h"

#include <algorithm>
#include <array>

#include "base/checksum.h"
#include "base/limits.h"
#include "base/little_endian.h"

namespace kvstore {
namespace {

// magic, seq, kind, epoch, version, arg, three u16 lengths, the three strings, crc
constexpr std::array<uint8_t, 4> kMagic = {'K', 'V', 'J', 1};
constexpr size_t kHeadBytes = 4 + 8 + 1 + 4 + 8 + 8 + 3 * 2;
// The journal's own part of a row: key, checksum, and what the database adds.
constexpr uint64_t kRowBytes = 8 + 4 + 16;

// A flush ends what every key of its namespace named before.
bool ends_objects(const Op& op) { return op.kind == OpKind::kRemove || op.kind == OpKind::kFlush; }

// No name contains a zero byte (is_valid_name), and no key is empty, as that of a flush is.
std::string ending_name(std::string_view tenant, std::string_view ns, std::string_view key) {
    std::string name;
    name.reserve(tenant.size() + ns.size() + key.size() + 2);
    name.append(tenant).append(1, '\0').append(ns).append(1, '\0').append(key);
    return name;
}

}  // namespace

OpsLog::OpsLog(uint64_t trimmed_seq, Version version_floor)
    : last_seq_(trimmed_seq),
      handed_seq_(trimmed_seq),
      durable_seq_(trimmed_seq),
      trimmed_seq_(trimmed_seq),
      version_floor_(version_floor) {}

uint64_t OpsLog::append(Op op) {
    op.seq = ++last_seq_;
    index_ending(op);
    ops_.push_back(std::move(op));
    return last_seq_;
}

Status OpsLog::load(std::span<const uint8_t> record) {
    Result<Op> op = decode(record);
    if (!op.ok()) {
        return op.status();
    }
    if (op->seq <= trimmed_seq_) {
        return {};  // its deletion was cut short
    }
    if (op->seq <= last_seq_) {
        return Status(Code::kInvalidArgument, "journal records out of order");
    }
    last_seq_ = handed_seq_ = durable_seq_ = op->seq;
    index_ending(*op);
    ops_.push_back(std::move(*op));
    return {};
}

void OpsLog::index_ending(const Op& op) {
    if (ends_objects(op)) {
        endings_[ending_name(op.tenant, op.ns, op.key)] = op.seq;
    }
}

uint64_t OpsLog::last_ending(std::string_view tenant, std::string_view ns,
                             std::string_view key) const {
    uint64_t last = 0;
    for (const std::string_view ended : {key, std::string_view()}) {
        const auto found = endings_.find(ending_name(tenant, ns, ended));
        last = std::max(last, found == endings_.end() ? 0 : found->second);
    }
    return last;
}

void OpsLog::skip_to(uint64_t seq) {
    if (seq <= last_seq_) {
        return;
    }
    // The numbers left out count as done only when nothing before them is still on its way.
    if (durable_seq_ == last_seq_) {
        durable_seq_ = handed_seq_ = seq;
    }
    last_seq_ = seq;
}

std::deque<Op>::const_iterator OpsLog::first_after(uint64_t seq) const {
    return std::upper_bound(ops_.begin(), ops_.end(), seq,
                            [](uint64_t wanted, const Op& op) { return wanted < op.seq; });
}

std::vector<std::pair<uint64_t, std::vector<uint8_t>>> OpsLog::take_records(size_t max) {
    std::vector<std::pair<uint64_t, std::vector<uint8_t>>> records;
    for (auto op = first_after(handed_seq_); op != ops_.end() && records.size() < max; ++op) {
        records.emplace_back(op->seq, encode(*op));
        handed_seq_ = op->seq;
    }
    return records;
}

void OpsLog::make_durable(uint64_t seq, const std::function<void(const Op&)>& each) {
    for (auto op = first_after(durable_seq_); each && op != ops_.end() && op->seq <= seq; ++op) {
        each(*op);
    }
    durable_seq_ = std::max(durable_seq_, std::min(seq, last_seq_));
    handed_seq_ = std::max(handed_seq_, durable_seq_);
}

std::vector<Op> OpsLog::run_after(uint64_t after, size_t max) const {
    std::vector<Op> run;
    for (auto op = first_after(after); op != ops_.end() && run.size() < max; ++op) {
        if (op->seq > durable_seq_ || (!run.empty() && op->seq != run.back().seq + 1)) {
            break;
        }
        run.push_back(*op);
    }
    return run;
}

std::vector<Op> OpsLog::trim(uint64_t seq) {
    seq = std::min(seq, durable_seq_);
    std::vector<Op> dropped;
    while (!ops_.empty() && ops_.front().seq <= seq) {
        const Op& op = ops_.front();
        if (op.kind == OpKind::kRemove) {
            version_floor_ = std::max(version_floor_, op.version);
        }
        if (ends_objects(op)) {
            const auto last = endings_.find(ending_name(op.tenant, op.ns, op.key));
            if (last != endings_.end() && last->second == op.seq) {
                endings_.erase(last);
            }
        }
        dropped.push_back(std::move(ops_.front()));
        ops_.pop_front();
    }
    trimmed_seq_ = std::max(trimmed_seq_, seq);
    return dropped;
}

uint64_t OpsLog::record_bytes(std::string_view tenant, std::string_view ns, std::string_view key) {
    return kRowBytes + kHeadBytes + tenant.size() + ns.size() + key.size() + 4;
}

std::vector<uint8_t> OpsLog::encode(const Op& op) {
    std::vector<uint8_t> out;
    out.reserve(kHeadBytes + op.tenant.size() + op.ns.size() + op.key.size() + 4);
    out.insert(out.end(), kMagic.begin(), kMagic.end());
    append_word(out, op.seq);
    append_word(out, op.kind);
    append_word(out, op.epoch);
    append_word(out, op.version);
    append_word(out, op.arg);
    for (const std::string* text : {&op.tenant, &op.ns, &op.key}) {
        append_word(out, static_cast<uint16_t>(text->size()));
    }
    for (const std::string* text : {&op.tenant, &op.ns, &op.key}) {
        out.insert(out.end(), text->begin(), text->end());
    }
    append_word(out, crc32c(out.data(), out.size()));
    return out;
}

Result<Op> OpsLog::decode(std::span<const uint8_t> record) {
    const Status bad(Code::kInvalidArgument, "damaged journal record");
    if (record.size() < kHeadBytes + 4 ||
        !std::equal(kMagic.begin(), kMagic.end(), record.begin())) {
        return bad;
    }
    std::span<const uint8_t> tail = record.last(4);
    if (crc32c(record.data(), record.size() - 4) != take_word<uint32_t>(tail)) {
        return bad;
    }
    std::span<const uint8_t> in = record.subspan(kMagic.size(), record.size() - kMagic.size() - 4);
    Op op;
    op.seq = take_word<uint64_t>(in);
    op.kind = take_word<OpKind>(in);
    op.epoch = take_word<uint32_t>(in);
    op.version = take_word<uint64_t>(in);
    op.arg = take_word<uint64_t>(in);
    const size_t sizes[] = {take_word<uint16_t>(in), take_word<uint16_t>(in),
                            take_word<uint16_t>(in)};
    if (sizes[0] + sizes[1] + sizes[2] != in.size()) {
        return bad;
    }
    if (op.kind != OpKind::kRemove && op.kind != OpKind::kFlush && op.kind != OpKind::kPin) {
        return Status(Code::kInvalidArgument,
                      "unknown kind of operation " + std::to_string(static_cast<int>(op.kind)));
    }
    std::string* const texts[] = {&op.tenant, &op.ns, &op.key};
    for (size_t i = 0; i < 3; ++i) {
        texts[i]->assign(reinterpret_cast<const char*>(in.data()), sizes[i]);
        in = in.subspan(sizes[i]);
    }
    return op;
}

}  // namespace kvstore
