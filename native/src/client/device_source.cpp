// Copies from a device behind what its stream does before, the wait for them, and the checksums.
#include "client/device_source.h"

#include <utility>

#include "base/checksum.h"

namespace kvstore {
Status DeviceSource::fill(LocalNode& node, std::span<Block> blocks, Deadline deadline) {
    DeviceCopies copies(call_.device.context, DeviceCopies::Direction::kToHost);
    std::shared_ptr<PageMoves> moves =
        call_.page_moves(blocks.size(), PageMoves::Direction::kToBlocks);
    std::unique_ptr<DeviceChecksums> sums =
        call_.device.kernels->loaded()
            ? std::make_unique<DeviceChecksums>(call_.device.kernels, call_.device.tables)
            : nullptr;
    std::vector<Summed> direct;
    std::vector<Block*> unreached;
    for (Block& block : blocks) {
        const Pieces& from = *block.from;
        RegisteredSegment& segment = node.for_gpus();
        if (segment.destination(call_.device.context, block.offset, from.size()) == nullptr) {
            unreached.push_back(&block);
            continue;
        }
        Summed& summed = direct.emplace_back(Summed{&block, {}, {}});
        if (moves != nullptr && moves->reaches(block.to) && segment.for_kernels()) {
            const auto first = reinterpret_cast<uintptr_t>(from.list().front().iov_base);
            summed.page = moves->add(first, block.to);
            continue;
        }
        call_.add_copies(from, block.to, from.size(), block.offset, &copies);
        if (sums != nullptr) {
            summed.object = call_.add_sum(from, from.size(), sums.get());
        }
    }
    const bool has_moves = moves != nullptr && !moves->empty();
    if (!copies.empty() || has_moves) {
        if (Status status = copy_direct(node, &copies, moves, &sums, direct, deadline);
            !status.ok()) {
            return status;
        }
    } else {
        sums.reset();
    }
    for (const Summed& summed : direct) {
        Block& block = *summed.block;
        const uint32_t header_crc = call_.header_to(*block.from, block.to);
        block.crc = summed.page                        ? moves->crc(*summed.page)
                    : summed.object && sums != nullptr ? sums->crc(*summed.object, header_crc)
                                                       : crc32c(block.to, block.from->size());
    }
    return unreached.empty() ? Status() : fill_by_bounce(unreached, deadline);
}
Status DeviceSource::copy_direct(LocalNode& node, DeviceCopies* copies,
                                 const std::shared_ptr<PageMoves>& moves,
                                 std::unique_ptr<DeviceChecksums>* sums,
                                 std::span<const Summed> blocks, Deadline deadline) {
    if (!node.slot().begin_writing(node.node_epoch())) {
        return {Code::kUnavailable, "the node has been replaced"};
    }
    node.slot().set_reached_by_devices();
    std::unique_ptr<CudaEvent> event;
    Status status = call_.queue({copies, moves.get(), sums}, &event);
    if (status.ok()) {
        status = event->wait(deadline);
    }
    if (event == nullptr || status.code() != Code::kDeadlineExceeded) {
        node.slot().end_writing(node.node_epoch());
        return status;
    }
    // The node must not have these blocks back before the copies into them have stopped.
    std::vector<Generation> written;
    for (const Summed& summed : blocks) {
        written.push_back(std::exchange(summed.block->generation, 0));
    }
    context_.devices().poller()->add(
        std::move(event),
        [kept = node.shared_from_this(), written, moves,
         summing = std::shared_ptr<DeviceChecksums>(std::move(*sums))](const Status&) {
            kept->slot().end_writing(kept->node_epoch());
            kept->abandon(written);
        });
    return status;
}

Status DeviceSource::fill_by_bounce(std::span<Block* const> blocks, Deadline deadline) {
    std::vector<const Pieces*> objects;
    for (const Block* block : blocks) {
        objects.push_back(block->from);
    }
    const Result<Staged> staged = stage(objects, deadline);
    if (!staged.ok()) {
        return staged.status();
    }
    for (size_t row = 0; row < blocks.size(); ++row) {
        blocks[row]->crc = gather_crc32c(blocks[row]->to, staged->objects[row]);
    }
    return {};
}

Result<DeviceSource::Staged> DeviceSource::stage(std::span<PutItem* const> items,
                                                 Deadline deadline) {
    std::vector<const Pieces*> objects;
    for (const PutItem* item : items) {
        objects.push_back(&item->data);
    }
    return stage(objects, deadline);
}

Result<DeviceSource::Staged> DeviceSource::stage(std::span<const Pieces* const> objects,
                                                 Deadline deadline) {
    uint64_t total = 0;
    for (const Pieces* object : objects) {
        total += PinnedBuffers::aligned(object->size());
    }
    Result<std::unique_ptr<PinnedBuffers::Buffer>> taken =
        call_.device.bounce->take(total, deadline);
    if (!taken.ok()) {
        return taken.status();
    }
    Staged staged;
    staged.buffer = std::move(*taken);
    uint8_t* at = staged.buffer->data();
    DeviceCopies copies(call_.device.context, DeviceCopies::Direction::kToHost);
    for (const Pieces* object : objects) {
        call_.add_copies(*object, at, object->size(), {}, &copies);
        call_.header_to(*object, at);
        staged.objects.emplace_back(at, object->size());
        at += PinnedBuffers::aligned(object->size());
    }
    if (!copies.empty()) {
        std::unique_ptr<CudaEvent> event;
        Status status = call_.queue({&copies}, &event);
        if (status.ok()) {
            status = event->wait(deadline);
        }
        if (event != nullptr && status.code() == Code::kDeadlineExceeded) {
            auto buffer =
                std::make_shared<std::unique_ptr<PinnedBuffers::Buffer>>(std::move(staged.buffer));
            context_.devices().poller()->add(std::move(event),
                                             [buffer](const Status&) { buffer->reset(); });
        }
        if (!status.ok()) {
            return status;
        }
    }
    return staged;
}

}  // namespace kvstore
