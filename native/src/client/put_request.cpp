// Sending, pinging, waiting.
#include "client/put_request.h"

#include <poll.h>

#include "base/interrupt.h"
#include "client/put_item.h"

namespace kvstore {
namespace {

// As Channel::await_input, while the node reads from this process.
bool await_input(Channel& channel, UcxWorker& worker, Deadline deadline) {
    while (!channel.has_input()) {
        worker.progress_all();
        pollfd entries[2] = {{channel.fd(), POLLIN, 0}, {worker.event_fd(), POLLIN, 0}};
        const int wait_ms = worker.arm() ? wait_slice_ms(deadline.left_ms()) : 0;
        const int ready = poll(entries, 2, wait_ms);
        if (entries[0].revents != 0 || (ready < 0 && errno != EINTR)) {
            return true;  // an error is for the receive to tell
        }
        if (deadline.expired() || check_interrupt()) {
            return false;
        }
    }
    return true;
}

}  // namespace

Status ask(Channel& channel, const PutRequest& request, PutAnswer* answer) {
    const Deadline deadline = request.deadline;
    const auto patience = [&] { return sooner(deadline, request.patience_ms); };
    Status status = channel.send(request.type, request.body, request.payload, patience());
    const uint64_t put_id = channel.last_request();
    bool pinged = false;
    bool answered = false;
    while (status.ok() && !(answered && !pinged)) {
        const bool has_input = request.worker == nullptr
                                   ? channel.await_input(patience())
                                   : await_input(channel, *request.worker, patience());
        if (has_input) {
            const Result<Channel::Reply> reply = channel.receive_any(deadline);
            if (!reply.ok()) {
                return pinged ? channel.kill(reply.status()) : reply.status();
            }
            if (reply->header.request_id != put_id) {
                pinged = false;
                continue;
            }
            StatusReply message;
            status = channel.decode_reply(*reply, &message);
            answer->codes.assign(message.status.begin(), message.status.end());
            answer->spare_generation = message.spare_generation;
            answer->spare_offset = message.spare_offset;
            answer->spare_ms = message.spare_ms;
            answered = status.ok();
        } else if (pinged || deadline.expired()) {
            status = channel.kill(Status(Code::kDeadlineExceeded, "the node does not answer"));
        } else {
            std::vector<uint8_t> ping;
            encode_message(Ping{}, ping);
            status = channel.send(Ping::kType, ping, {}, patience());
            pinged = true;
        }
    }
    return answered ? Status() : status;
}

}  // namespace kvstore
