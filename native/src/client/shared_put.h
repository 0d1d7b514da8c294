// Writing a list of objects into the memory of one node of this host, as a pipeline.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "client/put_item.h"

namespace kvstore {

// The list is cut into groups. While one group is copied, the blocks of the next ones are being
// reserved and their keys claimed, and the groups before it are being published: all on one
// channel, so that the copying thread waits for the first reservation and the last publication
// only. A single object goes into a spare block where one of its size is at hand: then not even the
// first reservation is waited for. What is small takes one message (short_put.h).
class SharedPut {
  public:
    // `patience_ms`: how long the node may take to answer a reservation, for which it waits for
    // nobody; one that takes longer hangs, and another may take the objects.
    SharedPut(LocalNode& node, const PutOptions& options, Deadline deadline, uint64_t patience_ms,
              CallTally* tally)
        : node_(node),
          options_(options),
          deadline_(deadline),
          patience_ms_(patience_ms),
          tally_(*tally) {}
    // Fills the results; what the node has not decided stays kPutOpen. False when it did not
    // answer.
    bool run(std::span<PutItem*> items);

  private:
    struct Group {
        std::span<PutItem*> items;
        uint64_t reserve_id = 0;  // request ids; 0: not sent yet
        uint64_t commit_id = 0;
        bool reserved = false;
        bool refused = false;               // the spare, for this item
        bool decided = false;               // every row has its result
        std::vector<uint64_t> generations;  // of each item; 0: it got no block
        std::vector<uint64_t> offsets;
        std::vector<PutItem*> copied;  // the rows of the commit
        std::vector<uint64_t> copied_generations;
        std::vector<uint32_t> crcs;
    };

    void cut(std::span<PutItem*> items);
    Status work(std::span<PutItem*> items);
    Status send_reserve(Group& group);
    void use_spare();
    Status put_into_spare(Group& group);
    Status await_reserved(Group& group);
    Status await_decided(const Group& group);
    Status copy(Group& group);
    Status copy_from_device(Group& group);
    uint8_t* block_of(Group& group, size_t row);
    Status commit(Group& group);
    Status receive(Deadline until);
    Status take_reserved(Group& group, const Channel::Reply& answer);
    Status take_committed(Group& group, const Channel::Reply& answer);
    void give_up(std::span<PutItem* const> items, const Status& why);

    LocalNode& node_;
    const PutOptions& options_;
    const Deadline deadline_;
    const uint64_t patience_ms_;
    CallTally& tally_;
    ChannelPool::Lease lease_;
    std::vector<Group> groups_;
    std::optional<SpareBlocks::Block> spare_;  // that the only item is written into
    std::vector<uint8_t> body_;
};

}  // namespace kvstore
