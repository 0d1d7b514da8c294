// What a put reads from GPU memory: straight into reserved blocks, or into host memory for a
// socket.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "client/direct_memory.h"
#include "client/put_item.h"

namespace kvstore {

class DeviceSource {
  public:
    struct Block {
        const Pieces* from = nullptr;
        uint8_t* to = nullptr;  // in this process's writable mapping
        uint64_t offset = 0;    // the same in the segment
        Generation generation = 0;
        uint32_t crc = 0;  // of what was written, after the call
    };
    // Objects in host memory, which lives as long as this.
    struct Staged {
        std::vector<Pieces> objects;
        std::unique_ptr<PinnedBuffers::Buffer> buffer;
    };

    DeviceSource(ClientContext& context, const DeviceCall& call) : context_(context), call_(call) {}

    // Fills reserved blocks and waits until they are. After kDeadlineExceeded the copies go on: the
    // generations are 0 then, and are given back when the copies have stopped.
    Status fill(LocalNode& node, std::span<Block> blocks, Deadline deadline);
    Result<Staged> stage(std::span<PutItem* const> items, Deadline deadline);
    DirectMemory direct() const { return {context_, call_}; }

  private:
    // How the CRC of a block is found: by a page's move, by a sum of its pieces, or on the host.
    struct Summed {
        Block* block = nullptr;
        std::optional<size_t> page;
        std::optional<size_t> object;
    };
    Status copy_direct(LocalNode& node, DeviceCopies* copies,
                       const std::shared_ptr<PageMoves>& moves,
                       std::unique_ptr<DeviceChecksums>* sums, std::span<const Summed> blocks,
                       Deadline deadline);
    Status fill_by_bounce(std::span<Block* const> blocks, Deadline deadline);
    Result<Staged> stage(std::span<const Pieces* const> objects, Deadline deadline);

    ClientContext& context_;
    const DeviceCall& call_;
};

}  // namespace kvstore
