// Holds, queues, verifies while the copies run; then what other nodes have.
#include "client/device_get.h"

#include <algorithm>
#include <numeric>

#include "base/mutation.h"
#include "client/get_path.h"
#include "client/remote_reads.h"

namespace kvstore {
namespace {

using Row = DeviceTransfer::Row;

// Of destinations that one round reads into pinned memory, but for a single larger object.
constexpr uint64_t kRoundBytes = PinnedBuffers::kMaxBytes / 4;

constexpr Row kTooSmall{static_cast<int64_t>(Code::kBufferTooSmall), MissReason::kBufferTooSmall};

constexpr Row kDamaged{static_cast<int64_t>(Code::kChecksumMismatch), MissReason::kChecksum};

Row row_of(const HeldBlocks::Block& block) {
    return {static_cast<int64_t>(block.found.length), MissReason::kNone};
}

void count_hit(const HeldBlocks::Block& block, CallTally* tally) {
    tally->add(ClientCounter::kKeysRead);
    tally->add(ClientCounter::kHitsShm);
    tally->add(ClientCounter::kBytesReadShm, block.found.length);
}

// Pinned memory for what a round finds. What is longer than its destination gets none.
class BounceMemory final : public GetMemory {
  public:
    BounceMemory(PinnedBuffers& pool, std::vector<uint64_t> capacities, Deadline deadline)
        : pool_(pool), capacities_(std::move(capacities)), deadline_(deadline) {}
    // All that several objects may need, so that nobody waits for more while it keeps some. One
    // alone gets what it is found to need: its destination may be much longer.
    Status take_ahead() {
        if (capacities_.size() == 1) {
            return {};
        }
        uint64_t total = 0;
        for (const uint64_t capacity : capacities_) {
            places_.push_back(total);
            total += PinnedBuffers::aligned(capacity);
        }
        return take(total);
    }
    void provide(std::span<const Want> wants, std::span<GetItem> items) override {
        for (const Want& want : wants) {
            GetItem& item = items[want.item];
            item.data = Pieces();
            if (want.size > capacities_[want.item]) {
                continue;
            }
            if (places_.empty() && !take(want.size).ok()) {
                continue;
            }
            const uint64_t place = places_.empty() ? 0 : places_[want.item];
            item.data = Pieces(buffer_->data() + place, want.size);
        }
    }
    const Status& status() const { return status_; }
    std::unique_ptr<PinnedBuffers::Buffer> take_buffer() { return std::move(buffer_); }

  private:
    Status take(uint64_t size) {
        buffer_.reset();  // asked for again, for a longer version
        Result<std::unique_ptr<PinnedBuffers::Buffer>> taken = pool_.take(size, deadline_);
        if (taken.ok()) {
            buffer_ = std::move(*taken);
        }
        status_ = taken.status();
        return status_;
    }

    PinnedBuffers& pool_;
    const std::vector<uint64_t> capacities_;
    const Deadline deadline_;
    std::vector<uint64_t> places_;  // of each object in the buffer, when it was taken ahead
    std::unique_ptr<PinnedBuffers::Buffer> buffer_;
    Status status_;
};

}  // namespace

Status DeviceGet::run(std::span<const GetItem> items,
                      const std::shared_ptr<DeviceTransfer>& transfer, Deadline deadline) {
    transfer_ = transfer;
    deadline_ = deadline;
    direct_.assign(items.size(), false);
    decided_.assign(items.size(), false);
    Status status = copy_held(items);
    if (status.ok()) {
        for (size_t row = 0; row < items.size(); ++row) {
            if (!decided_[row]) {
                others_.push_back(row);
            }
        }
        read_direct(items);
        status = copy_others(items);
    }
    context_.count(tally_, probe_.slot());
    return status;
}

// What this host's nodes have in memory goes from the blocks themselves, all with one event.
Status DeviceGet::copy_held(std::span<const GetItem> items) {
    hold(items);
    DeviceCopies copies(call_.device.context, DeviceCopies::Direction::kToDevice);
    const bool sums = options_.verify_checksum && call_.device.kernels->loaded();
    proof_ = std::make_shared<DeviceProof>(
        items.size(), call_.page_moves(items.size(), PageMoves::Direction::kToPool),
        sums ? std::make_unique<DeviceChecksums>(call_.device.kernels, call_.device.tables)
             : nullptr);
    add_held(items, &copies);
    if (copies.empty() && (proof_->moves() == nullptr || proof_->moves()->empty())) {
        proof_->sums()->reset();
        verify(items);  // of empty objects, and of those that are a header only
        transfer_->expect(1);
        transfer_->end_event({}, std::move(held_));
    } else {
        std::unique_ptr<CudaEvent> event;
        if (Status status = call_.queue({&copies, proof_->moves(), proof_->sums()}, &event);
            !status.ok()) {
            return status;
        }
        verify(items);  // while they are copied: the blocks are held
        transfer_->expect(1);
        auto shared = std::make_shared<std::vector<std::unique_ptr<HeldBlocks>>>();
        if (KV_GUARD("gpu-hold", true)) {
            *shared = std::move(held_);
        }
        Status status = settle(std::move(event),
                               [transfer = transfer_, shared, judge = judge()](const Status& end) {
                                   transfer->end_event(end, std::move(*shared), judge);
                               });
        if (!status.ok()) {
            return status;
        }
    }
    // A caller that waits gets what has changed meanwhile, or has arrived damaged, in another way.
    if (!options_.is_queued) {
        for (const size_t row : transfer_->unproven()) {
            decided_[row] = false;
        }
    }
    return {};
}

void DeviceGet::hold(std::span<const GetItem> items) {
    probe_.run(context_, items.size(), deadline_, [&](size_t row) { return items[row].key; });
    for (const LocalPeer& local : probe_.locals()) {
        held_.push_back(std::make_unique<HeldBlocks>(local.node));
    }
    for (size_t row = 0; row < items.size(); ++row) {
        const LocalProbe::Row& probed = probe_.rows()[row];
        if (probed.local == LocalProbe::kNowhere) {
            continue;
        }
        if (probed.found.length > items[row].data.size()) {
            transfer_->set(row, kTooSmall);
            tally_.add(ClientCounter::kKeysRead);
            tally_.miss(MissReason::kBufferTooSmall);
            decided_[row] = true;
            continue;
        }
        held_[static_cast<size_t>(probed.local)]->add(row, probed.found);
    }
    for (const std::unique_ptr<HeldBlocks>& blocks : held_) {
        blocks->hold_rest(deadline_);
    }
}

void DeviceGet::add_held(std::span<const GetItem> items, DeviceCopies* copies) {
    PageMoves* const moves = proof_->moves();
    DeviceChecksums* const sums = proof_->sums()->get();
    for (const std::unique_ptr<HeldBlocks>& blocks : held_) {
        RegisteredSegment& segment = blocks->node().for_gpus();
        blocks->node().slot().set_reached_by_devices();
        for (const HeldBlocks::Block& block : blocks->blocks()) {
            const IndexReader::Found& found = block.found;
            const Pieces& to = items[block.row].data;
            const uint8_t* const source =
                segment.source(call_.device.context, found.offset, found.length);
            if (source == nullptr) {
                continue;
            }
            direct_[block.row] = true;
            if (moves != nullptr && found.length == call_.grid->page_bytes() &&
                moves->reaches(source) && segment.for_kernels()) {
                const auto first = reinterpret_cast<uintptr_t>(to.list().front().iov_base);
                proof_->by_page(block.row, moves->add(first, source));
                continue;
            }
            call_.add_copies(to, source, found.length, found.offset, copies);
            if (sums != nullptr) {
                proof_->by_sum(block.row, call_.add_sum(to, found.length, sums));
            }
        }
    }
}

// What the GPU has not been asked to sum is summed here. The host's bytes prove the copy's: neither
// changes while the block is held.
void DeviceGet::verify(std::span<const GetItem> items) {
    for (const std::unique_ptr<HeldBlocks>& blocks : held_) {
        LocalNode& node = blocks->node();
        for (size_t i = blocks->blocks().size(); i-- > 0;) {  // a chain's tail is touched first
            const HeldBlocks::Block& block = blocks->blocks()[i];
            if (!direct_[block.row]) {
                continue;
            }
            const Identity identity = context_.identity(probe_.rows()[block.row].key);
            const uint32_t header_crc = call_.header_from(
                items[block.row].data, node.segment() + block.found.offset, block.found.length);
            const bool is_judged_later = proof_->expect(block.row, identity, header_crc);
            const bool is_sealed = is_judged_later || !options_.verify_checksum ||
                                   verify_object(node.segment(), block.found, identity);
            if (KV_GUARD("gpu-checksum", !is_sealed)) {
                tally_.add(ClientCounter::kWrongChecksums);
                continue;  // another replica may have the right ones
            }
            node.slot().touch(block.found.ref);
            if (!is_judged_later) {
                count_hit(block, &tally_);
            }
            transfer_->set_direct(block.row, row_of(block));
            decided_[block.row] = true;
        }
    }
}

// Of the rows whose sums the GPU computes; may be called when the store has been closed.
DeviceTransfer::Judge DeviceGet::judge() {
    const LocalPeer& home = probe_.locals().front();
    return [proof = proof_, counts = context_.counts(), home = home.node,
            verifies = options_.verify_checksum,
            is_retried = !options_.is_queued](const HeldBlocks::Block& block) {
        CallTally tally;
        DeviceTransfer::Row row = row_of(block);
        if (proof->is_expected(block)) {
            if (verifies && !proof->holds(block)) {
                row = kDamaged;
                tally.add(ClientCounter::kWrongChecksums);
                if (!is_retried) {
                    tally.add(ClientCounter::kKeysRead);
                    tally.miss(MissReason::kChecksum);
                }
            } else {
                count_hit(block, &tally);
            }
            tally.count(counts.get(), &home->slot());
        }
        return row;
    };
}

// Straight from other nodes' memory, as far as UCX goes.
void DeviceGet::read_direct(std::span<const GetItem> items) {
    DirectMemory memory(context_, call_);
    std::vector<size_t> rows;
    std::copy_if(others_.begin(), others_.end(), std::back_inserter(rows),
                 [&](size_t row) { return memory.reaches(items[row].data); });
    const CudaContext::Scope scope(*call_.device.context);  // UCX looks for one
    if (rows.empty() || !scope.status().ok()) {
        return;
    }
    std::vector<GetItem> reads;
    std::vector<HashedKey> keys;
    for (const size_t row : rows) {
        reads.push_back({items[row].key, items[row].data});
        keys.push_back(probe_.rows()[row].key);
    }
    std::vector<size_t> all(rows.size());
    std::iota(all.begin(), all.end(), size_t{0});
    RemoteReads(context_, nullptr, &tally_, &memory).run(reads, keys, all, deadline_);
    for (size_t i = 0; i < rows.size(); ++i) {
        if (reads[i].result >= 0) {
            tally_.add(ClientCounter::kKeysRead);
            transfer_->set(rows[i], {reads[i].result, MissReason::kNone});
            decided_[rows[i]] = true;
        }
    }
    std::erase_if(others_, [&](size_t row) { return decided_[row]; });
}

Status DeviceGet::copy_others(std::span<const GetItem> items) {
    for (size_t first = 0; first < others_.size();) {
        uint64_t bytes = 0;
        size_t count = 0;
        while (first + count < others_.size()) {
            bytes += PinnedBuffers::aligned(items[others_[first + count]].data.size());
            if (count > 0 && bytes > kRoundBytes) {
                break;
            }
            ++count;
        }
        if (Status status = copy_round(items, std::span(others_).subspan(first, count));
            !status.ok()) {
            return status;
        }
        first += count;
    }
    return {};
}

// Reads into pinned memory as any get does, and queues the copies from there.
Status DeviceGet::copy_round(std::span<const GetItem> items, std::span<const size_t> rows) {
    std::vector<GetItem> reads(rows.size());
    std::vector<uint64_t> capacities(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
        reads[i].key = items[rows[i]].key;
        capacities[i] = items[rows[i]].data.size();
    }
    BounceMemory memory(*call_.device.bounce, std::move(capacities), deadline_);
    if (memory.take_ahead().ok()) {
        GetPath(context_, &memory).run(reads, deadline_);
    }
    DeviceCopies copies(call_.device.context, DeviceCopies::Direction::kToDevice);
    for (size_t i = 0; i < rows.size(); ++i) {
        const GetItem& read = reads[i];
        Row row{read.result, read.reason};
        if (!memory.status().ok()) {
            row = {static_cast<int64_t>(memory.status().code()), MissReason::kUnavailable};
        }
        transfer_->set(rows[i], row);
        if (row.result >= 0) {
            const uint8_t* const bytes = static_cast<uint8_t*>(read.data.list().front().iov_base);
            const auto size = static_cast<uint64_t>(row.result);
            call_.header_from(items[rows[i]].data, bytes, size);
            call_.add_copies(items[rows[i]].data, bytes, size, {}, &copies);
        }
    }
    if (copies.empty()) {
        return {};
    }
    std::unique_ptr<CudaEvent> event;
    if (Status status = call_.queue({&copies}, &event); !status.ok()) {
        return status;
    }
    transfer_->expect(1);
    auto buffer = std::make_shared<std::unique_ptr<PinnedBuffers::Buffer>>(memory.take_buffer());
    return settle(std::move(event), [transfer = transfer_, buffer](const Status& end) {
        buffer->reset();
        transfer->end_event(end, {});
    });
}

// Waits for the event and calls `done`, unless the caller does not wait or no longer: then the
// poller does both.
Status DeviceGet::settle(std::unique_ptr<CudaEvent> event, EventPoller::Done done) {
    if (!options_.is_queued) {
        const Status status = event->wait(deadline_);
        if (status.code() != Code::kDeadlineExceeded) {
            done(status);
            return status;
        }
        context_.devices().poller()->add(std::move(event), std::move(done));
        return status;
    }
    context_.devices().poller()->add(std::move(event), std::move(done));
    return {};
}

}  // namespace kvstore
