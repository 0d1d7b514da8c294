// Registers the segment slice by slice, lets peers read it, and fetches what they put.
#include "ucx/ucx_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <deque>
#include <list>
#include <memory>
#include <vector>

#include "base/checksum.h"
#include "base/clock.h"
#include "net/socket.h"
#include "ucx/ucx_worker.h"
#include "wire/messages.h"
#include "wire/ucx_places.h"

namespace kvstore {
namespace {

constexpr size_t kReadsAtOnce = 256;  // of all pulls together
constexpr size_t kKeptEndpoints = 512;
constexpr uint32_t kFrameMs = 10'000;  // for the node to finish a frame that it has begun

// Fetches for one put. It has no deadline here: a read in progress ends when its bytes are there or
// its connection breaks, and until then its block belongs to nobody else. (UCX aborts when a
// connection is closed while it is being made.) The node does not wait for it.
struct Pull {
    struct Part {
        size_t row = 0;
        uint64_t offset = 0;
        uint64_t address = 0;
        uint64_t size = 0;
        uint32_t key = 0;
        UcxRead read;
        bool posted = false;
    };
    uint64_t request = 0;
    std::string worker;
    std::vector<std::string> keys;
    std::vector<uint64_t> offsets;
    std::vector<uint64_t> sizes;
    std::vector<int32_t> status;
    std::deque<Part> parts;
    size_t next = 0;     // part to be posted
    size_t reading = 0;  // posted and not done
};

class UcxProcess {
  public:
    UcxProcess(Fd socket, Mapping segment, const UcxProcessOptions& options)
        : socket_(std::move(socket)), segment_(std::move(segment)), options_(options) {}
    ~UcxProcess();
    Status open();
    Status run();

  private:
    struct Peer {
        std::string address;
        std::unique_ptr<UcxEndpoint> endpoint;
        size_t pulls = 0;
    };
    using Peers = std::list<Peer>;

    template <class Message>
    Status send(const Message& message, uint64_t request_id = 0);
    Status take_frame(bool* closed);
    Status register_next();
    bool may_register() const;
    void begin_pull(const UcxPull& message, uint64_t request);
    void add_parts(Pull& pull, size_t row, std::span<const UcxPiece> pieces);
    void post(Pull& pull);
    Status advance_pulls();
    Status finish(Pull& pull);
    Peers::iterator find_peer(const std::string& address);
    Peer* peer(const std::string& address);
    void drop(const std::string& address);

    Fd socket_;
    Mapping segment_;
    const UcxProcessOptions options_;
    std::shared_ptr<UcxContext> context_;
    std::vector<std::unique_ptr<UcxMemory>> slices_;
    std::unique_ptr<UcxWorker> worker_;
    Peers peers_;  // last used first
    std::list<Pull> pulls_;
    size_t reads_ = 0;  // in progress, of all
    uint64_t ready_bytes_ = 0;
    uint64_t registered_bytes_ = 0;
    bool full_ = false;  // no more can be registered
    std::vector<uint8_t> body_;
};

UcxProcess::~UcxProcess() {
    for (Peer& one : peers_) {
        worker_->close(std::move(one.endpoint));
    }
}

Status UcxProcess::open() {
    Result<std::shared_ptr<UcxContext>> context = UcxContext::open(options_.ucx);
    if (!context.ok()) {
        return context.status();
    }
    context_ = std::move(*context);
    Result<std::unique_ptr<UcxWorker>> worker = UcxWorker::create(context_);
    if (!worker.ok()) {
        return worker.status();
    }
    worker_ = std::move(*worker);
    UcxReady ready;
    ready.worker = worker_->address();
    const std::string library = context_->library().path + ", " + context_->library().version;
    ready.library = library;
    return send(ready);
}

// ---- the node --------------------------------------------------------------------------------

template <class Message>
Status UcxProcess::send(const Message& message, uint64_t request_id) {
    body_.clear();
    encode_message(message, body_);
    const FrameHeaderBytes head = encode_header({.body_bytes = static_cast<uint32_t>(body_.size()),
                                                 .type = static_cast<uint16_t>(Message::kType),
                                                 .request_id = request_id});
    const iovec parts[2] = {{const_cast<uint8_t*>(head.data()), head.size()},
                            {body_.data(), body_.size()}};
    return send_all(socket_.get(), parts, Deadline::after_ms(kFrameMs));
}

Status UcxProcess::take_frame(bool* closed) {
    const Deadline deadline = Deadline::after_ms(kFrameMs);
    FrameHeaderBytes head;
    Status status = recv_all(socket_.get(), head, deadline);
    if (status.code() == Code::kClosed) {
        *closed = true;
        return {};
    }
    FrameHeader header;
    if (status.ok()) {
        status = decode_header(head, &header);
    }
    if (!status.ok()) {
        return status;
    }
    std::vector<uint8_t> body(header.body_bytes);
    status = recv_all(socket_.get(), std::span<uint8_t>(body), deadline);
    if (!status.ok()) {
        return status;
    }
    UcxGrow grow;
    UcxPull pull;
    switch (header.message()) {
        case MessageType::kUcxGrow:
            status = decode_message(body, &grow);
            ready_bytes_ = std::min(std::max(ready_bytes_, grow.ready_bytes), segment_.size());
            return status;
        case MessageType::kUcxPull:
            status = decode_message(body, &pull);
            if (status.ok()) {
                begin_pull(pull, header.request_id);
            }
            return status;
        default:
            return {};  // of a later build of the node
    }
}

// ---- registration ----------------------------------------------------------------------------

bool UcxProcess::may_register() const {
    const uint64_t end = std::min(registered_bytes_ + options_.slice_bytes, segment_.size());
    return !full_ && registered_bytes_ < segment_.size() && ready_bytes_ >= end;
}

Status UcxProcess::register_next() {
    uint8_t* const begin = segment_.data() + registered_bytes_;
    const uint64_t bytes = std::min(options_.slice_bytes, segment_.size() - registered_bytes_);
    UcxSlice message;
    Result<std::unique_ptr<UcxMemory>> slice = context_->register_memory(begin, bytes);
    if (!slice.ok()) {
        full_ = true;
        const std::string why = slice.status().message();
        message.text = why;
        return send(message);
    }
    message.offset = registered_bytes_;
    message.size = bytes;
    message.address = reinterpret_cast<uintptr_t>(begin);
    message.key = (*slice)->key();
    slices_.push_back(std::move(*slice));
    registered_bytes_ += bytes;
    return send(message);
}

// ---- pulls -----------------------------------------------------------------------------------

UcxProcess::Peers::iterator UcxProcess::find_peer(const std::string& address) {
    return std::ranges::find(peers_, address, &Peer::address);
}

UcxProcess::Peer* UcxProcess::peer(const std::string& address) {
    const auto at = find_peer(address);
    if (at != peers_.end() && (!at->endpoint->failed() || at->pulls != 0)) {
        peers_.splice(peers_.begin(), peers_, at);
        return &peers_.front();
    }
    if (at != peers_.end()) {
        worker_->close(std::move(at->endpoint));
        peers_.erase(at);
    }
    if (peers_.size() >= kKeptEndpoints && peers_.back().pulls == 0) {
        worker_->close(std::move(peers_.back().endpoint));
        peers_.pop_back();
    }
    Result<std::unique_ptr<UcxEndpoint>> endpoint = worker_->connect(address);
    if (!endpoint.ok()) {
        return nullptr;
    }
    peers_.push_front({address, std::move(*endpoint), 0});
    return &peers_.front();
}

void UcxProcess::begin_pull(const UcxPull& message, uint64_t request) {
    Pull& pull = pulls_.emplace_back();
    pull.request = request;
    pull.worker = message.worker;
    for (const std::string_view key : message.memory_keys) {
        pull.keys.emplace_back(key);
    }
    pull.offsets.assign(message.offsets.begin(), message.offsets.end());
    pull.sizes.assign(message.sizes.begin(), message.sizes.end());
    pull.status.assign(message.offsets.size(), static_cast<int32_t>(Code::kOk));
    pull.sizes.resize(pull.offsets.size());
    Peer* const from = peer(pull.worker);
    if (from != nullptr) {
        ++from->pulls;
    }
    const Result<UcxPlaces> places = UcxPlaces::of(message);
    for (size_t row = 0; row < pull.offsets.size(); ++row) {
        const bool inside = pull.offsets[row] <= registered_bytes_ &&
                            pull.sizes[row] <= registered_bytes_ - pull.offsets[row];
        if (from == nullptr || !inside || !places.ok()) {
            pull.status[row] = static_cast<int32_t>(Code::kUnavailable);
        } else {
            add_parts(pull, row, places->row(row));
        }
    }
    post(pull);
}

// A block may reach over the end of a slice.
void UcxProcess::add_parts(Pull& pull, size_t row, std::span<const UcxPiece> pieces) {
    uint64_t offset = pull.offsets[row];
    for (const UcxPiece& piece : pieces) {
        for (uint64_t done = 0; done < piece.bytes;) {
            const uint64_t slice_end = (offset / options_.slice_bytes + 1) * options_.slice_bytes;
            const uint64_t size = std::min(piece.bytes - done, slice_end - offset);
            pull.parts.push_back({row, offset, piece.address + done, size, piece.key, {}, false});
            offset += size;
            done += size;
        }
    }
}

void UcxProcess::post(Pull& pull) {
    const auto from = find_peer(pull.worker);
    for (; pull.next < pull.parts.size() && reads_ < kReadsAtOnce; ++pull.next) {
        Pull::Part& part = pull.parts[pull.next];
        worker_->read(*from->endpoint, pull.keys[part.key], part.address,
                      segment_.data() + part.offset, part.size,
                      *slices_[part.offset / options_.slice_bytes], &part.read);
        part.posted = true;
        ++pull.reading;
        ++reads_;
    }
}

// Everything in progress over this connection ends.
void UcxProcess::drop(const std::string& address) {
    const auto at = find_peer(address);
    if (at == peers_.end()) {
        return;
    }
    worker_->close(std::move(at->endpoint));
    peers_.erase(at);
    for (Pull& pull : pulls_) {
        if (pull.worker == address) {
            for (; pull.next < pull.parts.size(); ++pull.next) {
                pull.status[pull.parts[pull.next].row] = static_cast<int32_t>(Code::kUnavailable);
            }
        }
    }
}

Status UcxProcess::advance_pulls() {
    for (Pull& pull : pulls_) {
        const auto from = find_peer(pull.worker);
        if (from != peers_.end() && from->endpoint->failed()) {
            drop(pull.worker);
        }
    }
    for (auto at = pulls_.begin(); at != pulls_.end();) {
        Pull& pull = *at;
        for (Pull::Part& part : pull.parts) {
            if (part.posted && part.read.done) {
                part.posted = false;
                --pull.reading;
                --reads_;
                if (part.read.status != ucp::kOk) {
                    pull.status[part.row] = static_cast<int32_t>(Code::kUnavailable);
                }
            }
        }
        if (pull.next < pull.parts.size()) {
            post(pull);
        }
        if (pull.next < pull.parts.size() || pull.reading != 0) {
            ++at;
            continue;
        }
        if (const Status status = finish(pull); !status.ok()) {
            return status;
        }
        at = pulls_.erase(at);
    }
    return {};
}

Status UcxProcess::finish(Pull& pull) {
    const auto from = find_peer(pull.worker);
    if (from != peers_.end() && from->pulls != 0) {
        --from->pulls;
    }
    std::vector<uint32_t> crcs(pull.status.size(), 0);
    for (size_t row = 0; row < crcs.size(); ++row) {
        if (pull.status[row] == static_cast<int32_t>(Code::kOk)) {
            crcs[row] = crc32c(segment_.data() + pull.offsets[row], pull.sizes[row]);
        }
    }
    UcxPulled message;
    message.status = pull.status;
    message.crcs = crcs;
    return send(message, pull.request);
}

// ---- the loop --------------------------------------------------------------------------------

Status UcxProcess::run() {
    while (true) {
        worker_->progress_all();
        if (const Status status = advance_pulls(); !status.ok()) {
            return status;
        }
        if (may_register()) {
            if (const Status status = register_next(); !status.ok()) {
                return status;
            }
        }
        pollfd entries[2] = {{socket_.get(), POLLIN, 0}, {worker_->event_fd(), POLLIN, 0}};
        const bool at_once = may_register() || !worker_->arm();
        if (poll(entries, 2, at_once ? 0 : -1) < 0 && errno != EINTR) {
            return {Code::kIoError, "poll failed"};
        }
        bool closed = false;
        if (entries[0].revents != 0) {
            const Status status = take_frame(&closed);
            if (!status.ok() || closed) {
                return status;
            }
        }
    }
}

Status lock(int segment) {
    struct flock whole{};
    whole.l_type = F_WRLCK;
    whole.l_whence = SEEK_SET;
    if (fcntl(segment, F_SETLK, &whole) != 0) {
        return {Code::kUnavailable, "the segment is locked by another UCX process"};
    }
    return {};
}

}  // namespace

Status run_ucx_process(Fd socket, Fd segment, const UcxProcessOptions& options) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct stat info{};
    if (fstat(segment.get(), &info) != 0 || info.st_size <= 0) {
        return {Code::kInvalidArgument, "the segment has no size"};
    }
    if (const Status status = lock(segment.get()); !status.ok()) {
        return status;
    }
    Result<Mapping> mapping =
        Mapping::map(segment.get(), static_cast<uint64_t>(info.st_size), true);
    if (!mapping.ok()) {
        return mapping.status();
    }
    UcxProcess process(std::move(socket), std::move(*mapping), options);
    const Status status = process.open();
    return status.ok() ? process.run() : status;
}

}  // namespace kvstore
