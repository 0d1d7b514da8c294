// Endpoints and stream sockets (TCP and Unix): listen, connect with a deadline, peers, descriptors.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "net/transfer_cursor.h"

namespace kvstore {

struct Endpoint {
    enum class Kind : uint8_t { kTcp, kUnix };
    Kind kind = Kind::kTcp;
    std::string host;  // tcp
    uint16_t port = 0;
    std::string path;  // unix; "@name" is in the abstract namespace
    // "tcp://host:port", "tcp://[v6]:port", "host:port", "unix:///path", "unix:@abstract".
    static Result<Endpoint> parse(std::string_view text);
    std::string to_string() const;
    bool is_unix() const { return kind == Kind::kUnix; }
    friend bool operator==(const Endpoint&, const Endpoint&) = default;
};

// Who may connect to the path of a Unix socket. Who may then open a session is the server's matter.
struct SocketAccess {
    mode_t mode = 0600;
    int64_t gid = -1;  // group of the path; -1: the process's, or that of a set-group-ID folder
};

// A listening, non-blocking, close-on-exec socket. A stale Unix path (nobody accepts there) is
// replaced, a live one is kUnavailable.
Result<Fd> listen_on(const Endpoint& endpoint, const SocketAccess& access = {}, int backlog = 4096);
// The endpoint with the port the kernel chose.
Result<Endpoint> bound_endpoint(int fd, const Endpoint& asked);
// A connected non-blocking socket (TCP_NODELAY). Name resolution does not outlive the deadline.
// `*error`, if asked for: the errno with which it was refused, 0 for any other failure.
Result<Fd> connect_to(const Endpoint& endpoint, Deadline deadline, int* error = nullptr);

struct PeerCredentials {
    uid_t uid = 0;
    pid_t pid = 0;
};
std::optional<PeerCredentials> peer_credentials(int fd);  // Unix sockets only
// Whether the process that connected had this group, as its own or as a supplementary one.
bool peer_in_group(int fd, gid_t gid);
std::string peer_address(int fd);  // "10.0.0.7:5412", "unix uid 1000 pid 77"
// What a peer cannot change easily: its IPv4 address, its IPv6 network (/64), its Unix user.
std::string peer_network(int fd);

// Blocking (poll) transfers on a non-blocking socket: everything, or an error. They never raise
// SIGPIPE. kClosed when the peer has closed, kDeadlineExceeded, kIoError. `flags`: MSG_MORE.
Status send_all(int fd, TransferCursor* cursor, Deadline deadline, int flags = 0);
Status send_all(int fd, std::span<const iovec> parts, Deadline deadline, int flags = 0);
Status recv_all(int fd, TransferCursor* cursor, Deadline deadline);
// One step of it, of what is here now; 0: nothing.
Result<size_t> recv_some(int fd, TransferCursor* cursor);
Status recv_all(int fd, std::span<uint8_t> into, Deadline deadline);
// recv_all that also collects descriptors (close-on-exec), at most `max_fds`; more are an error.
Status recv_all_with_fds(int fd, std::span<uint8_t> into, std::vector<Fd>* fds, size_t max_fds,
                         Deadline deadline);
// Waits until poll(2) has one of `events`: kDeadlineExceeded, kIoError.
Status wait_ready(int fd, short events, Deadline deadline);
inline constexpr size_t kMaxPassedFds = 8;
inline constexpr size_t kIovecsPerStep = 256;  // of one sendmsg or recvmsg

}  // namespace kvstore
