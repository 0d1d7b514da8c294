// Writing a list of objects into the memory of one node of this host, as a pipeline.
#pragma once

#include <span>
#include <vector>

#include "kvstore/put_item.h"

namespace kvstore {

// The list is cut into groups. While one group is copied, the blocks of the next ones are being
// reserved and their keys claimed, and the groups before it are being published: all on one
// session, so that the copying thread waits for the first reservation and the last publication
// only.
class SharedPut {
  public:
    SharedPut(LocalNode& node, const PutOptions& options, Deadline deadline, CallTally* tally)
        : node_(node), options_(options), deadline_(deadline), tally_(*tally) {}
    // Fills the results; what the node has not decided stays kPutOpen. False when it did not
    // answer.
    bool run(std::span<PutItem*> items);

  private:
    struct Group {
        std::span<PutItem*> items;
        uint64_t reserve_id = 0;  // request ids; 0: not sent yet
        uint64_t commit_id = 0;
        bool reserved = false;
        bool ended = false;
        std::vector<uint64_t> generations;  // of each item; 0: it got no block
        std::vector<uint64_t> offsets;
        std::vector<PutItem*> copied;  // the rows of the commit
        std::vector<uint64_t> copied_generations;
    };

    void cut(std::span<PutItem*> items);
    Status work();
    Status send_reserve(Group& group);
    void copy(Group& group, std::vector<uint32_t>* crcs);
    Status copy_and_commit(Group& group);
    Status receive();
    Status take_reserved(Group& group, const Channel::Reply& answer);
    Status take_committed(Group& group, const Channel::Reply& answer);
    void give_up(const Status& why);

    LocalNode& node_;
    const PutOptions& options_;
    const Deadline deadline_;
    CallTally& tally_;
    ChannelPool::Lease lease_;
    std::vector<Group> groups_;
    std::vector<uint8_t> body_;
};

}  // namespace kvstore
