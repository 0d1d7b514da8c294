// The numbered stream of announces and withdraws on one connection to the master. What is queued
// while the window is full travels together. Not thread-safe: the link's mutex guards it.
#pragma once

#include <deque>
#include <vector>

#include "net/event_server.h"
#include "wire/link_types.h"

namespace kvstore {

class AnnounceStream {
  public:
    // Announces on their way that a single put has to wait behind; more than one, so that a round
    // trip is not lost between two of them.
    static constexpr size_t kWindow = 4;

    struct Sent {
        uint64_t seq = 0;
        AnnouncePhase phase = AnnouncePhase::kIncremental;
        NamespaceRef ns;
        std::vector<AnnounceItem> items;
    };

    void reset();  // a new connection: everything is forgotten, numbers start over
    void push(const NamespaceRef& ns, std::vector<AnnounceItem> items);
    void push(const NamespaceRef& ns, std::vector<WithdrawItem> items);
    // Sends the next frame of what is queued. False: nothing to send, or the window is full.
    bool send_next(ConnectionRef& to);
    // Sends all that is queued, whatever is on its way.
    void send_all(ConnectionRef& to);
    // Sends a frame of the full announce, past what is queued. One without items has no namespace.
    void send_phase(ConnectionRef& to, AnnouncePhase phase, NamespaceRef ns,
                    std::vector<AnnounceItem> items);
    size_t queued() const { return queue_.size(); }  // frames
    bool window_full() const { return sent_.size() >= kWindow; }
    // Takes out the announce that `seq` answers; false when the answer does not fit.
    bool take_acked(uint64_t seq, size_t rows, Sent* out);

  private:
    struct Queued {
        NamespaceRef ns;
        std::vector<AnnounceItem> announces;  // or
        std::vector<WithdrawItem> withdraws;
    };
    void send_front(ConnectionRef& to);
    void send_withdraw(ConnectionRef& to, const Queued& queued);

    uint64_t next_seq_ = 1;
    std::deque<Queued> queue_;
    std::deque<Sent> sent_;  // not answered yet, oldest first
};

}  // namespace kvstore
