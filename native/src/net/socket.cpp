// Endpoints, and blocking transfers with a deadline on non-blocking sockets.
#include "net/socket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#include "base/interrupt.h"
#include "base/limits.h"
#include "base/mutex.h"

namespace kvstore {
namespace {

struct Address {
    sockaddr_storage storage{};
    socklen_t length = 0;
    const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

Result<Address> unix_address(const std::string& path) {
    Address address;
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    if (path.size() >= sizeof name.sun_path) {
        return {Code::kInvalidArgument, "Unix socket path too long: " + path};
    }
    std::copy(path.begin(), path.end(), name.sun_path);
    size_t length = offsetof(sockaddr_un, sun_path) + path.size() + 1;
    if (path[0] == '@') {
        name.sun_path[0] = '\0';
        --length;
    }
    std::memcpy(&address.storage, &name, length);
    address.length = static_cast<socklen_t>(length);
    return address;
}

Result<std::vector<Address>> resolve(const std::string& host, uint16_t port, int flags) {
    addrinfo hints{};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = flags | AI_NUMERICSERV;
    addrinfo* list = nullptr;
    const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
    if (error != 0) {
        return {Code::kUnavailable, "cannot resolve " + host + ": " + gai_strerror(error)};
    }
    std::vector<Address> addresses;
    for (const addrinfo* item = list; item != nullptr; item = item->ai_next) {
        Address address;
        std::memcpy(&address.storage, item->ai_addr, item->ai_addrlen);
        address.length = item->ai_addrlen;
        addresses.push_back(address);
    }
    freeaddrinfo(list);
    return addresses;
}

// getaddrinfo has no deadline of its own, so names are resolved by a thread that may be left
// behind; it only touches what it shares with its caller.
Result<std::vector<Address>> resolve_until(const std::string& host, uint16_t port,
                                           Deadline deadline) {
    if (Result<std::vector<Address>> numeric = resolve(host, port, AI_NUMERICHOST); numeric.ok()) {
        return numeric;
    }
    struct Shared {
        Mutex mutex;
        CondVar done;
        std::optional<Result<std::vector<Address>>> result KV_GUARDED_BY(mutex);
    };
    auto shared = std::make_shared<Shared>();
    std::thread([shared, host, port] {
        Result<std::vector<Address>> result = resolve(host, port, 0);
        const MutexLock lock(shared->mutex);
        shared->result.emplace(std::move(result));
        shared->done.notify_one();
    }).detach();
    const auto is_done = [&]() KV_REQUIRES(shared->mutex) { return shared->result.has_value(); };
    MutexLock lock(shared->mutex);
    while (!is_done()) {
        const int left_ms = std::min(deadline.left_ms(), static_cast<int>(limits::kMaxTimeoutMs));
        const auto patience = std::chrono::milliseconds(wait_slice_ms(left_ms));
        if (!shared->done.wait_for(shared->mutex, patience, is_done) &&
            (deadline.expired() || check_interrupt())) {
            return {Code::kDeadlineExceeded, "resolving " + host};
        }
    }
    return *shared->result;
}

void set_no_delay(int fd) {
    const int on = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

Status bind_status(const std::string& name) {
    const bool taken = errno == EADDRINUSE;
    Status status = errno_status("bind", name);
    return taken ? Status(Code::kUnavailable, status.message()) : status;
}

// True when somebody accepts at this address.
bool is_live(const Address& address) {
    const Fd probe(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    return connect(probe.get(), address.get(), address.length) == 0 || errno != ECONNREFUSED;
}

// Before listen(): until then nobody can connect.
Status grant_access(const std::string& path, const SocketAccess& access) {
    if (access.gid >= 0 &&
        lchown(path.c_str(), static_cast<uid_t>(-1), static_cast<gid_t>(access.gid)) != 0) {
        Status status = errno_status("chown", path);
        return {status.code(), "socket_group: " + status.message() +
                                   "; the node's user must be a member of that group"};
    }
    return chmod(path.c_str(), access.mode) == 0 ? Status() : errno_status("chmod", path);
}

Result<Fd> listen_unix(const std::string& path, const SocketAccess& access, int backlog) {
    Result<Address> address = unix_address(path);
    if (!address.ok()) {
        return address.status();
    }
    Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd.valid()) {
        return errno_status("socket", path);
    }
    int bound = bind(fd.get(), address->get(), address->length);
    struct stat info{};
    if (bound != 0 && errno == EADDRINUSE && path[0] != '@' && lstat(path.c_str(), &info) == 0 &&
        S_ISSOCK(info.st_mode) && !is_live(*address)) {
        (void)unlink(path.c_str());
        bound = bind(fd.get(), address->get(), address->length);
    }
    if (bound != 0) {
        return bind_status(path);
    }
    if (path[0] != '@') {
        if (Status status = grant_access(path, access); !status.ok()) {
            (void)unlink(path.c_str());
            return status;
        }
    }
    if (listen(fd.get(), backlog) != 0) {
        return errno_status("listen", path);
    }
    return fd;
}

Result<Fd> listen_tcp(const Endpoint& endpoint, int backlog) {
    Result<std::vector<Address>> addresses =
        resolve_until(endpoint.host, endpoint.port, Deadline::after_ms(limits::kHandshakeMs));
    if (!addresses.ok()) {
        return addresses.status();
    }
    const Address& address = addresses->front();
    Fd fd(socket(address.get()->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    const int on = 1;
    if (!fd.valid() || setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0) {
        return errno_status("socket", endpoint.to_string());
    }
    if (bind(fd.get(), address.get(), address.length) != 0 || listen(fd.get(), backlog) != 0) {
        return bind_status(endpoint.to_string());
    }
    return fd;
}

Result<Fd> connect_address(const Address& address, const std::string& name, Deadline deadline,
                           int* refused = nullptr) {
    Fd fd(socket(address.get()->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd.valid() && (errno == EMFILE || errno == ENFILE)) {
        return {Code::kOverloaded, "no descriptor is free to connect to " + name +
                                       ": raise this process's limit (ulimit -n)"};
    }
    if (!fd.valid()) {
        return errno_status("socket", name);
    }
    int error = connect(fd.get(), address.get(), address.length) == 0 ? 0 : errno;
    while (error == EAGAIN && !deadline.expired() &&
           !check_interrupt()) {  // a Unix listener whose backlog is full
        (void)poll(nullptr, 0, 1);
        error = connect(fd.get(), address.get(), address.length) == 0 ? 0 : errno;
    }
    if (error == EINPROGRESS) {
        if (Status status = wait_ready(fd.get(), POLLOUT, deadline); !status.ok()) {
            return Status(status.code(), "connecting to " + name);
        }
        socklen_t size = sizeof error;
        (void)getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    }
    if (refused != nullptr) {
        *refused = error;
    }
    if (error != 0) {
        return {error == EAGAIN ? Code::kDeadlineExceeded : Code::kUnavailable,
                "connect(" + name + "): " + std::generic_category().message(error)};
    }
    if (address.get()->sa_family != AF_UNIX) {
        set_no_delay(fd.get());
    }
    return fd;
}

// One recvmsg; 0 bytes with Ok means "not yet".
Result<size_t> receive_some(int fd, msghdr* message) {
    const ssize_t count = recvmsg(fd, message, MSG_CMSG_CLOEXEC);
    if (count > 0) {
        return static_cast<size_t>(count);
    }
    if (count == 0 || errno == ECONNRESET || errno == EPIPE) {
        return {Code::kClosed, "the peer has closed the connection"};
    }
    if (errno == EAGAIN || errno == EINTR) {
        return size_t{0};
    }
    return errno_status("recvmsg", "socket");
}

// One step of a transfer as a message; `extents` backs it.
msghdr step_message(const TransferCursor& cursor, std::span<iovec> extents) {
    msghdr message{};
    message.msg_iov = extents.data();
    message.msg_iovlen = cursor.gather(extents);
    return message;
}

Status collect_fds(msghdr* message, std::vector<Fd>* fds, size_t max_fds) {
    for (cmsghdr* item = CMSG_FIRSTHDR(message); item != nullptr;
         item = CMSG_NXTHDR(message, item)) {
        if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        const size_t count = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; ++i) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(item) + i * sizeof fd, sizeof fd);
            fds->emplace_back(fd);
        }
    }
    if (fds->size() > max_fds || (message->msg_flags & MSG_CTRUNC) != 0) {
        fds->clear();
        return {Code::kProtocolError, "too many descriptors"};
    }
    return {};
}

}  // namespace

Result<Endpoint> Endpoint::parse(std::string_view text) {
    const Status bad(Code::kInvalidArgument,
                     "not an endpoint (tcp://host:port, unix:///path, unix:@name): " +
                         std::string(text.substr(0, limits::kMaxEndpointBytes)));
    if (text.size() > limits::kMaxEndpointBytes || text.find('\0') != std::string_view::npos) {
        return bad;
    }
    Endpoint endpoint;
    if (text.starts_with("unix:")) {
        text.remove_prefix(5);
        if (text.starts_with("//")) {
            text.remove_prefix(2);
        }
        if (text.size() < 2 || (text[0] != '/' && text[0] != '@')) {
            return bad;
        }
        endpoint.kind = Kind::kUnix;
        endpoint.path = text;
        return endpoint;
    }
    if (text.starts_with("tcp://")) {
        text.remove_prefix(6);
    }
    const size_t colon = text.rfind(':');
    if (colon == std::string_view::npos || colon == 0) {
        return bad;
    }
    std::string_view host = text.substr(0, colon);
    const std::string_view port = text.substr(colon + 1);
    if (host.starts_with('[') && host.ends_with(']')) {
        host = host.substr(1, host.size() - 2);
    } else if (in6_addr address{}; host.find(':') != std::string_view::npos &&
                                   inet_pton(AF_INET6, std::string(host).c_str(), &address) != 1) {
        return bad;  // without brackets, what stands before the port must be an IPv6 address
    }
    const auto [end, error] =
        std::from_chars(port.data(), port.data() + port.size(), endpoint.port);
    if (host.empty() || host.find('/') != std::string_view::npos || error != std::errc() ||
        end != port.data() + port.size()) {
        return bad;
    }
    endpoint.host = host;
    return endpoint;
}

std::string Endpoint::to_string() const {
    if (is_unix()) {
        return (path.starts_with('@') ? "unix:" : "unix://") + path;
    }
    const bool v6 = host.find(':') != std::string::npos;
    return "tcp://" + (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

Result<Fd> listen_on(const Endpoint& endpoint, const SocketAccess& access, int backlog) {
    return endpoint.is_unix() ? listen_unix(endpoint.path, access, backlog)
                              : listen_tcp(endpoint, backlog);
}

Result<Endpoint> bound_endpoint(int fd, const Endpoint& asked) {
    if (asked.is_unix()) {
        return asked;
    }
    Address address;
    address.length = sizeof address.storage;
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&address.storage), &address.length) != 0) {
        return errno_status("getsockname", asked.to_string());
    }
    Endpoint bound = asked;
    // The port stands at the same place in both families.
    bound.port = ntohs(reinterpret_cast<const sockaddr_in*>(address.get())->sin_port);
    return bound;
}

Result<Fd> connect_to(const Endpoint& endpoint, Deadline deadline, int* error) {
    if (error != nullptr) {
        *error = 0;
    }
    const std::string name = endpoint.to_string();
    if (endpoint.is_unix()) {
        Result<Address> address = unix_address(endpoint.path);
        return address.ok() ? connect_address(*address, name, deadline, error) : address.status();
    }
    Result<std::vector<Address>> addresses = resolve_until(endpoint.host, endpoint.port, deadline);
    if (!addresses.ok()) {
        return addresses.status();
    }
    Status last(Code::kUnavailable, name + " has no address");
    for (const Address& address : *addresses) {
        Result<Fd> fd = connect_address(address, name, deadline, error);
        if (fd.ok()) {
            return fd;
        }
        last = fd.status();
    }
    return last;
}

std::optional<PeerCredentials> peer_credentials(int fd) {
    ucred credentials{};
    socklen_t size = sizeof credentials;
    int domain = 0;
    socklen_t domain_size = sizeof domain;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &domain_size) != 0 || domain != AF_UNIX ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
        return std::nullopt;
    }
    return PeerCredentials{credentials.uid, credentials.pid};
}

bool peer_in_group(int fd, gid_t gid) {
    ucred credentials{};
    socklen_t size = sizeof credentials;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
        return false;
    }
    if (credentials.gid == gid) {
        return true;
    }
    // As many as the kernel says: the first call fails and tells.
    std::vector<gid_t> groups;
    socklen_t bytes = 0;
    while (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &bytes) != 0) {
        if (errno != ERANGE || bytes <= groups.size() * sizeof(gid_t)) {
            return false;
        }
        groups.resize(bytes / sizeof(gid_t));
    }
    groups.resize(bytes / sizeof(gid_t));
    return std::ranges::find(groups, gid) != groups.end();
}

std::string peer_address(int fd) {
    if (const std::optional<PeerCredentials> peer = peer_credentials(fd)) {
        return "unix uid " + std::to_string(peer->uid) + " pid " + std::to_string(peer->pid);
    }
    Address address;
    address.length = sizeof address.storage;
    char host[NI_MAXHOST];
    char port[NI_MAXSERV];
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&address.storage), &address.length) != 0 ||
        getnameinfo(address.get(), address.length, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        return "unknown";
    }
    return std::string(host) + ":" + port;
}

std::string peer_network(int fd) {
    if (const std::optional<PeerCredentials> peer = peer_credentials(fd)) {
        return "unix uid " + std::to_string(peer->uid);
    }
    Address address;
    address.length = sizeof address.storage;
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&address.storage), &address.length) != 0) {
        return "unknown";
    }
    const auto bytes = [](const void* from, size_t size) {
        return std::string(static_cast<const char*>(from), size);
    };
    if (address.storage.ss_family == AF_INET) {
        return bytes(&reinterpret_cast<const sockaddr_in*>(&address.storage)->sin_addr, 4);
    }
    const in6_addr& host = reinterpret_cast<const sockaddr_in6*>(&address.storage)->sin6_addr;
    return IN6_IS_ADDR_V4MAPPED(&host) ? bytes(&host.s6_addr[12], 4) : bytes(&host, 8);
}

Status wait_ready(int fd, short events, Deadline deadline) {
    for (;;) {
        pollfd entry{fd, events, 0};
        const int ready = poll(&entry, 1, wait_slice_ms(deadline.left_ms()));
        if (ready > 0) {
            return {};
        }
        if (ready < 0 && errno != EINTR) {
            return errno_status("poll", "socket");
        }
        if ((ready == 0 && deadline.expired()) || check_interrupt()) {
            return Code::kDeadlineExceeded;
        }
    }
}

Status send_all(int fd, TransferCursor* cursor, Deadline deadline, int flags) {
    std::array<iovec, kIovecsPerStep> extents;
    while (!cursor->done()) {
        const msghdr message = step_message(*cursor, extents);
        const ssize_t count = sendmsg(fd, &message, MSG_NOSIGNAL | flags);
        if (count >= 0) {
            cursor->passed(static_cast<size_t>(count));
            if (!cursor->done() && deadline.expired()) {
                return {Code::kDeadlineExceeded, "sending"};
            }
        } else if (errno == EAGAIN) {
            if (Status status = wait_ready(fd, POLLOUT, deadline); !status.ok()) {
                return Status(status.code(), "sending");
            }
        } else if (errno == EPIPE || errno == ECONNRESET) {
            return {Code::kClosed, "the peer has closed the connection"};
        } else if (errno != EINTR) {
            return errno_status("sendmsg", "socket");
        }
    }
    return {};
}

Status send_all(int fd, std::span<const iovec> parts, Deadline deadline, int flags) {
    TransferCursor cursor(parts);
    return send_all(fd, &cursor, deadline, flags);
}

Result<size_t> recv_some(int fd, TransferCursor* cursor) {
    std::array<iovec, kIovecsPerStep> extents;
    msghdr message = step_message(*cursor, extents);
    Result<size_t> count = receive_some(fd, &message);
    if (count.ok()) {
        cursor->passed(*count);
    }
    return count;
}

Status recv_all(int fd, TransferCursor* cursor, Deadline deadline) {
    while (!cursor->done()) {
        const Result<size_t> count = recv_some(fd, cursor);
        if (!count.ok()) {
            return count.status();
        }
        if (*count == 0) {
            if (Status status = wait_ready(fd, POLLIN, deadline); !status.ok()) {
                return Status(status.code(), "receiving");
            }
        } else if (!cursor->done() && deadline.expired()) {
            return {Code::kDeadlineExceeded, "receiving"};
        }
    }
    return {};
}

Status recv_all(int fd, std::span<uint8_t> into, Deadline deadline) {
    const iovec part{into.data(), into.size()};
    TransferCursor cursor({&part, 1});
    return recv_all(fd, &cursor, deadline);
}

Status recv_all_with_fds(int fd, std::span<uint8_t> into, std::vector<Fd>* fds, size_t max_fds,
                         Deadline deadline) {
    while (!into.empty()) {
        iovec part{into.data(), into.size()};
        alignas(cmsghdr) char control[CMSG_SPACE(kMaxPassedFds * sizeof(int))];
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        Result<size_t> count = receive_some(fd, &message);
        if (!count.ok()) {
            return count.status();
        }
        Status status =
            *count == 0 ? wait_ready(fd, POLLIN, deadline) : collect_fds(&message, fds, max_fds);
        if (!status.ok()) {
            return status;
        }
        into = into.subspan(*count);
    }
    return {};
}

}  // namespace kvstore
