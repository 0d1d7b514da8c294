// Streams, partitions, readiness.
#include "network.h"

#include <errno.h>

#include <algorithm>
#include <cstring>

#include "wire/frame.h"

namespace kvstore::sim {
namespace {

constexpr uint64_t kLateResetNs = 6 * kSecond;

// "AnnounceReply" for a chunk that begins with a frame's header.
std::string first_message(const std::string& bytes) {
    uint32_t body_bytes = 0;
    uint16_t type = 0;
    if (bytes.size() < kFrameHeaderBytes) {
        return "-";
    }
    std::memcpy(&body_bytes, bytes.data(), sizeof body_bytes);
    std::memcpy(&type, bytes.data() + 4, sizeof type);
    const std::string_view name = message_type_name(type);
    return name.empty() ? "-" : std::string(name);
}

}  // namespace

Network* Network::active_ = nullptr;

std::string Network::name_of(Host host) const {
    const auto found = names_.find(host);
    return found == names_.end() ? "?" : found->second;
}

// ---- processes -------------------------------------------------------------------------------

Process Network::start_process(Host host, std::string name) {
    const Process process = next_process_++;
    hosts_[process] = host;
    names_[host] = std::move(name);
    return process;
}

void Network::kill(Process process, bool silent) {
    dead_.insert(process);
    ++disturbances_;
    runtime_.log("kill %s%s", name_of(hosts_.at(process)).c_str(), silent ? " silently" : "");
    for (size_t i = 0; i < files_.size(); ++i) {
        const std::shared_ptr<File> file = files_[i];
        if (file == nullptr || file->process != process) {
            continue;
        }
        if (file->kind == File::Kind::kListener) {
            listeners_.erase({file->host, file->port});
            for (const std::shared_ptr<File>& waiting : file->backlog) {
                break_stream(waiting->stream, "its listener died");
            }
        } else if (file->kind == File::Kind::kStream) {
            break_stream(file->stream, "its process died", !silent);
            file->state = File::State::kBroken;
        }
        notify(*file);
    }
}

// ---- faults ----------------------------------------------------------------------------------

uint64_t Network::message_delay_ns() {
    Random& random = runtime_.random();
    if (random.chance(options.slow_permille)) {
        return random.between(options.delay_max_ns, options.slow_max_ns);
    }
    return random.between(options.delay_min_ns, options.delay_max_ns);
}

void Network::partition(Host a, Host b, bool break_streams) {
    cuts_.insert(std::minmax(a, b));
    ++disturbances_;
    runtime_.log("partition %s | %s%s", name_of(a).c_str(), name_of(b).c_str(),
                 break_streams ? ", streams break" : "");
    if (!break_streams) {
        return;
    }
    for (const auto& [id, weak] : std::map(streams_)) {
        const std::shared_ptr<Stream> stream = weak.lock();
        if (stream != nullptr && std::minmax(stream->hosts[0], stream->hosts[1]) ==
                                     std::pair<const Host&, const Host&>(std::minmax(a, b))) {
            break_stream(stream, "partition");
        }
    }
}

void Network::heal_all() {
    if (cuts_.empty()) {
        return;
    }
    runtime_.log("heal");
    cuts_.clear();
    ++disturbances_;
    for (const auto& [id, weak] : std::map(streams_)) {
        if (const std::shared_ptr<Stream> stream = weak.lock()) {
            for (const int to : {0, 1}) {
                runtime_.at(runtime_.now_ns() + message_delay_ns(),
                            [this, stream, to] { pump(stream, to); });
            }
        }
    }
}

bool Network::break_one(Host a, Host b) {
    std::vector<std::shared_ptr<Stream>> candidates;
    for (const auto& [id, weak] : streams_) {
        const std::shared_ptr<Stream> stream = weak.lock();
        if (stream != nullptr && !stream->broken && stream->ends[1].lock() != nullptr &&
            std::minmax(stream->hosts[0], stream->hosts[1]) ==
                std::pair<const Host&, const Host&>(std::minmax(a, b))) {
            candidates.push_back(stream);
        }
    }
    if (candidates.empty()) {
        return false;
    }
    break_stream(runtime_.random().pick(candidates), "fault");
    return true;
}

// The ends learn of it one after the other, or late; what is on its way is lost.
void Network::break_stream(const std::shared_ptr<Stream>& stream, const char* why, bool tell) {
    if (stream == nullptr || stream->broken) {
        return;
    }
    stream->broken = true;
    ++disturbances_;
    runtime_.log("break #%llu %s-%s: %s", static_cast<unsigned long long>(stream->id),
                 name_of(stream->hosts[0]).c_str(), name_of(stream->hosts[1]).c_str(), why);
    Random& random = runtime_.random();
    for (const int side : {0, 1}) {
        Stream::Direction& direction = stream->to[side];
        // Some of the tail may have arrived.
        const size_t kept = random.chance(500) ? 0 : random.below(direction.queue.size() + 1);
        direction.queue.resize(is_cut(stream->hosts[0], stream->hosts[1]) ? 0 : kept);
        const bool late = !tell || random.chance(200);
        reset_end(
            stream, side,
            runtime_.now_ns() + (late ? random.between(kMs, kLateResetNs) : message_delay_ns()));
    }
}

void Network::reset_end(const std::shared_ptr<Stream>& stream, int side, uint64_t at_ns) {
    runtime_.at(at_ns, [this, stream, side] {
        stream->to[side].queue.clear();
        const std::shared_ptr<File> end = stream->ends[side].lock();
        if (end == nullptr || end->state == File::State::kBroken) {
            return;
        }
        if (end->state == File::State::kConnecting) {
            end->error = ECONNREFUSED;
        } else {
            end->error = ECONNRESET;
        }
        end->state = File::State::kBroken;
        notify(*end);
    });
}

size_t Network::half_broken() const {
    return static_cast<size_t>(
        std::count_if(streams_.begin(), streams_.end(), [this](const auto& entry) {
            const std::shared_ptr<Stream> stream = entry.second.lock();
            return stream != nullptr && stream->broken &&
                   std::any_of(std::begin(stream->ends), std::end(stream->ends),
                               [&](const auto& end) {
                                   const std::shared_ptr<File> file = end.lock();
                                   return file != nullptr && file->state != File::State::kBroken &&
                                          !is_dead(file->process);
                               });
        }));
}

// ---- descriptors -----------------------------------------------------------------------------

int Network::open_file(File::Kind kind) {
    auto file = std::make_shared<File>();
    file->kind = kind;
    file->fd = kFirstFd + static_cast<int>(files_.size());
    file->process = runtime_.process();
    const auto host = hosts_.find(file->process);
    file->host = host == hosts_.end() ? 0 : host->second;
    files_.push_back(file);
    return file->fd;
}

std::shared_ptr<File> Network::file(int fd) {
    const auto index = static_cast<size_t>(fd - kFirstFd);
    return index < files_.size() ? files_[index] : nullptr;
}

int Network::close_fd(int fd) {
    const std::shared_ptr<File> closing = file(fd);
    if (closing == nullptr) {
        return -EBADF;
    }
    closing->closed = true;
    for (const int epoll : closing->epolls) {
        if (const std::shared_ptr<File> watcher = file(epoll)) {
            watcher->interest.erase(fd);
        }
    }
    if (closing->kind == File::Kind::kListener) {
        const auto at = listeners_.find({closing->host, closing->port});
        if (at != listeners_.end() && at->second.process == closing->process) {
            listeners_.erase(at);
        }
        for (const std::shared_ptr<File>& waiting : closing->backlog) {
            break_stream(waiting->stream, "its listener closed");
        }
    }
    if (closing->kind == File::Kind::kStream && closing->stream != nullptr && !dead_here()) {
        if (!closing->writing_shut && closing->state == File::State::kOpen) {
            enqueue(closing->stream, 1 - closing->side, {}, true);
        } else if (closing->state == File::State::kConnecting) {
            break_stream(closing->stream, "given up while connecting");
        }
    }
    notify(*closing);
    files_[static_cast<size_t>(fd - kFirstFd)] = nullptr;
    return 0;
}

void Network::notify(File& file) {
    std::vector<Fiber*> pollers;
    pollers.swap(file.pollers);
    for (Fiber* fiber : pollers) {
        runtime_.wake_fiber(fiber);
    }
    for (const int epoll : file.epolls) {
        if (const std::shared_ptr<File> watcher = this->file(epoll)) {
            notify(*watcher);
        }
    }
}

void Network::stop_waiting(File& file) { std::erase(file.pollers, runtime_.current()); }

uint32_t Network::readiness(const File& file) const {
    uint32_t ready = 0;
    switch (file.kind) {
        case File::Kind::kEvent:
            return file.counter != 0 ? uint32_t{EPOLLIN} : 0;
        case File::Kind::kListener:
            return file.backlog.empty() ? 0 : uint32_t{EPOLLIN};
        case File::Kind::kStream:
            if (file.state == File::State::kBroken) {
                return EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP;
            }
            if (file.state == File::State::kConnecting) {
                return 0;
            }
            if (file.input_begin != file.input.size() || file.input_ended || file.reading_shut) {
                ready |= EPOLLIN;
            }
            if (file.stream->to[1 - file.side].queued_bytes < options.window_bytes) {
                ready |= EPOLLOUT;
            }
            return ready;
        default:
            return 0;
    }
}

int Network::wait_events(File& epoll, epoll_event* out, int max, int timeout_ms) {
    runtime_.count_call();
    const uint64_t until_ns =
        timeout_ms < 0 ? kNever : runtime_.now_ns() + static_cast<uint64_t>(timeout_ms) * kMs;
    for (;;) {
        int count = 0;
        for (const auto& [fd, event] : epoll.interest) {
            const std::shared_ptr<File> watched = file(fd);
            const uint32_t ready =
                watched == nullptr ? 0 : readiness(*watched) & (event.events | EPOLLERR | EPOLLHUP);
            if (ready != 0 && count < max) {
                out[count].events = ready;
                out[count].data = event.data;
                ++count;
            }
        }
        if (count != 0 || runtime_.now_ns() >= until_ns) {
            return count;
        }
        epoll.pollers.push_back(runtime_.current());
        runtime_.block(nullptr, until_ns);
        stop_waiting(epoll);
    }
}

// ---- connections -----------------------------------------------------------------------------

int Network::bind_to(File& socket, const sockaddr_in& address) {
    socket.port = ntohs(address.sin_port) != 0 ? ntohs(address.sin_port) : next_port_++;
    return listeners_.contains({socket.host, socket.port}) ? -EADDRINUSE : 0;
}

int Network::listen_at(const std::shared_ptr<File>& socket) {
    socket->kind = File::Kind::kListener;
    listeners_[{socket->host, socket->port}] = {socket, socket->process};
    return 0;
}

int Network::connect_to(const std::shared_ptr<File>& socket, const sockaddr_in& address) {
    if (dead_here()) {
        return -ENETDOWN;
    }
    auto stream = std::make_shared<Stream>();
    stream->id = next_stream_++;
    stream->ends[0] = socket;
    stream->hosts[0] = socket->host;
    stream->hosts[1] = ntohl(address.sin_addr.s_addr) & 0xff;
    streams_[stream->id] = stream;
    socket->kind = File::Kind::kStream;
    socket->state = File::State::kConnecting;
    socket->stream = stream;
    socket->side = 0;
    if (!runtime_.random().chance(options.refuse_permille)) {
        const uint16_t port = ntohs(address.sin_port);
        runtime_.at(runtime_.now_ns() + message_delay_ns(),
                    [this, stream, port] { arrive_connection(stream, port); });
    }
    return -EINPROGRESS;
}

void Network::arrive_connection(const std::shared_ptr<Stream>& stream, uint16_t port) {
    const std::shared_ptr<File> from = stream->ends[0].lock();
    if (from == nullptr || stream->broken) {
        return;
    }
    if (is_cut(stream->hosts[0], stream->hosts[1])) {  // the request is sent again, as TCP does
        runtime_.at(runtime_.now_ns() + 500 * kMs,
                    [this, stream, port] { arrive_connection(stream, port); });
        return;
    }
    const auto listener = listeners_.find({stream->hosts[1], port});
    const std::shared_ptr<File> at =
        listener == listeners_.end() ? nullptr : listener->second.file.lock();
    if (at == nullptr) {
        from->error = ECONNREFUSED;
        from->state = File::State::kBroken;
        stream->broken = true;
        return notify(*from);
    }
    auto accepted = std::make_shared<File>();
    accepted->kind = File::Kind::kStream;
    accepted->process = listener->second.process;
    accepted->host = stream->hosts[1];
    accepted->port = port;
    accepted->stream = stream;
    accepted->side = 1;
    stream->ends[1] = accepted;
    at->backlog.push_back(accepted);
    notify(*at);
    runtime_.at(runtime_.now_ns() + message_delay_ns(), [this, stream] {
        const std::shared_ptr<File> end = stream->ends[0].lock();
        if (end != nullptr && end->state == File::State::kConnecting && !stream->broken) {
            end->state = File::State::kOpen;
            notify(*end);
        }
    });
}

int Network::accept_from(File& listener) {
    if (listener.backlog.empty()) {
        return -EAGAIN;
    }
    const std::shared_ptr<File> accepted = listener.backlog.front();
    listener.backlog.pop_front();
    accepted->fd = kFirstFd + static_cast<int>(files_.size());
    files_.push_back(accepted);
    return accepted->fd;
}

// ---- bytes -----------------------------------------------------------------------------------

ssize_t Network::send_bytes(File& socket, const iovec* parts, size_t count) {
    if (dead_here() || socket.state == File::State::kBroken || socket.writing_shut) {
        return socket.error == ECONNRESET ? -ECONNRESET : -EPIPE;
    }
    if (socket.state == File::State::kConnecting) {
        return -EAGAIN;
    }
    const std::shared_ptr<Stream> stream = socket.stream;
    Stream::Direction& direction = stream->to[1 - socket.side];
    if (direction.queued_bytes >= options.window_bytes) {
        return -EAGAIN;
    }
    std::string bytes;
    for (size_t i = 0; i < count; ++i) {
        bytes.append(static_cast<const char*>(parts[i].iov_base), parts[i].iov_len);
    }
    bytes.resize(std::min(bytes.size(), options.window_bytes - direction.queued_bytes));
    const auto sent = static_cast<ssize_t>(bytes.size());
    runtime_.log("send #%llu %s>%s %s %zu", static_cast<unsigned long long>(stream->id),
                 name_of(stream->hosts[socket.side]).c_str(),
                 name_of(stream->hosts[1 - socket.side]).c_str(), first_message(bytes).c_str(),
                 bytes.size());
    direction.queued_bytes += bytes.size();
    Random& random = runtime_.random();
    if (random.below(1'000'000) < options.break_ppm) {
        enqueue(stream, 1 - socket.side, std::move(bytes), false);
        break_stream(stream, "lost");
        return sent;
    }
    if (bytes.size() > 1 && random.chance(options.split_permille)) {
        const size_t head = random.between(1, bytes.size() - 1);
        std::string tail = bytes.substr(head);
        bytes.resize(head);
        enqueue(stream, 1 - socket.side, std::move(bytes), false);
        bytes = std::move(tail);
    }
    enqueue(stream, 1 - socket.side, std::move(bytes), false);
    return sent;
}

void Network::enqueue(const std::shared_ptr<Stream>& stream, int to, std::string bytes, bool end) {
    if (stream->broken) {
        return;  // sent into the void: the sender does not know yet
    }
    Stream::Direction& direction = stream->to[to];
    const uint64_t after = direction.queue.empty() ? 0 : direction.queue.back().at_ns;
    const uint64_t at_ns = std::max(after, runtime_.now_ns() + message_delay_ns());
    direction.queue.push_back({at_ns, std::move(bytes), end});
    runtime_.at(at_ns, [this, stream, to] { pump(stream, to); });
}

void Network::pump(const std::shared_ptr<Stream>& stream, int to) {
    Stream::Direction& direction = stream->to[to];
    if (is_cut(stream->hosts[0], stream->hosts[1])) {
        return;  // until it heals
    }
    const std::shared_ptr<File> end = stream->ends[to].lock();
    bool moved = false;
    while (!direction.queue.empty() && direction.queue.front().at_ns <= runtime_.now_ns()) {
        Stream::Chunk chunk = std::move(direction.queue.front());
        direction.queue.pop_front();
        if (end == nullptr || end->closed || end->state == File::State::kBroken) {
            if (!chunk.bytes.empty()) {
                break_stream(stream, "sent to a closed end");
            }
            return;
        }
        end->input += chunk.bytes;
        end->input_ended = end->input_ended || chunk.end;
        moved = true;
    }
    if (moved) {
        notify(*end);
    }
}

ssize_t Network::receive_bytes(File& socket, const iovec* parts, size_t count) {
    runtime_.count_call();
    if (dead_here()) {
        return -ECONNRESET;
    }
    size_t taken = 0;
    for (size_t i = 0; i < count && socket.input_begin != socket.input.size(); ++i) {
        const size_t step = std::min(parts[i].iov_len, socket.input.size() - socket.input_begin);
        std::memcpy(parts[i].iov_base, socket.input.data() + socket.input_begin, step);
        socket.input_begin += step;
        taken += step;
    }
    if (taken != 0) {
        if (socket.input_begin == socket.input.size()) {
            socket.input.clear();
            socket.input_begin = 0;
        }
        Stream::Direction& direction = socket.stream->to[socket.side];
        const bool was_full = direction.queued_bytes >= options.window_bytes;
        direction.queued_bytes -= std::min(direction.queued_bytes, taken);
        if (was_full) {
            if (const std::shared_ptr<File> sender = socket.stream->ends[1 - socket.side].lock()) {
                notify(*sender);
            }
        }
        return static_cast<ssize_t>(taken);
    }
    if (socket.state == File::State::kBroken) {
        return socket.error == 0 ? -ECONNRESET : -socket.error;
    }
    return socket.input_ended || socket.reading_shut ? 0 : -EAGAIN;
}

int Network::shut(File& socket, bool reading, bool writing) {
    if (socket.kind != File::Kind::kStream || socket.stream == nullptr) {
        return -ENOTCONN;
    }
    socket.reading_shut = socket.reading_shut || reading;
    if (writing && !socket.writing_shut) {
        socket.writing_shut = true;
        if (!dead_here() && socket.state == File::State::kOpen) {
            enqueue(socket.stream, 1 - socket.side, {}, true);
        }
    }
    notify(socket);
    return 0;
}

}  // namespace kvstore::sim
