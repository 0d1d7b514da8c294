// The C library's functions on sockets, epoll and eventfd, its clocks and its random numbers, for
// simulated descriptors and simulated time; real descriptors go to the kernel as ever.
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "network.h"

using kvstore::sim::File;
using kvstore::sim::kMs;
using kvstore::sim::kNever;
using kvstore::sim::kSecond;
using kvstore::sim::Network;
using kvstore::sim::Runtime;

namespace {

// Wall-clock time of the simulated machine room when its clock stands at 0.
constexpr uint64_t kWallBaseNs = 1'700'000'000 * kSecond;

template <class T>
T answer(T result) {
    if (result < 0) {
        errno = static_cast<int>(-result);
        return -1;
    }
    return result;
}

bool simulated() { return Runtime::active() != nullptr && Network::active() != nullptr; }

bool in_fiber() { return simulated() && Runtime::active()->current() != nullptr; }

std::shared_ptr<File> ours(int fd) {
    return simulated() && Network::is_ours(fd) ? Network::active()->file(fd) : nullptr;
}

sockaddr_in address_of(kvstore::sim::Host host, uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(0x0A000000u | host);
    return address;
}

int put_address(const sockaddr_in& from, sockaddr* to, socklen_t* length) {
    std::memcpy(to, &from, std::min<size_t>(*length, sizeof from));
    *length = sizeof from;
    return 0;
}

int poll_ours(pollfd* entries, nfds_t count, int timeout_ms) {
    Runtime& runtime = *Runtime::active();
    Network& network = *Network::active();
    runtime.count_call();
    const uint64_t until_ns =
        timeout_ms < 0 ? kNever : runtime.now_ns() + static_cast<uint64_t>(timeout_ms) * kMs;
    for (;;) {
        int ready = 0;
        for (nfds_t i = 0; i < count; ++i) {
            const std::shared_ptr<File> file = network.file(entries[i].fd);
            const uint32_t wanted = static_cast<uint32_t>(entries[i].events) | POLLERR | POLLHUP;
            const uint32_t here = file == nullptr || network.is_dead(runtime.process())
                                      ? static_cast<uint32_t>(POLLERR | POLLHUP | POLLIN | POLLOUT)
                                      : network.readiness(*file);
            entries[i].revents = static_cast<short>(here & wanted);
            ready += entries[i].revents != 0 ? 1 : 0;
        }
        if (ready != 0 || runtime.now_ns() >= until_ns) {
            return ready;
        }
        for (nfds_t i = 0; i < count; ++i) {
            network.file(entries[i].fd)->pollers.push_back(runtime.current());
        }
        runtime.block(nullptr, until_ns);
        for (nfds_t i = 0; i < count; ++i) {
            if (const std::shared_ptr<File> file = network.file(entries[i].fd)) {
                network.stop_waiting(*file);
            }
        }
    }
}

}  // namespace

extern "C" {

// ---- sockets ---------------------------------------------------------------------------------

int socket(int domain, int type, int protocol) noexcept {
    if (!in_fiber()) {
        return static_cast<int>(syscall(SYS_socket, domain, type, protocol));
    }
    return domain == AF_INET ? Network::active()->open_file(File::Kind::kSocket)
                             : answer(-EAFNOSUPPORT);
}
int bind(int fd, const sockaddr* address, socklen_t length) noexcept {
    const std::shared_ptr<File> file = ours(fd);
    if (file == nullptr) {
        return static_cast<int>(syscall(SYS_bind, fd, address, length));
    }
    return answer(
        Network::active()->bind_to(*file, *reinterpret_cast<const sockaddr_in*>(address)));
}
int listen(int fd, int backlog) noexcept {
    const std::shared_ptr<File> file = ours(fd);
    return file == nullptr ? static_cast<int>(syscall(SYS_listen, fd, backlog))
                           : answer(Network::active()->listen_at(file));
}
int connect(int fd, const sockaddr* address, socklen_t length) {
    const std::shared_ptr<File> file = ours(fd);
    if (file == nullptr) {
        return static_cast<int>(syscall(SYS_connect, fd, address, length));
    }
    return answer(
        Network::active()->connect_to(file, *reinterpret_cast<const sockaddr_in*>(address)));
}
int accept4(int fd, sockaddr* address, socklen_t* length, int flags) {
    const std::shared_ptr<File> file = ours(fd);
    return file == nullptr ? static_cast<int>(syscall(SYS_accept4, fd, address, length, flags))
                           : answer(Network::active()->accept_from(*file));
}
int shutdown(int fd, int how) noexcept {
    const std::shared_ptr<File> file = ours(fd);
    return file == nullptr ? static_cast<int>(syscall(SYS_shutdown, fd, how))
                           : answer(Network::active()->shut(*file, how != SHUT_WR, how != SHUT_RD));
}
int getsockname(int fd, sockaddr* address, socklen_t* length) noexcept {
    const std::shared_ptr<File> file = ours(fd);
    return file == nullptr ? static_cast<int>(syscall(SYS_getsockname, fd, address, length))
                           : put_address(address_of(file->host, file->port), address, length);
}
int getpeername(int fd, sockaddr* address, socklen_t* length) noexcept {
    const std::shared_ptr<File> file = ours(fd);
    if (file == nullptr) {
        return static_cast<int>(syscall(SYS_getpeername, fd, address, length));
    }
    if (file->stream == nullptr) {
        return answer(-ENOTCONN);
    }
    return put_address(address_of(file->stream->hosts[1 - file->side], 1), address, length);
}
int getsockopt(int fd, int level, int name, void* value, socklen_t* length) noexcept {
    const std::shared_ptr<File> file = ours(fd);
    if (file == nullptr) {
        return static_cast<int>(syscall(SYS_getsockopt, fd, level, name, value, length));
    }
    if (level == SOL_SOCKET && (name == SO_DOMAIN || name == SO_ERROR)) {
        const int number = name == SO_DOMAIN ? AF_INET : file->error;
        std::memcpy(value, &number, sizeof number);
        return 0;
    }
    return answer(-ENOPROTOOPT);
}
int setsockopt(int fd, int level, int name, const void* value, socklen_t length) noexcept {
    return ours(fd) != nullptr
               ? 0
               : static_cast<int>(syscall(SYS_setsockopt, fd, level, name, value, length));
}

ssize_t sendmsg(int fd, const msghdr* message, int flags) {
    const std::shared_ptr<File> file = ours(fd);
    return file == nullptr ? syscall(SYS_sendmsg, fd, message, flags)
                           : answer(Network::active()->send_bytes(*file, message->msg_iov,
                                                                  message->msg_iovlen));
}
ssize_t send(int fd, const void* bytes, size_t size, int flags) {
    const std::shared_ptr<File> file = ours(fd);
    const iovec part{const_cast<void*>(bytes), size};
    return file == nullptr ? syscall(SYS_sendto, fd, bytes, size, flags, nullptr, 0)
                           : answer(Network::active()->send_bytes(*file, &part, 1));
}
ssize_t recvmsg(int fd, msghdr* message, int flags) {
    const std::shared_ptr<File> file = ours(fd);
    if (file == nullptr) {
        return syscall(SYS_recvmsg, fd, message, flags);
    }
    message->msg_controllen = 0;
    message->msg_flags = 0;
    return answer(Network::active()->receive_bytes(*file, message->msg_iov, message->msg_iovlen));
}
ssize_t recv(int fd, void* bytes, size_t size, int flags) {
    const std::shared_ptr<File> file = ours(fd);
    const iovec part{bytes, size};
    return file == nullptr ? syscall(SYS_recvfrom, fd, bytes, size, flags, nullptr, nullptr)
                           : answer(Network::active()->receive_bytes(*file, &part, 1));
}

// ---- waiting ---------------------------------------------------------------------------------

int poll(pollfd* entries, nfds_t count, int timeout_ms) {
    // The header promises that poll() only writes to the entries, which holds for no field but one.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
    if (in_fiber() && (count == 0 || Network::is_ours(entries[0].fd))) {
        return poll_ours(entries, count, timeout_ms);
    }
    const timespec patience{timeout_ms / 1000, timeout_ms % 1000 * 1'000'000l};
    return static_cast<int>(
        syscall(SYS_ppoll, entries, count, timeout_ms < 0 ? nullptr : &patience, nullptr, 8));
}
int epoll_create1(int flags) noexcept {
    return in_fiber() ? Network::active()->open_file(File::Kind::kEpoll)
                      : static_cast<int>(syscall(SYS_epoll_create1, flags));
}
int epoll_ctl(int fd, int operation, int watched_fd, epoll_event* event) noexcept {
    const std::shared_ptr<File> epoll = ours(fd);
    if (epoll == nullptr) {
        return static_cast<int>(syscall(SYS_epoll_ctl, fd, operation, watched_fd, event));
    }
    const std::shared_ptr<File> watched = ours(watched_fd);
    if (watched == nullptr) {
        return answer(-EBADF);
    }
    if (operation == EPOLL_CTL_DEL) {
        epoll->interest.erase(watched_fd);
        watched->epolls.erase(fd);
    } else {
        epoll->interest[watched_fd] = *event;
        watched->epolls.insert(fd);
        Network::active()->notify(*epoll);
    }
    return 0;
}
int epoll_wait(int fd, epoll_event* events, int max, int timeout_ms) {
    const std::shared_ptr<File> file = ours(fd);
    return file == nullptr
               ? static_cast<int>(syscall(SYS_epoll_pwait, fd, events, max, timeout_ms, nullptr, 8))
               : Network::active()->wait_events(*file, events, max, timeout_ms);
}
int eventfd(unsigned int initial, int flags) noexcept {
    return in_fiber() ? Network::active()->open_file(File::Kind::kEvent)
                      : static_cast<int>(syscall(SYS_eventfd2, initial, flags));
}

ssize_t read(int fd, void* bytes, size_t size) {
    const std::shared_ptr<File> file = ours(fd);
    if (file == nullptr) {
        return syscall(SYS_read, fd, bytes, size);
    }
    if (file->counter == 0) {
        return answer<ssize_t>(-EAGAIN);
    }
    std::memcpy(bytes, &file->counter, sizeof file->counter);
    file->counter = 0;
    return sizeof file->counter;
}
ssize_t write(int fd, const void* bytes, size_t size) {
    const std::shared_ptr<File> file = ours(fd);
    if (file == nullptr) {
        return syscall(SYS_write, fd, bytes, size);
    }
    uint64_t count = 0;
    std::memcpy(&count, bytes, sizeof count);
    file->counter += count;
    Network::active()->notify(*file);
    return sizeof count;
}
int close(int fd) {
    return simulated() && Network::is_ours(fd) ? answer(Network::active()->close_fd(fd))
                                               : static_cast<int>(syscall(SYS_close, fd));
}

// ---- time and chance -------------------------------------------------------------------------

int clock_gettime(clockid_t clock, timespec* out) noexcept {
    if (Runtime::active() == nullptr) {
        return static_cast<int>(syscall(SYS_clock_gettime, clock, out));
    }
    const uint64_t now = Runtime::active()->now_ns() + (clock == CLOCK_REALTIME ? kWallBaseNs : 0);
    out->tv_sec = static_cast<time_t>(now / kSecond);
    out->tv_nsec = static_cast<long>(now % kSecond);
    return 0;
}
time_t time(time_t* out) noexcept {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    if (out != nullptr) {
        *out = now.tv_sec;
    }
    return now.tv_sec;
}
int nanosleep(const timespec* duration, timespec*) {
    if (!in_fiber()) {
        return static_cast<int>(syscall(SYS_nanosleep, duration, nullptr));
    }
    Runtime::active()->sleep_ns(static_cast<uint64_t>(duration->tv_sec) * kSecond +
                                static_cast<uint64_t>(duration->tv_nsec));
    return 0;
}
// Simulated descriptors lie above any limit of this process.
int getrlimit(__rlimit_resource_t resource, rlimit* limit) noexcept {
    const bool is_ours = in_fiber() && resource == RLIMIT_NOFILE;
    if (!is_ours) {
        return static_cast<int>(syscall(SYS_prlimit64, 0, resource, nullptr, limit));
    }
    *limit = {RLIM_INFINITY, RLIM_INFINITY};
    return 0;
}
ssize_t getrandom(void* bytes, size_t size, unsigned int flags) {
    if (Runtime::active() == nullptr) {
        return syscall(SYS_getrandom, bytes, size, flags);
    }
    auto* out = static_cast<uint8_t*>(bytes);
    for (size_t i = 0; i < size; ++i) {
        out[i] = static_cast<uint8_t>(Runtime::active()->random().next());
    }
    return static_cast<ssize_t>(size);
}

}  // extern "C"
