// Writing a list of objects: into the segment of a node of this host (shared_put.h), or by
// socket to a node chosen by weight and free space.
#pragma once

#include <span>
#include <vector>

#include "client/device_source.h"
#include "client/put_item.h"

namespace kvstore {

class PutPath {
  public:
    PutPath(ClientContext& context, const PutOptions& options)
        : context_(context), options_(options) {}
    // Fills every item's result: kOk and kAlreadyExists mean that readers find the key.
    void run(std::span<PutItem> items, Deadline deadline);

  private:
    void put_batch(std::span<PutItem> batch);
    bool put_shared(std::span<PutItem*> open);
    void put_by_socket(std::span<PutItem*> open, const PeerNode* except);
    void send_put(PeerNode& peer, std::span<PutItem*> open);
    Status stage(std::span<PutItem* const> open, DeviceSource::Staged* staged) const;
    uint64_t patience_ms(const PeerNode& peer, std::span<PutItem* const> open) const;
    // A node that did not answer; the items stay open, for another one.
    void pass_over(PeerNode& peer, uint64_t since_ms);
    void count_results(std::span<const PutItem> items);

    ClientContext& context_;
    const PutOptions options_;
    Deadline deadline_ = Deadline::never();
    CallTally tally_;
    std::vector<LocalPeer> locals_;
    uint64_t give_up_ms_ = 0;  // when a batch stops waiting for a node that restarts
};

}  // namespace kvstore
