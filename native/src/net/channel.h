// The client's side of a session: one blocking request at a time on one socket. Not thread-safe but
// for shutdown(); callers pool channels. Any error or time-out kills the channel: its stream would
// be out of step.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "net/handshake.h"
#include "net/polling.h"
#include "net/stream.h"
#include "net/transfer_cursor.h"
#include "wire/messages.h"

namespace kvstore {

// The bytes behind a request.
struct Payload {
    std::span<const iovec> parts{};
    // As a TransferCursor takes them: computed while the bytes are sent, and sent behind them, so
    // that no pass of its own is needed.
    std::span<uint32_t> crcs{};
    std::span<const uint32_t> crc_of{};
};

class Channel {
  public:
    struct Reply {
        FrameHeader header;
        std::span<const uint8_t> body;  // valid until the next send or receive
    };

    // Connects and shakes hands; over TLS where the hello has it and the endpoint is TCP's.
    // Refusals carry the server's code and sentence. With a token the server has to prove that it
    // knows it too.
    static Result<std::unique_ptr<Channel>> connect(const Endpoint& endpoint,
                                                    const HelloParams& params, Deadline deadline);
    // The same on a socket that is connected already.
    static Result<std::unique_ptr<Channel>> handshake(Stream stream, const HelloParams& params,
                                                      Deadline deadline);

    const WelcomeData& welcome() const { return welcome_; }
    std::vector<Fd> take_fds() { return std::move(fds_); }  // segment, index, clients; or none
    bool alive() const { return stream_.valid() && !dead_; }
    // For a pooled channel before reuse: false when the peer has closed or sent something
    // meanwhile.
    bool usable();
    // From any thread: a blocked call returns kClosed. The descriptor stays until destruction.
    void shutdown();
    // Ends the channel: its stream is out of step. Returns `status`, or that it was shut down.
    Status kill(Status status);
    // Ends the channel and hands its stream over (EventServer::adopt).
    Stream release();

    // One request, its reply's header and body. An Error reply becomes its status (the channel
    // lives on unless it was fatal). A reply's payload must be taken by recv_payload or
    // discard_payload before the next request. Allocates nothing but to grow its buffers.
    Result<Reply> call(MessageType type, std::span<const uint8_t> body, const Payload& payload,
                       Deadline deadline);
    // The two halves of call(), to ask several peers at once. After a reply with kFlagMore
    // receive() again.
    Status send(MessageType type, std::span<const uint8_t> body, const Payload& payload,
                Deadline deadline);
    Result<Reply> receive(Deadline deadline);
    // For several requests in progress at once: the next reply, to whichever of them. The header's
    // request_id says to which; that of the request sent last is last_request().
    Result<Reply> receive_any(Deadline deadline);
    uint64_t last_request() const { return request_id_; }
    // Whether anything of the next reply is here by the deadline; the channel lives on either way.
    bool await_input(Deadline deadline);

    // The next bytes of the reply's payload, exactly as many as `into` holds.
    Status recv_payload(std::span<const iovec> into, Deadline deadline);
    Status discard_payload(Deadline deadline);
    // The same without waiting, for several channels in progress at once. Whether a whole reply's
    // header and body are here, so that receive() need not wait:
    Result<bool> reply_arrived();
    // … takes a step of payload; 0: nothing is here now. The cursor is one of the whole payload.
    Result<size_t> recv_some(TransferCursor* cursor);
    bool has_input() const { return begin_ != end_ || has_unread(); }  // received, not taken
    // Of that, what poll(2) will not tell because it has left the socket.
    bool has_unread() const { return stream_.has_unread(); }
    Polling& polling() { return polling_; }  // of who waits for several channels, in place of us
    int fd() const { return stream_.fd(); }  // to poll
    uint64_t payload_left() const { return payload_left_; }

    // Encodes, calls, checks the reply's type and decodes it. The views in `reply` stay valid until
    // the next call.
    template <class Request, class ReplyMessage>
    Status exchange(const Request& request, ReplyMessage* reply, Deadline deadline,
                    const Payload& payload = {}) {
        request_.clear();
        encode_message(request, request_);
        Result<Reply> answer = call(Request::kType, request_, payload, deadline);
        if (!answer.ok()) {
            return answer.status();
        }
        return decode_reply(*answer, reply);
    }
    template <class ReplyMessage>
    Status decode_reply(const Reply& answer, ReplyMessage* reply) {
        if (answer.header.message() != ReplyMessage::kType) {
            return kill(Status(Code::kProtocolError, "unexpected reply"));
        }
        const Status decoded = decode_message(answer.body, reply);
        return decoded.ok() ? decoded : kill(decoded);
    }

  private:
    explicit Channel(Stream stream) : stream_(std::move(stream)) {}
    Status shake_hands(const HelloParams& params, Deadline deadline);
    Status answer_challenge(const HelloParams& params, std::span<const uint8_t> hello_body,
                            Digest* proof, Deadline deadline);
    Status send_handshake(MessageType type, std::span<const uint8_t> body, Deadline deadline);
    Status receive_handshake(FrameHeader* header, Deadline deadline);
    Status take_welcome(const HelloParams& params, const Digest* proof);
    void take_buffered(TransferCursor* cursor);
    Status send_checked(const Payload& payload, uint64_t data_bytes, Deadline deadline);
    Status fill(size_t wanted, Deadline deadline);
    int poll_input(int timeout_ms);
    std::span<const uint8_t> take(size_t size);

    Stream stream_;
    bool dead_ = false;
    std::atomic<bool> shut_down_{false};
    uint64_t request_id_ = 0;  // of the last request
    uint64_t payload_left_ = 0;
    Polling polling_;
    WelcomeData welcome_;
    std::vector<Fd> fds_;
    std::vector<uint8_t> request_;  // exchange() encodes here
    std::vector<uint8_t> input_;    // [begin_, end_) is received and not yet consumed
    size_t begin_ = 0;
    size_t end_ = 0;
    std::vector<iovec> parts_;
};

}  // namespace kvstore
