// Sending, and the two stages of receiving: header and body, then the objects' bytes.
#include "client/get_request.h"

#include <poll.h>

#include <algorithm>

#include "base/fault_point.h"
#include "base/interrupt.h"
#include "client/master_client.h"
#include "wire/messages.h"

namespace kvstore {
namespace {

constexpr int kStepsPerTurn = 4;  // then the others get theirs

}  // namespace

Status GetRequest::send(ChannelPool::Lease lease, std::vector<Row> rows, Deadline deadline) {
    lease_ = std::move(lease);
    rows_ = std::move(rows);
    deadline_ = deadline;
    std::vector<std::string_view> names;
    std::vector<uint64_t> versions;
    std::vector<uint64_t> sizes;
    for (const Row& row : rows_) {
        names.push_back(row.key);
        versions.push_back(row.version);
        sizes.push_back(row.data.size());
    }
    Get request;
    request.keys = names;
    request.versions = versions;
    request.max_sizes = sizes;
    request.timeout_ms = MasterClient::remote_timeout_ms(deadline);
    std::vector<uint8_t> body;
    encode_message(request, body);
    Status sent = lease_->send(Get::kType, body, {}, deadline);
    fault_point("client_get_sent");
    return sent;
}

void GetRequest::wait_for_any(std::span<GetRequest* const> requests) {
    std::vector<pollfd> entries;
    int wait_ms = -1;
    for (const GetRequest* request : requests) {
        // What is here of an incomplete reply has been looked at: it needs more from the socket.
        if (request->replied_ && request->lease_->has_input()) {
            return;
        }
        entries.push_back({request->lease_->fd(), POLLIN, 0});
        const int left_ms = request->deadline_.left_ms();
        if (left_ms >= 0) {
            wait_ms = wait_ms < 0 ? left_ms : std::min(wait_ms, left_ms);
        }
    }
    // Nothing here: the callers look again, and come back.
    if (poll(entries.data(), entries.size(), wait_slice_ms(wait_ms)) <= 0) {
        (void)check_interrupt();
    }
}

Result<bool> GetRequest::advance() {
    if (!replied_) {
        const Result<bool> arrived = lease_->reply_arrived();
        if (!arrived.ok()) {
            return arrived.status();
        }
        if (*arrived) {
            if (Status status = take_reply(); !status.ok()) {
                return status;
            }
            replied_ = true;
        }
    }
    for (int step = 0; replied_ && !cursor_.done() && step < kStepsPerTurn; ++step) {
        const Result<size_t> count = lease_->recv_some(&cursor_);
        if (!count.ok()) {
            return count.status();
        }
        if (*count == 0) {
            break;
        }
    }
    if (replied_ && cursor_.done()) {
        size_t next = 0;
        for (Answer& answer : answers_) {
            if (answer.code == Code::kOk) {
                answer.data_crc = crcs_[next++];
            }
        }
        return true;
    }
    if (deadline_.expired() || is_interrupted()) {
        return lease_->kill({Code::kDeadlineExceeded, "waiting for the reply"});
    }
    return false;
}

Status GetRequest::take_reply() {
    Result<Channel::Reply> received = lease_->receive(deadline_);
    if (!received.ok()) {
        return received.status();
    }
    GetReply reply;
    if (Status status = lease_->decode_reply(*received, &reply); !status.ok()) {
        return status;
    }
    const auto broken = [this](const char* what) {
        lease_->shutdown();
        return Status(Code::kProtocolError, what);
    };
    if (reply.status.size() != rows_.size()) {
        return broken("the reply has another number of rows");
    }
    uint64_t total = 0;
    for (size_t i = 0; i < rows_.size(); ++i) {
        const Answer answer{.code = static_cast<Code>(reply.status[i]),
                            .reason = static_cast<MissReason>(reply.reasons[i]),
                            .version = reply.versions[i],
                            .size = reply.sizes[i],
                            .sealed_crc = reply.crcs[i]};
        answers_.push_back(answer);
        if (answer.code != Code::kOk) {
            continue;
        }
        if (answer.size > rows_[i].data.size()) {
            return broken("the reply is longer than asked for");
        }
        total += answer.size;
        uint64_t left = answer.size;
        for (const iovec& piece : rows_[i].data.list()) {
            parts_.push_back({piece.iov_base, std::min<uint64_t>(piece.iov_len, left)});
            left -= parts_.back().iov_len;
        }
        crc_of_.resize(parts_.size(), static_cast<uint32_t>(crcs_.size()));
        crcs_.push_back(0);
    }
    if (total != lease_->payload_left()) {
        return broken("sizes and payload disagree");
    }
    cursor_ = TransferCursor(parts_, crcs_, crc_of_);
    return {};
}

}  // namespace kvstore
