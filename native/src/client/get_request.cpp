// Sending, and the two stages of receiving: header and body, then the objects' bytes.
#include "client/get_request.h"

#include <poll.h>

#include <algorithm>
#include <array>

#include "base/fault_point.h"
#include "base/interrupt.h"
#include "client/master_client.h"
#include "wire/messages.h"

namespace kvstore {
namespace {

// In the time of a request, as a sign that its bytes are on their way.
constexpr uint64_t kLeastArrived = 64u << 10;
constexpr int kStepsPerTurn = 4;  // then the others get theirs
constexpr int kUcxWaitMs = 50;    // then a transfer looks at its deadline

}  // namespace

Status GetRequest::send(ChannelPool::Lease lease, std::vector<Row> rows, Deadline deadline,
                        Deadline last, std::unique_ptr<UcxTransfer> transfer) {
    lease_ = std::move(lease);
    rows_ = std::move(rows);
    transfer_ = std::move(transfer);
    deadline_ = deadline;
    last_ = last;
    time_ms_ = static_cast<uint64_t>(std::max(deadline.left_ms(), 0));
    return transfer_ == nullptr ? ask<Get>(deadline) : ask<UcxGet>(deadline);
}

template <class Message>
Status GetRequest::ask(Deadline deadline) {
    std::vector<std::string_view> names;
    std::vector<uint64_t> versions;
    std::vector<uint64_t> sizes;
    for (const Row& row : rows_) {
        names.push_back(row.key);
        versions.push_back(row.version);
        sizes.push_back(row.data.size());
    }
    Message request;
    request.keys = names;
    request.versions = versions;
    request.max_sizes = sizes;
    request.timeout_ms = MasterClient::remote_timeout_ms(deadline);
    if constexpr (requires { request.trace; }) {
        request.trace = current_trace();
    }
    std::vector<uint8_t> body;
    encode_message(request, body);
    Status sent = lease_->send(Message::kType, body, {}, deadline);
    asked_ = lease_->last_request();
    fault_point("client_get_sent");
    return sent;
}

void GetRequest::wait_for_any(std::span<GetRequest* const> requests) {
    std::vector<pollfd> entries;
    int wait_ms = -1;
    UcxLane* lane = nullptr;  // they share one
    for (const GetRequest* request : requests) {
        // What is here of an incomplete reply has been looked at: it needs more from the socket.
        if ((request->replied_ && request->lease_->has_input()) || request->lease_->has_unread()) {
            return;
        }
        if (request->transfer_ != nullptr) {
            lane = &request->transfer_->lane();
        }
        entries.push_back({request->lease_->fd(), POLLIN, 0});
        const int left_ms = request->deadline_.left_ms();
        if (left_ms >= 0) {
            wait_ms = wait_ms < 0 ? left_ms : std::min(wait_ms, left_ms);
        }
    }
    if (lane != nullptr) {
        if (lane->worker().progress() || !lane->worker().arm()) {
            return;
        }
        wait_ms = wait_ms < 0 ? kUcxWaitMs : std::min(wait_ms, kUcxWaitMs);
        entries.push_back({lane->worker().event_fd(), POLLIN, 0});
    }
    // Nothing here: the callers look again, and come back.
    const auto ask = [&](int ms) { return poll(entries.data(), entries.size(), ms); };
    if (requests.front()->lease_->polling().wait(wait_slice_ms(wait_ms), ask) <= 0) {
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
            if (Status status = transfer_ == nullptr ? take_reply() : take_places(); !status.ok()) {
                return status;
            }
            replied_ = true;
        }
    }
    if (transfer_ != nullptr) {
        return replied_ ? advance_transfer() : out_of_time();
    }
    for (int step = 0; replied_ && !cursor_.done() && step < kStepsPerTurn; ++step) {
        const Result<size_t> count = lease_->recv_some(&cursor_);
        if (!count.ok()) {
            return count.status();
        }
        if (*count == 0) {
            break;
        }
        arrived_ += *count;
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
    return out_of_time();
}

// False: there is time left.
Result<bool> GetRequest::out_of_time() {
    if (deadline_.expired() && arrived_ >= kLeastArrived) {
        arrived_ = 0;
        const auto left_ms = static_cast<uint64_t>(std::max(last_.left_ms(), 0));
        deadline_ = Deadline::after_ms(std::min(time_ms_, left_ms));
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
                            .sealed_crc = reply.crcs[i],
                            .is_hot = reply.hot[i] != 0};
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

// Where the bytes are; begins to read them.
Status GetRequest::take_places() {
    Result<Channel::Reply> received = lease_->receive(deadline_);
    if (!received.ok()) {
        return received.status();
    }
    UcxGetReply reply;
    if (Status status = lease_->decode_reply(*received, &reply); !status.ok()) {
        return status;
    }
    if (reply.status.size() != rows_.size()) {
        lease_->shutdown();
        return {Code::kProtocolError, "the reply has another number of rows"};
    }
    const bool is_known = reply.life == transfer_->region().life;
    uint64_t bytes = 0;
    for (size_t i = 0; i < rows_.size(); ++i) {
        bytes += reply.offsets[i] == kNotInSegment ? 0 : reply.sizes[i];
    }
    const Deadline until = Deadline::after_ms(ucx_patience_ms(deadline_, bytes));
    for (size_t i = 0; i < rows_.size(); ++i) {
        Answer answer{.code = static_cast<Code>(reply.status[i]),
                      .reason = static_cast<MissReason>(reply.reasons[i]),
                      .version = reply.versions[i],
                      .size = reply.sizes[i],
                      .sealed_crc = reply.crcs[i],
                      .is_hot = reply.hot[i] != 0};
        answer.by_socket =
            answer.code == Code::kOk &&
            (!is_known || reply.offsets[i] == kNotInSegment || answer.size > rows_[i].data.size() ||
             !transfer_->region().covers(reply.offsets[i], answer.size));
        if (answer.code == Code::kOk && !answer.by_socket) {
            row_of_.push_back(i);
            transfer_->read(rows_[i].data, reply.offsets[i], answer.size, until);
        }
        answers_.push_back(answer);
    }
    return {};
}

Result<bool> GetRequest::advance_transfer() {
    if (is_interrupted()) {
        transfer_->cancel();
    }
    if (!transfer_->advance()) {
        return false;
    }
    for (size_t i = 0; i < row_of_.size(); ++i) {
        Answer& answer = answers_[row_of_[i]];
        const UcxTransfer::Row state = transfer_->row(i);
        answer.data_crc = transfer_->data_crc(i);
        answer.again = state == UcxTransfer::Row::kNoRoom;
        answer.by_socket = state == UcxTransfer::Row::kFailed;
    }
    const std::array<uint64_t, 1> requests = {asked_};
    UcxDone done;
    done.requests = std::span<const uint64_t>(requests);
    std::vector<uint8_t> body;
    encode_message(done, body);
    // One that cannot be sent is over with its connection.
    (void)lease_->send(UcxDone::kType, body, {}, deadline_);
    return true;
}

}  // namespace kvstore
