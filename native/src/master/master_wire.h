// The master's messages between its own structures and their columns.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "master/master_core.h"
#include "net/event_server.h"

namespace kvstore {

void send_claim_reply(ConnectionRef& to, uint64_t request_id, uint16_t flags,
                      std::span<const ClaimAnswer> answers);

// A node link that is a connection.
class WireNodeLink final : public NodeLink {
  public:
    explicit WireNodeLink(std::shared_ptr<ConnectionRef> to) : to_(std::move(to)) {}
    void send_claims(std::span<const ClaimAnswer> answers) override;
    void send_ops(std::span<const Op> ops) override;
    void send_copy(const CopyOrder& order) override;
    void send_ping(uint64_t token) override;
    void send_heartbeat_answer(uint64_t request_id, Code code, std::string_view text) override;
    void close(const std::string& reason) override;
    uint64_t heard_ms() const override { return heard_ms_.load(std::memory_order_relaxed); }
    void note_heard() { heard_ms_.store(boottime_ms(), std::memory_order_relaxed); }

  private:
    const std::shared_ptr<ConnectionRef> to_;
    std::atomic<uint64_t> heard_ms_{boottime_ms()};
};

// Answers a request.
template <class M>
bool reply(Connection& connection, const FrameHeader& header, const M& message) {
    return connection.ref()->send_message(message, header.request_id);
}

// The columns of a LookupReply, reused from one to the next.
class LookupColumns {
  public:
    void fill(std::span<const ObjectPlace> rows, bool with_nodes);
    LookupReply reply(uint64_t nodes_id) const;

  private:
    std::vector<int32_t> status_;
    std::vector<uint64_t> versions_;
    std::vector<uint64_t> sizes_;
    std::vector<uint8_t> reasons_;
    std::vector<uint8_t> counts_;
    std::vector<uint32_t> nodes_;
};

// The columns of a NodesReply; `views` outlives them.
class NodeColumns {
  public:
    void fill(const std::vector<MasterCore::NodeView>& views);
    NodesReply reply(uint64_t nodes_id) const;

  private:
    std::vector<uint32_t> indexes_, weights_, epochs_;
    std::vector<uint64_t> free_, capacity_;
    std::vector<uint8_t> states_, restarting_;
    std::vector<Locality> localities_;
    std::vector<std::string_view> ids_, tcp_, unix_, hosts_, numas_, racks_, rdma_domains_;
};

// Splits a batch into keys that a client may name and rows that are kInvalidArgument.
class KeyFilter {
  public:
    explicit KeyFilter(const KeyList& keys);
    const std::vector<std::string_view>& valid() const { return valid_; }  // views of the frame
    const std::vector<size_t>& rows() const { return rows_; }              // of the valid ones
    // A status for each row of the batch.
    std::vector<int32_t> merge(const std::vector<Code>& codes) const;

  private:
    size_t count_;
    std::vector<std::string_view> valid_;
    std::vector<size_t> rows_;
};

}  // namespace kvstore
