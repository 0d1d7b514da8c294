// Writing a list of objects: into the segment of a node of this host (reserve, copy, commit), or by
// socket to a node chosen by weight and free space.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "kvstore/client_context.h"

namespace kvstore {

struct PutItem {
    std::string_view key;
    const uint8_t* data = nullptr;
    uint64_t size = 0;
    std::string_view parent;        // key of the previous block of the chain, or empty
    Code result = Code::kInternal;  // after the call
};

struct PutOptions {
    uint8_t replicas = 1;
    Pin pin = Pin::kNone;
    uint32_t ttl_ms = 0;  // 0: none
};

class PutPath {
  public:
    PutPath(ClientContext& context, const PutOptions& options)
        : context_(context), options_(options) {}
    // Fills every item's result: kOk and kAlreadyExists mean that readers find the key.
    void run(std::span<PutItem> items, Deadline deadline);

  private:
    // Items of one message: their open rows, as the columns that Reserve and Put share.
    struct Rows {
        std::vector<PutItem*> items;
        std::vector<std::string_view> keys;
        std::vector<std::string_view> parents;  // empty when no row has one
        std::vector<uint64_t> sizes;
        std::vector<uint8_t> pins;
        std::vector<uint8_t> replicas;
        std::vector<uint32_t> ttl_ms;
    };

    void put_batch(std::span<PutItem> batch);
    bool put_shared(std::span<PutItem*> open);
    bool put_into(LocalNode& node, std::span<PutItem*> open);
    Status reserve(ChannelPool::Lease& lease, const Rows& rows, std::vector<uint64_t>* generations,
                   std::vector<uint64_t>* offsets);
    bool commit(LocalNode& node, ChannelPool::Lease& lease, std::span<PutItem*> items,
                std::span<const uint64_t> generations, std::span<const uint32_t> crcs);
    void put_by_socket(std::span<PutItem*> open, const PeerNode* except);
    void send_put(PeerNode& peer, std::span<PutItem*> open);
    Rows rows_of(std::span<PutItem*> open) const;
    void count_results(std::span<const PutItem> items);

    ClientContext& context_;
    const PutOptions options_;
    Deadline deadline_ = Deadline::never();
    CallTally tally_;
    std::vector<LocalPeer> locals_;
};

}  // namespace kvstore
