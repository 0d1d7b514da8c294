// Reading a list of objects into GPU memory: blocks of this host's nodes by DMA; registered memory
// by UCX from other nodes; all else through pinned memory by get_path.h.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "client/device_call.h"
#include "client/device_proof.h"
#include "client/device_transfer.h"
#include "client/get_item.h"
#include "client/local_probe.h"

namespace kvstore {

class DeviceGet {
  public:
    struct Options {
        bool verify_checksum = true;  // else the generation alone proves the bytes
        bool is_queued = false;       // returns once the copies are queued; else when they are done
    };
    DeviceGet(ClientContext& context, const DeviceCall& call, const Options& options)
        : context_(context), call_(call), options_(options) {}

    // Of the items only key and data count; `*transfer` tells what became of each. After an error
    // the destinations are undefined, and may be written until what the stream does has been done.
    Status run(std::span<const GetItem> items, const std::shared_ptr<DeviceTransfer>& transfer,
               Deadline deadline);

  private:
    Status copy_held(std::span<const GetItem> items);
    void hold(std::span<const GetItem> items);
    void add_held(std::span<const GetItem> items, DeviceCopies* copies);
    void verify(std::span<const GetItem> items);
    DeviceTransfer::Judge judge();
    void read_direct(std::span<const GetItem> items);
    Status copy_others(std::span<const GetItem> items);
    Status copy_round(std::span<const GetItem> items, std::span<const size_t> rows);
    Status settle(std::unique_ptr<CudaEvent> event, EventPoller::Done done);

    ClientContext& context_;
    const DeviceCall& call_;
    const Options options_;
    std::shared_ptr<DeviceTransfer> transfer_;
    Deadline deadline_ = Deadline::never();
    LocalProbe probe_;
    std::vector<std::unique_ptr<HeldBlocks>> held_;  // one for each node
    std::shared_ptr<DeviceProof> proof_;
    std::vector<bool> direct_;   // of each item: a copy from its block is queued
    std::vector<bool> decided_;  // of each item: no other way is tried
    std::vector<size_t> others_;
    CallTally tally_;
};

}  // namespace kvstore
