// One epoll thread of the event server: its connections, its listeners, its ticks. Private to it.
#pragma once

#include <functional>
#include <memory>
#include <thread>
#include <unordered_map>
#include <vector>

#include "net/event_connection.h"
#include "net/polling.h"

namespace kvstore {

class EventLoop {
  public:
    // `place` chooses the loop that serves a freshly accepted connection.
    EventLoop(size_t index, std::shared_ptr<ServerState> state, ConnectionHandler& service,
              std::function<EventLoop&()> place);
    ~EventLoop();

    Status start();
    void stop();  // from another thread; joins
    const std::shared_ptr<Mailbox>& mailbox() const { return mailbox_; }

    // From any thread.
    void add_listener(Fd fd);
    void add_accepted(std::shared_ptr<Outbox> outbox, Peer peer);
    std::shared_ptr<Outbox> make_outbox(Stream stream);
    std::shared_ptr<Outbox> add_adopted(Stream stream, Peer peer, std::shared_ptr<void> session);

    // On the loop's thread.
    std::vector<SessionView> views() const;
    void settle(uint64_t id);
    void visit(uint64_t id, const std::function<void(Connection&)>& fn);
    void evict(uint64_t id);

  private:
    void run();
    void handle(uint64_t id, uint32_t events);
    void work();
    void tick();
    bool principals_changed();
    void accept_some(size_t listener);
    void accept_one(Fd fd);
    void run_out_of_descriptors(size_t listener);
    void pause(size_t listener, std::vector<size_t>* until);
    void resume(std::vector<size_t>* paused);
    bool take_eviction();
    void refuse(const Fd& fd, const std::string& address, std::string_view reason);
    void watch_listener(size_t listener, bool on);
    EventConnection* insert(std::shared_ptr<Outbox> outbox, Peer peer);
    void after(EventConnection& connection);
    void close_all();

    const size_t index_;
    const std::shared_ptr<ServerState> state_;
    ConnectionHandler& service_;
    const std::function<EventLoop&()> place_;
    const std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();
    Fd epoll_;
    std::vector<Fd> listeners_;
    std::vector<size_t> paused_listeners_;   // until the next tick
    std::vector<size_t> delayed_listeners_;  // until the next eviction may be caused
    uint64_t next_eviction_us_ = 0;
    std::unordered_map<uint64_t, std::unique_ptr<EventConnection>> connections_;
    std::vector<uint8_t> scratch_;
    uint64_t seen_replacements_ = 0;  // of the principals
    uint64_t next_tick_ms_ = 0;
    Polling polling_;
    uint64_t most_descriptors_ = 0;  // connections get none above it
    bool stopping_ = false;
    std::thread thread_;
};

}  // namespace kvstore
