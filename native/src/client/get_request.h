// One Get at one node: asked, and its reply taken as it arrives.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "base/pieces.h"
#include "base/status.h"
#include "base/types.h"
#include "client/channel_pool.h"
#include "client/ucx_transfer.h"
#include "net/transfer_cursor.h"

namespace kvstore {

// Several of these can be in progress at once, at one node or at many: none waits for another. The
// destinations are the caller's and stay where they are until the request has finished.
class GetRequest {
  public:
    struct Row {
        std::string_view key;
        Version version = 0;
        Pieces data;
    };
    struct Answer {
        Code code = Code::kInternal;
        MissReason reason = MissReason::kNone;
        Version version = 0;
        uint64_t size = 0;
        uint32_t sealed_crc = 0;
        uint32_t data_crc = 0;   // of the bytes that arrived
        bool by_socket = false;  // only so: it was not, or could not be, read by UCX
        bool again = false;      // there was no room for it now
        bool is_hot = false;     // others may have it by now
    };

    // Any failure ends the request; the lease then says whether the connection lives. With a
    // `transfer` the bytes come through it. Where bytes keep arriving, a busy link for example, it
    // is given its time again and again, until `last`.
    Status send(ChannelPool::Lease lease, std::vector<Row> rows, Deadline deadline, Deadline last,
                std::unique_ptr<UcxTransfer> transfer = nullptr);
    // Waits until one of `requests` may go on, at most until the earliest deadline.
    static void wait_for_any(std::span<GetRequest* const> requests);
    // Takes what has arrived, without waiting for more. True: all answers are there.
    // kDeadlineExceeded: they are not, and the deadline has expired.
    Result<bool> advance();

    std::span<const Answer> answers() const { return answers_; }
    const ChannelPool::Lease& lease() const { return lease_; }
    const UcxTransfer* transfer() const { return transfer_.get(); }
    Deadline deadline() const { return deadline_; }

  private:
    template <class Message>
    Status ask(Deadline deadline);
    Status take_reply();
    Status take_places();
    Result<bool> advance_transfer();
    Result<bool> out_of_time();

    ChannelPool::Lease lease_;
    Deadline deadline_ = Deadline::never();
    Deadline last_ = Deadline::never();
    uint64_t time_ms_ = 0;  // that it is given
    uint64_t arrived_ = 0;  // bytes in that time
    std::vector<Row> rows_;
    std::unique_ptr<UcxTransfer> transfer_;
    std::vector<size_t> row_of_;  // of each read of the transfer
    uint64_t asked_ = 0;          // the request's id
    bool replied_ = false;
    std::vector<Answer> answers_;
    std::vector<iovec> parts_;
    std::vector<uint32_t> crcs_;    // of each object that comes
    std::vector<uint32_t> crc_of_;  // of each part
    TransferCursor cursor_;
};

}  // namespace kvstore
