// The simulated network: TCP streams between processes on hosts, and the descriptors (sockets,
// epoll, eventfd) through which the product sees them.
//
// A stream keeps its order and loses nothing but its tail: a broken connection takes what is on its
// way with it, and its two ends learn of it at different times, or by their own time-outs.
// Different streams overtake each other. A partition between two hosts holds everything back until
// it heals, or breaks the connections that cross it.
#pragma once

#include <netinet/in.h>
#include <sys/epoll.h>

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "runtime.h"

namespace kvstore::sim {

// The last byte of 10.0.0.x.
using Host = uint32_t;

struct NetworkOptions {
    uint64_t delay_min_ns = 20'000;
    uint64_t delay_max_ns = 400'000;
    uint64_t slow_permille = 0;  // of chunks take up to slow_max instead
    uint64_t slow_max_ns = 300 * kMs;
    uint64_t split_permille = 30;        // of chunks arrive in two parts
    uint64_t break_ppm = 0;              // of chunks are the end of their connection
    uint64_t refuse_permille = 0;        // of connection attempts are lost
    uint64_t window_bytes = 256 * 1024;  // on their way or unread; more is EAGAIN
};

struct File;
struct Stream;

// One end of a stream, or a listener, an epoll set, an event counter.
struct File : std::enable_shared_from_this<File> {
    enum class Kind : uint8_t { kSocket, kListener, kStream, kEpoll, kEvent };
    Kind kind = Kind::kSocket;
    int fd = -1;
    Process process = 0;
    Host host = 0;
    uint16_t port = 0;
    bool closed = false;
    std::vector<Fiber*> pollers;  // blocked in poll, epoll_wait or recv on this file
    std::set<int> epolls;         // that watch it

    // kStream
    std::shared_ptr<Stream> stream;
    int side = 0;
    enum class State : uint8_t { kConnecting, kOpen, kBroken } state = State::kOpen;
    int error = 0;
    std::string input;
    size_t input_begin = 0;
    bool input_ended = false;
    bool reading_shut = false;
    bool writing_shut = false;
    // kListener
    std::deque<std::shared_ptr<File>> backlog;
    // kEpoll
    std::map<int, epoll_event> interest;
    // kEvent
    uint64_t counter = 0;
};

struct Stream {
    uint64_t id = 0;
    std::weak_ptr<File> ends[2];
    Host hosts[2] = {0, 0};
    struct Chunk {
        uint64_t at_ns;
        std::string bytes;
        bool end;  // the sender has shut down
    };
    struct Direction {  // towards ends[i]
        std::deque<Chunk> queue;
        size_t queued_bytes = 0;
    };
    Direction to[2];
    bool broken = false;
};

class Network {
  public:
    explicit Network(Runtime& runtime) : runtime_(runtime) { active_ = this; }
    static Network* active() { return active_; }

    NetworkOptions options;

    // Whose process runs where. A dead process's descriptors answer with errors.
    Process start_process(Host host, std::string name);
    // Its sockets end. `silent`: the other ends are not told (a host without power); they find out
    // by their own clocks, or when they have waited for `patience`.
    void kill(Process process, bool silent);
    bool is_dead(Process process) const { return dead_.contains(process); }
    Host host_of(Process process) const { return hosts_.at(process); }

    void partition(Host a, Host b, bool break_streams);
    void heal_all();
    bool is_cut(Host a, Host b) const { return cuts_.contains(std::minmax(a, b)); }
    size_t cuts() const { return cuts_.size(); }
    // Breaks one random stream between the two; false when there is none.
    bool break_one(Host a, Host b);
    uint64_t message_delay_ns();
    // Broken ones of which an end has still to learn.
    size_t half_broken() const;
    // Counts everything that may have disturbed somebody: deaths, breaks, partitions, heals.
    uint64_t disturbances() const { return disturbances_; }
    void note_disturbance() { ++disturbances_; }

    // What the C library's functions do (libc_files.cpp); -errno for errors.
    static constexpr int kFirstFd = 1 << 20;
    static bool is_ours(int fd) { return fd >= kFirstFd; }
    int open_file(File::Kind kind);
    std::shared_ptr<File> file(int fd);
    int close_fd(int fd);
    int bind_to(File& socket, const sockaddr_in& address);
    int listen_at(const std::shared_ptr<File>& socket);
    int connect_to(const std::shared_ptr<File>& socket, const sockaddr_in& address);
    int accept_from(File& listener);
    ssize_t send_bytes(File& socket, const iovec* parts, size_t count);
    ssize_t receive_bytes(File& socket, const iovec* parts, size_t count);
    int shut(File& socket, bool reading, bool writing);
    uint32_t readiness(const File& file) const;
    int wait_events(File& epoll, epoll_event* out, int max, int timeout_ms);
    void notify(File& file);
    void stop_waiting(File& file);

  private:
    struct Listener {
        std::weak_ptr<File> file;
        Process process;
    };
    bool dead_here() const { return is_dead(runtime_.process()); }
    void arrive_connection(const std::shared_ptr<Stream>& stream, uint16_t port);
    void enqueue(const std::shared_ptr<Stream>& stream, int to, std::string bytes, bool end);
    void pump(const std::shared_ptr<Stream>& stream, int to);
    void break_stream(const std::shared_ptr<Stream>& stream, const char* why, bool tell = true);
    void reset_end(const std::shared_ptr<Stream>& stream, int side, uint64_t at_ns);
    std::string name_of(Host host) const;

    static Network* active_;
    Runtime& runtime_;
    std::vector<std::shared_ptr<File>> files_;
    std::map<std::pair<Host, uint16_t>, Listener> listeners_;
    std::map<Process, Host> hosts_;
    std::map<Host, std::string> names_;
    std::set<Process> dead_;
    std::set<std::pair<Host, Host>> cuts_;
    std::map<uint64_t, std::weak_ptr<Stream>> streams_;
    uint64_t next_stream_ = 1;
    uint64_t disturbances_ = 0;
    uint16_t next_port_ = 40'000;
    Process next_process_ = 1;
};

}  // namespace kvstore::sim
